"""Where each checkpoint tensor goes."""

WEIGHTS: dict[str, tuple[str, ...]] = {
    "model.embed_tokens.weight": ("model.embed_tokens.weight",),
    "model.layers.{i}.input_layernorm.weight": ("model.layers.{i}.input_layernorm.weight",),
    "model.layers.{i}.self_attn.q_proj.weight": ("model.layers.{i}.self_attn.q_proj.weight",),
    "model.layers.{i}.self_attn.k_proj.weight": ("model.layers.{i}.self_attn.k_proj.weight",),
    "model.layers.{i}.self_attn.v_proj.weight": ("model.layers.{i}.self_attn.v_proj.weight",),
    "model.layers.{i}.self_attn.o_proj.weight": ("model.layers.{i}.self_attn.o_proj.weight",),
    "model.layers.{i}.post_attention_layernorm.weight": (
        "model.layers.{i}.post_attention_layernorm.weight",
    ),
    "model.layers.{i}.mlp.gate_proj.weight": ("model.layers.{i}.mlp.gate_proj.weight",),
    "model.layers.{i}.mlp.up_proj.weight": ("model.layers.{i}.mlp.up_proj.weight",),
    "model.layers.{i}.mlp.down_proj.weight": ("model.layers.{i}.mlp.down_proj.weight",),
    "model.norm.weight": ("model.norm.weight",),
    "lm_head.weight": ("lm_head.weight",),
}

DROPPED: dict[str, str] = {
    "model.layers.{i}.self_attn.rotary_emb.inv_freq": "rotary tables are computed",
}


def split(name, tensor, config):
    """Cut the stored tensor `name` into the parts that `WEIGHTS` names, in that order."""
    return (tensor,)


def template(name):
    """The stored name with its layer number replaced by ``{i}``, and the layer number."""
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdigit():
            return ".".join([*parts[:position], "{i}", *parts[position + 1 :]]), part
    return name, ""


def canonical_weights(checkpoint, config):
    """Turn the tensors of a checkpoint into the canonical, unfused parts.

    Raises:
        KeyError: A stored tensor that nobody knows, or a known one that is missing.
    """
    result = {}
    for stored, tensor in checkpoint.items():
        name, layer = template(stored)
        if name in DROPPED:
            continue
        if name not in WEIGHTS:
            raise KeyError(f"the checkpoint holds {stored!r}, which this port does not know")
        for part, value in zip(WEIGHTS[name], split(name, tensor[:], config), strict=True):
            result[part.replace("{i}", layer)] = value
    return result
