"""Folds the names of per-layer tensors into one template with ``{i}`` for the layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trtllm_scaffold.errors import Refused

Shape = tuple[int, ...]

_INDEXED = re.compile(r"(?P<list>.*?)\.(?P<index>\d+)\.(?P<rest>.+)")
_LEADING = re.compile(r"(?P<index>\d+)\.(?P<rest>.+)")


@dataclass(frozen=True)
class LayerNames:
    """The list of layers, as names spell it.

    Attributes:
        prefix: The list's name, such as ``model.layers``.
    """

    prefix: str

    @classmethod
    def of(cls, names: Iterable[str]) -> LayerNames:
        """Find the list that most names run over."""
        counts = Counter(m["list"] for name in names if (m := _INDEXED.fullmatch(name)))
        if not counts:
            raise Refused("checkpoint", "no stored name holds a layer's number", where="names")
        return cls(counts.most_common(1)[0][0])

    def fold(self, name: str) -> tuple[str, int | None]:
        """Return the template of a name and its layer, or the name itself and None."""
        match = _INDEXED.fullmatch(name)
        if match is None or match["list"] != self.prefix:
            return name, None
        return f"{self.prefix}.{{i}}.{match['rest']}", int(match["index"])

    def unfold(self, template: str, layers: int | Iterable[int], heads: int = 1) -> Iterator[str]:
        """Yield the names of a template, or the name itself.

        Args:
            template: With ``{i}`` for the layer and ``{j}`` for the head or ``{e}`` for the
                expert, or without.
            layers: How many, or which.
            heads: How many heads or experts.
        """
        indices = range(layers) if isinstance(layers, int) else layers
        for index in indices if "{i}" in template else (0,):
            for head in range(heads) if "{j}" in template or "{e}" in template else (0,):
                name = template.replace("{i}", str(index), 1)
                yield name.replace("{j}", str(head)).replace("{e}", str(head))


def fold_any(name: str) -> str:
    """Return a name with its first number replaced by ``{i}``, whatever list it is of."""
    match = _INDEXED.fullmatch(name)
    if match:
        return f"{match['list']}.{{i}}.{match['rest']}"
    leading = _LEADING.fullmatch(name)
    return f"{{i}}.{leading['rest']}" if leading else name


@dataclass(frozen=True)
class Folded:
    """Shapes by template.

    Attributes:
        shapes: The shape of each, in the first layer that has it.
        partial: The layers of those that some layers lack.
        uneven: The shape in each layer that has it, of those in which layers differ.
        layers: How many layers there are.
    """

    shapes: dict[str, Shape]
    partial: dict[str, tuple[int, ...]]
    uneven: dict[str, tuple[Shape, ...]]
    layers: int


def fold_shapes(shapes: Mapping[str, Shape], names: LayerNames) -> Folded:
    """Fold the shapes of a model's tensors."""
    folded: dict[str, dict[int, Shape]] = {}
    for name, shape in shapes.items():
        template, index = names.fold(name)
        folded.setdefault(template, {})[-1 if index is None else index] = shape
    layers = max((index for found in folded.values() for index in found), default=-1) + 1
    by_layer = {t: dict(sorted(found.items())) for t, found in folded.items() if "{i}" in t}
    return Folded(
        shapes={template: next(iter(found.values())) for template, found in folded.items()},
        partial={t: tuple(found) for t, found in by_layer.items() if len(found) != layers},
        uneven={t: tuple(f.values()) for t, f in by_layer.items() if len(set(f.values())) > 1},
        layers=layers,
    )


def fold_number(template: str, number: int, mark: str) -> str:
    """Return a template with the last part that is `number` replaced.

    Args:
        template: With ``{i}`` for the layer.
        number: Of a head or an expert.
        mark: ``{j}`` for a head, ``{e}`` for an expert.
    """
    parts = template.split(".")
    places = [place for place, part in enumerate(parts) if part == str(number)]
    if not places:
        kind = "head" if mark == "{j}" else "expert"
        raise Refused("checkpoint", f"{template} does not say that it is of {kind} {number}")
    parts[places[-1]] = mark
    return ".".join(parts)
