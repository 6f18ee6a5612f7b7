"""Holds the sizes of experts by the configuration against the real shapes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.spec import CheckpointSpec, LayerKind, MoeSpec, Quantity, TensorSpec


def check_experts(kinds: Sequence[LayerKind], checkpoint: CheckpointSpec) -> None:
    """Hold every kind's number of experts and widths against the tensors of the real size.

    Raises:
        Refused: The class builds tensors of another size.
    """
    for kind in kinds:
        if kind.moe is None:
            continue
        for tensor in checkpoint.tensors:
            for name, quantity, size in _sizes(kind, kind.moe, tensor):
                if size != quantity.value:
                    raise Refused(
                        "moe",
                        f"{name} is {quantity.value} by {quantity.expr}, but {tensor.name} has "
                        f"the shape {list(tensor.shape)}, which makes it {size}",
                        where="the model at its real size",
                        hint="experts of equal widths, as many in every layer, are expressed",
                    )


def _sizes(
    kind: LayerKind, moe: MoeSpec, tensor: TensorSpec
) -> Iterator[tuple[str, Quantity, int]]:
    """What the shape of a tensor says: (name, quantity, size)."""
    experts, width = moe.router.num_experts, kind.mlp.intermediate_size
    inner = tensor.shape[1:] if tensor.experts == "stacked" else tensor.shape
    rows, columns = inner[-2:][::-1] if tensor.transposed else (inner[0], inner[-1])
    if tensor.roles == ("moe.router.weight",):
        yield "the number of experts", experts, rows
    elif tensor.roles == ("moe.shared.down.weight",) and moe.shared is not None:
        yield "the shared experts' width", moe.shared.mlp.intermediate_size, columns
    elif tensor.roles == ("moe.down.weight",):
        if tensor.experts == "stacked":
            yield "the number of experts", experts, tensor.shape[0]
        if tensor.experts == "flat" and tensor.transposed:
            columns //= int(experts.value)
        yield "an expert's width", width, columns
