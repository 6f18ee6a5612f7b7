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

    def unfold(self, template: str, layers: int) -> Iterator[str]:
        """Yield the names of a template, or the name itself."""
        if "{i}" not in template:
            yield template
            return
        for index in range(layers):
            yield template.replace("{i}", str(index), 1)


def fold_any(name: str) -> str:
    """Return a name with its first number replaced by ``{i}``, whatever list it is of."""
    match = _INDEXED.fullmatch(name)
    if match:
        return f"{match['list']}.{{i}}.{match['rest']}"
    leading = _LEADING.fullmatch(name)
    return f"{{i}}.{leading['rest']}" if leading else name


def fold_shapes(
    shapes: Mapping[str, tuple[int, ...]], names: LayerNames
) -> tuple[dict[str, tuple[int, ...]], int]:
    """Return the shape of each template, and the number of layers.

    Raises:
        Refused: Layers differ in a shape, or in what they have.
    """
    folded: dict[str, dict[int | None, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        template, index = names.fold(name)
        folded.setdefault(template, {})[index] = shape
    indices = [index for found in folded.values() for index in found if index is not None]
    layers = max(indices, default=-1) + 1
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
            raise Refused(
                "checkpoint",
                f"{len(found)} of {layers} layers have {template}",
                where="the model's parameters",
                hint="models whose layers have equal parameters work",
            )
    return {template: next(iter(found.values())) for template, found in folded.items()}, layers
