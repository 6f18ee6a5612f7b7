"""Reads numbers and norms of two tiny models' layers as quantities over configuration keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from trtllm_scaffold.infer.evidence import Witnesses
from trtllm_scaffold.infer.keys import SYNONYMS
from trtllm_scaffold.infer.kinds import Kind
from trtllm_scaffold.infer.layer_configs import OwnSizes, own_sizes_of
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.quantity import Fitter
from trtllm_scaffold.infer.trace import LayerFacts, Observation
from trtllm_scaffold.spec import NormGateSpec, NormSpec, Quantity

#: Relative error of numbers that were solved for, not read.
MEASURED = 1e-3

_Own = TypeVar("_Own", bound="Builder")


@dataclass(frozen=True, repr=False)
class Builder:
    """Reads observations whose structure agrees.

    Attributes:
        observations: One per tiny configuration.
        fitter: Attributes numbers to configuration keys.
        witnesses: Gathers the evidence.
        picks: For each observation the layer to read; the first where empty.
        own: Where layers have numbers of their own, which `fitter` reads then.
    """

    observations: Sequence[Observation]
    fitter: Fitter
    witnesses: Witnesses
    picks: tuple[int, ...] = ()
    own: OwnSizes | None = None

    @property
    def first(self) -> LayerFacts:
        """The layer to read of the first observation."""
        return self.at(self.observations[0])

    def at(self, observation: Observation) -> LayerFacts:
        """The layer to read of an observation."""
        picks = dict(zip(map(id, self.observations), self.picks, strict=False))
        return observation.layers[picks.get(id(observation), 0)]

    def fit(
        self,
        fact: str,
        read: Callable[[Observation], int | float],
        *,
        where: str = "",
        hints: Sequence[str] = (),
        rtol: float = 1e-5,
    ) -> Quantity:
        """Attribute a number that `read` takes from each observation.

        Raises:
            Refused: No key explains it.
        """
        seen = tuple(read(observation) for observation in self.observations)
        found = self.fitter.fit(fact, seen, hints=hints, rtol=rtol)
        if self.own is not None:
            found = self.own.written(found)
        self.witnesses.quantity(fact, where or self.first.layer.name, seen, found)
        return found

    def of(self: _Own, kind: Kind) -> _Own:
        """The builder that reads layers of this kind."""
        real, layers = self.fitter.real_config, kind.layers or (0,)
        own = own_sizes_of(real)
        if own is None:
            return replace(self, picks=kind.picks)
        own.check_alike(real, layers)
        configs = [
            own.config(o.config, pick)
            for o, pick in zip(self.observations, kind.picks, strict=True)
        ]
        fitter = Fitter(configs, own.config(real, layers[0]), held=self.fitter.held)
        return replace(self, picks=kind.picks, fitter=fitter, own=own)

    def norm(self, fact: str, read: Callable[[Observation], NormFacts]) -> NormSpec:
        """The spec of one norm."""
        facts = read(self.observations[0])
        eps = self.fit(fact, lambda o: read(o).eps, where=facts.name, rtol=MEASURED)
        return NormSpec(
            kind=facts.kind,
            eps=eps,
            weight=facts.weight is not None,
            bias=facts.bias is not None,
            plus_one=facts.plus_one,
            gate=self._norm_gate(read),
        )

    def _norm_gate(self, read: Callable[[Observation], NormFacts]) -> NormGateSpec | None:
        if read(self.observations[0]).gate is None:
            return None

        def rank(observation: Observation) -> int:
            gate = read(observation).gate
            assert gate is not None
            return gate.rank

        return NormGateSpec(self.fit("norm.gate_rank", rank, hints=SYNONYMS["norm_gate_rank"]))

    def optional_norm(
        self, fact: str, read: Callable[[Observation], NormFacts | None]
    ) -> NormSpec | None:
        """The spec of a norm that may be absent."""
        if read(self.observations[0]) is None:
            return None

        def present(observation: Observation) -> NormFacts:
            found = read(observation)
            assert found is not None
            return found

        return self.norm(fact, present)

    def _layer_fit(self, fact: str, read: Callable[[LayerFacts], int | float]) -> Quantity:
        hints = SYNONYMS.get(fact.rpartition(".")[2], ())
        return self.fit(fact, lambda o: read(self.at(o)), hints=hints)

    def _optional(self, fact: str, read: Callable[[LayerFacts], float | None]) -> Quantity | None:
        if read(self.first) is None:
            return None
        return self.fit(fact, lambda o: read(self.at(o)) or 0.0)
