"""Latents whose widths, heads, windows and choice of keys differ from layer to layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import uneven_fork
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import assembly, infer
from trtllm_scaffold.infer.layer_configs import own_sizes_of
from trtllm_scaffold.infer.real_size import check_real_size
from trtllm_scaffold.infer.tiny_own import small_entries
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import ModelSpec, Quantity
from trtllm_scaffold.zoo.entries import load_entries

torch.set_num_threads(1)

KINDS = ["far", "near", "near"] * 2


def fork(**changes: Any) -> ModelSpec:
    raw = uneven_fork.raw(floors=KINDS, **changes)
    return infer(Sources(raw, "fork", None, None, Path()), uneven_fork.CLASSES)


def answers(spec: ModelSpec) -> Answers:
    return plan_port(spec, port_names(spec, None, None), "1.2").answers


def code_of(found: Answers) -> dict[str, str]:
    names, exprs = found["layer_size_names"], found["layer_size_exprs"]
    assert isinstance(names, list) and isinstance(exprs, list)
    return dict(zip(map(str, names), map(str, exprs), strict=True))


@pytest.fixture(scope="module")
def checked() -> list[Any]:
    """What a right inference hands to the check at the real size."""
    taken: list[Any] = []
    entry = next(e for e in load_entries() if e.name == "dots3_note_text")
    config_class = CONFIG_MAPPING[entry.model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    raw = {**entry.overrides, "model_type": entry.model_type}
    raw = {**raw, "architectures": [model_class.__name__]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "check_real_size", lambda *given: taken.extend(given) or ())
        source = Sources(raw, "here", None, None, Path())
        infer(source, HFClasses(config_class, model_class))
    return taken


def test_sizes_of_layers_in_hfs_own_mapping(checked: list[Any]) -> None:
    spec, *_ = checked
    far, near = (kind.attention for kind in (spec.layer_kinds[k] for k in spec.layer_pattern[:2]))
    assert (far.num_attention_heads.value, near.num_attention_heads.value) == (4, 2)
    assert (far.mla.kv_lora_rank.value, near.mla.kv_lora_rank.value) == (16, 24)
    assert far.mla.indexer and not near.mla.indexer and (far.window, near.window.value) == (None, 4)
    assert (far.output_gate.width, far.output_gate.activation) == ("head", "sigmoid")
    assert near.mla.rope_norm.label == "rmsnorm"
    found, own = answers(spec), "config.per_layer_config[layer_idx]"
    assert code_of(found) == {
        name: f"{own}.{name}"
        for name in ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim")
    }
    assert (found["layer_heads"], found["layer_kv_lora_rank"]) == ([4, 2, 4, 2], [16, 24, 16, 24])
    assert found["latent_q_scale"] == "(config.hidden_size / config.q_lora_rank) ** 0.5"
    assert found["latent_kv_scale"] == "(config.hidden_size / self.latent_dim) ** 0.5"
    assert (found["index_layers"], found["indexer_shared"]) == ([0, 2], False)


def test_the_real_size_shows_factors_on_latents(checked: list[Any]) -> None:
    spec, *rest = checked
    shown = {e.fact: e.value for e in check_real_size(spec, *rest)}
    assert shown["attention.kv_scale"] == "2 in 2, 1.632993 in 2 of 4 layers"
    attention = spec.layer_kinds[0].attention
    for scale, said in ((Quantity(1.9, "config.odd"), "1.9"), (None, "none")):
        wrong = replace(attention, mla=replace(attention.mla, kv_scale=scale))
        first = replace(spec.layer_kinds[0], attention=wrong)
        said = f"kv_scale of layer 0: the tiny models say {said}, .* shows 2"
        with pytest.raises(Refused, match=said):
            check_real_size(replace(spec, layer_kinds=(first, *spec.layer_kinds[1:])), *rest)


def test_a_fork_whose_every_size_has_two_keys() -> None:
    spec = fork()
    found = answers(spec)
    exprs = code_of(found)
    kind = 'if config.floors[layer_idx] == "near" else'
    assert exprs["kv_lora_rank"] == f"config.near_memory_squeeze {kind} config.memory_squeeze"
    assert exprs["v_head_dim"] == f"config.near_content_width {kind} config.content_width"
    assert len(exprs) == 6
    assert found["latent_q_scale"] == "(config.hidden_size / q_rank) ** 0.5"
    assert found["rope_theta"] == f"900.0 {kind} 5000.0"
    assert found["rope_dim"] == 'config.layer_sizes[layer_idx]["qk_rope_head_dim"]'
    canonical = found["canonical_names"]
    assert isinstance(canonical, list) and not set(exprs) & set(canonical)
    norm = spec.layer.attention.mla and spec.layer.attention.mla.rope_norm
    assert norm and norm.eps.expr == "config.key_fuzz"


@pytest.mark.parametrize(
    ("trick", "match"),
    [
        ("sieved last", "the shared key does not hold numbers side by side"),
        ("bare picker", "index queries, keys and weights are projected from other values"),
        ("tanh", "a factor on its heads' outputs is neither sinks nor one gate"),
    ],
)
def test_forms_near_it_have_no_label(trick: str, match: str) -> None:
    with pytest.raises(Refused, match=f"attention: .*{match}"):
        fork(trick=trick)


class Private(SimpleNamespace):
    attribute_map = {"num_attention_heads": "voices"}

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def test_a_private_mapping_is_read_by_the_names_that_it_has() -> None:
    held = {"1": {"voices": 4, "rank": 9}, "2": {"rank": 9}}
    config = Private(num_hidden_layers=3, voices=8, rank=16, by_floor=held)
    own = own_sizes_of(config)
    assert own is not None and own.names == {"voices", "rank"}
    assert [own.config(config, index).rank for index in range(3)] == [16, 9, 9]
    written = own.written(Quantity(4, "2 * config.num_attention_heads"))
    text = '2 * config.by_floor.get(str(layer_idx), {}).get("voices", config.voices)'
    assert written == Quantity(4, text)
    own.check_alike(Private(**{**vars(config), "by_floor": {"0": held["2"], **held}}), (0, 2))
    with pytest.raises(Refused, match="layers 0 and 1 .* rank is 16 and 9 in by_floor"):
        own.check_alike(config, (0, 1))
    config.by_floor = {"01": {"rank": 9}}
    with pytest.raises(Refused, match="numbers of their own under by_floor, which is not read"):
        own_sizes_of(config)


def test_small_sizes_of_layers_keep_what_the_real_ones_keep() -> None:
    full = {
        "num_attention_heads": 128, "num_key_value_heads": 128, "head_dim": 256,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "kv_lora_rank": 512,
    }  # fmt: skip
    tiny = {name: size for name, size in zip(full, (4, 4, 48, 20, 12, 36), strict=True)}
    entry = {"num_attention_heads": 64, "num_key_value_heads": 64, "qk_nope_head_dim": 192}
    held = {"02": entry, "3": entry, "4": {"kv_lora_rank": 1024}}
    small = small_entries(held, full, tiny)
    assert small["02"] == small["3"]
    assert small["02"]["num_key_value_heads"] == small["02"]["num_attention_heads"] == 2
    assert small["02"]["qk_nope_head_dim"] + 12 == 48, "a head is as wide as its two parts"
    assert small["4"]["kv_lora_rank"] not in tiny.values()


def test_small_key_value_heads_are_no_more_than_heads() -> None:
    full = {"num_attention_heads": 16, "num_key_value_heads": 8}
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    held = {0: {"num_key_value_heads": 1}, 1: {}}
    assert small_entries(held, full, sizes) == {0: {"num_key_value_heads": 1}, 1: {}}
