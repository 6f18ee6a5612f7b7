"""Groups layers of equal equations, and carries the pattern over to the real depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.conditions import Key, all_of, candidate_keys, per_layer
from trtllm_scaffold.infer.keys import is_size
from trtllm_scaffold.infer.labels import Label, layer_facts
from trtllm_scaffold.infer.layer_numbers import (
    COEFFICIENTS,
    coefficient_forms,
    heads_list,
    scale_form,
    theta_list,
    window_list,
)
from trtllm_scaffold.infer.trace import Observation
from trtllm_scaffold.spec import Quantity

_WINDOW = ("attention.window", "attention.chunked")
_HEADS = ("attention.num_attention_heads", "attention.num_key_value_heads", "attention.sinks")
#: What may differ besides, where layers have latents.
_LATENT = ("attention.head_dim", "attention.latent_widths", "attention.latent_factors")
_ROTATION = (
    *_HEADS,
    "attention.indexer",
    "attention.qk_norm",
    "attention.query_factor",
    "attention.scale",
    "position.style",
    "position.direction",
    "position.rope",
    *_LATENT,
)
_NORMS = ("block.norms", *(f"block.{name}" for name in COEFFICIENTS))
_FORM = ("mlp.form",)
#: Facts in which the layers of one model may differ. Every other must be the same in all.
MAY_VARY = (*_WINDOW, *_ROTATION, *_NORMS, *_FORM)
_HINT = (
    "layers that differ in window, rope, heads, sinks, their first norm and in having experts "
    "are expressed"
)
#: Facts -> the field of `Pattern` with the list that holds their numbers.
_LISTS = {"attention.window": "window_list", "position.style": "theta_list"}
_STATED = (
    "a per-layer list such as layer_types, a list of layers, a first number of layers and a "
    "period are read"
)
_PLAIN_NORMS = ("norm.eps", "norm.kind")

_Signature = tuple[tuple[str, Label], ...]
_Row = tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class Kind:
    """Layers of equal equations.

    A tiny model need not have a layer of every kind, only one for each axis of it.

    Attributes:
        picks: For each observation, a layer that is like this kind in all but window and norms.
        window_picks: A layer with the same window.
        block_picks: A layer with the same norms.
        mlp_picks: A layer with experts, or one without, as this kind.
        layers: The real layers of this kind.
        condition: The Python condition over ``config`` and ``layer_idx``; empty where all
            layers are of this kind.
    """

    picks: tuple[int, ...]
    window_picks: tuple[int, ...]
    block_picks: tuple[int, ...]
    mlp_picks: tuple[int, ...]
    condition: str = ""
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pattern:
    """Which layers of the real model are of which kind.

    Attributes:
        kinds: The kinds, in the order of the real layers.
        layers: For each real layer its kind.
        keys: Configuration keys that say so, by the fact that they explain.
        scale_form: How the softmax scale goes with the layer, as ``{} / (layer_idx + 1)``;
            empty where it does not.
        theta_list: The list that holds each layer's rotary base; empty for none.
        window_list: The list that holds each layer's window; empty for none.
        coefficients: Expression over ``layer_idx`` of each factor of the block that goes with
            the layer, by fact.
        heads_list: The list that holds each layer's number of query heads; empty for none.
    """

    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    keys: tuple[tuple[str, str], ...] = ()
    scale_form: str = ""
    theta_list: str = ""
    window_list: str = ""
    coefficients: Mapping[str, str] = field(default_factory=dict)
    heads_list: str = ""


def check_uniform(observation: Observation) -> None:
    """Refuse layers that differ in a fact that must be the same in all.

    Raises:
        Refused: Names the first fact in which two layers differ, and both values.
    """
    facts = [layer_facts(layer) for layer in observation.layers]
    first: dict[str, Label] = {}
    for found in facts:  # a fact of dense layers alone, or of experts alone, has its own first
        first = {**found, **first}
    fewer = len({f["block.norms"] for f in facts}) > 1
    for layer, found in zip(observation.layers[1:], facts[1:], strict=True):
        for fact, value in found.items():
            varies = fact in MAY_VARY and (fact not in _LATENT or layer.attention.mla is not None)
            if value == first[fact] or varies or (fewer and fact in _PLAIN_NORMS):
                continue
            raise Refused(
                fact.split(".")[0],
                f"layers differ in {fact}: {first[fact]} and {value}",
                where=layer.layer.name,
                hint=_HINT,
            )


def layer_pattern(
    observations: Sequence[Observation],
    real_config: Any,
    depth: Quantity,
    deep: Observation | None = None,
) -> Pattern:
    """Find the kinds of layers and the real pattern.

    Args:
        observations: One per tiny configuration.
        real_config: The configuration object of the real size.
        depth: Its number of layers.
        deep: A tiny model of the real depth, where the others have fewer layers: a rule may
            show only deep inside.

    Raises:
        Refused: Layers differ, and nothing in the configuration tells how.
    """
    traced = [*observations, *([deep] if deep else [])]
    forms = {
        "scale_form": scale_form(traced),
        "theta_list": theta_list(traced, real_config),
        "window_list": window_list(traced, real_config),
        "heads_list": heads_list(traced, real_config),
    }
    coefficients = coefficient_forms(traced)
    seen = [_signatures(o, forms, coefficients) for o in traced]
    configs = [*(o.config for o in traced), real_config]
    depths = [*(len(o.layers) for o in traced), int(depth.value)]
    keys: dict[str, Key] = {}
    for fact in MAY_VARY:
        labels = [[dict(layer)[fact] for layer in layers] for layers in seen]
        if any(len(set(column)) > 1 for column in labels):
            every = candidate_keys(configs, depths, depth.expr)
            holding = [k for k in every if k.name and k.name == forms.get(_LISTS.get(fact, ""))]
            candidates = [*keys.values(), *holding, *every]
            found = next((key for key in candidates if _explains(key, labels)), None)
            if found is None:
                raise _unexplained(fact, labels, traced)
            keys[fact] = found
    used = tuple(dict.fromkeys(keys.values()))
    rows = [tuple(key.columns[-1][i] for key in used) for i in range(depths[-1])]
    signatures = _real_signatures(keys, seen[: len(observations)], depths[-1])
    distinct = list(dict.fromkeys(signatures))
    layers = tuple(distinct.index(signature) for signature in signatures)
    kinds = tuple(
        Kind(
            picks=_picks(signature, seen, _ROTATION),
            window_picks=_picks(signature, seen, _WINDOW),
            block_picks=_picks(signature, seen, _NORMS),
            mlp_picks=_picks(signature, seen, _FORM),
            condition=_condition(used, rows, layers, number),
            layers=tuple(i for i, kind in enumerate(layers) if kind == number),
        )
        for number, signature in enumerate(distinct)
    )
    named = tuple((fact, key.name) for fact, key in keys.items() if key.name)
    return Pattern(kinds, layers, named, **forms, coefficients=coefficients)


def listed_window(
    observations: Sequence[Observation], pattern: Pattern, real_config: Any
) -> Quantity | None:
    """The window by a per-layer list; its value is the longest of a layer that has one."""
    if not pattern.window_list:
        return None
    first = observations[0].layers
    windowed = [first[kind.window_picks[0]].attention.window is not None for kind in pattern.kinds]
    listed = per_layer(real_config, pattern.window_list, len(pattern.layers)) or []
    entries = [e for e, kind in zip(listed, pattern.layers, strict=True) if windowed[kind]]
    if not all(map(is_size, entries)):
        raise Refused("attention", f"{pattern.window_list} holds a window that is no number")
    return Quantity(max(entries), f"config.{pattern.window_list}[layer_idx]") if entries else None


def listed_heads(pattern: Pattern, real_config: Any) -> tuple[int, ...]:
    """Each layer's number of query heads by a per-layer list; empty where there is no such list."""
    if not pattern.heads_list:
        return ()
    listed = per_layer(real_config, pattern.heads_list, len(pattern.layers)) or []
    if not all(map(is_size, listed)):
        raise Refused("attention", f"{pattern.heads_list} holds a number of heads that is none")
    return tuple(listed)


def _signatures(
    observation: Observation, forms: Mapping[str, Any], coefficients: Mapping[str, str]
) -> list[_Signature]:
    """What may vary of each layer, numbers that go with the layer left out."""
    found = []
    for layer in observation.layers:
        facts = dict(layer_facts(layer))
        rope, window = layer.attention.rope, layer.attention.window
        facts["attention.window"] = window
        if forms["window_list"] and window is not None:
            facts["attention.window"] = "by a list"
        if forms["heads_list"]:
            facts["attention.num_attention_heads"] = "by a list"
        if forms["scale_form"]:
            facts["attention.scale"] = None
        facts.update(dict.fromkeys(coefficients, "by layer"))
        if forms["theta_list"] and rope is not None:
            facts["position.rope"] = rope.dim
        found.append(tuple((fact, facts[fact]) for fact in MAY_VARY))
    return found


def _explains(key: Key, labels: Sequence[Sequence[Label]]) -> bool:
    """Whether the key decides the fact in every tiny model, and knows every real layer."""
    for column, seen in zip(key.columns, labels, strict=False):
        table: dict[Any, Label] = {}
        for value, label in zip(column, seen, strict=True):
            if table.setdefault(value, label) != label:
                return False
        if not set(key.columns[-1]) <= set(table):
            return False
    return True


def _real_signatures(
    keys: Mapping[str, Key], seen: Sequence[Sequence[_Signature]], depth: int
) -> list[tuple[_Signature, ...]]:
    """For each real layer what may vary, as each tiny model shows it."""
    found = []
    for which, signatures in enumerate(seen):
        plain = dict(signatures[0])
        tables = {
            fact: {
                value: dict(signature)[fact]
                for value, signature in zip(key.columns[which], signatures, strict=True)
            }
            for fact, key in keys.items()
        }
        found.append(
            [
                tuple(
                    (fact, tables[fact][keys[fact].columns[-1][i]] if fact in keys else plain[fact])
                    for fact in MAY_VARY
                )
                for i in range(depth)
            ]
        )
    return list(zip(*found, strict=True))


def _picks(
    signature: tuple[_Signature, ...], seen: Sequence[Sequence[_Signature]], facts: Sequence[str]
) -> tuple[int, ...]:
    """For each tiny model a layer that agrees with a real one in these facts.

    Raises:
        Refused: There is none.
    """
    picks = []
    for wanted, layers in zip(signature, seen, strict=False):
        mine = [dict(wanted)[fact] for fact in facts]
        found = [i for i, at in enumerate(layers) if [dict(at)[fact] for fact in facts] == mine]
        if not found:
            raise Refused(
                facts[0].split(".")[0],
                f"no layer of a tiny model has {', '.join(facts)} of {', '.join(map(str, mine))}",
                hint=_HINT,
            )
        picks.append(found[0])
    return tuple(picks)


def _condition(keys: Sequence[Key], rows: Sequence[_Row], layers: Sequence[int], kind: int) -> str:
    """Python that is true for exactly the layers of one kind, by as few keys as do."""
    mine = list(dict.fromkeys(row for row, k in zip(rows, layers, strict=True) if k == kind))
    others = {row for row, k in zip(rows, layers, strict=True) if k != kind}
    if not others:
        return ""
    for which, key in enumerate(keys):
        wanted = list(dict.fromkeys(row[which] for row in mine))
        if not any(row[which] in wanted for row in others):
            return key.condition(wanted)
    product = [set(column) for column in zip(*mine, strict=True)]
    if not any(all(v in values for v, values in zip(row, product, strict=True)) for row in others):
        return _conjunction(keys, [sorted(values, key=repr) for values in product], rows)
    return " or ".join(f"({_conjunction(keys, [[v] for v in row], rows)})" for row in mine)


def _conjunction(keys: Sequence[Key], wanted: Sequence[Sequence[Any]], rows: Sequence[_Row]) -> str:
    """The keys' conditions joined, those that always hold left out."""
    parts = [
        key.condition(values)
        for which, (key, values) in enumerate(zip(keys, wanted, strict=True))
        if {row[which] for row in rows} - set(values)
    ]
    return all_of(parts)


def _unexplained(
    fact: str, labels: Sequence[Sequence[Label]], traced: Sequence[Observation]
) -> Refused:
    for column, observation in zip(labels, traced, strict=True):
        for layer, label in zip(observation.layers, column, strict=True):
            if label != column[0]:
                return Refused(
                    fact.split(".")[0],
                    f"layers differ in {fact}: {column[0]} and {label}, and nothing in the "
                    "configuration says which",
                    where=f"{layer.layer.name} of {len(column)} layers",
                    hint=_STATED,
                )
    raise AssertionError(f"{fact} is the same in all layers")
