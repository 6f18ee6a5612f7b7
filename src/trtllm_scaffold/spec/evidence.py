"""Evidence: who says a fact, where, and what was read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Evidence:
    """One witness of one fact.

    Attributes:
        fact: Dotted name of the fact, such as ``attention.kind`` or ``position.rope.theta``.
        witness: ``config``, ``trace``, ``checkpoint``, ``class default``, ``real size`` (the
            class at its real size, without weights), ``proof``, or ``assumption`` where nothing
            could be run.
        where: The key, module or tensor it was read from.
        value: What was read, as JSON-plain data.
    """

    fact: str
    witness: str
    where: str
    value: str | int | float | bool | None

    def to_json(self) -> dict[str, str | int | float | bool | None]:
        """The entry that `inspect --json` lists under its fact."""
        return {"witness": self.witness, "where": self.where, "value": self.value}
