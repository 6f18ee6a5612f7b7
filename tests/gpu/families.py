"""The models of the GPU suite: realistic heads, few layers, windows that its sequences exceed.

`tools/gpu_ports.py` renders a port of each; the tests run its config.json as it stands.
"""

from __future__ import annotations

from typing import Any

GENERATIONS = ("1.2", "1.4")

#: Most positions of every model: a prompt of four thousand tokens and what is decoded after it.
POSITIONS = 8192
VOCABULARY = 4096
_ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def _config(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    names = {"model_type": model_type, "architectures": [architecture], "dtype": "bfloat16"}
    return {**names, "vocab_size": VOCABULARY, "tie_word_embeddings": False, **_ENDS, **keys}


def _rotary(model_type: str, architecture: str, **keys: Any) -> dict[str, Any]:
    sizes = {"num_hidden_layers": 3, "max_position_embeddings": POSITIONS}
    return _config(model_type, architecture, **{**sizes, **keys})


def _rope(theta: float = 10000.0, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


def _factors(count: int, first: float, last: float) -> list[float]:
    step = (last - first) / (count - 1)
    return [round(first + step * index, 3) for index in range(count)]


#: What each shows, and its config.json.
FAMILIES: dict[str, dict[str, Any]] = {
    # Grouped queries, heads of 128, rope scaled by frequency.
    "llama": _rotary(
        "llama",
        "LlamaForCausalLM",
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_parameters=_rope(
            500000.0,
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=1024,
        ),
    ),
    # Norms of queries and keys; heads wider than the hidden size.
    "qwen3": _rotary(
        "qwen3",
        "Qwen3ForCausalLM",
        hidden_size=1024,
        intermediate_size=3072,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters=_rope(1000000.0),
        tie_word_embeddings=True,
    ),
    # Capped scores and logits, heads of 256, a window in every other layer.
    "gemma2": _rotary(
        "gemma2",
        "Gemma2ForCausalLM",
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=256,
        query_pre_attn_scalar=224,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters=_rope(),
        tie_word_embeddings=True,
    ),
    # Windows of 512 with a rope of their own, heads of 256, one key-value head.
    "gemma3": _rotary(
        "gemma3_text",
        "Gemma3ForCausalLM",
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=512,
        layer_types=["sliding_attention"] * 2 + ["full_attention", "sliding_attention"],
        rope_parameters={
            "sliding_attention": _rope(),
            "full_attention": _rope(1000000.0, rope_type="linear", factor=8.0),
        },
        tie_word_embeddings=True,
    ),
    # Learned positions, layer norms and biases, heads of 64.
    "gpt2": _config(
        "gpt2",
        "GPT2LMHeadModel",
        n_embd=768,
        n_head=12,
        n_layer=3,
        n_positions=POSITIONS,
        n_ctx=POSITIONS,
        tie_word_embeddings=True,
    ),
    # ALiBi, heads of 64.
    "bloom": _config(
        "bloom",
        "BloomForCausalLM",
        hidden_size=1024,
        n_head=16,
        n_layer=3,
        seq_length=POSITIONS,
        tie_word_embeddings=True,
    ),
    # Sinks, windows of 128, heads of 64, experts with biases.
    "gpt_oss": _rotary(
        "gpt_oss",
        "GptOssForCausalLM",
        hidden_size=768,
        intermediate_size=512,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        num_local_experts=8,
        num_experts_per_tok=2,
        swiglu_alpha=1.702,  # transformers 5.17 does not set it, 5.23 does
        swiglu_limit=7.0,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters=_rope(
            150000.0,
            rope_type="yarn",
            factor=8.0,
            beta_fast=32.0,
            beta_slow=1.0,
            truncate=False,
            original_max_position_embeddings=1024,
        ),
    ),
    # Eight experts, heads of 128.
    "mixtral": _rotary(
        "mixtral",
        "MixtralForCausalLM",
        hidden_size=1024,
        intermediate_size=1024,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
        rope_parameters=_rope(1000000.0),
    ),
    # Many narrow experts beside norms of queries and keys.
    "qwen3_moe": _rotary(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        hidden_size=768,
        intermediate_size=2048,
        moe_intermediate_size=384,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        rope_parameters=_rope(1000000.0),
    ),
    # Latent attention of DeepSeek's widths, grouped experts, a dense first layer.
    "deepseek_v3": _rotary(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        hidden_size=1024,
        intermediate_size=2048,
        moe_intermediate_size=384,
        num_attention_heads=8,
        num_key_value_heads=8,
        q_lora_rank=384,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        qk_head_dim=192,
        v_head_dim=128,
        n_routed_experts=16,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=4,
        topk_group=2,
        first_k_dense_replace=1,
        routed_scaling_factor=2.5,
        rope_parameters=_rope(
            rope_type="yarn",
            factor=8.0,
            beta_fast=32.0,
            beta_slow=1.0,
            mscale=1.0,
            mscale_all_dim=1.0,
            original_max_position_embeddings=1024,
        ),
    ),
    # Long and short rotary factors, part of each head rotated, fused projections.
    "phi3": _rotary(
        "phi3",
        "Phi3ForCausalLM",
        hidden_size=1024,
        intermediate_size=2048,
        num_attention_heads=8,
        num_key_value_heads=4,
        partial_rotary_factor=0.75,
        original_max_position_embeddings=2048,
        rope_parameters=_rope(
            rope_type="longrope",
            partial_rotary_factor=0.75,
            original_max_position_embeddings=2048,
            short_factor=_factors(48, 1.0, 2.5),
            long_factor=_factors(48, 1.0, 30.0),
        ),
        sliding_window=None,
    ),
    # Layer norms without bias, attention and mlp side by side, rope of neighbouring pairs.
    "cohere": _rotary(
        "cohere",
        "CohereForCausalLM",
        hidden_size=1024,
        intermediate_size=2816,
        num_attention_heads=8,
        num_key_value_heads=2,
        logit_scale=0.0625,
        rope_parameters=_rope(),
        tie_word_embeddings=True,
    ),
}
