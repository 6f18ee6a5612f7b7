"""Turns what was observed of positions, and the rope settings, into the position axis."""

from __future__ import annotations

from typing import Any, get_args, get_type_hints

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.labels import position_kind
from trtllm_scaffold.infer.rotation import read_theta, rope_settings, seen_rope
from trtllm_scaffold.infer.specs import Builder
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
    settings = rope_settings(real_config)
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
    builder.witnesses.config(
        "position.rope.scaling", _rope_key(builder, "rope_scaling", "rope_parameters"), kind
    )
    dim = builder.fit("position.rope.dim", lambda o: seen_rope(o).dim, hints=("head_dim",))
    theta = builder.fit("position.rope.theta", read_theta, rtol=_MEASURED)
    if "rope_theta" in settings:
        key = _rope_key(builder, "rope_theta", "rotary_emb_base", "rope_parameters")
        builder.witnesses.config("position.rope.theta", key, theta.value)
    return RopeSpec(seen_rope(builder.observations[0]).style, dim, theta, scaling)


def _rope_key(builder: Builder, *keys: str) -> str:
    """The first of these keys that the file holds."""
    return next((key for key in keys if builder.witnesses.holds(key)), keys[0])
