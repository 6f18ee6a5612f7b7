"""What ``torch.compile`` sees of attention, experts and sums over ranks: one operator each.

They read lengths and choices on the host, so nothing in them could be traced. The rest of a layer
is. A compiled graph passes tensors only: layers and batches stand in it as *handles*, tensors
that hold a number, and the operator finds the object by the number when it runs. So one graph
serves every batch, and nothing of a batch is baked in.

Only code that is being traced comes here; eager code calls the same methods itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from trtllm_scaffold.standin.generation import trace_when

trace_when(torch.compiler.is_compiling)

_numbers = itertools.count()
_held: WeakValueDictionary[int, Any] = WeakValueDictionary()

#: Host reads: Inductor must not record the operators in a CUDA graph.
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


def make_handle(owner: Any) -> torch.Tensor:
    """A new handle of ``owner``: int64 ``[]``, always on the CPU; does not keep it alive."""
    number = next(_numbers)
    _held[number] = owner
    return torch.tensor(number, device="cpu")


def handle_of(owner: Any, handle: torch.Tensor | None) -> torch.Tensor:
    """``handle`` if it is ``owner``'s; a new one otherwise, for instance in a copy of another."""
    if handle is not None and _held.get(int(handle)) is owner:
        return handle
    return make_handle(owner)


def _find(handle: torch.Tensor) -> Any:
    return _held[int(handle)]


class Findable(nn.Module):
    """A module that operators find by its handle. A copy of it has another one."""

    def __init__(self) -> None:
        super().__init__()
        # A plain attribute: it must not move to a device, nor be in a checkpoint.
        self._handle = make_handle(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copied or unpickled module."""
        super().__setstate__(state)
        self._handle = make_handle(self)


def _batch(metadata: Any) -> torch.Tensor:
    handle: torch.Tensor | None = getattr(metadata, "_handle", None)
    if handle is None:
        raise RuntimeError("AttentionMetadata.prepare() must be called before every forward")
    return handle


def _filled_up(output: torch.Tensor, rows: int) -> torch.Tensor:
    """``output`` with rows of zeros behind: a graph cannot know how many rows are padding."""
    if output.shape[0] == rows:
        return output.contiguous()
    whole = output.new_zeros(rows, output.shape[1])
    whole[: output.shape[0]] = output
    return whole


# ---------------------------------------------------------------------- attention


def attention(
    layer: Any,
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    metadata: Any,
    mask: Any,
    window: int | None,
    mask_data: torch.Tensor | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """The layer's part as one operator, ``[rows of q, heads * head_dim]``; padding gives zeros."""
    handles = layer._handle, _batch(metadata)
    kind, width = str(mask.value), layer.num_heads * layer.head_dim
    found: torch.Tensor = _attention(q, k, v, *handles, kind, window, mask_data, sinks, width)
    return found


@torch.library.custom_op(
    "trtllm_scaffold::attention",
    mutates_args=(),
    tags=_TAGS,
    schema="(Tensor q, Tensor? k, Tensor? v, Tensor layer, Tensor batch, str mask, SymInt? window,"
    " Tensor? mask_data, Tensor? sinks, SymInt width) -> Tensor",
)
def _attention(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: torch.Tensor,
    batch: torch.Tensor,
    mask: str,
    window: int | None,
    mask_data: torch.Tensor | None,
    sinks: torch.Tensor | None,
    width: int,
) -> torch.Tensor:
    if q.is_cuda and k is None:
        q = q.clone()  # the kernel rotates in place, an operator must leave its arguments
    output = _find(layer).operator_forward(q, k, v, _find(batch), mask, window, mask_data, sinks)
    return _filled_up(output, q.shape[0])


@_attention.register_fake
def _(
    q: torch.Tensor,
    k: torch.Tensor | None,
    v: torch.Tensor | None,
    layer: torch.Tensor,
    batch: torch.Tensor,
    mask: str,
    window: int | None,
    mask_data: torch.Tensor | None,
    sinks: torch.Tensor | None,
    width: int,
) -> torch.Tensor:
    return q.new_empty(q.shape[0], width)


# ---------------------------------------------------------------------- latent attention


def latent_attention(
    layer: Any, position_ids: torch.Tensor | None, hidden_states: torch.Tensor, metadata: Any
) -> torch.Tensor:
    """The layer's part as one operator, ``[rows, heads * v_head_dim]``; padding gives zeros."""
    handles = layer._handle, _batch(metadata)
    width = layer.num_heads * layer.v_head_dim
    found: torch.Tensor = _latent_attention(hidden_states, position_ids, *handles, width)
    return found


@torch.library.custom_op(
    "trtllm_scaffold::latent_attention",
    mutates_args=(),
    tags=_TAGS,
    schema="(Tensor x, Tensor? position_ids, Tensor layer, Tensor batch, SymInt width) -> Tensor",
)
def _latent_attention(
    x: torch.Tensor,
    position_ids: torch.Tensor | None,
    layer: torch.Tensor,
    batch: torch.Tensor,
    width: int,
) -> torch.Tensor:
    return _filled_up(_find(layer).operator_forward(position_ids, x, _find(batch)), x.shape[0])


@_latent_attention.register_fake
def _(
    x: torch.Tensor,
    position_ids: torch.Tensor | None,
    layer: torch.Tensor,
    batch: torch.Tensor,
    width: int,
) -> torch.Tensor:
    return x.new_empty(x.shape[0], width)


# ---------------------------------------------------------------------- experts


def experts(
    layer: Any,
    x: torch.Tensor,
    router_logits: torch.Tensor,
    input_ids: torch.Tensor | None,
    tokens: list[int] | None,
    padded: bool | None,
    dtype: torch.dtype | None,
) -> torch.Tensor:
    """The layer as one operator, ``[tokens, hidden]``."""
    options = tokens, padded, x.dtype if dtype is None else dtype
    found: torch.Tensor = _experts(x, router_logits, layer._handle, input_ids, *options)
    return found


@torch.library.custom_op(
    "trtllm_scaffold::experts",
    mutates_args=(),
    tags=_TAGS,
    schema="(Tensor x, Tensor router_logits, Tensor layer, Tensor? input_ids, SymInt[]? tokens,"
    " bool? padded, ScalarType dtype) -> Tensor",
)
def _experts(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    layer: torch.Tensor,
    input_ids: torch.Tensor | None,
    tokens: list[int] | None,
    padded: bool | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    mixed: torch.Tensor = _find(layer).operator_forward(x, router_logits, input_ids, tokens, padded)
    return mixed.to(dtype).contiguous()


@_experts.register_fake
def _(
    x: torch.Tensor,
    router_logits: torch.Tensor,
    layer: torch.Tensor,
    input_ids: torch.Tensor | None,
    tokens: list[int] | None,
    padded: bool | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return torch.empty(x.shape, dtype=dtype, device=x.device)


# ---------------------------------------------------------------------- sums over ranks


def all_reduce_sum(tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """``distributed.all_reduce_sum`` as one operator, a tensor like ``tensor``."""
    found: torch.Tensor = _all_reduce_sum(tensor, list(ranks))
    return found


@torch.library.custom_op(
    "trtllm_scaffold::all_reduce_sum",
    mutates_args=(),
    tags=_TAGS,
    schema="(Tensor x, int[] ranks) -> Tensor",
)
def _all_reduce_sum(x: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    from trtllm_scaffold.standin import distributed

    return distributed.all_reduce_sum(x, ranks)


@_all_reduce_sum.register_fake
def _(x: torch.Tensor, ranks: list[int]) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)
