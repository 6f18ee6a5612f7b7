"""How well each TensorRT-LLM generation supports a model, and why."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.facts import facts
from trtllm_scaffold.spec import ModelSpec
from trtllm_scaffold.targets.capability import Level, capability, worst


@dataclass(frozen=True)
class Support:
    """The level of a whole port, and the facts that pull it down.

    Attributes:
        level: The worst level of any fact.
        because: Why it is not better, fact by fact.
        levels: Each fact, as ``axis value``, and its own level.
    """

    level: Level
    because: tuple[str, ...]
    levels: tuple[tuple[str, Level], ...] = ()

    def without(self, axis: str) -> tuple[Level, tuple[str, ...]]:
        """The level that the other axes give, and the facts that are not native."""
        others = [(fact, level) for fact, level in self.levels if fact.split()[0] != axis]
        worst_of = max((level for _, level in others), default=Level.native)
        return worst_of, tuple(fact for fact, level in others if level > Level.native)

    def to_json(self) -> dict[str, object]:
        """One entry of `inspect --json`'s ``support``."""
        return {"level": self.level.name, "because": list(self.because)}


def support(spec: ModelSpec, generation: str) -> Support:
    """Looks every fact of `spec` up in the generation's capability table."""
    found = [(fact, capability(generation, *fact)) for fact in facts(spec)]
    level = worst(each for _, each in found)
    because = tuple(
        f"{axis} {value}: {each.because}"
        for (axis, value), each in found
        if each.because and (each.level == level or level < Level.refused)
    )
    levels = tuple((f"{axis} {value}", each.level) for (axis, value), each in found)
    return Support(level, because, levels)


def refuse_unless_supported(spec: ModelSpec, generation: str) -> Support:
    """The support level, or `Refused` naming the first axis that has no expression."""
    for axis, value in facts(spec):
        found = capability(generation, axis, value)
        if found.level is Level.refused:
            raise Refused(
                axis,
                f"{value!r} cannot be expressed in TensorRT-LLM {generation}: {found.because}",
                where=spec.source,
                hint="`trtllm-scaffold inspect --explain` shows every fact and its witnesses",
            )
    return support(spec, generation)
