"""Turns what was observed of positions, and the rope settings, into the position axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_type_hints

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.alibi import PAPER_BIAS, AlibiFacts
from trtllm_scaffold.infer.builder import Builder
from trtllm_scaffold.infer.conditions import per_layer
from trtllm_scaffold.infer.kinds import Kind, Pattern
from trtllm_scaffold.infer.labels import position_kind
from trtllm_scaffold.infer.position import RopeFacts
from trtllm_scaffold.infer.rotation import contradiction, entries, explaining, shown_theta
from trtllm_scaffold.infer.sinusoid import read_sinusoid
from trtllm_scaffold.infer.trace import Observation
from trtllm_scaffold.spec import (
    AlibiSpec,
    LearnedSpec,
    PositionSpec,
    Quantity,
    RopeScaling,
    RopeSpec,
    SinusoidalSpec,
)

_KINDS = get_args(get_type_hints(PositionSpec)["kind"])
_SCALINGS = get_args(get_type_hints(RopeScaling)["kind"])
#: Settings that are no parameters of a scaling.
_BASIC = ("rope_type", "rope_theta", "partial_rotary_factor", "mrope_section")
_MEASURED = 1e-3


def build_position(
    builder: Builder, ropes: Sequence[RopeSpec | None], pattern: Pattern
) -> PositionSpec:
    """The spec of the position axis.

    Args:
        builder: Of the whole model.
        ropes: Each kind's rotation.
        pattern: The kinds.

    Raises:
        Refused: Positions enter twice, or a table or bias has no label.
    """
    first = builder.observations[0]
    kind = position_kind(first)
    if kind not in _KINDS:
        raise Refused("position", f"positions enter in several ways: {kind}")
    if kind == "rope":
        in_order = (ropes[number] for number in pattern.layers)
        return PositionSpec("rope", rope=next(rope for rope in in_order if rope is not None))
    if kind == "learned":
        rows = builder.fit("position.rows", lambda o: o.embedding.position_rows, where="positions")
        offset = first.embedding.position_offset
        return PositionSpec("learned", learned=LearnedSpec(offset, rows))
    if kind == "alibi":
        return PositionSpec("alibi", alibi=_alibi(builder))
    if kind == "sinusoidal":
        return PositionSpec("sinusoidal", sinusoidal=_sinusoidal(builder))
    return PositionSpec(kind)  # type: ignore[arg-type]


def build_ropes(builder: Builder, pattern: Pattern, real_config: Any) -> list[RopeSpec | None]:
    """Each kind's rotation, None for layers without one.

    Raises:
        Refused: A scaling has no label, or the base of a rotation no key.
        InputError: The rope settings do not explain the frequencies of the trace.
    """
    listed = pattern.theta_list
    seen = [_seen(builder.of(kind)) for kind in pattern.kinds]
    names = [
        _layer_type(builder, kind, number, ropes, pattern, real_config) if ropes else None
        for number, (kind, ropes) in enumerate(zip(pattern.kinds, seen, strict=True))
    ]
    standard = any(name is not None for name in names)
    result: list[RopeSpec | None] = []
    base = None
    for kind, ropes, name in zip(pattern.kinds, seen, names, strict=True):
        if not ropes:
            result.append(None)
        elif name is None and listed:
            base = base or _listed_base(listed, seen, pattern, real_config)
            builder.witnesses.config("position.rope.theta", listed, "one base for each layer")
            result.append(_rope(builder.of(kind), ropes, base, "", {}))
        elif name is None:
            theta = _named_base(builder.of(kind), ropes, standard)
            result.append(_rope(builder.of(kind), ropes, theta, "", {}))
        else:
            settings = entries(real_config)[name]
            theta = Quantity(float(settings["rope_theta"]), "")
            _witness(builder, settings, theta)
            result.append(_rope(builder.of(kind), ropes, theta, name, settings))
    return result


def _seen(builder: Builder) -> list[RopeFacts]:
    """The rotation in each observation; empty where there is none."""
    ropes = [builder.at(o).attention.rope for o in builder.observations]
    found = [rope for rope in ropes if rope is not None]
    if found and len(found) != len(ropes):
        raise Refused("position", "a rotation was seen in one tiny model alone")
    return found


def _layer_type(
    builder: Builder,
    kind: Kind,
    number: int,
    ropes: Sequence[RopeFacts],
    pattern: Pattern,
    real_config: Any,
) -> str | None:
    """The entry of the rope settings that explains a kind's rotation; None for none."""
    del kind
    configs = [o.config for o in builder.observations]
    found = [set(explaining(c, rope)) for c, rope in zip(configs, ropes, strict=True)]
    names = [n for n in entries(real_config) if all(n in explained for explained in found)]
    mine = [i for i, other in enumerate(pattern.layers) if other == number]
    for key in real_config.to_dict():
        listed = per_layer(real_config, key, len(pattern.layers)) or []
        for name in names:
            if listed and all(listed[i] == name for i in mine):
                return name
    return names[0] if names else None


def _listed_base(
    name: str, seen: Sequence[Sequence[RopeFacts]], pattern: Pattern, real_config: Any
) -> Quantity:
    """The base that a per-layer list holds; its value is that of the first layer that rotates."""
    first = next(i for i, number in enumerate(pattern.layers) if seen[number])
    listed = per_layer(real_config, name, len(pattern.layers))
    if listed is None:
        raise Refused("position", f"{name} has no entry for each layer")
    return Quantity(float(listed[first]), f"config.{name}[layer_idx]")


def _named_base(builder: Builder, ropes: Sequence[RopeFacts], others: bool) -> Quantity:
    """The base that an attribute of its own holds, or a constant beside standard ones.

    Args:
        builder: Of the kind.
        ropes: The rotation in each observation.
        others: Whether the usual settings explain another kind.
    """
    by_observation = dict(zip(map(id, builder.observations), ropes, strict=True))
    first = builder.observations[0]
    try:
        found = builder.fit(
            "position.rope.theta", lambda o: shown_theta(by_observation[id(o)]), rtol=_MEASURED
        )
    except Refused:
        found = None
    said = any(s.get("rope_theta") is not None for s in entries(first.config).values())
    plain = found is not None and (
        found.expr.removeprefix("config.").isidentifier() or (found.is_constant and others)
    )
    if found is None or (said and not plain):
        raise contradiction(first.config, ropes[0])
    return found


def _rope(
    builder: Builder,
    ropes: Sequence[RopeFacts],
    theta: Quantity,
    layer_type: str,
    settings: Any,
) -> RopeSpec:
    by_observation = dict(zip(map(id, builder.observations), ropes, strict=True))
    latent = builder.first.attention.mla is not None  # whose rotated part has a width of its own
    fact, hint = "position.rope.dim", "head_dim"
    if latent:
        fact, hint = "attention.qk_rope_head_dim", "qk_rope_head_dim"
    dim = builder.fit(fact, lambda o: by_observation[id(o)].dim, hints=(hint,))
    first = ropes[0]
    return RopeSpec(first.style, dim, theta, _scaling(settings), first.inverse, layer_type)


def _scaling(settings: Any) -> RopeScaling | None:
    kind = settings.get("rope_type", "default")
    if kind == "default":
        return None
    if kind not in _SCALINGS:
        raise Refused(
            "position",
            f"the rope type {str(kind)!r} has no label",
            where="config.json",
            hint=f"default, {', '.join(_SCALINGS)} are expressed",
        )
    parameters = {k: v for k, v in sorted(settings.items()) if k not in _BASIC}
    return RopeScaling(
        kind, tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in parameters.items())
    )


def _witness(builder: Builder, settings: Any, theta: Quantity) -> None:
    """Record what the configuration says of a rotation."""
    kind = settings.get("rope_type", "default")
    scaling = _rope_key(builder, "rope_scaling", "rope_parameters")
    builder.witnesses.config("position.rope.scaling", scaling, kind)
    key = _rope_key(builder, "rope_theta", "rotary_emb_base", "rope_parameters")
    builder.witnesses.config("position.rope.theta", key, theta.value)


def _rope_key(builder: Builder, *keys: str) -> str:
    """The first of these keys that the file holds."""
    return next((key for key in keys if builder.witnesses.holds(key)), keys[0])


def _alibi(builder: Builder) -> AlibiSpec:
    def read(observation: Observation) -> AlibiFacts:
        found = observation.layers[0].attention.alibi
        assert found is not None
        return found

    bias = builder.fit("position.alibi.max_bias", lambda o: read(o).max_bias, rtol=_MEASURED)
    scaled = read(builder.observations[0]).scaled
    rule = "press" if bias.value == PAPER_BIAS else "mpt"
    return AlibiSpec(rule, float(bias.value), scaled)  # type: ignore[arg-type]


def _sinusoidal(builder: Builder) -> SinusoidalSpec:
    found = []
    for observation in builder.observations:
        data = observation.embedding.sinusoidal
        assert data is not None
        if bool(((data - data[:1]).abs() > _MEASURED).any()):
            raise Refused("position", "a fixed table is added that differs between sequences")
        found.append(read_sinusoid(data[0]))
    if len(set(found)) > 1:
        raise Refused("position", f"two tiny models add different tables: {found}")
    return found[0]
