"""Weight loading: what is skipped, what raises, and what nobody reports."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ..statements import states
from .checkpoint import save
from .families import llama, qwen3
from .harness import ports, randomise
from .test_rules import api, model_config

both = pytest.mark.parametrize("gen", ["1.2", "1.4"])


def blank(gen, family=llama, **changes):
    """A model filled with NaN and a checkpoint for it."""
    port = ports(gen, "llama")
    model = port.HandLlamaForCausalLM(model_config(gen, family, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
    config, hf_class = family(**changes)
    return model, dict(randomise(hf_class(config)).state_dict())


def unfilled(model) -> set[str]:
    return {name for name, value in model.named_parameters() if value.isnan().any()}


def mapper_of(model, cls=None):
    from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper

    mapper = (cls or HfWeightMapper)()
    mapper.init_model_and_config(model, model.model_config)
    return mapper


@states("C6-5")
@both
@pytest.mark.parametrize("mapped", [False, True])
def test_unused_keys_are_not_reported(gen, mapped):
    model, weights = blank(gen)
    weights["model.layers.0.mlp.nobody.weight"] = torch.zeros(3)
    model.load_weights(weights, *([mapper_of(model)] if mapped else []))
    assert unfilled(model) == set()


@states("W2.3-3", "W2.3-4", "W2.5-6")
@both
@pytest.mark.parametrize("mapped", [False, True])
def test_what_a_missing_tensor_raises(gen, mapped):
    """Which modules fail, and how, where a key is missing: the eras and routines differ."""

    def outcome(*missing):
        model, weights = blank(gen)
        model.model.norm.extra = nn.Parameter(torch.full((3,), float("nan")))
        for name in missing:
            del weights[name]
        try:
            model.load_weights(
                {"model.norm.extra": torch.ones(3), **weights},
                *([mapper_of(model)] if mapped else []),
            )
        except (KeyError, AssertionError) as error:
            return type(error)
        return unfilled(model)

    assert outcome() == set()
    silent = {"model.embed_tokens.weight"}
    embedding = outcome("model.embed_tokens.weight")
    norm = outcome("model.layers.1.input_layernorm.weight")
    if gen == "1.2":
        assert embedding in (KeyError, AssertionError)
        assert norm is (AssertionError if mapped else KeyError)
    else:
        assert embedding == silent
        assert norm == {"model.layers.1.input_layernorm.weight"}
    # a module with some of its keys, and a fused one, fail in both
    some = outcome("model.norm.weight")
    assert some is (KeyError if gen == "1.2" and not mapped else AssertionError)
    assert outcome("model.layers.2.self_attn.k_proj.weight") in (KeyError, AssertionError)
    assert outcome("model.layers.2.mlp.up_proj.weight") in (KeyError, AssertionError)


@states("C6-1", "W2.4-1")
@both
def test_a_junk_key_hides_a_missing_tensor(gen):
    """`...mlp.down` would be empty, but `...mlp.down_proj.weight` starts with it too."""
    model, weights = blank(gen)
    mlp = model.model.layers[0].mlp
    mlp.down = api().Linear(4, 4, bias=False, dtype=torch.float32)
    with pytest.raises((KeyError, AssertionError)):
        model.load_weights(weights)
    lonely, weights = blank(gen)
    lonely.model.layers[0].mlp.absent = api().Linear(4, 4, bias=False, dtype=torch.float32)
    if gen == "1.2":
        with pytest.raises((KeyError, AssertionError)):
            lonely.load_weights(weights)
    else:
        lonely.load_weights(weights)


@states("W2.3-2")
@both
def test_skipped_modules_stay_as_they_are(gen):
    model, weights = blank(gen)
    model.load_weights(weights, skip_modules=["layers.1.mlp"])
    assert unfilled(model) == {
        "model.layers.1.mlp.gate_up_proj.weight",
        "model.layers.1.mlp.down_proj.weight",
    }
    model.load_weights(weights)
    assert unfilled(model) == set()


@both
def test_a_norm_of_the_next_layer_is_not_loaded_under_its_alias(gen):
    model, weights = blank(gen)
    layers = model.model.layers
    layers[0].next_layer_layernorm = layers[1].input_layernorm
    model.load_weights(weights)
    filled = weights["model.layers.1.input_layernorm.weight"]
    if gen == "1.4":  # 1.2 meets the module once, under the alias, and skips it
        assert torch.equal(layers[1].input_layernorm.weight, filled)
    else:
        assert layers[1].input_layernorm.weight.isnan().all()


@states("C4-6", "W2.3-2")
@both
def test_a_tied_head_is_not_loaded(gen):
    model, weights = blank(gen, llama, tie_word_embeddings=True)
    weights["lm_head.weight"] = torch.full_like(weights["model.embed_tokens.weight"], 9.0)
    model.load_weights(weights)
    assert torch.equal(model.lm_head.weight, weights["model.embed_tokens.weight"])
    model, weights = blank(gen)
    model.load_weights(weights)
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])


@states("C1-8")
@both
def test_a_mapper_may_add_one_to_norms(gen):
    model, weights = blank(gen)
    from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper

    class AddsOne(HfWeightMapper):
        def handle_manual_copy(self, module_name, module_weights, n, p, **kwargs):
            if "norm" in module_name:
                p.data.copy_(module_weights[n][:] + 1)
            else:
                super().handle_manual_copy(module_name, module_weights, n, p, **kwargs)

    model.load_weights(weights, mapper_of(model, AddsOne))
    assert torch.equal(model.model.norm.weight, weights["model.norm.weight"] + 1)
    name = "model.layers.2.post_attention_layernorm.weight"
    assert torch.equal(model.model.layers[2].post_attention_layernorm.weight, weights[name] + 1)


@states("W2.5-4", "W2.5-5")
@both
def test_special_instances_and_partial_loading(gen):
    model, weights = blank(gen)
    from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper

    seen = []

    class Claims(HfWeightMapper):
        def is_special_instance_module(self, module):
            return module is self.model.model.embed_tokens

        def handle_special_instance_module(self, module, module_name, module_weights, **kwargs):
            seen.append((module_name, sorted(module_weights), sorted(kwargs)))

    model.load_weights(weights, mapper_of(model, Claims))
    keywords = [] if gen == "1.2" else ["allow_partial_loading"]
    assert seen == [("embed_tokens", ["weight"], keywords)]
    assert unfilled(model) == {"model.embed_tokens.weight"}
    with pytest.raises(NotImplementedError):
        mapper_of(model).handle_special_instance_module(model, "model", {})


@states("W2.3-8")
@both
def test_a_fused_module_must_take_partial_loading_in_1_4(gen):
    model, weights = blank(gen)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(176, 48))

        def load_weights(self, weights):
            self.weight.data.copy_(torch.cat([part["weight"] for part in weights]))

    model.model.layers[0].mlp.gate_up_proj = Own()
    if gen == "1.2":
        model.load_weights(weights)
        assert unfilled(model) == set()
    else:
        with pytest.raises(TypeError, match="allow_partial_loading"):
            model.load_weights(weights)


@states("A13-9")
@both
def test_the_mapper_repeats_a_bias_by_number_in_both(gen):
    model, _ = blank(gen)
    mapper = mapper_of(model)
    mapper._tp_size = 4
    layer = model.model.layers[0].self_attn.qkv_proj
    got = mapper._duplicate_kv_weights(layer, "k_proj", {"bias": torch.arange(32.0)})["bias"]
    assert got.tolist() == torch.arange(32.0).repeat_interleave(2).tolist()
    weight = torch.arange(32.0)[:, None].expand(32, 3)
    rows = mapper._duplicate_kv_weights(layer, "v_proj", {"weight": weight})["weight"][:, 0]
    assert rows.tolist() == [*range(16), *range(16), *range(16, 32), *range(16, 32)]
    untouched = {"weight": weight, "k_scale": torch.ones(1)}
    assert mapper._duplicate_kv_weights(layer, "q_proj", untouched) is untouched


@states("W2.7-2", "W2.7-3")
@both
def test_how_the_mapper_counts_heads(gen):
    """1.2 divides the rows by the head size, 1.4 asks the config: they differ on a wrong tensor."""
    model, _ = blank(gen)
    mapper = mapper_of(model)
    mapper._tp_size = 4
    layer = model.model.layers[0].self_attn.qkv_proj
    four_heads = {"weight": torch.randn(64, 3)}
    got = mapper._duplicate_kv_weights(layer, "k_proj", four_heads)["weight"]
    assert got.shape[0] == (64 if gen == "1.2" else 128)


@states("W2.6-7")
@both
def test_columns_under_attention_dp_do_not_reduce_in_1_4(gen):
    ports(gen, "llama")
    mapping = api().Mapping(world_size=2, tp_size=2, rank=0, enable_attention_dp=True)
    made = api().Linear(4, 4, mapping=mapping, tensor_parallel_mode=api().TensorParallelMode.COLUMN)
    assert made.reduce_output is (gen == "1.2")
    assert api().Linear(4, 4, mapping=mapping).reduce_output is True


@states("W5.3-1")
@both
def test_exclusions_know_the_parts_of_fused_modules(gen):
    port = ports(gen, "llama")
    from tensorrt_llm.llmapi import QuantAlgo, QuantConfig

    config = model_config(gen)
    excluded = ["model.layers.0.self_attn.k_proj", "*layers.1.mlp.up_proj", "lm_head"]
    config.quant_config = QuantConfig(quant_algo=QuantAlgo.FP8, exclude_modules=excluded)
    config.skip_create_weights_in_init = True
    model = port.HandLlamaForCausalLM(config)
    plain = {
        name
        for name, module in model.named_modules()
        if hasattr(module, "has_any_quant") and not module.has_any_quant
    }
    assert plain >= {"model.layers.0.self_attn.qkv_proj", "model.layers.1.mlp.gate_up_proj"}
    assert "model.layers.1.self_attn.qkv_proj" not in plain
    assert "model.layers.0.mlp.gate_up_proj" not in plain


@states("W2.1-3")
@both
def test_dummy_weights_are_small(gen, tmp_path):
    port = ports(gen, "llama")
    config, hf_class = llama()
    folder = save(tmp_path / "m", hf_class(config), "HandLlamaForCausalLM")
    from tensorrt_llm import LLM

    llm = LLM(model=str(folder), load_format="dummy")
    values = torch.cat([parameter.flatten() for parameter in llm.model.parameters()])
    assert isinstance(llm.model, port.HandLlamaForCausalLM)
    assert 0 < values.abs().max() <= 1e-3 and values.std() > 1e-4


@states("W2.2-1")
@both
def test_files_of_a_checkpoint(gen, tmp_path):
    ports(gen, "llama")
    from safetensors.torch import save_file
    from tensorrt_llm._torch.models.checkpoints.hf.weight_loader import HfWeightLoader

    def names():
        return sorted(HfWeightLoader().load_weights(str(tmp_path), api().Mapping()))

    torch.save({"old": torch.ones(1)}, tmp_path / "model.pth")
    assert names() == ["old"]
    torch.save({"bin": torch.ones(1)}, tmp_path / "model.bin")
    assert names() == ["bin"]
    save_file({"all": torch.ones(1)}, tmp_path / "consolidated.safetensors")
    assert names() == ["all"]
    save_file({"a": torch.ones(1)}, tmp_path / "model-00001.safetensors")
    save_file({"b": torch.ones(1)}, tmp_path / "model-00002.safetensors")
    assert names() == ["a", "b"]


@both
def test_tied_checkpoints_without_a_head_load(gen):
    model, weights = blank(gen, llama, tie_word_embeddings=True)
    weights.pop("lm_head.weight", None)
    model.load_weights(weights)
    assert unfilled(model) == set()
    assert qwen3()[0].tie_word_embeddings
