"""Writes tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save_file


def save(folder: Path, hf, architecture: str) -> Path:
    """``config.json`` and ``model.safetensors`` of a HuggingFace model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = hf.config.to_dict()
    config["architectures"] = [architecture]
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config))
    state = {name: value.contiguous().clone() for name, value in hf.state_dict().items()}
    if hf.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, str(folder / "model.safetensors"))
    return folder
