"""Numbers that go with the layer: a scale divided by its place, a rotary base from a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from trtllm_scaffold.infer.conditions import per_layer
from trtllm_scaffold.infer.keys import is_number
from trtllm_scaffold.infer.normalize import ROPE_KEYS
from trtllm_scaffold.infer.position import geometric_theta
from trtllm_scaffold.infer.trace import LayerFacts, Observation

_MEASURED = 1e-3
_COUNT = 1e-5  # of counts that factors were made from
_ENOUGH = 3  # layers that show more than a line through any two numbers

#: Factors of a block, by their names in `BlockFacts` and `BlockSpec`.
COEFFICIENTS = (
    "attention_coefficient",
    "mlp_coefficient",
    "attention_residual",
    "mlp_residual",
)

#: Expression around a count that grows evenly with the layer -> that count, from the factor.
_COUNTED: dict[str, Callable[[float], float | None]] = {
    "1 / ({}) ** 0.5": lambda factor: factor**-2 if factor > 0 else None,
    "(1 - 1 / ({})) ** 0.5": lambda factor: 1 / (1 - factor**2) if 0 < factor < 1 else None,
}

#: Expression around the scale of layer 0 -> the factor of a layer.
_FORMS: dict[str, Callable[[int], float]] = {
    "{} / (layer_idx + 1)": lambda index: 1.0 / (index + 1),
    "{} * (layer_idx + 1)": lambda index: index + 1.0,
}


def layer_factor(form: str, index: int) -> float:
    """What `form` multiplies the scale of layer 0 by in layer `index`; 1 for no form."""
    return _FORMS[form](index) if form else 1.0


def scale_form(observations: Sequence[Observation]) -> str:
    """How the softmax scale goes with the layer's place; empty where it does not."""
    scales = [[layer.attention.scale for layer in o.layers] for o in observations]
    if all(_equal(seen) for seen in scales):
        return ""
    for form, factor in _FORMS.items():
        rest = [[s / factor(i) for i, s in enumerate(seen)] for seen in scales]
        if all(_equal(seen) for seen in rest):
            return form
    return ""


def coefficient_forms(observations: Sequence[Observation]) -> dict[str, str]:
    """Fact -> expression over ``layer_idx``, of the block's factors that go with the layer."""
    found = {}
    for name in COEFFICIENTS:
        columns = [[getattr(f.block, name) for f in o.layers] for o in observations]
        if all(_equal(column) for column in columns):
            continue
        for text, count in _COUNTED.items():
            line = _line([[count(value) for value in column] for column in columns])
            if line is not None:
                found[f"block.{name}"] = text.format(line)
    return found


def _line(columns: Sequence[Sequence[float | None]]) -> str | None:
    """The whole numbers m and c of ``m * layer_idx + c`` that all columns hold, as written."""
    lines = set()
    for column in columns:
        if len(column) < _ENOUGH or None in column:
            return None
        first, second = column[0] or 0.0, column[1] or 0.0
        slope, start = round(second - first), round(first)
        expected = [slope * index + start for index in range(len(column))]
        if any(
            value is None or not math.isclose(value, e, rel_tol=_COUNT)
            for value, e in zip(column, expected, strict=True)
        ):
            return None
        lines.add((slope, start))
    if len(lines) != 1:
        return None
    slope, start = lines.pop()
    factor = "layer_idx" if slope == 1 else f"{slope} * layer_idx"
    return f"{factor} + {start}" if start else factor


def theta_list(observations: Sequence[Observation], real_config: Any) -> str:
    """The per-layer list that holds every rotating layer's base; empty where there is none."""
    return _list_of(observations, real_config, _theta, _MEASURED)


def window_list(observations: Sequence[Observation], real_config: Any) -> str:
    """The per-layer list that holds every window; empty where there is none."""
    return _list_of(observations, real_config, _window, 0.0)


def heads_list(observations: Sequence[Observation], real_config: Any) -> str:
    """The per-layer list that holds every layer's query heads; empty where there is none."""
    heads = [{layer.attention.heads for layer in o.layers} for o in observations]
    if all(len(found) == 1 for found in heads) and _is_said(observations, heads):
        return ""
    return _list_of(observations, real_config, lambda layer: layer.attention.heads, 0.0)


def _is_said(observations: Sequence[Observation], heads: Sequence[set[int]]) -> bool:
    """Whether the usual key holds the number of heads that all layers have."""
    said = [getattr(o.config, "num_attention_heads", None) for o in observations]
    return all({number} == found for number, found in zip(said, heads, strict=True))


def _theta(layer: LayerFacts) -> float | None:
    rope = layer.attention.rope
    theta = None if rope is None else geometric_theta(rope)
    return math.nan if rope is not None and theta is None else theta


def _window(layer: LayerFacts) -> float | None:
    return layer.attention.window


def _list_of(
    observations: Sequence[Observation],
    real_config: Any,
    read: Callable[[LayerFacts], float | None],
    rtol: float,
) -> str:
    """The list whose entry is the number of each layer that has one; other entries do not matter.

    Args:
        observations: The tiny models.
        real_config: Its lists are looked through.
        read: The number of a layer, None for none.
        rtol: Relative tolerance.
    """
    for name in sorted(real_config.to_dict()):
        if name not in ROPE_KEYS and all(_holds(o, name, read, rtol) for o in observations):
            return name
    return ""


def _holds(
    observation: Observation,
    name: str,
    read: Callable[[LayerFacts], float | None],
    rtol: float,
) -> bool:
    listed = per_layer(observation.config, name, len(observation.layers))
    if listed is None or not name.isidentifier():
        return False
    seen = [(read(f), entry) for f, entry in zip(observation.layers, listed, strict=True)]
    pairs = [(number, entry) for number, entry in seen if number is not None]
    return bool(pairs) and all(
        is_number(entry) and math.isclose(number, entry, rel_tol=rtol) for number, entry in pairs
    )


def _equal(values: Sequence[float]) -> bool:
    return all(math.isclose(value, values[0], rel_tol=_MEASURED) for value in values)
