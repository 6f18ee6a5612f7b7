"""Groups layers of equal equations, and carries the pattern over to the real depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.conditions import Key, all_of, candidate_keys
from trtllm_scaffold.infer.labels import Label, layer_facts
from trtllm_scaffold.infer.layer_numbers import scale_form, theta_list
from trtllm_scaffold.infer.trace import Observation
from trtllm_scaffold.spec import Quantity

#: Facts in which the layers of one model may differ. Every other must be the same in all.
MAY_VARY = (
    "attention.window",
    "attention.scale",
    "position.style",
    "position.direction",
    "position.rope",
    "block.norms",
)
_HINT = "layers that differ in window, rope and their first norm are expressed"
_PLAIN_NORMS = ("norm.eps", "norm.kind")

_Signature = tuple[tuple[str, Label], ...]
_Row = tuple[str | int | float | bool, ...]


@dataclass(frozen=True)
class Kind:
    """Layers of equal equations.

    Attributes:
        picks: For each observation, one of its layers of this kind.
        condition: The Python condition over ``config`` and ``layer_idx``; empty where all
            layers are of this kind.
    """

    picks: tuple[int, ...]
    condition: str = ""


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
    """

    kinds: tuple[Kind, ...]
    layers: tuple[int, ...]
    keys: tuple[tuple[str, str], ...] = ()
    scale_form: str = ""
    theta_list: str = ""


def check_uniform(observation: Observation) -> None:
    """Refuse layers that differ in a fact that must be the same in all.

    Raises:
        Refused: Names the first fact in which two layers differ, and both values.
    """
    facts = [layer_facts(layer) for layer in observation.layers]
    first = facts[0]
    fewer = len({f["block.norms"] for f in facts}) > 1
    for layer, found in zip(observation.layers[1:], facts[1:], strict=True):
        for fact, value in found.items():
            if value == first[fact] or fact in MAY_VARY or (fewer and fact in _PLAIN_NORMS):
                continue
            raise Refused(
                fact.split(".")[0],
                f"layers differ in {fact}: {first[fact]} and {value}",
                where=layer.layer.name,
                hint=_HINT,
            )


def layer_pattern(
    observations: Sequence[Observation], real_config: Any, depth: Quantity
) -> Pattern:
    """Find the kinds of layers and the real pattern.

    Args:
        observations: One per tiny configuration.
        real_config: The configuration object of the real size.
        depth: Its number of layers.

    Raises:
        Refused: Layers differ, and nothing in the configuration tells how.
    """
    by_layer, bases = scale_form(observations), theta_list(observations, real_config)
    seen = [_signatures(o, bool(by_layer), bool(bases)) for o in observations]
    configs = [*(o.config for o in observations), real_config]
    depths = [*(len(o.layers) for o in observations), int(depth.value)]
    keys: dict[str, Key] = {}
    for fact in MAY_VARY:
        labels = [[dict(layer)[fact] for layer in layers] for layers in seen]
        if any(len(set(column)) > 1 for column in labels):
            candidates = [*keys.values(), *candidate_keys(configs, depths, depth.expr)]
            found = next((key for key in candidates if _explains(key, labels)), None)
            if found is None:
                raise _unexplained(fact, labels[0], observations[0])
            keys[fact] = found
    used = tuple(dict.fromkeys(keys.values()))
    picks, layers = _assign(used, seen, depths)
    kinds = tuple(
        Kind(picked, _condition(used, _rows(used, -1, depths[-1]), layers, number))
        for number, picked in enumerate(picks)
    )
    named = tuple((fact, key.name) for fact, key in keys.items() if key.name)
    return Pattern(kinds, layers, named, by_layer, bases)


def check_depth(observation: Observation, pattern: Pattern) -> None:
    """Hold the pattern to a tiny model of the real depth: a rule may show only deep inside.

    Raises:
        Refused: Two layers of one kind differ.
    """
    if scale_form([observation]) != pattern.scale_form:
        raise _deeper(observation, 0, "the softmax scale goes with the layer in another way")
    signatures = _signatures(observation, bool(pattern.scale_form), bool(pattern.theta_list))
    first: dict[int, int] = {}
    for index, (kind, signature) in enumerate(zip(pattern.layers, signatures, strict=True)):
        like = signatures[first.setdefault(kind, index)]
        for (fact, label), (_, other) in zip(signature, like, strict=True):
            if label != other:
                raise _deeper(observation, index, f"{fact} is {label}, not {other}")


def _deeper(observation: Observation, index: int, problem: str) -> Refused:
    return Refused(
        "block",
        f"in a model of the real depth, {problem}, and nothing in the configuration says so",
        where=observation.layers[index].layer.name,
        hint="rules of the layer's place that the configuration states are read",
    )


def _signatures(observation: Observation, by_layer: bool, listed: bool) -> list[_Signature]:
    """What may vary of each layer, numbers that go with the layer left out."""
    found = []
    for layer in observation.layers:
        facts = dict(layer_facts(layer))
        rope = layer.attention.rope
        facts["attention.window"] = layer.attention.window
        if by_layer:
            facts["attention.scale"] = None
        if listed and rope is not None:
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


def _rows(keys: Sequence[Key], which: int, depth: int) -> list[_Row]:
    """For each layer of one configuration the value of every key."""
    return [tuple(key.columns[which][i] for key in keys) for i in range(depth)]


def _assign(
    keys: Sequence[Key], seen: Sequence[Sequence[_Signature]], depths: Sequence[int]
) -> tuple[list[tuple[int, ...]], tuple[int, ...]]:
    """For each kind its layer in each observation, and for each real layer its kind.

    Raises:
        Refused: A real layer is like none of a tiny model.
    """
    tables: list[dict[_Row, int]] = []
    for which, signatures in enumerate(seen):
        table: dict[_Row, int] = {}
        for index, row in enumerate(_rows(keys, which, len(signatures))):
            table.setdefault(row, index)
        tables.append(table)
    picks: dict[tuple[_Signature, ...], tuple[int, ...]] = {}
    order: list[tuple[_Signature, ...]] = []
    for index, row in enumerate(_rows(keys, -1, depths[-1])):
        if any(row not in table for table in tables):
            raise Refused(
                "block",
                f"no layer of a tiny model is like layer {index}",
                where=", ".join(key.text for key in keys),
                hint=_HINT,
            )
        at = tuple(table[row] for table in tables)
        signature = tuple(layers[i] for layers, i in zip(seen, at, strict=True))
        picks.setdefault(signature, at)
        order.append(signature)
    kinds = list(picks)
    return list(picks.values()), tuple(kinds.index(signature) for signature in order)


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


def _unexplained(fact: str, labels: Sequence[Label], observation: Observation) -> Refused:
    differing = next(i for i, label in enumerate(labels) if label != labels[0])
    return Refused(
        fact.split(".")[0],
        f"layers differ in {fact}: {labels[0]} and {labels[differing]}, and nothing in the "
        "configuration says which",
        where=observation.layers[differing].layer.name,
        hint="a per-layer list such as layer_types, a first or last number of layers and a "
        "period are read",
    )
