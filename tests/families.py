"""The published configurations that must become proven ports, and variants that flags switch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent / "configs"

#: Published files that a dense port must express.
PORTED = (
    "CohereLabs__aya-23-8B",
    "EleutherAI__pythia-160m",
    "Qwen__Qwen2.5-0.5B",
    "Qwen__Qwen3-0.6B",
    "allenai__OLMo-2-1124-7B",
    "bigcode__starcoder2-7b",
    "facebook__opt-125m",
    "google__gemma-2b",
    "meta-llama__Llama-2-7b-hf",
    "meta-llama__Llama-3.2-1B-Instruct",
    "meta-llama__Meta-Llama-3.1-8B",
    "microsoft__Phi-3-mini-128k-instruct",
    "microsoft__Phi-3-mini-4k-instruct",
    "mistralai__Mistral-7B-v0.1",
    "mistralai__Mistral-Nemo-Base-2407",
    "nvidia__Llama-3.1-70B-Instruct-FP8",
    "openai-community__gpt2",
    "tiiuae__falcon-7b-instruct",
)

#: Published files that must be refused -> the axis that the refusal names.
REFUSED = {
    "google-t5__t5-small": "encoder-decoder",
    "ai21labs__Jamba-v0.1": "attention",
    "mistralai__Devstral-2-123B-Instruct-2512": "quantization",
}

_FALCON = "tiiuae__falcon-7b-instruct"
#: Name -> (published file, keys that differ from it). Sizes are those of published models.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "opt-350m": (
        "facebook__opt-125m",
        {
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "do_layer_norm_before": False,
            "word_embed_proj_dim": 512,
        },
    ),
    "falcon-40b": (
        _FALCON,
        {
            "hidden_size": 8192,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "num_hidden_layers": 60,
            "new_decoder_architecture": True,
        },
    ),
    "falcon-11b": (
        _FALCON,
        {
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_kv_heads": 8,
            "num_hidden_layers": 60,
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
        },
    ),
    "falcon-rw-without-alibi": (
        _FALCON,
        {
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_kv_heads": 32,
            "num_hidden_layers": 24,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "gpt-neox-sequential": ("EleutherAI__pythia-160m", {"use_parallel_residual": False}),
    "llama-with-biases": (
        "meta-llama__Llama-2-7b-hf",
        {"attention_bias": True, "mlp_bias": True},
    ),
    "qwen3-mixed-windows": (
        "Qwen__Qwen3-0.6B",
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 14},
    ),
    "phi3-partial-rotary": (
        "microsoft__Phi-3-mini-4k-instruct",
        {"partial_rotary_factor": 0.5},
    ),
}


def published(name: str) -> dict[str, Any]:
    """The configuration of a published file."""
    return json.loads((CONFIGS / f"{name}.json").read_text())


def config_file(name: str, folder: Path) -> Path:
    """The file of a published name, or one written to `folder` for a variant."""
    if name not in VARIANTS:
        return CONFIGS / f"{name}.json"
    base, changes = VARIANTS[name]
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**published(base), **changes}))
    return path
