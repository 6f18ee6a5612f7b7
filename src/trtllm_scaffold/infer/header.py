"""Explains every tensor of a real checkpoint's header, or says which one nobody explains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer.layer_names import LayerNames, fold_any
from trtllm_scaffold.sources.checkpoint import CheckpointHeader, TensorInfo
from trtllm_scaffold.spec.checkpoint import CheckpointSpec, TensorSpec
from trtllm_scaffold.spec.evidence import Evidence

#: Last parts of the names of a quantized weight's companions (see `QuantizationSpec`).
_QUANTIZATION_PARTS = frozenset(
    {
        "weight_scale",
        "weight_scale_inv",
        "weight_scale_2",
        "input_scale",
        "k_scale",
        "v_scale",
        "kv_scale",
        "pre_quant_scale",
    }
)
_ROPE_TABLE = "rotary_emb.inv_freq"
_MASKS = ("bias", "masked_bias", "causal_mask", "mask")


def explain_header(
    spec: CheckpointSpec,
    layers: int,
    heads: Mapping[str, int],
    header: CheckpointHeader,
    model: Any,
) -> tuple[tuple[tuple[str, str], ...], tuple[Evidence, ...]]:
    """Check a header against the inferred checkpoint, both ways.

    Args:
        spec: What the class stores.
        layers: Number of layers of the real model.
        heads: Number of heads or experts that each template with ``{j}`` or ``{e}`` stands for.
        header: What the real checkpoint stores.
        model: The real model on the meta device: tells ties, buffers and ignored names.

    Returns:
        (template, reason) of the stored tensors that no parameter needs, and evidence.

    Raises:
        InputError: A tensor is missing, has another shape, or nothing explains it.
    """
    expected = _expected(spec, layers, heads)
    aliases = {name: _alias(name, expected, spec.base_prefix) for name in header.tensors}
    found: dict[str, str] = {}
    for name, alias in aliases.items():
        if alias is not None and found.setdefault(alias, name) != name:
            raise InputError(
                f"the checkpoint stores both {found[alias]} and {name}", where="checkpoint header"
            )
    quantized = getattr(model.config, "quantization_config", None) is not None
    _check_missing(expected, found)
    for alias, name in found.items():
        _check_shape(name, header.tensors[name], expected[alias], quantized)
    omitted = any(alias not in (name, None) for name, alias in aliases.items())
    prefix = spec.base_prefix if omitted else ""
    dropped: dict[str, str] = {}
    for name, alias in aliases.items():
        if alias is not None or (quantized and _is_companion(name, aliases)):
            continue
        full, reason = _reason(name, prefix, header.tensors[name], spec, model)
        if not reason:
            raise InputError(
                f"nothing explains the stored tensor {name} {_shown(header.tensors[name])}",
                where="checkpoint header",
                hint="the checkpoint is of another model, or of one with extra parts",
            )
        dropped.setdefault(fold_any(full), reason)
    evidence = tuple(
        Evidence(f"checkpoint.{tensor.name}", "checkpoint", name, _shown(header.tensors[name]))
        for alias, name in found.items()
        if (tensor := expected[alias]) and alias == _first(tensor)
    )
    return tuple(dropped.items()), evidence


def _first(tensor: TensorSpec) -> str:
    layer = tensor.only_layers[0] if tensor.only_layers else 0
    return tensor.name.replace("{i}", str(layer), 1).replace("{j}", "0").replace("{e}", "0")


def _expected(spec: CheckpointSpec, layers: int, heads: Mapping[str, int]) -> dict[str, TensorSpec]:
    names, found = LayerNames(""), {}
    for tensor in spec.tensors:
        holders = tensor.only_layers or tuple(range(layers))
        for place, layer in enumerate(holders if tensor.per_layer else (0,)):
            own = replace(tensor, shape=tensor.shapes[place]) if tensor.shapes else tensor
            for name in names.unfold(tensor.name, (layer,), heads.get(tensor.name, 1)):
                found[name] = own
    return found


def _alias(name: str, expected: Mapping[str, TensorSpec], base_prefix: str) -> str | None:
    """Return the expected name that a stored one stands for: published files may lack a prefix."""
    if name in expected:
        return name
    longer = base_prefix + name
    return longer if longer in expected else None


def _check_missing(expected: Mapping[str, TensorSpec], found: Mapping[str, str]) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(expected)} tensors are missing from the checkpoint, "
            f"first {missing[0]} {list(expected[missing[0]].shape)}",
            where="checkpoint header",
            hint="config.json and weights must be of the same model",
        )


def _check_shape(name: str, info: TensorInfo, tensor: TensorSpec, quantized: bool) -> None:
    if info.shape is None or info.shape == tensor.shape:
        return
    packed = quantized and info.dtype in ("U8", "I8", "I32")
    if packed and info.shape[:-1] == tensor.shape[:-1]:
        return
    raise InputError(
        f"{name} has the shape {list(info.shape)} in the checkpoint, but config.json makes it "
        f"{list(tensor.shape)}",
        where="checkpoint header",
        hint="config.json and weights must be of the same model",
    )


def _is_companion(name: str, aliases: Mapping[str, str | None]) -> bool:
    """Whether a tensor is a scale of a known weight, or of a known layer's keys and values."""
    stem, _, last = name.rpartition(".")
    if last not in _QUANTIZATION_PARTS:
        return False
    if aliases.get(f"{stem}.weight") is not None:
        return True
    owner = stem.rpartition(".")[0] if last in ("k_scale", "v_scale", "kv_scale") else stem
    return any(other.startswith(f"{owner}.") for other, alias in aliases.items() if alias)


def _reason(
    name: str, prefix: str, info: TensorInfo, spec: CheckpointSpec, model: Any
) -> tuple[str, str]:
    """Return the name as HF writes it and why no parameter needs it, empty where nothing says."""
    reason = dict(spec.dropped).get(fold_any(prefix + name), "")
    if reason:
        return prefix + name, reason
    stored = {tensor.name for tensor in spec.tensors}
    known = dict(model.named_parameters(remove_duplicate=False))
    full = prefix + name
    for owned in (name, full):
        if owned in known:
            twin = next((n for n, p in known.items() if p is known[owned] and n in stored), None)
            if twin is not None:
                return owned, f"tied to {twin}"
    for pattern in getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ():
        if re.search(pattern, name):
            return full, f"{type(model).__name__} ignores it when it loads"
    if name.endswith(_ROPE_TABLE):
        return full, "rotary frequencies, computed from the configuration"
    if full in {n for n, _ in model.named_buffers()} - set(model.state_dict()):
        return full, "a buffer that the class computes itself"
    if name.rpartition(".")[2] in _MASKS and _is_mask(info.shape):
        return full, "a causal mask"
    return full, ""


def _is_mask(shape: tuple[int, ...] | None) -> bool:
    """Whether a shape is [1, 1, n, n], or a scalar."""
    if shape is None:
        return False
    return not shape or (len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3])


def _shown(info: TensorInfo) -> str:
    return "" if info.shape is None else str(list(info.shape))
