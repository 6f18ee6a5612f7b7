"""Layers with heads of their own, narrow values and sinks here and there, in forks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kinds_fork import CLASSES, raw

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.spec import QuantizationSpec

PLAN = ["near", "far", "near", "near"] * 3


def spec_of(rules, **keys):
    rules = {"base": "700.0", **rules}
    return infer(Sources(raw(rules, **keys), "fork", None, None, Path()), CLASSES)


def answers_of(spec):
    return plan_port(spec, port_names(spec, None, None), "1.2").answers


def test_query_heads_by_a_list_of_unknown_name():
    eyes_at = [8, 12, 16] * 4
    spec = spec_of({"heads": "c.eyes_at[i]", "shared": "c.n_kv_heads"}, eyes_at=eyes_at,
                   n_kv_heads=4)  # fmt: skip
    assert spec.heads_by_layer == tuple(eyes_at) and len(spec.layer_kinds) == 1
    attention = spec.layer.attention
    assert attention.num_attention_heads.expr == "config.eyes_at[layer_idx]"
    assert attention.num_key_value_heads.expr == "config.n_kv_heads"
    shapes = {tensor.roles[0]: tensor.shapes for tensor in spec.checkpoint.tensors}
    assert shapes["attention.q.weight"] == tuple((64 * heads, 512) for heads in eyes_at)
    assert shapes["attention.o.weight"] == tuple((512, 64 * heads) for heads in eyes_at)
    assert shapes["attention.k.weight"] == ()
    answers = answers_of(spec)
    assert answers["layer_heads"] == eyes_at and answers["layer_kv_heads"] == []
    assert answers["attention_heads"] == "config.eyes_at[layer_idx]"
    at = answers["canonical_names"].index("num_attention_heads")
    assert answers["canonical_exprs"][at] == "max(config.eyes_at)"


def test_a_list_of_heads_that_the_class_does_not_read_is_no_number_of_heads():
    tiny = shrink(raw({}, eyes_at=[8, 16] * 6), CLASSES, style="odd")
    assert set(tiny["eyes_at"]) == {8, 16}  # cut to the layers, and left alone
    spec = spec_of({}, eyes_at=[8, 16] * 6)
    assert spec.heads_by_layer == ()
    assert spec.layer.attention.num_attention_heads.expr == "config.num_attention_heads"


def test_key_value_heads_sinks_and_narrow_values_by_kind():
    rules = {
        "shared": "c.n_kv_heads * (4 if c.plan[i] == 'near' else 2)",
        "sinks": "c.plan[i] == 'near'",
        "value": "c.v_head_dim",
        "louder": "c.volume_scale",
    }
    spec = spec_of(rules, plan=PLAN, n_kv_heads=1, v_head_dim=24, volume_scale=0.6)
    near, far = (kind.attention for kind in spec.layer_kinds)
    assert (near.num_key_value_heads.value, far.num_key_value_heads.value) == (4, 2)
    assert near.num_key_value_heads.expr == "4 * config.n_kv_heads"
    assert far.num_key_value_heads.expr == "2 * config.n_kv_heads"
    assert near.sinks and not far.sinks
    assert {a.value_dim.expr for a in (near, far)} == {"config.v_head_dim"}
    assert {a.value_scale.expr for a in (near, far)} == {"config.volume_scale"}
    assert near.value_scale.value == 0.6

    answers = answers_of(spec)
    assert answers["layer_kv_heads"] == [4, 2, 4, 4] * 3 and answers["num_key_value_heads"] == 4
    assert answers["attention_kind"] == "GQA" and answers["v_head_dim"] == 24
    names = dict(zip(answers["canonical_names"], answers["canonical_exprs"], strict=True))
    assert not {"num_key_value_heads", "v_head_dim"} & set(names)  # listed by layer; HF's own name
    assert answers["attention_sinks_condition"] == spec.layer_kinds[0].condition
    quantized = replace(spec, quantization=QuantizationSpec("FP8", None, (), "config.json"))
    with pytest.raises(Refused, match="quantized") as caught:
        answers_of(quantized)
    assert caught.value.axis == "attention.key_value_heads"


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ({"value": "2 * c.breadth // c.eyes"}, "value heads of width"),
        ({"louder": "1 + 0.25 * (i % 2)"}, "attention.value_"),
        ({"shared": "2 + 2 * (i in (1, 5))"}, "nothing in the configuration says which"),
        ({"heads": "c.eyes * (1 + (i % 2))", "value": "4 * (1 + (i % 2))"}, "attention.value_dim"),
    ],
)
def test_what_nobody_has_said_how_to_express_is_refused(rules, says):
    with pytest.raises(Refused, match=says) as caught:
        spec_of(rules)
    assert caught.value.axis == "attention"
