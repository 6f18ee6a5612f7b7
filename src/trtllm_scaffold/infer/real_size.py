"""Holds a spec's attention against HF's class at the real size, which no tiny model can stand for.

Two keys may be equal in every tiny model and differ in the real one; then a wrong key passes the
proof too, whose models are as tiny.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.attention_calls import AttentionCall, NotTold, attention_calls
from trtllm_scaffold.infer.labels import is_one
from trtllm_scaffold.infer.rotation import score_scale
from trtllm_scaffold.infer.tiny import SEQUENCE
from trtllm_scaffold.infer.trace import LayerFacts, Observation
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import AttentionSpec, MlaSpec, ModelSpec, Quantity
from trtllm_scaffold.spec.evidence import Evidence

#: Facts about latents, in the order of `MlaFacts.ranks`.
_LATENTS = ("q_scale", "kv_scale")
_WHERE = "the real configuration's model on the meta device"
_RTOL = 1e-5
_MEASURED = 1e-3  # relative error of what a trace solved for

Number = int | float | None


@dataclass(frozen=True)
class _Said:
    """What a spec, or the trace of a tiny model, says of one layer's attention.

    Attributes:
        numbers: By fact; None for a part that the layer has not.
        window: Its window, or None for all keys.
        chunked: See `AttentionSpec`.
        latents: Width and factor of each latent by fact; the factor is None for 1.
    """

    numbers: dict[str, Number]
    window: int | None
    chunked: bool
    latents: Mapping[str, tuple[Number, Number]] = field(default_factory=dict)

    def first_key(self, position: int) -> int:
        """The first key that the query at `position` sees."""
        if self.window is None:
            return 0
        if self.chunked:
            return position // self.window * self.window
        return max(0, position - self.window + 1)


def check_real_size(
    spec: ModelSpec, observations: Sequence[Observation], config: Any, classes: HFClasses
) -> tuple[Evidence, ...]:
    """Hold each layer's attention to what HF's class hands to its attention function.

    A fact is left out where the class does not hand over what the traces of the tiny models
    show (one that scales its queries itself, say): the evidence tells which and why.

    Args:
        spec: What was inferred.
        observations: Of the tiny models.
        config: The configuration object of the real size.
        classes: The model's HF classes.

    Returns:
        For each fact what the real size shows, or why nothing does.

    Raises:
        Refused: The spec says another number than the real model shows; quotes both.
    """
    try:
        calls = attention_calls(config, classes, spec.layers_name)
        left_out = {**_not_as_traced(observations, classes), **_masks_not_told(calls)}
    except NotTold as reason:
        return (_evidence("attention", f"left out: {reason}"),)
    if len(calls) != len(spec.layer_pattern):
        raise _refused("number of layers", len(spec.layer_pattern), len(calls))
    said = [
        _of_spec(spec.layer_kinds[kind].attention, config, index)
        for index, kind in enumerate(spec.layer_pattern)
    ]
    positions = _positions(said, int(spec.max_position_embeddings.value))
    for index, (layer, call) in enumerate(zip(said, calls, strict=True)):
        for fact, (ours, theirs) in _differences(layer, call, positions, _RTOL, left_out).items():
            raise _refused(f"{fact} of layer {index}", ours, theirs)
    return tuple(
        _evidence(fact, f"left out: {left_out[fact]}" if fact in left_out else shown)
        for fact, shown in _shown(said).items()
    )


def _of_spec(attention: AttentionSpec, config: Any, index: int) -> _Said:
    mla, window = attention.mla, attention.window
    numbers = {
        "num_attention_heads": attention.num_attention_heads,
        "num_key_value_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "v_head_dim": mla.v_head_dim if mla else attention.value_dim or attention.head_dim,
        "scale": attention.scale,
        "softcap": attention.softcap,
    }
    return _Said(
        {fact: _at(quantity, config, index) for fact, quantity in numbers.items()},
        None if window is None else int(_at(window, config, index) or 0),
        attention.chunked,
        {
            fact: (_at(width, config, index), _at(factor, config, index))
            for fact, (width, factor) in _scaled(mla).items()
        },
    )


def _scaled(mla: MlaSpec | None) -> dict[str, tuple[Quantity, Quantity | None]]:
    """Width and factor of each latent."""
    if mla is None:
        return {}
    ranks, factors = (mla.q_lora_rank, mla.kv_lora_rank), (mla.q_scale, mla.kv_scale)
    held = zip(_LATENTS, ranks, factors, strict=True)
    return {fact: (rank, factor) for fact, rank, factor in held if rank is not None}


def _at(quantity: Quantity | None, config: Any, index: int) -> Number:
    """A number of one layer. An expression is ours, of checked names alone: see `Quantity`."""
    if quantity is None or "layer_idx" not in quantity.expr:
        return None if quantity is None else quantity.value
    names = {"config": config, "layer_idx": index}
    found: int | float = eval(quantity.expr, {"__builtins__": {"str": str}}, names)
    return found


def _of_trace(layer: LayerFacts, config: Any) -> _Said:
    attention, mla = layer.attention, layer.attention.mla
    numbers: dict[str, Number] = {
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "v_head_dim": mla.value if mla else attention.value_dim or attention.head_dim,
        "scale": score_scale(config, attention),
        "softcap": attention.softcap,
    }
    latents: dict[str, tuple[Number, Number]] = {}
    if mla is not None:
        factors = [None if is_one(f) else f for f in (mla.q_factor, mla.kv_factor)]
        held = zip(_LATENTS, mla.ranks, factors, strict=True)
        latents = {fact: (rank, factor) for fact, rank, factor in held if rank}
    return _Said(numbers, attention.window, attention.chunked, latents)


def _of_call(call: AttentionCall) -> dict[str, Number]:
    return {
        "num_attention_heads": call.heads,
        "num_key_value_heads": call.kv_heads,
        "head_dim": call.head_dim,
        "v_head_dim": call.value_width,
        "scale": call.scale,
        "softcap": call.softcap,
    }


def _not_as_traced(observations: Iterable[Observation], classes: HFClasses) -> dict[str, str]:
    """Facts of which the class hands over something else in a tiny model than its trace shows."""
    reasons: dict[str, str] = {}
    for observation in observations:
        calls = attention_calls(observation.config, classes, observation.layers_name)
        reasons.update(_masks_not_told(calls))
        for layer, call in zip(observation.layers, calls, strict=True):
            said = _of_trace(layer, observation.config)
            found = _differences(said, call, range(SEQUENCE), _MEASURED, reasons)
            for fact, (traced, handed) in found.items():
                reasons[fact] = (
                    f"the class hands {handed} to its attention where a trace shows {traced}"
                )
    return reasons


def _masks_not_told(calls: Iterable[AttentionCall]) -> dict[str, str]:
    """Why windows are left out, where some layer's mask is no rule of positions."""
    for call in calls:
        try:
            call.first_key(1)
        except NotTold as reason:
            return {"window": str(reason)}
    return {}


def _differences(
    said: _Said,
    call: AttentionCall,
    positions: Iterable[int],
    rtol: float,
    left_out: Mapping[str, str],
) -> dict[str, tuple[str, str]]:
    """The facts that differ, each with what is said and what the call shows."""
    found = {}
    for fact, seen in _of_call(call).items():
        number = said.numbers[fact]
        if fact not in left_out and not _equal(number, seen, rtol):
            found[fact] = (_text(number), _text(seen))
    for fact, (width, factor) in said.latents.items():
        made = sorted({number for wide, number in call.products if wide == width})
        alike = not made if factor is None else any(_equal(factor, n, rtol) for n in made)
        if fact not in left_out and not alike:
            found[fact] = (_text(factor), ", ".join(map(_text, made)) or "none")
    for position in () if "window" in left_out else positions:
        ours, theirs = said.first_key(position), call.first_key(position)
        if ours != theirs:
            where = f"keys seen at position {position}"
            found["window"] = (f"{position - ours + 1} {where}", f"{position - theirs + 1} {where}")
            break
    return found


def _equal(one: Number, other: Number, rtol: float) -> bool:
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=rtol)


def _positions(said: Iterable[_Said], longest: int) -> tuple[int, ...]:
    """Where to look at the masks: around each window's edges, and at the last position."""
    windows = {layer.window for layer in said if layer.window}
    near = {at for w in windows for at in (w - 1, w, w + 1, 2 * w - 1, 2 * w, 2 * w + w // 2)}
    return tuple(sorted({0, *near, max(longest, 1) - 1}))


def _shown(said: Sequence[_Said]) -> dict[str, str | int | float | None]:
    """Each fact of all layers; where they differ, every number and how many layers have it."""
    factors = [{fact: factor for fact, (_, factor) in layer.latents.items()} for layer in said]
    rows = [
        {**layer.numbers, "window": layer.window, **scaled}
        for layer, scaled in zip(said, factors, strict=True)
    ]
    found: dict[str, str | int | float | None] = {}
    for fact in rows[0]:
        values = [row.get(fact) for row in rows]
        each = list(dict.fromkeys(values))
        counted = ", ".join(f"{_text(v)} in {values.count(v)}" for v in each)
        found[fact] = each[0] if len(each) == 1 else f"{counted} of {len(rows)} layers"
    return found


def _text(number: Number) -> str:
    return "none" if number is None else f"{number:.7g}"


def _evidence(fact: str, value: str | int | float | None) -> Evidence:
    name = fact if fact == "attention" else f"attention.{fact}"
    return Evidence(name, "real size", _WHERE, value)


def _refused(what: str, said: object, seen: object) -> Refused:
    return Refused(
        "attention",
        f"{what}: the tiny models say {said}, the real size shows {seen}",
        where=_WHERE,
        hint="the tiny models do not tell two keys apart, or the class decides by a size: a port "
        "would be wrong",
    )
