"""Finds which keys set the sizes of a model by building it on the meta device and looking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer.effective import build_config, build_meta_model
from trtllm_scaffold.infer.keys import is_size, is_token
from trtllm_scaffold.sources.hf_class import HFClasses

_Shape = tuple[int, ...]

#: Lists in here have one entry per rotated pair, so no size could change alone.
_ROPE_DICTS = ("rope_scaling", "rope_parameters")


@dataclass(frozen=True)
class _Build:
    """What a build shows.

    Attributes:
        parameters: Shape of each parameter.
        embedding: Name of the token embedding's parameter.
        lists: Length of each module list.
        integers: Every integer attribute of every module, by module and attribute.
    """

    parameters: Mapping[str, _Shape]
    embedding: str
    lists: Mapping[str, int]
    integers: Mapping[tuple[str, str], int]


@dataclass
class _Found:
    """Keys by what their doubling did."""

    roles: dict[str, str] = field(default_factory=dict)
    wide: dict[str, int] = field(default_factory=dict)
    quiet: dict[str, int] = field(default_factory=dict)


def find_keys(
    source: Mapping[str, Any], values: Mapping[str, Any], classes: HFClasses
) -> dict[str, str]:
    """Return the key of each size that shows, by role, doubling one integer at a time.

    A longer module list shows the number of layers; more or wider rows of the token embedding
    the vocabulary and the hidden size. Of the rest, a second dimension that is the number itself
    shows the intermediate size; one that is a multiple of it, the number of heads or (with more
    parameters changed) the width of a head. Rows that double alone show the key-value heads.
    Where the width of a head is derived, more heads make it smaller.

    Args:
        source: The parsed config.json.
        values: Every value of the configuration object.
        classes: The model's HF classes.
    """
    plain = {key: value for key, value in source.items() if key not in _ROPE_DICTS}
    base = _build(plain, classes)
    found = _Found()
    for key, value in values.items():
        if base is None or not is_size(value) or value < 2 or is_token(key):
            continue
        doubled = _build({**plain, key: 2 * value}, classes)
        if doubled is not None:
            _classify(key, value, base, doubled, found)
    if base is not None and "num_attention_heads" not in found.roles:
        _heads(base, found)
    return found.roles


def sets_a_size(source: Mapping[str, Any], key: str, classes: HFClasses) -> bool:
    """Whether doubling the integer `key` changes the shape of a parameter."""
    base = _build(source, classes)
    doubled = _build({**source, key: 2 * source[key]}, classes)
    return base is not None and doubled is not None and base.parameters != doubled.parameters


def changes_shapes(source: Mapping[str, Any], edits: Mapping[str, Any], classes: HFClasses) -> bool:
    """Whether edits of a configuration change the shape of a parameter."""
    base, edited = _build(source, classes), _build({**source, **edits}, classes)
    return base is not None and edited is not None and base.parameters != edited.parameters


def live_edits(
    source: Mapping[str, Any], edits: Mapping[str, Any], classes: HFClasses
) -> dict[str, Any]:
    """Return those edits of a tiny configuration that change its logits, and no shape.

    An edit that the class does not accept, or at which it does not run, is left out.
    """
    shapes = _shapes(source, classes)
    kept = {
        key: value
        for key, value in edits.items()
        if shapes is not None and _shapes({**source, key: value}, classes) == shapes
    }
    if not kept or (before := _logits(source, classes)) is None:
        return {}
    together = _logits({**source, **kept}, classes)
    live = {}
    for key, value in kept.items():
        alone = _logits({**source, key: value}, classes)
        without = _logits({**source, **kept, key: source[key]}, classes)
        if _differ(before, alone) or (alone is not None and _differ(together, without)):
            live[key] = value
    return live


def _differ(first: Any, second: Any) -> bool:
    """Whether both ran, to different logits."""
    return first is not None and second is not None and not first.equal(second)


def _shapes(source: Mapping[str, Any], classes: HFClasses) -> Mapping[str, _Shape] | None:
    built = _build(source, classes)
    return None if built is None else built.parameters


def _logits(source: Mapping[str, Any], classes: HFClasses) -> Any:
    """Logits of the model with random parameters; None where it does not run."""
    import torch

    from trtllm_scaffold.infer.tiny import build, token_ids

    try:
        model, _ = build(dict(source), classes.config_class, classes.model_class, seed=0)
        with torch.no_grad():
            return model(input_ids=token_ids(model, 0), use_cache=False, return_dict=True).logits
    except Exception:  # the model's own code raises whatever it likes; then nothing is learnt
        return None


def parameter_count(source: Mapping[str, Any], classes: HFClasses) -> int:
    """Return how many numbers the parameters of a configuration's model hold."""
    model = build_meta_model(build_config(source, classes), classes)
    return sum(p.numel() for p in model.parameters())


def _build(source: Mapping[str, Any], classes: HFClasses) -> _Build | None:
    """Build on the meta device; None where the class refuses."""
    from torch import nn

    try:
        model = build_meta_model(build_config(source, classes), classes)
    except InputError:
        return None
    names = {id(p): name for name, p in model.named_parameters()}
    return _Build(
        parameters={name: tuple(p.shape) for name, p in model.named_parameters()},
        embedding=names.get(id(getattr(model.get_input_embeddings(), "weight", None)), ""),
        lists={n: len(m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList)},
        integers={
            (name, attribute): number
            for name, module in model.named_modules()
            for attribute, number in vars(module).items()
            if is_size(number)
        },
    )


def _classify(key: str, value: int, base: _Build, doubled: _Build, found: _Found) -> None:
    """Put a key where the change that its doubling made belongs."""
    if any(doubled.lists.get(name) == 2 * length for name, length in base.lists.items()):
        found.roles.setdefault("num_hidden_layers", key)
        return
    moved = {
        name: (old, doubled.parameters[name])
        for name, old in base.parameters.items()
        if doubled.parameters.get(name, old) != old
    }
    if base.embedding in moved:
        old, new = moved[base.embedding]
        found.roles.setdefault("vocab_size" if old[0] != new[0] else "hidden_size", key)
    elif any(old[1:] != new[1:] for old, new in moved.values()):
        columns = {old[1] for old, new in moved.values() if old[1:] != new[1:]}
        if columns == {value}:
            found.roles.setdefault("intermediate_size", key)
        else:
            found.wide[key] = len(moved)
    elif moved and all(new[0] == 2 * old[0] > 2 * value for old, new in moved.values()):
        found.roles.setdefault("num_key_value_heads", key)
    elif _halves(base, doubled):
        found.quiet[key] = value


def _halves(base: _Build, doubled: _Build) -> bool:
    """Whether an integer of a module became half of what it was."""
    return any(2 * doubled.integers.get(at, 0) == number for at, number in base.integers.items())


def _heads(base: _Build, found: _Found) -> None:
    """Decide which keys count heads, and which gives their width."""
    hidden = base.parameters.get(base.embedding, (0, 0))[-1]
    widths = set(base.integers.values())
    counting = [k for k, n in found.quiet.items() if hidden % n == 0 and hidden // n in widths]
    by_moves = sorted(found.wide, key=lambda key: found.wide[key])
    if counting:
        by_moves.insert(0, max(counting, key=lambda key: found.quiet[key]))
    found.roles.update(zip(("num_attention_heads", "head_dim"), by_moves, strict=False))
