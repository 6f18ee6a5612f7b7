"""Whatever a checked config.json holds, shrinking works or says in one line why not."""

from __future__ import annotations

import random

import pytest
from published_configs import PUBLISHED, classes_of, load

from trtllm_scaffold.errors import ScaffoldError
from trtllm_scaffold.infer.normalize import dtype, rope_parameters
from trtllm_scaffold.infer.quantization import read_quantization
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.sources import validate_config

VALUES = [
    None,
    0,
    -1,
    7,
    2**40,
    -1e-9,
    1e308,
    True,
    "x",
    "é\u0000\n",
    [],
    [1],
    ["a", None],
    [1.5] * 64,
    {},
    {"a": 1},
    {"type": "yarn"},
    {"rope_type": "longrope", "long_factor": [1.0]},
    {"rope_type": 7},
    {"rope_type": "llama3"},
    {"full_attention": {"rope_type": "yarn"}},
    {"full_attention": None, "a": {"x": [{}]}},
]
KEYS = [
    "rope_parameters",
    "rope_scaling",
    "layer_types",
    "head_dim",
    "quantization_config",
    "partial_rotary_factor",
    "original_max_position_embeddings",
    "some_number",
    "eos_token_id",
    "pad_token_id",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_mutated_configurations_never_crash(name):
    rng = random.Random(name)
    for _ in range(40):
        raw = load(name)
        changed = rng.sample(sorted({*raw, *KEYS} - {"architectures", "model_type"}), 2)
        raw.update({key: rng.choice(VALUES) for key in changed})
        try:
            validate_config(raw)
            rope_parameters(raw)
            dtype(raw)
            tiny = shrink(raw, classes_of(raw), style="odd", variant=1)
            read_quantization(raw, None)
        except ScaffoldError as error:
            assert "\n" not in str(error) and "\x00" not in str(error)
        else:
            assert tiny["model_type"] == raw["model_type"]
