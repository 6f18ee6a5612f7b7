"""Holds what a trace shows of the rotation against what the rope settings say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.normalize import is_per_layer_type, rope_parameters
from trtllm_scaffold.infer.position import RopeFacts, geometric_theta
from trtllm_scaffold.infer.rope import attention_factor, explains
from trtllm_scaffold.infer.trace import Observation

_MEASURED = 1e-3  # relative error of what was solved for, not read


def rope_settings(config: Any) -> Mapping[str, Any]:
    """The rope settings of every layer alike."""
    found = rope_parameters(config)
    if not is_per_layer_type(found):
        return found
    kinds = set(getattr(config, "layer_types", None) or found)
    used = [entry for name, entry in found.items() if name in kinds] or list(found.values())
    if any(entry != used[0] for entry in used):
        raise Refused(
            "position",
            "rope differs between layer types",
            where="config.json: rope_parameters",
            hint="one rope for all layers is expressed",
        )
    return used[0]


def seen_rope(observation: Observation) -> RopeFacts:
    """The rotation of a model that has one."""
    rope = observation.layers[0].attention.rope
    assert rope is not None
    return rope


def read_theta(observation: Observation) -> float:
    """Theta from the frequencies, or from settings that explain them.

    Raises:
        InputError: The settings give other frequencies than the trace shows.
    """
    rope = seen_rope(observation)
    settings = rope_settings(observation.config)
    said, shown = settings.get("rope_theta"), geometric_theta(rope)
    kind = str(settings.get("rope_type", "default"))
    if said is None:
        if shown is None or kind != "default":
            raise Refused("position", "the frequencies are not geometric, and no theta is given")
        return _rounded(shown)
    if not explains(settings, rope.frequencies):
        seen = "not geometric" if shown is None else f"those of theta {shown:.6g}"
        raise InputError(
            f"position.rope: the configuration says {kind} with theta {said:g}, "
            f"the trace shows frequencies that are {seen}",
            where=f"{type(observation.config).__name__}: rope settings",
            hint="another rope type than the class runs, or an unknown one",
        )
    return float(said)


def score_scale(observation: Observation) -> float:
    """The factor on q.k, without the factor that the rotation of some scalings carries.

    Raises:
        Refused: Dimensions that are not rotated are scaled by another factor.
    """
    attention = observation.layers[0].attention
    if attention.rope is None:
        return attention.scale
    config = observation.config
    longest = getattr(config, "max_position_embeddings", None)
    factor = attention_factor(rope_settings(config), longest)
    scale = attention.scale / factor**2
    rest = attention.plain_scale
    if rest is not None and abs(scale - rest) > _MEASURED * abs(rest):
        raise Refused(
            "position",
            f"rotated dimensions are scaled by {attention.scale:g}, others by {rest:g}; "
            f"the rope settings explain a ratio of {factor**2:g}",
        )
    return scale


def _rounded(theta: float) -> float:
    """A measured base as it was written, where it is a whole number."""
    return float(round(theta)) if abs(theta - round(theta)) <= _MEASURED * theta else theta
