"""Holds what a trace shows of the rotation against what the rope settings say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.attention_facts import AttentionFacts
from trtllm_scaffold.infer.normalize import is_per_layer_type, rope_parameters
from trtllm_scaffold.infer.position import RopeFacts, geometric_theta
from trtllm_scaffold.infer.rope import attention_factor, explains

_MEASURED = 1e-3  # relative error of what was solved for, not read


def entries(config: Any) -> dict[str, Mapping[str, Any]]:
    """The rope settings by layer type; one entry of no name where they hold for every layer."""
    found = rope_parameters(config)
    return dict(found) if is_per_layer_type(found) else {"": found}


def explaining(config: Any, rope: RopeFacts) -> Iterator[str]:
    """The layer types whose settings yield the frequencies that were seen."""
    for name, settings in entries(config).items():
        if settings.get("rope_theta") is not None and explains(settings, rope.frequencies):
            yield name


def shown_theta(rope: RopeFacts) -> float:
    """Theta by the frequencies alone.

    Raises:
        Refused: They are not geometric.
    """
    theta = geometric_theta(rope)
    if theta is None:
        raise Refused("position", "the frequencies are not geometric, and no setting explains them")
    whole = abs(theta - round(theta)) <= _MEASURED * theta
    return float(round(theta)) if whole else theta  # as it was written


def contradiction(config: Any, rope: RopeFacts) -> InputError:
    """The error for settings that give other frequencies than the trace shows."""
    said = [
        f"{settings.get('rope_type', 'default')} with theta {settings['rope_theta']:g}"
        for settings in entries(config).values()
        if settings.get("rope_theta") is not None
    ]
    shown = geometric_theta(rope)
    seen = "not geometric" if shown is None else f"those of theta {shown:.6g}"
    return InputError(
        f"position.rope: the configuration says {' and '.join(said)}, "
        f"the trace shows frequencies that are {seen}",
        where=f"{type(config).__name__}: rope settings",
        hint="another rope type than the class runs, or an unknown one",
    )


def score_scale(config: Any, attention: AttentionFacts) -> float:
    """The factor on q.k, without the factor that the rotation of some scalings carries.

    Args:
        config: The configuration of the tiny model.
        attention: One layer's attention.

    Raises:
        Refused: Dimensions that are not rotated are scaled by another factor.
    """
    if attention.rope is None:
        return attention.scale
    name = next(explaining(config, attention.rope), None)
    settings = entries(config)[name] if name is not None else {}
    factor = attention_factor(settings, getattr(config, "max_position_embeddings", None))
    scale = attention.scale / factor**2
    rest = attention.plain_scale
    if rest is not None and abs(scale - rest) > _MEASURED * abs(rest):
        raise Refused(
            "position",
            f"rotated dimensions are scaled by {attention.scale:g}, others by {rest:g}; "
            f"the rope settings explain a ratio of {factor**2:g}",
        )
    return scale
