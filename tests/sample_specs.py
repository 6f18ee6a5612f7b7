"""Hand-written specs that span the dense axes, so that plan and template are tested alone."""

from __future__ import annotations

import dataclasses

from trtllm_scaffold.spec import (
    AlibiSpec,
    AttentionSpec,
    BlockIndexerSpec,
    BlockSpec,
    CheckpointSpec,
    DenseHead,
    EmbeddingSpec,
    GateSpec,
    HeadSpec,
    LayerKind,
    LearnedSpec,
    MlaSpec,
    MlpSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
    QKNormSpec,
    Quantity,
    QueryFactorSpec,
    RopeScaling,
    RopeSpec,
    SinusoidalSpec,
    TensorSpec,
)


def key(name: str, value: float) -> Quantity:
    return Quantity(value, f"config.{name}")


HIDDEN, HEADS, KV, HEAD_DIM, WIDTH, LAYERS, VOCAB = 128, 4, 2, 32, 96, 3, 199
RMS = NormSpec("rmsnorm", key("rms_norm_eps", 1e-5))
LAYERNORM = NormSpec("layernorm", key("layer_norm_eps", 1e-5), bias=True)
PRE = dict(attention_input_norm="input_layernorm", mlp_input_norm="post_attention_layernorm")


def block(norm: NormSpec, *, parallel: bool = False, **names: str) -> BlockSpec:
    named = tuple((name, norm) for name in dict.fromkeys(names.values()))
    return BlockSpec(parallel, named, **names)


def separate(prefix: str = "model.") -> tuple[TensorSpec, ...]:
    """A llama-like checkpoint: every projection by itself."""
    layer = prefix + "layers.{i}."
    rows = {"q": HEADS * HEAD_DIM, "k": KV * HEAD_DIM, "v": KV * HEAD_DIM}
    tensors = [
        TensorSpec(
            prefix + "embed_tokens.weight",
            (VOCAB, HIDDEN),
            ("embedding.weight",),
            per_layer=False,
        )
    ]
    for part, width in rows.items():
        tensors.append(
            TensorSpec(
                f"{layer}self_attn.{part}_proj.weight",
                (width, HIDDEN),
                (f"attention.{part}.weight",),
            )
        )
    tensors += [
        TensorSpec(
            f"{layer}self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD_DIM), ("attention.o.weight",)
        ),
        TensorSpec(f"{layer}mlp.gate_proj.weight", (WIDTH, HIDDEN), ("mlp.gate.weight",)),
        TensorSpec(f"{layer}mlp.up_proj.weight", (WIDTH, HIDDEN), ("mlp.up.weight",)),
        TensorSpec(f"{layer}mlp.down_proj.weight", (HIDDEN, WIDTH), ("mlp.down.weight",)),
        TensorSpec(f"{layer}input_layernorm.weight", (HIDDEN,), ("norm.input_layernorm.weight",)),
        TensorSpec(
            f"{layer}post_attention_layernorm.weight",
            (HIDDEN,),
            ("norm.post_attention_layernorm.weight",),
        ),
        TensorSpec(f"{prefix}norm.weight", (HIDDEN,), ("final_norm.weight",), per_layer=False),
        TensorSpec("lm_head.weight", (VOCAB, HIDDEN), ("head.weight",), per_layer=False),
    ]
    return tuple(tensors)


def llama(**changes: object) -> ModelSpec:
    attention = AttentionSpec(
        key("num_attention_heads", HEADS),
        key("num_key_value_heads", KV),
        Quantity(HEAD_DIM, "config.hidden_size // config.num_attention_heads"),
        q_bias=False,
        k_bias=False,
        v_bias=False,
        o_bias=False,
        scale=Quantity(HEAD_DIM**-0.5, "config.head_dim ** -0.5"),
    )
    spec = ModelSpec(
        source="config.json",
        model_type="llama",
        architecture="LlamaForCausalLM",
        config_class=("LlamaConfig", "transformers"),
        hidden_size=key("hidden_size", HIDDEN),
        num_hidden_layers=key("num_hidden_layers", LAYERS),
        vocab_size=key("vocab_size", VOCAB),
        max_position_embeddings=key("max_position_embeddings", 64),
        dtype="bfloat16",
        layer_kinds=(
            LayerKind(
                attention,
                MlpSpec("gated", "silu", key("intermediate_size", WIDTH), False, False),
                block(RMS, **PRE),
            ),
        ),
        layer_pattern=(0,) * LAYERS,
        position=PositionSpec(
            "rope", RopeSpec("neox", key("head_dim", HEAD_DIM), Quantity(10000.0, ""))
        ),
        embedding=EmbeddingSpec(key("hidden_size", HIDDEN)),
        head=HeadSpec(RMS, tied=False),
        checkpoint=CheckpointSpec(separate(), base_prefix="model."),
        quantization=None,
        proven=True,
        evidence=(),
    )
    return dataclasses.replace(spec, **changes)


def with_layer(spec: ModelSpec, **parts: object) -> ModelSpec:
    return dataclasses.replace(spec, layer_kinds=(dataclasses.replace(spec.layer, **parts),))


def with_attention(spec: ModelSpec, **parts: object) -> ModelSpec:
    return with_layer(spec, attention=dataclasses.replace(spec.layer.attention, **parts))


def _gemma() -> ModelSpec:
    norm = dataclasses.replace(RMS, plus_one=True)
    spec = with_layer(
        llama(),
        block=block(norm, **PRE),
        mlp=MlpSpec("gated", "gelu_tanh", key("intermediate_size", WIDTH), False, False),
    )
    return dataclasses.replace(
        spec,
        embedding=EmbeddingSpec(
            key("hidden_size", HIDDEN), Quantity(8.0, "config.hidden_size ** 0.5")
        ),
        head=HeadSpec(norm, tied=True),
    )


def _fused_checkpoint(layout: str, transposed: bool) -> CheckpointSpec:
    kept = [t for t in separate() if ".self_attn." not in t.name or ".o_proj" in t.name]
    shape = (HIDDEN, 3 * HIDDEN) if transposed else (3 * HIDDEN, HIDDEN)
    roles = tuple(f"attention.{part}.weight" for part in "qkv")
    fused = TensorSpec("model.layers.{i}.attn.qkv.weight", shape, roles, layout, transposed)
    return CheckpointSpec((*kept, fused), (("model.layers.{i}.attn.bias", "causal mask"),))


def _gpt2() -> ModelSpec:
    spec = with_layer(
        llama(),
        block=block(LAYERNORM, attention_input_norm="ln_1", mlp_input_norm="ln_2"),
        mlp=MlpSpec("plain", "gelu_tanh", Quantity(96, "4 * config.hidden_size"), True, True),
    )
    spec = with_attention(spec, q_bias=True, k_bias=True, v_bias=True, o_bias=True)
    return dataclasses.replace(
        spec,
        position=PositionSpec("learned", learned=LearnedSpec(0, key("n_positions", 64))),
        head=HeadSpec(LAYERNORM, tied=True),
        checkpoint=_fused_checkpoint("rows", transposed=True),
    )


def _opt_350m() -> ModelSpec:
    spec = _gpt2()
    names = dict(post_attention_norm="self_attn_layer_norm", post_mlp_norm="final_layer_norm")
    spec = with_layer(
        spec,
        block=block(LAYERNORM, **names),
        mlp=MlpSpec("plain", "relu", key("ffn_dim", WIDTH), True, True),
    )
    return dataclasses.replace(
        spec,
        position=PositionSpec("learned", learned=LearnedSpec(2, Quantity(66, ""))),
        embedding=EmbeddingSpec(key("word_embed_proj_dim", 32), projection=True),
        head=HeadSpec(None, tied=True, projection=True),
    )


def _neox() -> ModelSpec:
    spec = with_layer(
        llama(),
        block=block(LAYERNORM, parallel=True, **PRE),
        mlp=MlpSpec("plain", "gelu", key("intermediate_size", WIDTH), True, True),
    )
    rope = RopeSpec("neox", Quantity(4, ""), Quantity(10000.0, ""))
    return dataclasses.replace(
        spec,
        position=PositionSpec("rope", rope),
        head=HeadSpec(LAYERNORM, tied=False),
        checkpoint=_fused_checkpoint("per_head", transposed=False),
    )


def _cohere() -> ModelSpec:
    norm = dataclasses.replace(LAYERNORM, bias=False)
    names = dict(attention_input_norm="input_layernorm", mlp_input_norm="input_layernorm")
    rope = RopeSpec("interleaved", key("head_dim", HEAD_DIM), Quantity(10000.0, ""))
    return dataclasses.replace(
        with_layer(llama(), block=block(norm, parallel=True, **names)),
        position=PositionSpec("rope", rope),
        head=HeadSpec(norm, tied=True, multiplier=key("logit_scale", 0.0625)),
    )


def _olmo2() -> ModelSpec:
    names = dict(
        attention_output_norm="post_attention_layernorm", mlp_output_norm="post_feedforward_norm"
    )
    spec = with_layer(llama(), block=block(RMS, **names))
    return with_attention(spec, qk_norm=QKNormSpec(RMS, "full"))


def _scaled(kind: str, **parameters: object) -> ModelSpec:
    scaling = RopeScaling(kind, tuple(parameters.items()))
    rope = RopeSpec("neox", key("head_dim", HEAD_DIM), Quantity(10000.0, ""), scaling)
    return llama(position=PositionSpec("rope", rope))


def _falcon() -> ModelSpec:
    names = dict(attention_input_norm="ln_attn", mlp_input_norm="ln_mlp")
    spec = with_layer(_neox(), block=block(LAYERNORM, parallel=True, **names))
    return dataclasses.replace(spec, checkpoint=_fused_checkpoint("per_group", False))


def _kinds(spec: ModelSpec, *changes: tuple[str, dict[str, object]]) -> ModelSpec:
    """Several kinds of layers: (condition, changed parts of the first kind) each."""
    kinds = []
    for condition, parts in changes:
        attention = dataclasses.replace(spec.layer.attention, **parts.get("attention", {}))
        kinds.append(
            LayerKind(
                attention,
                spec.layer.mlp,
                parts.get("block", spec.layer.block),
                parts.get("rope", spec.position.rope),
                condition,
            )
        )
    pattern = tuple(index % len(kinds) for index in range(LAYERS))
    return dataclasses.replace(spec, layer_kinds=tuple(kinds), layer_pattern=pattern)


SLIDING = 'config.layer_types[layer_idx] == "sliding_attention"'
FULL = 'config.layer_types[layer_idx] == "full_attention"'
WINDOW = {"window": key("sliding_window", 8)}


def _gemma2() -> ModelSpec:
    norm = dataclasses.replace(RMS, plus_one=True)
    names = dict(
        attention_input_norm="input_layernorm",
        attention_output_norm="post_attention_layernorm",
        mlp_input_norm="pre_feedforward_layernorm",
        mlp_output_norm="post_feedforward_layernorm",
    )
    spec = with_layer(_gemma(), block=block(norm, **names))
    spec = with_attention(
        spec,
        softcap=key("attn_logit_softcapping", 50.0),
        scale=Quantity(0.0625, "config.query_pre_attn_scalar ** -0.5"),
    )
    head = dataclasses.replace(spec.head, softcap=key("final_logit_softcapping", 30.0))
    spec = dataclasses.replace(spec, head=head)
    return _kinds(spec, (SLIDING, {"attention": WINDOW}), (FULL, {}))


def _gemma3() -> ModelSpec:
    norm = dataclasses.replace(RMS, plus_one=True)
    spec = with_attention(_gemma(), qk_norm=QKNormSpec(norm, "head"))
    rope = spec.position.rope
    scaling = RopeScaling("linear", (("factor", 8.0),))
    local = dataclasses.replace(rope, layer_type="sliding_attention")
    full = dataclasses.replace(
        rope, theta=Quantity(1e6, ""), scaling=scaling, layer_type="full_attention"
    )
    return _kinds(spec, (SLIDING, {"attention": WINDOW, "rope": local}), (FULL, {"rope": full}))


def _bloom(**alibi: object) -> ModelSpec:
    spec = with_layer(_neox(), block=block(LAYERNORM, **PRE))
    return dataclasses.replace(
        spec,
        position=PositionSpec("alibi", alibi=AlibiSpec(**alibi)),
        embedding=EmbeddingSpec(key("hidden_size", HIDDEN), norm=LAYERNORM),
    )


def _chunked() -> ModelSpec:
    in_chunks = {"window": key("attention_chunk_size", 8), "chunked": True}
    return _kinds(llama(), (SLIDING, {"attention": in_chunks}), (FULL, {}))


def _granite() -> ModelSpec:
    multiplier = key("residual_multiplier", 0.22)
    changed = dict(attention_coefficient=multiplier, mlp_coefficient=multiplier)
    spec = with_layer(llama(), block=dataclasses.replace(llama().layer.block, **changed))
    spec = with_attention(spec, scale=key("attention_multiplier", 0.0078125))
    return dataclasses.replace(
        spec,
        embedding=EmbeddingSpec(key("hidden_size", HIDDEN), key("embedding_multiplier", 12.0)),
        head=HeadSpec(RMS, False, multiplier=Quantity(0.125, "1 / config.logits_scaling")),
    )


def _qk(norm: NormSpec, scope: str, when: str = "before_rope") -> ModelSpec:
    return with_attention(llama(), qk_norm=QKNormSpec(norm, scope, when))


def _olmo() -> ModelSpec:
    norm = NormSpec("layernorm", Quantity(1e-5, "1e-05"), weight=False, bias=False)
    spec = with_layer(llama(), block=block(norm, **PRE))
    spec = with_attention(spec, qkv_clip=key("clip_qkv", 8.0))
    return dataclasses.replace(spec, head=HeadSpec(norm, False))


def _nemotron() -> ModelSpec:
    norm = dataclasses.replace(LAYERNORM, plus_one=True)
    mlp = MlpSpec("plain", "relu2", key("intermediate_size", WIDTH), False, False)
    spec = with_layer(llama(), block=block(norm, **PRE), mlp=mlp)
    return dataclasses.replace(spec, head=HeadSpec(norm, False))


def _bitnet() -> ModelSpec:
    mlp = dataclasses.replace(llama().layer.mlp, activation="relu2", down_norm=RMS)
    return with_attention(with_layer(llama(), mlp=mlp), output_norm=RMS)


def _apertus() -> ModelSpec:
    constants = (("beta", 0.5), ("eps", -1e-6))
    mlp = MlpSpec(
        "plain",
        "xielu",
        key("intermediate_size", WIDTH),
        False,
        False,
        activation_parameters=constants,
    )
    return with_layer(llama(), mlp=mlp)


def _ctrl() -> ModelSpec:
    return dataclasses.replace(
        _gpt2(),
        position=PositionSpec("sinusoidal", sinusoidal=SinusoidalSpec("concatenated")),
        head=HeadSpec(LAYERNORM, tied=True, bias=True),
    )


def _codegen() -> ModelSpec:
    kept = [t for t in separate() if ".self_attn." not in t.name or ".o_proj" in t.name]
    roles = tuple(f"attention.{part}.weight" for part in "qvk")
    fused = TensorSpec(
        "model.layers.{i}.qkv.weight", (3 * HIDDEN, HIDDEN), roles, "blocks", blocks=4
    )
    return dataclasses.replace(_cohere(), checkpoint=CheckpointSpec((*kept, fused)))


def _nanochat() -> ModelSpec:
    bare = NormSpec("rmsnorm", key("rms_norm_eps", 1e-6), weight=False)
    spec = with_layer(_qk(bare, "head", "after_rope"), block=block(bare, **PRE))
    rope = dataclasses.replace(spec.position.rope, inverse=True)
    return dataclasses.replace(
        spec,
        position=PositionSpec("rope", rope),
        embedding=EmbeddingSpec(key("hidden_size", HIDDEN), norm=bare),
        head=HeadSpec(bare, False, softcap=key("final_logit_softcapping", 15.0)),
    )


def _modernbert() -> ModelSpec:
    spec = with_layer(llama(), block=block(LAYERNORM, **PRE))
    spec = dataclasses.replace(
        spec,
        head=HeadSpec(LAYERNORM, False, bias=True, dense=DenseHead("gelu", LAYERNORM)),
    )
    first = dataclasses.replace(spec.layer.block, attention_input_norm=None)
    return _kinds(spec, ("layer_idx == 0", {"block": first}), ("layer_idx > 0", {}))


def _granite_swa() -> ModelSpec:
    spec = with_attention(_granite(), sinks=True)
    theta = Quantity(10000.0, "config.layer_rope_theta[layer_idx]")
    rope = dataclasses.replace(spec.position.rope, theta=theta)
    return _kinds(spec, (SLIDING, {"attention": WINDOW, "rope": rope}), (FULL, {"rope": None}))


def _latent(style: str, scaling: RopeScaling | None, q_rank: int | None) -> ModelSpec:
    """Multi-head latent attention, its norms with an eps of their own."""
    own = NormSpec("rmsnorm", Quantity(1e-6, "1e-06"))
    mla = MlaSpec(
        q_lora_rank=None if q_rank is None else key("q_lora_rank", q_rank),
        kv_lora_rank=key("kv_lora_rank", 24),
        qk_nope_head_dim=key("qk_nope_head_dim", 20),
        qk_rope_head_dim=key("qk_rope_head_dim", 12),
        v_head_dim=key("v_head_dim", 28),
        q_norm=None if q_rank is None else own,
        kv_norm=own,
    )
    spec = with_attention(llama(), mla=mla, num_key_value_heads=key("num_key_value_heads", HEADS))
    rope = RopeSpec(style, mla.qk_rope_head_dim, Quantity(10000.0, ""), scaling)
    layer = "model.layers.{i}.self_attn."
    rows = HEADS * 32
    query = [("q_proj", (rows, HIDDEN), ("q.weight",))]
    if q_rank is not None:
        query = [
            ("q_a_proj", (q_rank, HIDDEN), ("q_a.weight",)),
            ("q_a_layernorm", (q_rank,), ("q_a_norm.weight",)),
            ("q_b_proj", (rows, q_rank), ("q_b.weight",)),
        ]
    stored = [
        *query,
        ("kv_a_proj_with_mqa", (36, HIDDEN), ("kv_a.weight", "k_rope.weight")),
        ("kv_a_layernorm", (24,), ("kv_a_norm.weight",)),
        ("kv_b_proj", (HEADS * 48, 24), ("k_b.weight", "v_b.weight")),
        ("o_proj", (HIDDEN, HEADS * 28), ("o.weight",)),
    ]
    layouts = {"kv_a_proj_with_mqa": "rows", "kv_b_proj": "per_head"}
    tensors = [
        TensorSpec(
            f"{layer}{name}.weight",
            shape,
            tuple(f"attention.{role}" for role in roles),
            layouts.get(name, "whole"),
        )
        for name, shape, roles in stored
    ]
    others = [t for t in separate() if not t.name.startswith(layer)]
    return with_layer(
        dataclasses.replace(
            spec,
            position=PositionSpec("rope", rope),
            checkpoint=CheckpointSpec((*others, *tensors), base_prefix="model."),
        ),
        rope=rope,
    )


def _beam() -> ModelSpec:
    """Sums mixed by depth, a gate with a bias per head, queries that grow without positions."""
    gate = GateSpec("sigmoid", "full", head_bias=True)
    spec = with_attention(_qk(RMS, "head"), output_gate=gate)
    block = dataclasses.replace(
        spec.layer.block,
        attention_coefficient=Quantity(0.7, "1 / (2 * layer_idx + 2) ** 0.5"),
        attention_residual=Quantity(0.7, "(1 - 1 / (2 * layer_idx + 2)) ** 0.5"),
        mlp_coefficient=Quantity(0.6, "1 / (2 * layer_idx + 3) ** 0.5"),
        mlp_residual=Quantity(0.8, "(1 - 1 / (2 * layer_idx + 3)) ** 0.5"),
    )
    factor = QueryFactorSpec(Quantity(0.1, "0.1"), Quantity(2048, "2048"), "power")
    bare = {"attention": {"query_factor": factor}, "rope": None}
    spec = _kinds(with_layer(spec, block=block), (SLIDING, {"attention": WINDOW}), (FULL, bare))
    prefix, rows = "model.layers.{i}.self_attn.gate", HEADS * HEAD_DIM
    own = (
        TensorSpec(f"{prefix}_proj.weight", (rows, HIDDEN), ("attention.gate.weight",)),
        TensorSpec(f"{prefix}_bias", (HEADS,), ("attention.gate_bias",)),
    )
    return dataclasses.replace(spec, checkpoint=CheckpointSpec((*spec.checkpoint.tensors, *own)))


def _blocks() -> ModelSpec:
    """Half of the layers see chosen blocks of keys."""
    indexer = BlockIndexerSpec(
        num_heads=key("index_n_heads", 2),
        head_dim=key("index_head_dim", 6),
        block_size=key("index_block_size", 4),
        top_k=key("index_topk_blocks", 2),
        local_blocks=key("index_local_blocks", 1),
        query_norm=RMS,
        key_norm=RMS,
        style="interleaved",
    )
    spec = _kinds(
        _qk(RMS, "head"), (SLIDING, {"attention": {"block_indexer": indexer}}), (FULL, {})
    )
    only = tuple(range(0, LAYERS, 2))
    own = tuple(
        TensorSpec(
            f"model.layers.{{i}}.self_attn.indexer.{part}.weight",
            shape,
            (f"attention.index_{role}.weight",),
            only_layers=only,
        )
        for part, role, shape in (
            ("q_proj", "q", (12, HIDDEN)),
            ("k_proj", "k", (6, HIDDEN)),
            ("q_norm", "q_norm", (6,)),
            ("k_norm", "k_norm", (6,)),
        )
    )
    tensors = (*spec.checkpoint.tensors, *own)
    return dataclasses.replace(spec, checkpoint=CheckpointSpec(tensors))


BARE_LAYERNORM = dataclasses.replace(LAYERNORM, bias=False)
NOPE = ((SLIDING, {"attention": WINDOW}), (FULL, {"rope": None}))

#: Name -> spec.
SPECS: dict[str, ModelSpec] = {
    "llama": llama(),
    "llama3": _scaled(
        "llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=16,
    ),
    "longrope": _scaled(
        "longrope",
        short_factor=(1.0,) * 8,
        long_factor=(2.0,) * 8,
        original_max_position_embeddings=16,
    ),
    "yarn": _scaled("yarn", factor=4.0, original_max_position_embeddings=16),
    "yarn_exact": _scaled("yarn", factor=4.0, original_max_position_embeddings=16, truncate=False),
    "mistral": with_attention(llama(), window=key("sliding_window", 8)),
    "qwen2": with_attention(llama(), q_bias=True, k_bias=True, v_bias=True),
    "qwen3": with_attention(llama(), qk_norm=QKNormSpec(RMS, "head")),
    "gemma": _gemma(),
    "gpt2": _gpt2(),
    "gpt_neox": _neox(),
    "opt_350m": _opt_350m(),
    "falcon_40b": _falcon(),
    "cohere": _cohere(),
    "olmo2": _olmo2(),
    "gemma2": _gemma2(),
    "gemma3": _gemma3(),
    "bloom": _bloom(),
    "mpt": _bloom(slopes="mpt", max_bias=6.0, scaled=True),
    "chunked": _chunked(),
    "granite": _granite(),
    "granite_swa": _granite_swa(),
    "cohere_qk_norm": _qk(BARE_LAYERNORM, "per_head_weight"),
    "cohere2": _kinds(_cohere(), *NOPE),
    "exaone4": _kinds(_qk(RMS, "head"), *NOPE),
    "hunyuan": _qk(RMS, "head", "after_rope"),
    "persimmon": _qk(LAYERNORM, "head"),
    "olmo": _olmo(),
    "nemotron": _nemotron(),
    "bitnet": _bitnet(),
    "apertus": _apertus(),
    "ctrl": _ctrl(),
    "codegen": _codegen(),
    "nanochat": _nanochat(),
    "beam": _beam(),
    "blocks": _blocks(),
    "modernbert": _modernbert(),
    "youtu": _latent("interleaved", None, 40),
    "latent_window": with_attention(_latent("neox", None, None), **WINDOW),
    "latent_lite": _latent(
        "neox",
        RopeScaling(
            "yarn",
            (
                ("factor", 4.0),
                ("original_max_position_embeddings", 16),
                ("mscale", 0.7),
                ("mscale_all_dim", 1.3),
            ),
        ),
        None,
    ),
}
