"""Published configurations, and variants of them that no file in tests/configs shows."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from trtllm_scaffold.sources.hf_class import HFClasses, resolve_classes

FOLDER = Path(__file__).parent / "configs"

#: Every published file whose architecture is one of the thirteen dense families.
PUBLISHED = (
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

#: name -> (published file, changed keys). None deletes a key.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, new architecture": (
        "tiiuae__falcon-7b-instruct",
        {
            "new_decoder_architecture": True,
            "hidden_size": 8192,
            "num_attention_heads": 128,
            "num_kv_heads": 8,
            "num_hidden_layers": 60,
        },
    ),
    "falcon, rw layout": (
        "tiiuae__falcon-7b-instruct",
        {
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
            "hidden_size": 2048,
            "num_attention_heads": 32,
            "num_kv_heads": None,
            "num_hidden_layers": 24,
        },
    ),
    "opt, post-norm, projected": (
        "facebook__opt-125m",
        {
            "do_layer_norm_before": False,
            "hidden_size": 1024,
            "ffn_dim": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "word_embed_proj_dim": 512,
        },
    ),
    "qwen2, windows on late layers": (
        "Qwen__Qwen2.5-0.5B",
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 21},
    ),
    "phi3, partial longrope": (
        "microsoft__Phi-3-mini-128k-instruct",
        {
            "partial_rotary_factor": 0.75,
            "rope_scaling": {
                "type": "longrope",
                "long_factor": [1.0 + i / 9 for i in range(36)],
                "short_factor": [1.0 + i / 99 for i in range(36)],
            },
        },
    ),
    "llama, yarn in the new spelling": (
        "meta-llama__Llama-2-7b-hf",
        {
            "rope_scaling": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 2048,
                "rope_theta": 50000.0,
            },
            "max_position_embeddings": 16384,
        },
    ),
    "cohere, qk norm": ("CohereLabs__aya-23-8B", {"use_qk_norm": True}),
    "falcon, new architecture, one norm": (
        "tiiuae__falcon-7b-instruct",
        {
            "new_decoder_architecture": True,
            "num_ln_in_parallel_attn": 1,
            "hidden_size": 4096,
            "num_attention_heads": 32,
            "num_kv_heads": 8,
            "num_hidden_layers": 60,
        },
    ),
    "gpt_neox, sequential": ("EleutherAI__pythia-160m", {"use_parallel_residual": False}),
    "llama, every bias": (
        "meta-llama__Llama-2-7b-hf",
        {"attention_bias": True, "mlp_bias": True},
    ),
    "qwen3, windows on late layers": (
        "Qwen__Qwen3-0.6B",
        {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 14},
    ),
    "phi3, partial rotary": ("microsoft__Phi-3-mini-4k-instruct", {"partial_rotary_factor": 0.5}),
}

ALL = (*PUBLISHED, *VARIANTS)


def load(name: str) -> dict[str, Any]:
    """Return the parsed config.json of a published file or a variant."""
    file, changes = VARIANTS.get(name, (name, {}))
    raw = json.loads((FOLDER / f"{file}.json").read_text())
    for key, value in changes.items():
        if value is None:
            raw.pop(key, None)
        else:
            raw[key] = copy.deepcopy(value)
    return raw


def classes_of(raw: dict[str, Any]) -> HFClasses:
    """Return the classes that transformers has for a configuration."""
    classes = resolve_classes(raw, FOLDER)
    assert classes is not None
    return classes


def config_of(raw: dict[str, Any]) -> Any:
    """Return the configuration object, leaving `raw` as it is."""
    return classes_of(raw).config_class.from_dict(copy.deepcopy(raw))
