"""Latent attention in a port: widths, eps of the latents' norms, weights and their transforms."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.latents import has_own_latents
from trtllm_scaffold.spec import ModelSpec, Quantity, RopeScaling, TensorSpec

#: Role -> module of the port, in the parts of what TensorRT-LLM fuses.
MODULES = {
    "q_a": "q_a_proj",
    "q_a_norm": "q_a_layernorm",
    "q_b": "q_b_proj",
    "kv_a": "kv_a_proj",
    "kv_a_norm": "kv_a_layernorm",
    "k_b": "k_b_proj",
    "v_b": "v_b_proj",
}


def _own_eps(spec: ModelSpec, eps: Quantity | None) -> str:
    """The eps of a latent's norm where it is not the model's, which the module takes."""
    return "" if eps is None or eps.expr == model_eps(spec).expr else code(eps)


def model_eps(spec: ModelSpec) -> Quantity:
    """What ``config.rms_norm_eps`` is in the port: the module norms the latents with it."""
    eps = [norm.eps for _, norm in spec.layer.block.norms]
    if spec.head.final_norm is not None:
        eps.append(spec.head.final_norm.eps)
    named = [each for each in eps if each.expr == "config.rms_norm_eps"]
    mla = spec.layer.attention.mla
    assert mla is not None
    return (named or eps or [mla.kv_norm.eps])[0]


def _check_scaling(spec: ModelSpec) -> None:
    """The port's two magnitudes must be HF's: its table's and its softmax scale's.

    Raises:
        Refused: HF takes the table's from elsewhere.
    """
    for rope in {kind.rope for kind in spec.layer_kinds}:
        if rope is not None and rope.scaling is not None:
            _check_magnitudes(rope.scaling)


def _check_magnitudes(scaling: RopeScaling) -> None:
    given = dict(scaling.parameters)
    weight = given.get("mscale_all_dim")
    if given.get("attention_factor") is not None:
        raise Refused("position.scaling", "an attention_factor beside latent attention")
    if weight and (scaling.kind != "yarn" or not given.get("mscale")):
        raise Refused(
            "position.scaling",
            f"{scaling.kind} with mscale_all_dim {weight} and mscale {given.get('mscale')}",
        )


def plan_mla(spec: ModelSpec) -> Answers:
    """Answers of latent attention; empty ones without it."""
    mla = spec.layer.attention.mla
    if mla is None:
        return {"latent_q_eps": "", "latent_kv_eps": "", "latent_pairs": False}
    _check_scaling(spec)
    rope = spec.position.rope
    ropes, own = {kind.rope for kind in spec.layer_kinds}, has_own_latents(spec)
    if rope is None or None in ropes or (len(ropes) > 1 and not own):
        raise Refused("position.rope", "latent attention whose layers do not all rotate alike")
    return {
        "latent_q_eps": _own_eps(spec, mla.q_norm.eps if mla.q_norm else None),
        "latent_kv_eps": _own_eps(spec, mla.kv_norm.eps),
        "latent_pairs": rope.style == "neox" and not own,
    }


def latent_transform(spec: ModelSpec, tensor: TensorSpec) -> str | None:
    """The function that takes a tensor of latent attention apart; None where it is none."""
    mla = spec.layer.attention.mla
    parts = tuple(role.split(".")[1] for role in tensor.roles)
    axes = {role.split(".")[0] for role in tensor.roles}
    if mla is None or axes != {"attention"}:
        return None
    rope = spec.position.rope
    pairs = rope is not None and rope.style == "neox"
    if parts == ("k_b", "v_b") and tensor.layout == "per_head" and not tensor.transposed:
        return "key_value_rows"
    if parts == ("kv_a", "k_rope") and tensor.layout == "rows" and not tensor.transposed:
        return "paired_shared_key" if pairs else ""
    if len(parts) == 1 and parts[0] in ("q", "q_b") and not tensor.transposed:
        return "paired_queries" if pairs else ""
    if len(parts) == 1 and not (tensor.transposed and parts[0] in MODULES):
        return None
    raise Refused(
        "checkpoint",
        f"{tensor.name} holds {tensor.roles} in layout {tensor.layout!r}, which has no transform",
    )


def target_roles(tensor: TensorSpec) -> tuple[str, ...] | None:
    """The latent and the shared key stay together; None for other tensors."""
    if tensor.roles[0].startswith("attention.kv_a.") and len(tensor.roles) == 2:
        return tensor.roles[:1]
    return None
