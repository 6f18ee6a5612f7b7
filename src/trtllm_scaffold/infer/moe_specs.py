"""Turns what was observed of feed-forwards, dense ones and experts, into their specs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.builder import Builder
from trtllm_scaffold.infer.keys import SYNONYMS
from trtllm_scaffold.infer.labels import is_one
from trtllm_scaffold.infer.mlp import MlpFacts
from trtllm_scaffold.infer.moe import MoeFacts
from trtllm_scaffold.infer.tiny_moe import EXPERT_KEYS, WIDTH_KEYS
from trtllm_scaffold.infer.trace import LayerFacts
from trtllm_scaffold.spec import MlpSpec, MoeSpec, Quantity, RouterSpec, SharedSpec

_T = TypeVar("_T")

_MEASURED = 1e-3  # relative error of numbers that were solved for, not read
_BOUNDED = 1e-2  # of numbers that the data only bound, or that act on sums near zero
_WIDTHS = (*WIDTH_KEYS, *SYNONYMS["intermediate_size"])


@dataclass(frozen=True, repr=False)
class FeedForwardBuilder:
    """Builds the specs of one layer kind's feed-forward.

    Attributes:
        builder: It picks a layer of the kind.
    """

    builder: Builder

    def mlp(self) -> MlpSpec:
        """The dense feed-forward, or one expert."""
        routed = self.builder.first.moe is not None
        return self._mlp("moe.expert" if routed else "mlp", lambda facts: facts.mlp)

    def moe(self) -> MoeSpec | None:
        """The choice among experts, or None."""
        facts = self.builder.first
        if facts.moe is None:
            return None
        moe, shared = facts.moe, None
        if facts.shared is not None:
            mlp = self._mlp("moe.shared", lambda f: _present(f.shared))
            shared = SharedSpec(mlp, moe.join)
        spec = MoeSpec(
            router=self._router(moe),
            shared=shared,
            weight_on=moe.weight_on,
        )
        compared = f"{moe.compared} random tokens within 1e-05 of the largest output"
        self.builder.witnesses.trace("moe.formula", moe.name, compared)
        return spec

    def _mlp(self, fact: str, read: Callable[[LayerFacts], MlpFacts]) -> MlpSpec:
        builder = self.builder
        facts = read(builder.first)
        hints = _WIDTHS if fact != "mlp" else SYNONYMS["intermediate_size"]
        if fact == "moe.shared":  # one feed-forward as wide as so many experts
            counts = EXPERT_KEYS["num_shared"]
            hints += tuple(f"config.{w} * config.{c}" for w in _WIDTHS for c in counts)
        return MlpSpec(
            kind=facts.kind,
            activation=facts.activation,
            intermediate_size=builder.fit(
                f"{fact}.intermediate_size",
                lambda o: read(builder.at(o)).intermediate_size,
                hints=self._held_first(hints),
            ),
            up_bias=facts.up.bias is not None,
            down_bias=facts.down.bias is not None,
            gate_bias=facts.gate is not None and facts.gate.bias is not None,
            down_norm=builder.optional_norm(
                f"{fact}.down_norm.eps", lambda o: read(builder.at(o)).down_norm
            ),
            activation_parameters=facts.constants,
            clamp=self._optional(f"{fact}.clamp", lambda f: read(f).clamp, facts.clamp is None),
            swish_beta=self._optional(
                f"{fact}.swish_beta", lambda f: read(f).swish_beta, is_one(facts.swish_beta)
            ),
            up_offset=self._fixed(f"{fact}.up_offset", lambda f: read(f).up_offset),
        )

    def _router(self, moe: MoeFacts) -> RouterSpec:
        routing = moe.routing
        grouped = routing.num_groups > 1
        return RouterSpec(
            scores=routing.scores,
            num_experts=self._count("num_experts", lambda m: m.experts),
            top_k=self._count("top_k", lambda m: m.routing.top_k),
            logit_bias=bool(moe.parts.router.bias),
            renormalised=routing.renormalised,
            epsilon=self._fixed("moe.epsilon", lambda f: _present(f.moe).routing.epsilon),
            selection_bias=routing.biased,
            num_groups=self._count("num_groups", lambda m: m.routing.num_groups)
            if grouped
            else None,
            top_groups=self._count("top_groups", lambda m: m.routing.top_groups)
            if grouped
            else None,
            group_score=routing.group_score,
            group_fill=routing.group_fill,
            scaling=self._optional(
                "moe.scaling", lambda f: _present(f.moe).routing.scaling, is_one(routing.scaling)
            ),
            floor=self._optional(
                "moe.floor", lambda f: _present(f.moe).routing.floor, not routing.floor, _BOUNDED
            ),
            softcap=self._optional(
                "moe.softcap", lambda f: _present(f.moe).routing.softcap, routing.softcap is None
            ),
            jitter=self._optional("moe.jitter", _jitter, routing.jitter is None, _BOUNDED),
        )

    def _count(self, role: str, read: Callable[[MoeFacts], int]) -> Quantity:
        return self.builder.fit(
            f"moe.{role}",
            lambda o: read(_present(self.builder.at(o).moe)),
            hints=self._held_first(EXPERT_KEYS[role]),
        )

    def _fixed(self, fact: str, read: Callable[[LayerFacts], float]) -> float:
        """A number that is the class's own."""
        seen = [read(self.builder.at(observation)) for observation in self.builder.observations]
        if len(set(seen)) > 1:
            raise Refused(
                fact.partition(".")[0],
                f"{fact} is {seen[0]:g} and {seen[1]:g} in two tiny models",
                where=self.builder.first.layer.name,
                hint="a constant of the class is expressed",
            )
        self.builder.witnesses.trace(fact, self.builder.first.layer.name, seen[0])
        return seen[0]

    def _held_first(self, keys: Sequence[str]) -> list[str]:
        """Keys that the file holds first: not every generation knows the canonical names."""
        held = self.builder.fitter.held
        return sorted(keys, key=lambda key: key not in held)

    def _optional(
        self,
        fact: str,
        read: Callable[[LayerFacts], float | None],
        absent: bool,
        rtol: float = _MEASURED,
    ) -> Quantity | None:
        if absent:
            return None
        return self.builder.fit(fact, lambda o: read(self.builder.at(o)) or 0.0, rtol=rtol)


def _present(value: _T | None) -> _T:
    assert value is not None
    return value


def _jitter(facts: LayerFacts) -> float:
    low, high = _present(_present(facts.moe).routing.jitter)
    return (low + high) / 2
