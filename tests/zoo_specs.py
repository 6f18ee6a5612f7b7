"""Specs of the zoo's small instances, inferred."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import ModelSpec
from trtllm_scaffold.zoo.entries import load_entries

ENTRIES = {entry.name: entry for entry in load_entries()}


def infer_from(model_type: str, overrides: dict[str, Any]) -> ModelSpec:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config = AutoConfig.for_model(model_type, **overrides)
    classes = HFClasses(type(config), MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    raw = {**config.to_dict(), "model_type": model_type}
    return infer(Sources(raw, model_type, None, None, Path()), classes)


def spec_of(name: str, **changes: Any) -> ModelSpec:
    entry = ENTRIES[name]
    return infer_from(entry.model_type, {**entry.overrides, **changes})
