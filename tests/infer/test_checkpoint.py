from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from published_configs import ALL, classes_of, config_of, load

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.checkpoint import infer_checkpoint
from trtllm_scaffold.infer.effective import build_meta_model
from trtllm_scaffold.infer.layer_names import Folded, LayerNames, fold_any, fold_number, fold_shapes
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.infer.stored import match_stored, saved_tensors
from trtllm_scaffold.infer.trace import observe
from trtllm_scaffold.sources.checkpoint import CheckpointHeader, TensorInfo

torch.set_num_threads(1)


def traced(raw):
    classes = classes_of(raw)
    seen = observe(shrink(raw, classes, style="odd"), classes.config_class, classes.model_class, 3)
    return seen, classes


def infer(raw, header=None):
    seen, classes = traced(raw)
    return infer_checkpoint(seen.graph.model, seen.roles, config_of(raw), classes, header)


#: Published files that name a tensor otherwise than transformers' module does.
STORED_NAMES = {"gpt_neox": {"lm_head.weight": "embed_out.weight"}}


def published_header(raw, prefix=""):
    """What the published file stores of the real model, without `prefix`."""
    renamed = STORED_NAMES.get(raw["model_type"], {})
    model = build_meta_model(config_of(raw), classes_of(raw))
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    tied = tied if model.config.tie_word_embeddings else set()
    names = {n: p for n, p in model.named_parameters() if n not in tied}
    return CheckpointHeader(
        {
            renamed.get(name, name).removeprefix(prefix): TensorInfo(
                "BF16", tuple(p.shape), "model.safetensors"
            )
            for name, p in names.items()
        }
    )


def by_name(spec):
    return {tensor.name: tensor for tensor in spec.tensors}


@pytest.mark.parametrize("name", ALL)
def test_every_stored_tensor_of_the_real_size_is_inferred(name):
    raw = load(name)
    raw.pop("quantization_config", None)
    header = published_header(raw)
    spec, evidence = infer(raw, header)
    layers = config_of(raw).num_hidden_layers
    names = LayerNames("")
    expanded = {n: t.shape for t in spec.tensors for n in names.unfold(t.name, layers)}
    assert expanded == {n: info.shape for n, info in header.tensors.items()}
    assert spec.dropped == ()
    assert all(t.per_layer == ("{i}" in t.name) for t in spec.tensors)
    for tensor in spec.tensors:
        witnesses = {e.witness for e in evidence if e.fact == f"checkpoint.{tensor.name}"}
        assert witnesses == {"trace", "checkpoint"}
    roles = [role for tensor in spec.tensors for role in tensor.roles]
    assert len(roles) == len(set(roles))
    assert "embedding.weight" in roles
    assert ("head.weight" in roles) == (not config_of(raw).tie_word_embeddings)


def test_layouts_of_fused_tensors():
    neox = by_name(infer(load("EleutherAI__pythia-160m"))[0])
    fused = neox["gpt_neox.layers.{i}.attention.query_key_value.weight"]
    assert (fused.layout, fused.shape) == ("per_head", (2304, 768))
    assert fused.roles == ("attention.q.weight", "attention.k.weight", "attention.v.weight")
    falcon = by_name(infer(load("falcon, new architecture"))[0])
    fused = falcon["transformer.h.{i}.self_attention.query_key_value.weight"]
    assert (fused.layout, fused.shape) == ("per_group", (9216, 8192))
    gpt2 = by_name(infer(load("openai-community__gpt2"))[0])
    fused = gpt2["transformer.h.{i}.attn.c_attn.weight"]
    assert (fused.layout, fused.transposed, fused.shape) == ("rows", True, (768, 2304))
    assert not gpt2["transformer.h.{i}.attn.c_attn.bias"].transposed
    phi3 = by_name(infer(load("microsoft__Phi-3-mini-4k-instruct"))[0])
    fused = phi3["model.layers.{i}.mlp.gate_up_proj.weight"]
    assert (fused.layout, fused.roles) == ("rows", ("mlp.gate.weight", "mlp.up.weight"))


def test_published_files_without_the_base_prefix_and_with_mask_buffers():
    raw = load("openai-community__gpt2")
    header = published_header(raw, prefix="transformer.")
    tensors = dict(header.tensors)
    for i in range(12):
        tensors[f"h.{i}.attn.bias"] = TensorInfo("U8", (1, 1, 1024, 1024), "model.safetensors")
    spec, _ = infer(raw, CheckpointHeader(tensors))
    assert spec.base_prefix == "transformer."
    assert all(t.name.startswith("transformer.") for t in spec.tensors)
    assert [name for name, _ in spec.dropped] == ["transformer.h.{i}.attn.bias"]
    assert "ignores it" in spec.dropped[0][1]


def test_stored_rotary_tables_and_masks_are_dropped():
    raw = load("EleutherAI__pythia-160m")
    tensors = dict(published_header(raw).tensors)
    for i in range(12):
        owner = f"gpt_neox.layers.{i}.attention"
        tensors[f"{owner}.rotary_emb.inv_freq"] = TensorInfo("F32", (8,), "x")
        tensors[f"{owner}.masked_bias"] = TensorInfo("F32", (), "x")
        tensors[f"{owner}.bias"] = TensorInfo("BOOL", (1, 1, 2048, 2048), "x")
    spec, _ = infer(raw, CheckpointHeader(tensors))
    assert {name.rpartition("attention.")[2] for name, _ in spec.dropped} == {
        "rotary_emb.inv_freq",
        "masked_bias",
        "bias",
    }
    assert all(reason for _, reason in spec.dropped)


def test_stored_head_of_a_tied_model_is_dropped_with_the_reason():
    raw = load("tiiuae__falcon-7b-instruct")
    tensors = dict(published_header(raw).tensors)
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"]
    spec, _ = infer(raw, CheckpointHeader(tensors))
    assert spec.dropped == (("lm_head.weight", "tied to transformer.word_embeddings.weight"),)


def test_a_header_of_names_alone_is_checked_by_name():
    raw = load("meta-llama__Llama-2-7b-hf")
    names = {n: TensorInfo(None, None, "x") for n in published_header(raw).tensors}
    spec, _ = infer(raw, CheckpointHeader(names))
    assert by_name(spec)["lm_head.weight"].shape == (32000, 4096)


def test_a_shape_that_disagrees_names_both_shapes():
    raw = load("meta-llama__Llama-2-7b-hf")
    tensors = dict(published_header(raw).tensors)
    name = "model.layers.7.mlp.up_proj.weight"
    tensors[name] = replace(tensors[name], shape=(11000, 4096))
    with pytest.raises(InputError) as caught:
        infer(raw, CheckpointHeader(tensors))
    assert name in str(caught.value)
    assert "[11000, 4096]" in str(caught.value) and "[11008, 4096]" in str(caught.value)


def test_missing_and_unexplained_tensors_are_bad_input():
    raw = load("meta-llama__Llama-2-7b-hf")
    tensors = dict(published_header(raw).tensors)
    without = {n: t for n, t in tensors.items() if n != "model.norm.weight"}
    with pytest.raises(InputError, match="1 of 291 tensors are missing.*model.norm.weight"):
        infer(raw, CheckpointHeader(without))
    extra = {**tensors, "model.layers.0.self_attn.q_norm.weight": TensorInfo("BF16", (128,), "x")}
    with pytest.raises(InputError, match=r"nothing explains .*q_norm.weight \[128\]"):
        infer(raw, CheckpointHeader(extra))
    more = {**tensors, "norm.weight": tensors["model.norm.weight"]}
    with pytest.raises(InputError, match="both"):
        infer(raw, CheckpointHeader(more))


def test_scales_of_a_quantized_checkpoint_are_explained_only_where_it_is_declared():
    raw = load("meta-llama__Llama-2-7b-hf")
    tensors = dict(published_header(raw).tensors)
    for i in range(32):
        for part in ("q_proj", "k_proj", "v_proj", "o_proj"):
            stem = f"model.layers.{i}.self_attn.{part}"
            tensors[f"{stem}.weight_scale"] = TensorInfo("F32", (), "x")
            tensors[f"{stem}.input_scale"] = TensorInfo("F32", (), "x")
        tensors[f"model.layers.{i}.self_attn.k_proj.k_scale"] = TensorInfo("F32", (), "x")
    with pytest.raises(InputError, match="nothing explains"):
        infer(raw, CheckpointHeader(tensors))
    declared = {**raw, "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}
    spec, _ = infer(declared, CheckpointHeader(tensors))
    assert spec.dropped == ()


def test_a_parameter_without_a_role_is_refused():
    raw = load("meta-llama__Llama-2-7b-hf")
    seen, classes = traced(raw)
    roles = {n: r for n, r in seen.roles.items() if "down_proj" not in n}
    with pytest.raises(Refused, match="down_proj") as caught:
        infer_checkpoint(seen.graph.model, roles, config_of(raw), classes, None)
    assert caught.value.axis == "checkpoint"


class Toy(torch.nn.Module):
    """Modules that differ from what is stored, in each of the ways that are expressed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.same = torch.nn.Parameter(torch.randn(6, 4))
        self.renamed = torch.nn.Parameter(torch.randn(5, 4))
        self.turned = torch.nn.Parameter(torch.randn(3, 7))
        self.fused = torch.nn.Parameter(torch.randn(10, 4))
        self.one = torch.nn.Parameter(torch.randn(2, 9))
        self.two = torch.nn.Parameter(torch.randn(3, 9))
        self.register_buffer("table", torch.randn(11))


def test_renamed_transposed_split_and_fused_tensors_are_matched_by_value():
    toy = Toy()
    tensors = {
        "same": toy.same.data,
        "other_name": toy.renamed.data,
        "turned": toy.turned.data.T.contiguous(),
        "half_b": toy.fused.data[5:],
        "half_a": toy.fused.data[:5],
        "joined": torch.cat([toy.one.data, toy.two.data]),
        "buffer": toy.table,
    }
    found = {item.name: item for item in match_stored(toy, tensors)}
    assert [p.parameter for p in found["other_name"].pieces] == ["renamed"]
    assert found["turned"].transposed and not found["same"].transposed
    halves = [found["half_a"].pieces[0], found["half_b"].pieces[0]]
    assert [(p.start, p.stop, p.index, p.count) for p in halves] == [(0, 5, 0, 2), (5, 10, 1, 2)]
    assert [p.parameter for p in found["joined"].pieces] == ["one", "two"]
    assert found["buffer"].buffer == "table"
    assert [item.name for item in match_stored(toy, tensors)][:2] == ["same", "other_name"]
    with pytest.raises(Refused, match="no parameter has"):
        match_stored(toy, {"scaled": toy.same.data * 2})


def test_saving_leaves_no_trace_on_the_terminal(capfd):
    raw = load("meta-llama__Llama-2-7b-hf")
    seen, _ = traced(raw)
    before = copy.deepcopy(dict(seen.graph.model.state_dict()))
    capfd.readouterr()
    saved = saved_tensors(seen.graph.model)
    assert capfd.readouterr() == ("", "")
    assert set(saved) == set(before)


def test_names_fold_to_templates():
    names = LayerNames.of(["a.h.0.x.w", "a.h.1.x.w", "a.h.0.y.w", "z.0.w", "top.w"])
    assert names.prefix == "a.h"
    assert names.fold("a.h.1.x.w") == ("a.h.{i}.x.w", 1)
    assert names.fold("z.0.w") == ("z.0.w", None)
    assert list(names.unfold("a.h.{i}.x.w", 2)) == ["a.h.0.x.w", "a.h.1.x.w"]
    assert list(names.unfold("a.h.{i}.x.w", (3, 5))) == ["a.h.3.x.w", "a.h.5.x.w"]
    assert list(names.unfold("h.{i}.n.{j}", (3,), 2)) == ["h.3.n.0", "h.3.n.1"]
    assert fold_number("h.{i}.1.norms.1.w", 1, "{j}") == "h.{i}.1.norms.{j}.w"
    assert fold_any("h.3.attn.bias") == "h.{i}.attn.bias"
    assert fold_any("3.attn.bias") == "{i}.attn.bias"
    assert fold_any("head.bias") == "head.bias"


def test_layers_may_lack_a_tensor_or_differ_in_its_shape():
    names = LayerNames("l")
    shapes = {"l.0.w": (4, 2), "l.1.w": (4, 2), "t": (3,)}
    assert fold_shapes(shapes, names) == Folded({"l.{i}.w": (4, 2), "t": (3,)}, {}, {}, 2)
    uneven = fold_shapes({**shapes, "l.1.w": (5, 2)}, names)
    assert uneven.uneven == {"l.{i}.w": ((4, 2), (5, 2))}
    assert fold_shapes({**shapes, "l.1.extra": (1,)}, names).partial == {"l.{i}.extra": (1,)}
