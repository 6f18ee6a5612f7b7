"""What the real runtime punishes is punished here: a test for each trap, in both generations."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ..statements import states
from .harness import ports
from .test_rules import api, attention, model_config

both = pytest.mark.parametrize("gen", ["1.2", "1.4"])


# ---------------------------------------------------------------- rope parameters


def rope_config(**changes):
    given = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "model_type": "some",
        "rope_theta": 500.0,
    }
    return SimpleNamespace(**{**given, **changes})


@states("A9-3", "W1.8-4")
@both
def test_the_order_in_which_from_config_looks_for_a_width(gen):
    ports(gen, "llama")
    read = api().RopeParams.from_config
    neox = rope_config(rotary_emb_base=10000, rotary_pct=0.25)
    assert read(neox).dim == 10000  # theta of GPT-NeoX taken for a width
    assert read(rope_config(rotary_dim=6, rotary_emb_base=10000)).dim == 6
    assert read(rope_config(qk_rope_head_dim=8)).dim == 8
    assert read(rope_config(rotary_pct=0.25, partial_rotary_factor=0.5)).dim == 4
    assert read(rope_config(partial_rotary_factor=0.5)).dim == 8
    assert read(rope_config(head_dim=None)).dim == 12
    with pytest.raises(AttributeError, match="max_position_embeddings"):
        lacking = rope_config()
        del lacking.max_position_embeddings
        read(lacking)


@both
def test_a_table_of_a_neox_config_is_too_wide_for_its_heads(gen):
    config = model_config(gen, backend="VANILLA")
    params = api().RopeParams.from_config(rope_config(rotary_emb_base=10000))
    kind = api().PositionEmbeddingType.rope_gpt_neox
    layer = attention(
        config, pos_embd_params=api().PositionalEmbeddingParams(type=kind, rope=params)
    )
    with pytest.raises(RuntimeError, match=r"size of tensor|must match"):
        layer.apply_rope(torch.zeros(2, 128), None, None, torch.arange(2)[None])


@states("A9-6")
@both
@pytest.mark.parametrize("name", ["su", "proportional", "ntk"])
def test_unknown_rope_scalings_are_refused(gen, name):
    ports(gen, "llama")
    with pytest.raises(ValueError, match=name):
        api().RopeParams.from_config(rope_config(rope_scaling={"rope_type": name, "factor": 2.0}))


@states("A9-7")
@both
def test_from_config_does_not_read_the_attention_factor(gen):
    ports(gen, "llama")
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    read = api().RopeParams.from_config
    plain = read(rope_config(rope_scaling=scaling))
    asked = read(rope_config(rope_scaling={**scaling, "attention_factor": 9.0, "truncate": False}))
    assert plain == asked and plain.scale_type == api().RotaryScalingType.yarn
    table = plain.create_rope_const_params()[1]
    assert table.max().item() == pytest.approx(0.1 * torch.tensor(4.0).log().item() + 1)


@states("W1.8-5")
@both
def test_deepseek_v3_without_scaling_is_yarn(gen):
    ports(gen, "llama")
    read, kinds = api().RopeParams.from_config, api().RotaryScalingType
    assert read(rope_config(model_type="deepseek_v3")).scale_type == kinds.yarn
    assert read(rope_config(model_type="deepseek_v3")).scale == 1.0
    assert read(rope_config(model_type="deepseek_v2")).scale_type == kinds.none


@states("W1.8-6")
def test_a_config_without_update_fails_in_1_4():
    entry = {"rope_type": "default", "rope_theta": 7.0}
    for gen in ("1.2", "1.4"):
        ports(gen, "llama")
        config = rope_config(rope_parameters=entry)
        if gen == "1.2":
            assert api().RopeParams.from_config(config).theta == 500.0
        else:
            with pytest.raises(AttributeError, match="update"):
                api().RopeParams.from_config(config)


# ---------------------------------------------------------------- weights


@states("A2-2")
@both
def test_a_fused_checkpoint_tensor_in_one_piece_is_refused(gen):
    layer = attention(model_config(gen)).qkv_proj
    whole = torch.randn(128, 48)
    with pytest.raises(AssertionError):
        layer.load_weights([{"weight": whole}])
    parts = [{"weight": part} for part in whole.split([64, 32, 32])]
    layer.load_weights(parts)
    assert torch.equal(layer.weight, whole)


@states("C1-2")
@both
def test_none_as_residual_breaks_a_plain_layer(gen):
    ports(gen, "llama")
    norm = api().RMSNorm(hidden_size=4, eps=1e-5, dtype=torch.float32)
    x = torch.randn(2, 4)
    with pytest.raises(TypeError):
        norm(x, None) + 1
    assert norm(x, None)[1] is None and torch.equal(norm(x, None)[0], norm(x))


# ---------------------------------------------------------------- construction


class Quiet(nn.LayerNorm):
    def reset_parameters(self) -> None:
        pass


@states("C1-9")
@both
def test_a_layer_norm_without_reset_can_be_built_on_meta(gen):
    ports(gen, "llama")
    from tensorrt_llm._torch.models.modeling_utils import MetaInitMode

    with MetaInitMode():
        made = Quiet(8)
    assert made.weight.device.type == "meta"


@states("W6.4-2")
@both
def test_reading_a_parameter_while_building_raises(gen):
    ports(gen, "llama")
    from tensorrt_llm._torch.models.modeling_utils import MetaInitException, MetaInitMode

    class Derives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(4))
            self.register_buffer("twice", self.weight * 2)

    with MetaInitMode(), pytest.raises(MetaInitException, match="mul"):
        Derives()


@both
def test_a_parameter_read_in_init_is_not_there_under_auto_model(gen):
    port = ports(gen, "llama")
    from tensorrt_llm._torch.models import AutoModelForCausalLM

    @api().register_auto_model("ReadsForCausalLM")
    class Reads(port.HandLlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            self.model.layers[0].mlp.down_proj.weight.zero_()

    config = model_config(gen)
    api().register_auto_model("ReadsForCausalLM")(Reads)
    config.pretrained_config.architectures = ["ReadsForCausalLM"]
    with pytest.raises(AttributeError, match="weight"):
        AutoModelForCausalLM.from_config(config)


@both
def test_keywords_that_no_generation_knows(gen):
    config = model_config(gen)
    with pytest.raises(TypeError, match="sliding_window"):
        attention(config, sliding_window=4)
    with pytest.raises(TypeError, match="use_gemma_norm"):
        api().RMSNorm(hidden_size=4, eps=1e-5, use_gemma_norm=True)
    with pytest.raises(TypeError, match="head_bias"):
        api().DecoderModelForCausalLM(
            nn.Module(), config=config, hidden_size=4, vocab_size=4, head_bias=True
        )


@both
def test_tensor_parallel_sizes_that_do_not_divide(gen):
    ports(gen, "llama")
    three = api().Mapping(world_size=3, tp_size=3, rank=1)
    config = model_config(gen, mapping=three)
    with pytest.raises(AssertionError, match="num_attention_heads 4 .* 3"):
        attention(config)
    with pytest.raises(AssertionError, match="not divisible|must be divisible"):
        api().GatedMLP(hidden_size=6, intermediate_size=8, bias=False, config=config)
    with pytest.raises(AssertionError, match="must be divisible"):
        api().MLP(
            hidden_size=6, intermediate_size=8, bias=False, activation=torch.relu, config=config
        )


# ---------------------------------------------------------------- registration


@states("E3-3", "W1.4-3", "W1.4-4")
@both
def test_a_module_that_workers_cannot_import_by_name(gen, tmp_path):
    """1.2 pickles the class by reference, 1.4 sends its module's name: both need a real module."""
    import pickle

    ports(gen, "llama")
    from trtllm_scaffold.standin.custom_modules import import_custom_module_from_file
    from trtllm_scaffold.standin.models import registry

    lone = tmp_path / "lone_port_file.py"
    lone.write_text(
        "from torch import nn\n"
        "from tensorrt_llm._torch.models.modeling_utils import register_auto_model\n"
        "@register_auto_model('LoneForCausalLM')\nclass Lone(nn.Module): pass\n"
    )
    module = import_custom_module_from_file(lone)
    assert "lone_port_file" not in sys.modules
    if gen == "1.2":
        with pytest.raises(pickle.PicklingError, match="lone_port_file"):
            pickle.dumps(module.Lone)
        return
    from tensorrt_llm._torch.models import modeling_utils

    sent = modeling_utils.export_external_model_modules()
    assert sent["LoneForCausalLM"] == "lone_port_file"
    registry._registrations.pop("lone_port_file")  # a worker has never seen the file
    modeling_utils.register_external_model_modules({"LoneForCausalLM": "lone_port_file"})
    assert modeling_utils.get_registered_model_class("LoneForCausalLM") is None
    modeling_utils.register_external_model_modules({})


@states("W1.1-4")
def test_a_new_declaration_replaces_the_old_one(tmp_path, monkeypatch):
    ports("1.4", "llama")
    from tensorrt_llm._torch.models import modeling_utils as mu

    source = (
        "from torch import nn\n"
        "from tensorrt_llm._torch.models.modeling_utils import register_auto_model\n"
        "@register_auto_model('TwiceForCausalLM')\nclass Model(nn.Module): pass\n"
    )
    for name in ("first_port_of_two", "second_port_of_two"):
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("first_port_of_two", "second_port_of_two", "first_port_of_two"):
        mu.register_external_model_modules({"TwiceForCausalLM": name})
        assert mu.get_registered_model_class("TwiceForCausalLM").__module__ == name
    mu.register_external_model_modules({})
    assert mu.get_registered_model_class("TwiceForCausalLM") is None


@states("W1.4-2")
@both
def test_a_custom_module_that_is_not_there(gen, tmp_path):
    ports(gen, "llama")
    from tensorrt_llm.tools.importlib_utils import (
        import_custom_module,
        import_custom_module_from_dir,
    )

    with pytest.raises(FileNotFoundError, match="no_such_port"):
        import_custom_module(tmp_path / "no_such_port")
    with pytest.raises(ImportError, match="no_such_port"):
        import_custom_module_from_dir(tmp_path / "no_such_port")


@both
def test_the_other_generation_s_paths_are_not_there(gen):
    ports(gen, "llama")
    absent = {
        "1.2": ("attention.attention", "attention.backends.interface", "attention.mla"),
        "1.4": ("modules.attention", "attention_backend.interface", "modules.rotary_embedding"),
    }[gen]
    for path in absent:
        with pytest.raises(ModuleNotFoundError, match=f"TensorRT-LLM {gen} has no module"):
            __import__(f"tensorrt_llm._torch.{path}", fromlist=["x"])
