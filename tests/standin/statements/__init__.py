"""The statements about TensorRT-LLM that the stand-in is tested on, read from the files beside.

A heading ``## A5 Sliding windows`` opens a section. A statement is one line,
``key | generation | sources | text``; indented lines below it say why it is not modelled, what
the source says otherwise (``correction``) and where that was read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", bound=Callable[..., object])

FILES = ("attention.txt", "runtime.txt", "registration.txt", "formats.txt")
DETAILS = {"not modelled": "why_not", "correction": "correction", "read": "read"}


@dataclass(frozen=True)
class Statement:
    """One statement about behaviour that a model file can observe.

    Attributes:
        key: Section of the facts and number, ``A5-1``; ``W`` marks the second document.
        generation: ``1.2``, ``1.4`` or ``both``.
        sources: Where it was read: keys of ``sources.py``, files, or ``inferred``.
        text: The statement.
        why_not: For a statement that the stand-in does not model, the reason.
        correction: What the public source says otherwise, or settles.
        read: File and version that the correction was read in.
    """

    key: str
    generation: str
    sources: str
    text: str
    why_not: str = ""
    correction: str = ""
    read: str = ""

    @property
    def section(self) -> str:
        """``A5`` of ``A5-1``."""
        return self.key.rpartition("-")[0]


def states(*keys: str) -> Callable[[T], T]:
    """Mark a test as the test of statements, by their keys.

    The table is made from the sources of the tests, so the decorator changes nothing.
    """
    assert keys, "a test of no statement"

    def decorate(test: T) -> T:
        return test

    return decorate


def sections() -> dict[str, str]:
    """Section -> title, in the order of the files."""
    headings = (line[3:] for line in _lines() if line.startswith("## "))
    return dict(heading.split(" ", 1) for heading in headings)


def statements() -> tuple[Statement, ...]:
    """Every statement, in the order of the files.

    Raises:
        ValueError: If a line has not the form of a statement or of a detail.
    """
    found: list[Statement] = []
    for line in _lines():
        if not line or line.startswith("## "):
            continue
        if line.startswith(" "):
            name, _, text = line.strip().partition(": ")
            found[-1] = replace(found[-1], **{DETAILS[name]: text})
            continue
        parts = line.split(" | ", 3)
        if len(parts) != 4:
            raise ValueError(f"not a statement: {line!r}")
        found.append(Statement(*parts))
    return tuple(found)


def _lines() -> Iterator[str]:
    for name in FILES:
        yield from (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines()
