"""Folds the names of per-layer tensors into one template with ``{i}`` for the layer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from trtllm_scaffold.errors import Refused

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


def fold_shapes(
    shapes: Mapping[str, tuple[int, ...]], names: LayerNames
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]], int]:
    """Return the shape of each template, the layers of those that some lack, and how many.

    Raises:
        Refused: Layers differ in a shape.
    """
    folded: dict[str, dict[int | None, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        template, index = names.fold(name)
        folded.setdefault(template, {})[index] = shape
    indices = [index for found in folded.values() for index in found if index is not None]
    layers = max(indices, default=-1) + 1
    partial: dict[str, tuple[int, ...]] = {}
    for template, found in folded.items():
        distinct = list(dict.fromkeys(found.values()))
        if len(distinct) > 1:
            raise Refused(
                "checkpoint",
                f"layers differ in the shape of {template}: "
                f"{list(distinct[0])} and {list(distinct[1])}",
                where="the model's parameters",
                hint="models whose layers have equal sizes work",
            )
        if "{i}" in template and len(found) != layers:
            partial[template] = tuple(sorted(index for index in found if index is not None))
    shapes = {template: next(iter(found.values())) for template, found in folded.items()}
    return shapes, partial, layers


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
