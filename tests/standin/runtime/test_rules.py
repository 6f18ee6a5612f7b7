"""One test for each rule of the library that a port can break."""

from __future__ import annotations

import inspect
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ..statements import states
from .families import llama, opt, qwen3
from .harness import ports, randomise
from .test_recipe import build


def api():
    import importlib

    from . import harness

    return importlib.import_module(f"{harness.PORTS}.api")


def model_config(gen, family=llama, backend="TRTLLM", **changes):
    ports(gen, "llama")
    config, _ = family(**changes)
    config.torch_dtype = torch.float32
    mapping = changes.pop("mapping", None)
    extra = {} if mapping is None else {"mapping": mapping}
    return api().ModelConfig(pretrained_config=config, attn_backend=backend, **extra)


def attention(config, **changes):
    given = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bias": False,
        "layer_idx": 0,
        "dtype": torch.float32,
        "config": config,
    }
    return api().Attention(**{**given, **changes})


# ---------------------------------------------------------------- signatures and hooks


@states("A13-4", "A13-5")
def test_head_dim_is_an_argument_of_1_4_only():
    config = model_config("1.4")
    assert attention(config, head_dim=24).head_dim == 24
    assert "head_dim" in inspect.signature(api().Attention).parameters
    config = model_config("1.2")
    assert "head_dim" not in inspect.signature(api().Attention).parameters
    with pytest.raises(TypeError, match="head_dim"):
        attention(config, head_dim=24)
    assert attention(config).head_dim == 16


@states("A13-3", "W1.7-2")
def test_head_dim_falls_back_to_the_quotient():
    config = model_config("1.2", opt)
    assert attention(config).head_dim == 12


@states("A12-2", "0-4", "D-13")
def test_hooks_of_1_4_do_not_exist_in_1_2():
    config = model_config("1.2")
    layer = attention(config)
    assert not hasattr(layer, "preprocess_qkv") and not hasattr(layer, "apply_output_gate")
    model, _ = build("1.2", "llama", "TRTLLM")
    assert not hasattr(model, "post_load_weights") and not hasattr(model, "setup_aliases")
    model, _ = build("1.4", "llama", "TRTLLM")
    assert hasattr(model, "post_load_weights") and type(model).get_model_defaults(None) == {}
    assert hasattr(model.model.layers[0].self_attn, "preprocess_qkv")


def test_forward_impl_of_1_2_breaks_on_1_4():
    def old(
        self,
        q,
        k,
        v,
        attn_metadata,
        attention_mask,
        attention_window_size,
        attention_mask_data,
        mrope_config,
        attention_sinks=None,
        has_lora=False,
    ):
        return q[:, : self.q_size]

    for gen, breaks in (("1.2", False), ("1.4", True)):
        layer = attention(model_config(gen))
        layer.forward_impl = old.__get__(layer)
        with torch.no_grad():
            layer.qkv_proj.weight.normal_(), layer.o_proj.weight.normal_()
        call = {"position_ids": None, "hidden_states": torch.randn(3, 48), "attn_metadata": None}
        if breaks:
            with pytest.raises(TypeError, match="relative_attention"):
                layer(**call)
        else:
            assert layer(**call).shape == (3, 48)


@states("A6-8")
def test_relative_bias_keyword_is_refused_in_1_2():
    layer = attention(model_config("1.2"))
    with pytest.raises(TypeError, match="relative_attention_bias"):
        layer(None, torch.zeros(1, 48), None, relative_attention_bias=torch.zeros(1))


# ---------------------------------------------------------------- heads and tensor parallel


@states("A2-1", "A13-3", "A13-7")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_heads_must_divide_and_kv_heads_round_up(gen):
    ports(gen, "llama")
    mapping = api().Mapping(world_size=4, tp_size=4, rank=1)
    config = model_config(gen, mapping=mapping)
    layer = attention(config)
    assert (layer.num_heads, layer.num_key_value_heads) == (1, 1)
    assert layer.qkv_proj.weight.shape == (3 * 16, 48)
    three = api().Mapping(world_size=3, tp_size=3, rank=0)
    with pytest.raises(AssertionError, match="4 is not divisible"):
        attention(model_config(gen, mapping=three), num_key_value_heads=3)


@states("A13-8", "W2.7-1", "W2.7-4", "W2.7-5")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_duplicated_bias_is_wrong_in_1_2(gen):
    ports(gen, "llama")
    from tensorrt_llm._torch.models.modeling_utils import duplicate_kv_weight

    bias = torch.tensor([0.0, 1.0, 2.0, 3.0])
    by_head = [0, 1, 0, 1, 2, 3, 2, 3]
    by_number = [0, 0, 1, 1, 2, 2, 3, 3]
    got = duplicate_kv_weight(bias, 2, 4).tolist()
    assert got == (by_number if gen == "1.2" else by_head)
    weight = torch.arange(12.0).reshape(4, 3)
    assert torch.equal(duplicate_kv_weight(weight, 2, 4)[:, 0], weight[:, 0][by_head])
    assert duplicate_kv_weight(weight, 2, 2) is weight
    with pytest.raises(AssertionError):
        duplicate_kv_weight(weight, 2, 3)
    with pytest.raises(AssertionError):
        duplicate_kv_weight(weight, 3, 2)


# ---------------------------------------------------------------- rope and backends


@states("A3-5")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_positions_without_rope_parameters_fail_unless_the_backend_rotates(gen):
    layer = attention(model_config(gen, backend="VANILLA"))
    with pytest.raises(TypeError, match="pos_embd_params is None"):
        layer.apply_rope(torch.zeros(2, 128), None, None, torch.zeros(1, 2, dtype=torch.int))
    fused = attention(model_config(gen, backend="TRTLLM"))
    q = torch.zeros(2, 128)
    assert fused.apply_rope(q, None, None, torch.zeros(1, 2, dtype=torch.int))[0] is q


@states("A3-1")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_rope_fusion_follows_the_backend(gen):
    from .harness import PORTS

    config = model_config(gen, backend="VANILLA")
    rope = sys.modules[f"{PORTS}.llama"].plain_rope(config.pretrained_config)
    assert attention(config, pos_embd_params=rope, rope_fusion=True).rope_fusion is False
    config = model_config(gen)
    rope = sys.modules[f"{PORTS}.llama"].plain_rope(config.pretrained_config)
    assert attention(config, pos_embd_params=rope).rope_fusion is True
    unfused = attention(config, pos_embd_params=rope, rope_fusion=False)
    assert unfused.rope_fusion is False and unfused.rotary_emb is not None
    assert unfused.attn.rope is None


@states("A10-1")
def test_pairing_by_type_when_fused_and_by_is_neox_otherwise():
    from .harness import Driver, close

    def logits(gen, backend, kind, is_neox):
        model, _ = build(gen, "llama", backend)
        for layer in model.model.layers:
            attn = layer.self_attn
            params = api().PositionalEmbeddingParams(
                type=api().PositionEmbeddingType[kind],
                rope=attn.pos_embd_params.rope,
                is_neox=is_neox,
            )
            made = attention(model.model_config, layer_idx=9, pos_embd_params=params)
            attn.attn.pos_embd_params = params
            attn.rotary_emb = made.rotary_emb
        driver = Driver(model, backend)
        driver.add((1, 12))
        return driver.step([(1, list(range(10)))], all_logits=True)

    neox = logits("1.2", "VANILLA", "rope_gpt_neox", True)
    gptj = logits("1.2", "VANILLA", "rope_gpt_neox", False)
    assert (neox - gptj).abs().max() > 0.1
    close(logits("1.2", "TRTLLM", "rope_gptj", True), gptj)
    close(logits("1.2", "TRTLLM", "rope_gpt_neox", False), neox)


@states("A3-1", "B-1", "B-2")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_backend_names(gen, caplog):
    ports(gen, "llama")
    get = api().get_attention_backend
    trtllm, vanilla = get("TRTLLM"), get("VANILLA")
    assert trtllm.support_fused_rope() and not vanilla.support_fused_rope()
    assert not get("FLASHINFER").support_fused_rope()
    assert get("NOSUCH") is trtllm
    assert ("unknown attention backend" in caplog.text) == (gen == "1.4")
    assert get("vanilla") is (trtllm if gen == "1.2" else vanilla)


@states("A6-6")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_chunk_size_is_refused_off_trtllm(gen):
    attention(model_config(gen), attention_chunk_size=4)
    for backend in ("VANILLA", "FLASHINFER"):
        with pytest.raises(ValueError, match=f"attention_chunk_size.*{backend}"):
            attention(model_config(gen, backend=backend), attention_chunk_size=4)


@states("A11-5", "A11-6")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_fused_qk_norm_excludes_what_the_op_cannot(gen):
    config = model_config(gen, qwen3)
    given = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "bias": False,
        "config": config,
        "layer_idx": 0,
    }
    with pytest.raises(AssertionError, match="skip_rope"):
        api().QKNormRoPEAttention(**given, skip_rope=True)
    if gen == "1.2":
        with pytest.raises(AssertionError, match="gemma"):
            api().QKNormRoPEAttention(**given, use_gemma_rms_norm=True)
    else:
        api().QKNormRoPEAttention(**given, use_gemma_rms_norm=True)


@states("A11-2")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_fused_qk_norm_loses_rope_scaling(gen):
    """The op is told theta alone: the scaling of the layer's parameters have no effect."""
    import dataclasses

    from .harness import Driver, close

    def logits(case, scaled):
        model, _ = build(gen, case, "TRTLLM")
        for layer in model.model.layers:
            attn = layer.self_attn
            kind = api().RotaryScalingType.linear
            rope = dataclasses.replace(attn.pos_embd_params.rope, scale_type=kind, scale=4.0)
            if scaled:
                params = dataclasses.replace(attn.pos_embd_params, rope=rope)
                attn.pos_embd_params = params
                attn.attn.rope = rope if attn.rope_fusion else None
        driver = Driver(model, "TRTLLM")
        driver.add((1, 40))
        return driver.step([(1, list(range(30)))], all_logits=True)

    close(logits("qwen3", True), logits("qwen3", False))
    moved = logits("qwen3-unfused", True) - logits("qwen3-unfused", False)
    assert moved.abs().max() > 0.1


@states("A11-7")
def test_yarn_is_not_found_in_a_dictionary_by_1_2():
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
    }
    config = SimpleNamespace(
        rope_scaling=scaling,
        rope_theta=10000.0,
        head_dim=16,
        hidden_size=48,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    ports("1.2", "llama")
    from tensorrt_llm._torch.modules.qk_norm_attention import compute_yarn_parameters

    assert compute_yarn_parameters(config) == (1.0, 0, 0, 1.0)
    ports("1.4", "llama")
    from tensorrt_llm._torch.attention.qk_norm_attention import (
        compute_yarn_parameters as later,
    )

    factor, low, high, magnitude = later(config)
    assert factor == 4.0 and 0 <= low < high <= 15
    assert magnitude == pytest.approx(1.1386294)


# ---------------------------------------------------------------- construction


@states("W1.2-3", "W6.1-1")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_parameters_do_not_exist_in_init_under_auto_model(gen):
    llama_port = ports(gen, "llama")
    from tensorrt_llm._torch.models import AutoModelForCausalLM
    from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING

    class Curious(llama_port.HandLlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.early = hasattr(self.model.layers[0].self_attn.qkv_proj, "weight")

    MODEL_CLASS_MAPPING["CuriousForCausalLM"] = Curious
    config = model_config(gen)
    config.pretrained_config.architectures = ["CuriousForCausalLM"]
    MODEL_CLASS_MAPPING["CuriousForCausalLM"] = Curious
    config._frozen = True
    model = AutoModelForCausalLM.from_config(config)
    assert not model.early and model.model.layers[0].self_attn.qkv_proj.weight.shape == (128, 48)
    assert config._frozen and config.skip_create_weights_in_init
    assert model.extra_attrs is config.extra_attrs
    assert set(config.extra_attrs["attn_layers"]) == {"0", "1", "2"}


@states("W1.2-1", "W1.2-2")
def test_draft_vocab_size_changes_the_name():
    from trtllm_scaffold.standin.models.auto import AutoModelForCausalLM

    config = model_config("1.2")
    config.pretrained_config.architectures = ["HandLlamaForCausalLM"]
    AutoModelForCausalLM.from_config(config)
    config.pretrained_config.draft_vocab_size = 7
    with pytest.raises(ValueError, match="AutoModelForCausalLM: EAGLE3HandLlamaForCausalLM"):
        AutoModelForCausalLM.from_config(config)


@states("C1-9", "C1-10", "W6.4-1")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_meta_mode(gen):
    ports(gen, "llama")
    from tensorrt_llm._torch.models.modeling_utils import MetaInitException, MetaInitMode

    with MetaInitMode():
        assert torch.empty(3).device.type == "meta"
        assert torch.ones(3).device.type == "cpu"
        nn.Linear(3, 4), nn.Embedding(3, 4)
        if gen == "1.4":
            nn.LayerNorm(4)
        else:
            with pytest.raises(MetaInitException, match="fill_"):
                nn.LayerNorm(4)
        with pytest.raises(MetaInitException):
            torch.empty(3) + 1
    assert torch.empty(3).device.type == "cpu"


@states("C4-3", "W2.8-3")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_tied_head_needs_an_embedding_split_alike(gen):
    port = ports(gen, "llama")
    config = model_config(gen, tie_word_embeddings=True)
    tied = port.HandLlamaForCausalLM(config)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight

    class Plain(port.LlamaModel):
        def __init__(self, given):
            super().__init__(given)
            self.embed_tokens = api().Embedding(97, 48, dtype=torch.float32)

    class Wrong(port.HandLlamaForCausalLM):
        model_class = Plain

    with pytest.raises(AssertionError, match="tp_mode"):
        Wrong(model_config(gen, tie_word_embeddings=True))


@states("C4-4", "C4-5")
def test_tie_word_embeddings_must_be_there_in_1_2():
    for gen in ("1.2", "1.4"):
        port = ports(gen, "llama")
        config = model_config(gen)
        plain = SimpleNamespace(**config.pretrained_config.to_dict())
        plain.torch_dtype = torch.float32
        del plain.tie_word_embeddings
        config.pretrained_config = plain
        if gen == "1.2":
            with pytest.raises(AttributeError, match="tie_word_embeddings"):
                port.HandLlamaForCausalLM(config)
        else:
            port.HandLlamaForCausalLM(config)


@states("W6.7-1")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_exactly_one_of_ids_and_embeddings(gen):
    ports(gen, "llama")
    base = api().DecoderModel(model_config(gen))
    with pytest.raises(ValueError, match="exactly one"):
        base(attn_metadata=None)
    with pytest.raises(ValueError, match="exactly one"):
        base(attn_metadata=None, input_ids=torch.zeros(1), inputs_embeds=torch.zeros(1))


@states("W1.7-3")
@pytest.mark.parametrize(
    ("scaling", "length"),
    [
        (None, 64),
        ({"rope_type": "linear", "factor": 2.5}, 160),
        ({"rope_type": "llama3", "factor": 8.0}, 64),
        ({"type": "yarn", "factor": 8.0}, 64),
    ],
)
def test_inferred_length(scaling, length):
    port = ports("1.2", "llama")
    config = model_config("1.2")
    model = port.HandLlamaForCausalLM(config)
    model.model_config = SimpleNamespace(
        pretrained_config=SimpleNamespace(rope_scaling=scaling, max_position_embeddings=64)
    )
    assert model.infer_max_seq_len() == length
    model.model_config.pretrained_config = SimpleNamespace()
    assert model.infer_max_seq_len() == 2048


# ---------------------------------------------------------------- weights


@states("C6-1", "W2.4-1")
def test_prefix_without_a_dot_makes_a_junk_key():
    ports("1.2", "llama")
    from tensorrt_llm._torch.models.modeling_utils import filter_weights

    found = filter_weights("mlp.gate", {"mlp.gate.weight": 1, "mlp.gate_proj.weight": 2})
    assert found == {"weight": 1, "proj.weight": 2}


@states("C6-3", "W2.4-2")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_renaming_takes_the_first_match_at_the_start(gen):
    ports(gen, "llama")
    from tensorrt_llm._torch.models.modeling_utils import rename_weights_with_regex

    rules = {r"(.*)\.c_fc\.": r"\1.up_proj.", r"(.*)\.c_": r"\1.x_"}
    got = rename_weights_with_regex(rules, {"a.c_fc.w": 1, "a.c_p.w": 2, "b": 3})
    assert dict(got) == {"a.up_proj.w": 1, "a.x_p.w": 2, "b": 3}
    assert dict(rename_weights_with_regex({r"c_": "y_"}, {"a.c_p": 1})) == {"a.c_p": 1}


@states("W2.2-2", "W2.4-3")
def test_consumable_weights():
    ports("1.4", "llama")
    from tensorrt_llm._torch.models.checkpoints.base_weight_loader import ConsumableWeightsDict
    from tensorrt_llm._torch.models.modeling_utils import rename_weights_with_regex

    weights = ConsumableWeightsDict({"a.x": 1, "a.y": 2, "ab.x": 3})
    assert not isinstance(weights, dict) and dict(weights)["a.x"] == 1
    assert weights.filter_prefix("a") == {"x": 1, "y": 2}
    assert weights.mark_consumed("a") == 2 and list(weights) == ["ab.x"]
    renamed = rename_weights_with_regex({"ab": "c"}, weights)
    assert isinstance(renamed, ConsumableWeightsDict) and list(renamed) == ["c.x"]
    assert len(weights) == 0


@states("W2.2-2")
def test_loading_empties_a_consumable_dictionary():
    from trtllm_scaffold.standin.models.consumable import ConsumableWeightsDict

    port = ports("1.4", "llama")
    config, hf_class = llama()
    weights = ConsumableWeightsDict(dict(randomise(hf_class(config)).state_dict()))
    model = port.HandLlamaForCausalLM(model_config("1.4"))
    model.load_weights(weights)
    assert list(weights) == []


@states("W2.3-5", "W2.3-7")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_modules_load_in_no_order_unless_told_to(gen, monkeypatch):
    from trtllm_scaffold.standin.models import loading

    port = ports(gen, "llama")
    config, hf_class = llama()
    weights = hf_class(config).state_dict()
    plain, orders = loading.filter_weights, {}
    monkeypatch.setenv("TLLM_LOAD_WEIGHTS_NUM_WORKERS", "1")
    for serial in ("0", "1"):
        seen = orders[serial] = []
        monkeypatch.setenv("TRT_LLM_DISABLE_LOAD_WEIGHTS_IN_PARALLEL", serial)
        monkeypatch.setattr(
            loading, "filter_weights", lambda p, w, s=seen: (s.append(p), plain(p, w))[1]
        )
        port.HandLlamaForCausalLM(model_config(gen)).load_weights(weights)
    assert sorted(orders["0"]) == sorted(orders["1"])
    assert orders["0"] != orders["1"] and orders["1"][0] == "model.embed_tokens"


@states("W2.3-6")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_preloaded_modules_come_first_and_in_order(gen, monkeypatch):
    from trtllm_scaffold.standin.models import loading

    port = ports(gen, "llama")
    config, hf_class = llama()
    model = port.HandLlamaForCausalLM(model_config(gen))
    model.preload_weight_modules = ["lm_head", "down_proj"]
    plain, seen = loading.filter_weights, []
    monkeypatch.setattr(loading, "filter_weights", lambda p, w: (seen.append(p), plain(p, w))[1])
    model.load_weights(hf_class(config).state_dict())
    first = [name for end in ("lm_head", "down_proj") for name in seen if name.endswith(end)]
    assert len(first) == 4 and seen[:4] == first


@states("W2.5-1", "W2.5-2", "W2.5-3")
def test_head_dim_of_a_mapper_cannot_be_assigned_in_1_4():
    for gen in ("1.2", "1.4"):
        port = ports(gen, "llama")
        from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper

        mapper = HfWeightMapper()
        config = model_config(gen)
        mapper.init_model_and_config(port.HandLlamaForCausalLM(config), config)
        assert mapper._head_dim == 16
        assert mapper.preprocess_weights({}) is None
        if gen == "1.4":
            with pytest.raises(AttributeError, match="_head_dim"):
                mapper._head_dim = 3
        else:
            mapper._head_dim = 3


@states("W1.5-2")
def test_mapper_lookup_prefers_the_architecture():
    ports("1.2", "llama")
    from tensorrt_llm._torch.models.checkpoints.auto_mapper import AutoCheckpointMapper
    from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper
    from tensorrt_llm._torch.models.modeling_utils import register_mapper

    @register_mapper("HF", "SpecialForCausalLM")
    class Special(HfWeightMapper):
        pass

    assert type(AutoCheckpointMapper.get("HF", "SpecialForCausalLM")) is Special
    assert type(AutoCheckpointMapper.get("HF", "Other")) is HfWeightMapper
    with pytest.raises(KeyError):
        AutoCheckpointMapper.get("NOPE")


@states("W2.3-7")
def test_errors_of_a_thread_pool_surface():
    from trtllm_scaffold.standin.models.loading import run_concurrently

    def work(number):
        if number == 3:
            raise ValueError("three")
        return number

    seen = []
    run_concurrently(work, [(1,), (2,)], reduce_func=seen.append)
    assert sorted(seen) == [1, 2]
    with pytest.raises(ValueError, match="three"):
        run_concurrently(work, [(1,), (3,)])


# ---------------------------------------------------------------- registry


@states("W1.1-1", "W1.1-2", "W1.1-3")
def test_registration():
    from trtllm_scaffold.standin.models import registry

    def cls(module):
        return type("Some", (nn.Module,), {"__module__": module})

    inside, outside = "tensorrt_llm._torch.models.modeling_x", "my_port.modeling"
    for gen in ("1.2", "1.4"):
        ports(gen, "llama")
        registry.MODEL_CLASS_MAPPING.pop("SomeForCausalLM", None)
        own, built_in = cls(outside), cls(inside)
        registry.register_auto_model("SomeForCausalLM")(own)
        registry.register_auto_model("SomeForCausalLM")(built_in)
        held = registry.MODEL_CLASS_MAPPING["SomeForCausalLM"]
        assert held is (built_in if gen == "1.2" else own)
        if gen == "1.4":
            assert own._registered_architectures == {"SomeForCausalLM"}
            assert built_in._registered_architectures == {"SomeForCausalLM"}
            assert registry.export_external_model_modules()["SomeForCausalLM"] == outside
    registry.MODEL_CLASS_MAPPING.pop("SomeForCausalLM")


@states("W1.1-4", "W1.4-4")
def test_a_declared_module_is_imported_on_lookup(tmp_path, monkeypatch):
    ports("1.4", "llama")
    from tensorrt_llm._torch.models.modeling_utils import (
        get_registered_model_class,
        register_external_model_modules,
    )

    (tmp_path / "late_port_xyz.py").write_text(
        "from torch import nn\n"
        "from tensorrt_llm._torch.models.modeling_utils import register_auto_model\n"
        "@register_auto_model('LateForCausalLM')\nclass Late(nn.Module): pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    register_external_model_modules({"LateForCausalLM": "late_port_xyz"})
    assert "late_port_xyz" not in sys.modules
    assert get_registered_model_class("LateForCausalLM").__name__ == "Late"
    assert get_registered_model_class("NeverForCausalLM") is None
