"""Files in transformers 5's spelling of rope: 4 does not read it, so the port must by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import FOLDER

from trtllm_scaffold.pipeline import new_port
from trtllm_scaffold.sources import load_path

#: Published file -> its rope settings as transformers 5 saves them.
SAVED_BY_5: dict[str, dict[str, Any]] = {
    "meta-llama__Llama-3.2-1B-Instruct": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "rope_type": "llama3",
    },
    "google__gemma-3-1b-it": {
        "full_attention": {"rope_theta": 1000000.0, "rope_type": "default"},
        "sliding_attention": {"rope_theta": 20000.0, "rope_type": "default"},
    },
    "microsoft__phi-2": {
        "partial_rotary_factor": 0.4,
        "rope_theta": 30000.0,
        "rope_type": "default",
    },
}
_OLDER = ("rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor")


@pytest.mark.slow
@pytest.mark.parity_core
@pytest.mark.parametrize("name", SAVED_BY_5)
def test_saved_by_transformers_5(name: str, tmp_path: Path) -> None:
    raw = json.loads((FOLDER / f"{name}.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in _OLDER}
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**raw, "rope_parameters": SAVED_BY_5[name]}))
    result = new_port(load_path(path), tmp_path / "port")
    assert result.passed, [check.to_json() for check in result.checks if check.status == "failed"]
