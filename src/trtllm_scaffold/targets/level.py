"""The levels at which a generation can express a fact."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How well a generation expresses a fact; the worst fact decides for the port."""

    native = 0  #: the library's module as it is
    expressed = 1  #: written out in the port, at full speed
    reference = 2  #: the port's own attention path, correct but not at production speed
    refused = 3  #: cannot be ported


@dataclass(frozen=True)
class Capability:
    """What one generation makes of one value of one axis."""

    level: Level
    because: str = ""


NATIVE = Capability(Level.native)


def expressed(because: str) -> Capability:
    """Written out in the port, at full speed."""
    return Capability(Level.expressed, because)
