"""The checkpoint axis: name, shape and layout of every stored tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: How one stored tensor holds its parts:
#: ``whole``      one part, as stored;
#: ``rows``       the parts one after another along dimension 0, each with its own width;
#: ``per_head``   for each head its parts' rows (q, k and v, or k and v) in the order of `roles`:
#:                [heads, parts, head_dim, ...], or the rows of the plain part of its key and its
#:                value: [heads, nope + v, ...];
#: ``per_group``  for each key-value head the parts' rows in the order of `roles`, with the query
#:                heads of its group for q: [kv_heads, heads / kv_heads + 2, head_dim, ...];
#: ``alternating`` two parts row by row: first, second, first, second, ...;
#: ``blocks``     a fixed number of equal blocks, each with its share of the parts' rows one after
#:                another, in the order of `roles`: [blocks, parts, heads / blocks * head_dim, ...].
#: For stacked experts it describes one expert's matrix.
Layout = Literal["whole", "rows", "per_head", "per_group", "alternating", "blocks"]


@dataclass(frozen=True)
class TensorSpec:
    """One stored tensor, or one per layer.

    Attributes:
        name: The stored name; ``{i}`` stands for the layer where `per_layer` is set.
        shape: The stored shape for the given (real-size) configuration.
        roles: What it holds, in order: ``embedding.weight``, ``position.weight``,
            ``embedding.projection.weight``, ``head.weight``, ``head.bias``,
            ``head.projection.weight``, ``final_norm.weight|bias``,
            ``norm.<name>.weight|bias`` (names of `BlockSpec.norms`),
            ``attention.q|k|v|o.weight|bias``, ``attention.q_norm|k_norm.weight|bias``,
            ``attention.gate.weight|bias``, ``attention.gate_bias`` (one number for each head),
            ``attention.output_norm.weight``,
            ``attention.q_a|q_b|kv_a|k_rope|k_b|v_b.weight|bias`` and
            ``attention.q_a_norm|kv_a_norm.weight|bias`` (see `MlaSpec`),
            ``attention.index_q|index_k|index_weights.weight`` and
            ``attention.index_k_norm.weight|bias`` (see `IndexerSpec`),
            ``attention.sinks``, ``mlp.gate|up|down.weight|bias``, ``mlp.down_norm.weight``,
            ``mlp.activation.<parameter>``, ``embedding.norm.weight|bias``,
            ``head.dense.weight|bias``, ``head.norm.weight|bias``. In a layer of experts
            ``moe.router.weight|bias``, ``moe.router.selection_bias``,
            ``moe.gate|up|down.weight|bias`` (one expert's), ``moe.shared.gate|up|down.weight|bias``
            and ``moe.shared_gate.weight``.
        layout: How the roles lie in the tensor.
        transposed: Stored [in, out] instead of [out, in] (applies before `layout`).
        per_layer: Whether there is one such tensor per layer.
        blocks: Number of blocks of the layout ``blocks``.
        per_head: The name has ``{j}`` as well: one such tensor per head, to be stacked
            (norms that each head has for itself).
        experts: How many experts' parts it holds: ``one`` (the name has ``{e}`` as well, or it is
            no expert's), ``stacked`` along a dimension of its own ([num_experts, ...]), or
            ``flat``, one after another along dimension 0.
        only_layers: Layers that have the tensor, where not all have; empty for all.
        shapes: The shape in each layer that has the tensor, where layers differ in it (`shape` is
            the first one's); empty where they do not.
    """

    name: str
    shape: tuple[int, ...]
    roles: tuple[str, ...]
    layout: Layout = "whole"
    transposed: bool = False
    per_layer: bool = True
    blocks: int = 0
    per_head: bool = False
    experts: Literal["one", "stacked", "flat"] = "one"
    only_layers: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class CheckpointSpec:
    """Everything a checkpoint of the model stores.

    Attributes:
        tensors: In the order of the model.
        dropped: (name with ``{i}``, reason) of stored tensors that no parameter needs.
        base_prefix: HF's base-model prefix, such as ``transformer.``: published files of some
            families omit it. Empty where names never carry one.
    """

    tensors: tuple[TensorSpec, ...]
    dropped: tuple[tuple[str, str], ...] = ()
    base_prefix: str = ""
