"""Turns what was observed of positions, and the rope settings, into the position axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.labels import position_kind
from trtllm_scaffold.infer.normalize import is_per_layer_type, rope_parameters
from trtllm_scaffold.infer.position import RopeFacts, geometric_theta
from trtllm_scaffold.infer.rope import explains
from trtllm_scaffold.infer.specs import Builder
from trtllm_scaffold.infer.trace import Observation
from trtllm_scaffold.spec import LearnedSpec, PositionSpec, RopeScaling, RopeSpec

_KINDS = get_args(get_type_hints(PositionSpec)["kind"])
_SCALINGS = get_args(get_type_hints(RopeScaling)["kind"])
#: Settings that are no parameters of a scaling.
_BASIC = ("rope_type", "rope_theta", "partial_rotary_factor")
_MEASURED = 1e-3


def build_position(builder: Builder, real_config: Any) -> PositionSpec:
    """The spec of the position axis.

    Raises:
        Refused: Positions enter twice, or a scaling has no label.
        InputError: The rope settings do not explain the frequencies of the trace.
    """
    first = builder.observations[0]
    kind = position_kind(first)
    if kind not in _KINDS:
        raise Refused("position", f"positions enter in several ways: {kind}")
    if kind == "rope":
        return PositionSpec("rope", rope=_rope(builder, real_config))
    if kind == "learned":
        rows = builder.fit("position.rows", lambda o: o.embedding.position_rows, where="positions")
        offset = first.embedding.position_offset
        return PositionSpec("learned", learned=LearnedSpec(offset, rows))
    return PositionSpec(kind)  # type: ignore[arg-type]


def _rope(builder: Builder, real_config: Any) -> RopeSpec:
    settings = _settings(real_config)
    kind = settings.get("rope_type", "default")
    if kind != "default" and kind not in _SCALINGS:
        raise Refused(
            "position",
            f"the rope type {str(kind)!r} has no label",
            where="config.json",
            hint=f"default, {', '.join(_SCALINGS)} are expressed",
        )
    scaling = None
    if kind != "default":
        parameters = {k: v for k, v in sorted(settings.items()) if k not in _BASIC}
        scaling = RopeScaling(
            kind, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in parameters.items())
        )
    builder.witnesses.config("position.rope.scaling", _rope_key(real_config), kind)
    dim = builder.fit("position.rope.dim", lambda o: _seen(o).dim, hints=("head_dim",))
    theta = builder.fit("position.rope.theta", _theta, rtol=_MEASURED)
    return RopeSpec(_seen(builder.observations[0]).style, dim, theta, scaling)


def _seen(observation: Observation) -> RopeFacts:
    rope = observation.layers[0].attention.rope
    assert rope is not None
    return rope


def _theta(observation: Observation) -> float:
    """Theta from the frequencies, or from settings that explain them.

    Raises:
        InputError: The settings give other frequencies than the trace shows.
    """
    rope = _seen(observation)
    settings = _settings(observation.config)
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
    if kind in ("default", "linear", "dynamic", "llama3") and abs(rope.amplitude - 1.0) > _MEASURED:
        raise Refused("position", f"the rotation of kind {kind} is scaled by {rope.amplitude:g}")
    return float(said)


def _rounded(theta: float) -> float:
    """A measured base as it was written, where it is a whole number."""
    return float(round(theta)) if abs(theta - round(theta)) <= _MEASURED * theta else theta


def _settings(config: Any) -> Mapping[str, Any]:
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


def _rope_key(config: Any) -> str:
    for key in ("rope_scaling", "rope_parameters", "rope_theta"):
        if getattr(config, key, None) is not None:
            return key
    return "rope_theta"
