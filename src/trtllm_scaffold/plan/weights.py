"""The weight map: every checkpoint tensor once, with the parameters it fills and how."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.spec import ModelSpec, TensorSpec

_LAYER = "model.layers.{i}"
#: Role -> parameter, for roles outside the layers.
_MODEL_ROLES = {
    "embedding": "model.embed_tokens",
    "embedding.projection": "model.project_in",
    "position": "model.embed_positions",
    "final_norm": "model.norm",
    "head": "lm_head",
    "head.projection": "model.project_out",
}
_ATTENTION = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "q_norm": "q_norm",
    "k_norm": "k_norm",
}
_MLP = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_QKV = ("q", "k", "v")


def parameter_name(role: str) -> str:
    """The canonical parameter that a role fills, such as ``model.layers.{i}.mlp.up_proj.weight``.

    Raises:
        Refused: Nobody has said where the role goes.
    """
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
    raise Refused("checkpoint", f"no parameter of a port takes the role {role!r}")


def _parts(tensor: TensorSpec) -> tuple[str, ...]:
    return tuple(role.split(".")[1] for role in tensor.roles)


def _transform(tensor: TensorSpec) -> str:
    """The function of the port's weights file that takes `tensor` apart; empty for none."""
    if len(tensor.roles) == 1:
        return "transposed" if tensor.transposed else ""
    if _parts(tensor) == _QKV:
        return "query_key_value_transposed" if tensor.transposed else "query_key_value"
    if _parts(tensor) == ("gate", "up") and tensor.layout == "rows" and not tensor.transposed:
        return "gate_up"
    raise Refused(
        "checkpoint",
        f"{tensor.name} holds {tensor.roles} in layout {tensor.layout!r}, which has no transform",
    )


def plan_weights(spec: ModelSpec) -> Answers:
    """Answers of the checkpoint axis: three lists of equal length, one entry per tensor."""
    tensors = spec.checkpoint.tensors
    fused = [tensor for tensor in tensors if _parts(tensor) == _QKV and len(tensor.roles) == 3]
    layouts = sorted({tensor.layout for tensor in fused})
    if len(layouts) > 1:
        raise Refused("checkpoint", f"query, key and value lie in several layouts: {layouts}")
    tied = spec.head.tied
    return {
        "weight_names": [tensor.name for tensor in tensors],
        "weight_targets": [" ".join(map(parameter_name, t.roles)) for t in tensors],
        "weight_transforms": [_transform(tensor) for tensor in tensors],
        "qkv_layout": str(layouts[0]) if layouts else "",
        "dropped_names": [name for name, _ in spec.checkpoint.dropped],
        "dropped_reasons": [reason for _, reason in spec.checkpoint.dropped],
        # A file saved from the bare model is complete only where the head is the embedding.
        "base_prefix": spec.checkpoint.base_prefix if tied else "",
    }
