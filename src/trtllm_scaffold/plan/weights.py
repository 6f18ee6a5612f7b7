"""The weight map: every checkpoint tensor once, with the parameters it fills and how."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.block_indexer import MODULES as INDEX_MODULES
from trtllm_scaffold.plan.gated_norm import is_partly_gated
from trtllm_scaffold.plan.indexer import own_target
from trtllm_scaffold.plan.mla import MODULES, latent_transform, target_roles
from trtllm_scaffold.plan.moe_weights import is_moe, moe_parameter, moe_transform
from trtllm_scaffold.plan.norm import named_norms
from trtllm_scaffold.spec import ModelSpec, TensorSpec

_LAYER = "model.layers.{i}"
#: Role -> module, for roles outside the layers.
_MODEL_ROLES = {
    "embedding": "model.embed_tokens",
    "embedding.norm": "model.embed_norm",
    "embedding.projection": "model.project_in",
    "position": "model.embed_positions",
    "final_norm": "model.norm",
    "head": "lm_head",
    "head.dense": "model.head_dense",
    "head.norm": "model.head_norm",
    "head.projection": "model.project_out",
}
_ATTENTION = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
    "output_norm": "output_norm",
    **MODULES,
    **INDEX_MODULES,
}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj", "down_norm": "down_norm"}
_QKV = {"q", "k", "v"}
#: Roles whose module's norm has another name in `named_norms`.
_NORM_OF_ROLE = {
    "final_norm": "norm",
    "embedding.norm": "embed_norm",
    "head.norm": "head_norm",
    "attention.q_norm": "qk_norm",
    "attention.k_norm": "qk_norm",
}


def parameter_name(role: str) -> str:
    """The canonical parameter that a role fills, such as ``model.layers.{i}.mlp.up_proj.weight``.

    Raises:
        Refused: Nobody has said where the role goes.
    """
    if role == "head.bias":
        return "lm_head_bias"
    if role in ("attention.sinks", "attention.gate_bias"):
        return f"{_LAYER}.self_attn.{role.partition('.')[2]}"
    stem, _, kind = role.rpartition(".")
    if stem in _MODEL_ROLES:
        return f"{_MODEL_ROLES[stem]}.{kind}"
    axis, _, part = stem.partition(".")
    if axis == "norm":
        return f"{_LAYER}.{part}.{kind}"
    if axis == "attention" and part in _ATTENTION:
        return f"{_LAYER}.self_attn.{_ATTENTION[part]}.{kind}"
    if axis == "mlp" and part in _MLP:
        return f"{_LAYER}.mlp.{_MLP[part]}.{kind}"
    if stem == "mlp.activation":
        return f"{_LAYER}.mlp.activation.{kind}"
    if axis == "moe" and (found := moe_parameter(role)):
        return found
    raise Refused("checkpoint", f"no parameter of a port takes the role {role!r}")


def _parts(tensor: TensorSpec) -> tuple[str, ...]:
    return tuple(role.split(".")[1] for role in tensor.roles)


def _is_qkv(tensor: TensorSpec) -> bool:
    """Whether the tensor holds several of q, k and v."""
    return len(tensor.roles) > 1 and set(_parts(tensor)) <= _QKV


def _target_roles(tensor: TensorSpec) -> tuple[str, ...]:
    """The roles in the order of a transform's results: q, k, v whatever the stored order."""
    if (latent := target_roles(tensor)) is not None:
        return latent
    if _is_qkv(tensor):
        return tuple(sorted(tensor.roles, key=lambda role: "qkv".index(role.split(".")[1])))
    return tensor.roles


def _targets(spec: ModelSpec, tensor: TensorSpec) -> list[str]:
    """The parameters that a tensor fills; a head's own share of one has the head's number."""
    if (own := own_target(spec, tensor)) is not None:
        return [own]
    names = [parameter_name(role) for role in _target_roles(tensor)]
    if not tensor.per_head:
        return names
    stems = [name.rpartition(".") for name in names]
    return [f"{stem}.{{j}}.{kind}" for stem, _, kind in stems]


def _adds_one(spec: ModelSpec, tensor: TensorSpec) -> bool:
    """Whether the tensor is the weight of a layernorm that is applied as 1 + w."""
    stem, _, kind = tensor.roles[0].rpartition(".")
    name = _NORM_OF_ROLE.get(stem, stem.removeprefix("norm."))
    norm = named_norms(spec).get(name)
    return kind == "weight" and norm is not None and norm.plus_one and norm.kind == "layernorm"


def _transform(spec: ModelSpec, tensor: TensorSpec) -> str:
    """The function of the port's weights file that takes `tensor` apart; empty for none."""
    if is_moe(tensor):
        return moe_transform(tensor)
    if own_target(spec, tensor) is not None:
        return ""
    latent = latent_transform(spec, tensor)
    if latent is not None:
        return latent
    rope = spec.position.rope
    if len(tensor.roles) == 1:
        turned = tensor.roles[0].split(".")[1] in ("q", "k", "q_norm", "k_norm")
        if _adds_one(spec, tensor):
            if rope is not None and rope.inverse and turned:
                raise Refused("checkpoint", f"{tensor.name} is stored as w and turned inversely")
            return "plus_one"
        if rope is not None and rope.inverse and turned:
            swap = "swapped_halves" if rope.style == "neox" else "swapped_pairs"
            return f"{swap}_transposed" if tensor.transposed else swap
        return "transposed" if tensor.transposed else ""
    if _is_qkv(tensor):
        name = "query_key_value" if len(tensor.roles) == 3 else "key_value"
        if set(_parts(tensor)) in (_QKV, {"k", "v"}):
            return f"{name}_transposed" if tensor.transposed else name
    rows = tensor.layout == "rows" and not tensor.transposed
    if set(_parts(tensor)) == {"gate", "up"} and rows:
        return "gate_up"
    raise Refused(
        "checkpoint",
        f"{tensor.name} holds {tensor.roles} in layout {tensor.layout!r}, which has no transform",
    )


def _is_partial(spec: ModelSpec, tensor: TensorSpec) -> bool:
    """Whether some layers lack the tensor, be it that their norm before attention is missing.

    Which layers have experts, choose blocks of keys, or gate a norm, is known apart.
    """
    known_apart = ("moe.", "mlp.", "attention.index_")
    apart = tensor.roles[0].startswith(known_apart) or is_partly_gated(spec, tensor)
    if not tensor.only_layers or apart:
        return False
    if tensor.roles == ("attention.sinks",):
        return True
    names = {kind.block.attention_input_norm for kind in spec.layer_kinds}
    if tensor.roles[0].split(".")[1] not in names:
        raise Refused("checkpoint", f"only layers {tensor.only_layers} store {tensor.name}")
    return True


def _one_layout(spec: ModelSpec) -> TensorSpec | None:
    """A tensor that holds several of q, k and v, if any; all must lie alike."""
    fused = [tensor for tensor in spec.checkpoint.tensors if _is_qkv(tensor)]
    layouts = {(tensor.layout, _parts(tensor), tensor.blocks) for tensor in fused}
    if len(layouts) > 1:
        raise Refused("checkpoint", f"query, key and value lie in several layouts: {layouts}")
    return fused[0] if fused else None


def _zero_biases(spec: ModelSpec) -> list[str]:
    """Projections without a bias that share a module, and so its bias, with some that have one."""
    attention, mlp = spec.layer.attention, spec.layer.mlp
    qkv = {"q": attention.q_bias, "k": attention.k_bias, "v": attention.v_bias}
    feed = {"up": mlp.up_bias, "down": mlp.down_bias}
    if mlp.kind == "gated":
        feed = {"gate": mlp.gate_bias, **feed}
    return [
        f"{_LAYER}.{axis}.{part}_proj"
        for axis, biases in (("self_attn", qkv), ("mlp", feed))
        for part, bias in biases.items()
        if not bias and any(biases.values())
    ]


def plan_weights(spec: ModelSpec) -> Answers:
    """Answers of the checkpoint axis: lists of equal length, one entry per tensor."""
    tensors = spec.checkpoint.tensors
    fused = _one_layout(spec)
    parts = list(_parts(fused)) if fused else []
    return {
        "weight_names": [tensor.name for tensor in tensors],
        "weight_targets": [" ".join(_targets(spec, t)) for t in tensors],
        "weight_transforms": [_transform(spec, tensor) for tensor in tensors],
        "partial_names": [tensor.name for tensor in tensors if _is_partial(spec, tensor)],
        "moe_experts_apart": any("{e}" in tensor.name for tensor in tensors),
        "moe_experts_together": any(tensor.experts != "one" for tensor in tensors),
        "qkv_layout": str(fused.layout) if fused else "",
        "qkv_parts": parts,
        "qkv_blocks": fused.blocks if fused else 0,
        "qk_norm_apart": any(tensor.per_head for tensor in tensors),
        "zero_biases": _zero_biases(spec),
        "dropped_names": [name for name, _ in spec.checkpoint.dropped],
        "dropped_reasons": [reason for _, reason in spec.checkpoint.dropped],
        # A file saved from the bare model is complete only where the head is the embedding.
        "base_prefix": spec.checkpoint.base_prefix if spec.head.tied else "",
    }
