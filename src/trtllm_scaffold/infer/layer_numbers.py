"""Numbers that go with the layer: a scale divided by its place, a rotary base from a list."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from trtllm_scaffold.infer.conditions import per_layer
from trtllm_scaffold.infer.keys import is_number
from trtllm_scaffold.infer.normalize import ROPE_KEYS
from trtllm_scaffold.infer.position import geometric_theta
from trtllm_scaffold.infer.trace import Observation

_MEASURED = 1e-3

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


def theta_list(observations: Sequence[Observation], real_config: Any) -> str:
    """The per-layer list that holds every rotating layer's base, where there is one.

    Entries of layers that do not rotate may be anything.
    """
    for name in sorted(real_config.to_dict()):
        if name not in ROPE_KEYS and all(_holds_thetas(o, name) for o in observations):
            return name
    return ""


def _holds_thetas(observation: Observation, name: str) -> bool:
    listed = per_layer(observation.config, name, len(observation.layers))
    if listed is None or not all(map(is_number, listed)):
        return False
    rotations = [layer.attention.rope for layer in observation.layers]
    thetas = [None if rope is None else geometric_theta(rope) for rope in rotations]
    pairs = [
        (theta, entry)
        for rope, theta, entry in zip(rotations, thetas, listed, strict=True)
        if rope is not None
    ]
    return bool(pairs) and all(
        theta is not None and math.isclose(theta, entry, rel_tol=_MEASURED)
        for theta, entry in pairs
    )


def _equal(values: Sequence[float]) -> bool:
    return all(math.isclose(value, values[0], rel_tol=_MEASURED) for value in values)
