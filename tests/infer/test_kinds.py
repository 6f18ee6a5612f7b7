"""Layers that differ: which, by what of the configuration, in forks of unknown names."""

from __future__ import annotations

from pathlib import Path

import pytest
from kinds_fork import CLASSES, raw

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.infer.alibi import alibi_slopes
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.spec import AlibiSpec, SinusoidalSpec

DEPTH = 12


def spec_of(rules, **keys):
    return infer(Sources(raw(rules, **keys), "fork", None, None, Path()), CLASSES)


def holds(spec, keys):
    """Each kind's condition, evaluated as a port would, is true for exactly its layers."""
    config = CLASSES.config_class.from_dict(keys)
    for number, kind in enumerate(spec.layer_kinds):
        for layer_idx, found in enumerate(spec.layer_pattern):
            scope = {"config": config, "layer_idx": layer_idx}
            assert not kind.condition or bool(eval(kind.condition, scope)) == (found == number)


def check(rules, **keys):
    spec = spec_of(rules, **keys)
    holds(spec, raw(rules, **keys))
    return spec


def test_uniform():
    spec = check({"base": "c.turning"}, turning=5000.0)
    assert len(spec.layer_kinds) == 1 and spec.layer_kinds[0].condition == ""
    assert spec.position.rope.theta.expr == "config.turning"
    assert spec.position.rope.theta.value == 5000.0


def test_window_under_a_name_of_its_own():
    window = check({"window": "c.sight"}, sight=1024).layer.attention.window
    assert (window.value, window.expr) == (1024, "config.sight")


@pytest.mark.parametrize(
    ("rule", "keys", "condition", "far"),
    [
        ("(i + 1) % c.rest_every", {"rest_every": 4}, "(layer_idx + 1) % config.rest_every == 0",
         (3, 7, 11)),
        ("i % c.rest_every", {"rest_every": 6}, "layer_idx % config.rest_every == 0", (0, 6)),
        ("i < c.near", {"near": 9}, "layer_idx >= config.near", (9, 10, 11)),
        ("i not in c.peaks", {"peaks": [2, 7]}, "layer_idx in config.peaks", (2, 7)),
        ("c.plan[i] == 'low'", {"plan": ["low", "high", "high"] * 4},
         'config.plan[layer_idx] == "high"', (1, 2, 4, 5, 7, 8, 10, 11)),
        ("c.near_by[i]", {"near_by": [True, False, False, True] * 3},
         "not config.near_by[layer_idx]", (1, 2, 5, 6, 9, 10)),
        ("i", {}, "layer_idx == 0", (0,)),
        ("i < c.floors - 1", {}, "layer_idx == config.num_hidden_layers - 1", (11,)),
    ],
)  # fmt: skip
def test_layers_without_rope_or_window(rule, keys, condition, far):
    rules = {"base": f"500.0 if {rule} else None", "window": f"c.sight if {rule} else None"}
    spec = check(rules, sight=640, **keys)
    windows = [spec.layer_kinds[k].attention.window for k in spec.layer_pattern]
    ropes = [spec.layer_kinds[k].rope for k in spec.layer_pattern]
    assert tuple(i for i in range(DEPTH) if windows[i] is None) == far
    assert tuple(i for i in range(DEPTH) if ropes[i] is None) == far
    assert spec.layer_kinds[spec.layer_pattern[far[0]]].condition == condition
    assert {window.expr for window in windows if window} == {"config.sight"}


def test_two_rules_at_once():
    rules = {"base": "900.0 if c.turns[i] else None", "window": "c.sight if i < c.near else None"}
    turns = [1, 0, 1, 1] * 3
    spec = check(rules, sight=300, near=6, turns=turns)
    assert len(spec.layer_kinds) == 4
    for layer, number in enumerate(spec.layer_pattern):
        kind = spec.layer_kinds[number]
        assert (kind.rope is not None) == bool(turns[layer])
        assert (kind.attention.window is not None) == (layer < 6)


def test_each_layer_has_a_base_and_a_window_of_its_own():
    bases = [0.0, 500.0, 10000.0] * 4
    spans = [None, 64, 256] * 4
    spec = check({"base": "c.bases[i]", "window": "c.spans[i]"}, bases=bases, spans=spans)
    assert [k.condition for k in spec.layer_kinds] == [
        "config.spans[layer_idx] is None",
        "config.spans[layer_idx] is not None",
    ]
    near = spec.layer_kinds[1]
    assert near.rope.theta.expr == "config.bases[layer_idx]"
    assert near.attention.window.expr == "config.spans[layer_idx]"
    assert near.attention.window.value == 256
    assert spec.layer_kinds[0].rope is None and spec.layer_kinds[0].attention.window is None


def test_bases_of_two_keys():
    rules = {"base": "c.near_base if c.plan[i] == 'near' else c.far_base"}
    spec = check(rules, near_base=300.0, far_base=70000.0, plan=["near", "near", "far"] * 4)
    assert [(k.rope.theta.value, k.rope.theta.expr) for k in spec.layer_kinds] == [
        (300.0, "config.near_base"),
        (70000.0, "config.far_base"),
    ]


@pytest.mark.parametrize(
    ("rule", "ending"),
    [("1 / (i + 1)", " / (layer_idx + 1)"), ("(i + 1)", " * (layer_idx + 1)")],
)
def test_scale_by_layer(rule, ending):
    spec = check({"scale": f"(c.breadth // c.eyes) ** -0.5 * {rule}", "base": "700.0"})
    assert len(spec.layer_kinds) == 1
    scale = spec.layer.attention.scale
    assert scale.expr.endswith(ending)
    config = CLASSES.config_class.from_dict(raw({}))
    for layer_idx in range(DEPTH):
        expected = 64**-0.5 * eval(rule, {"i": layer_idx})
        found = eval(scale.expr, {"config": config, "layer_idx": layer_idx})
        assert found == pytest.approx(expected)


def test_first_layer_without_a_norm():
    spec = check({"bare": "i == 0", "base": "700.0"})
    assert [k.condition for k in spec.layer_kinds] == ["layer_idx == 0", "layer_idx > 0"]
    assert spec.layer_kinds[0].block.attention_input_norm is None
    assert spec.layer_kinds[1].block.attention_input_norm == "before"
    stored = {t.name: t.only_layers for t in spec.checkpoint.tensors}
    assert stored["tower.{i}.before.weight"] == tuple(range(1, DEPTH))
    assert stored["tower.{i}.between.weight"] == ()


@pytest.mark.parametrize("rule", ["i in (5, 9)", "i == 7", "(i + 1) % 6 == 0"])
def test_a_rule_that_the_configuration_does_not_state_is_refused(rule):
    with pytest.raises(Refused, match="position: layers differ in position.style: neox") as caught:
        spec_of({"base": f"None if {rule} else 500.0"})
    assert "tower." in str(caught.value) and "of 12 layers" in str(caught.value)


@pytest.mark.parametrize("heads", [8, 12])
@pytest.mark.parametrize(("bias", "scaled"), [(8.0, False), (8.0, True), (5.0, False)])
def test_alibi(heads, bias, scaled):
    factor = "(c.breadth // c.eyes) ** -0.5" if scaled else "1"
    slopes = f"[{factor} * s for s in __import__('kinds_fork').press(c.eyes, {bias})]"
    found = check({"slopes": slopes}, eyes=heads, breadth=64 * heads).position.alibi
    assert found == AlibiSpec("press" if bias == 8.0 else "mpt", bias, scaled)


def test_alibi_of_another_rule_for_heads_that_are_no_power_of_two():
    slopes = "[2.0 ** (-8 * (j + 1) / c.eyes) for j in range(c.eyes)]"
    assert check({"slopes": slopes}, eyes=8).position.alibi == AlibiSpec()
    with pytest.raises(Refused, match="position: the slopes of ALiBi follow no known rule"):
        spec_of({"slopes": slopes}, eyes=12, breadth=768)


def test_slopes_of_the_paper():
    assert alibi_slopes(8, 8.0) == [2.0**-j for j in range(1, 9)]
    # the authors' own list for 6 heads: those of 4, then every other of 8
    assert sorted(alibi_slopes(6, 8.0)) == sorted(
        [2.0 ** (-2 * j) for j in (1, 2, 3, 4)] + [2**-1.0, 2**-3.0]
    )


@pytest.mark.parametrize("layout", ["concatenated", "alternating"])
@pytest.mark.parametrize(("base", "offset"), [(10000.0, 0), (10000.0, 2), (350.0, 0)])
def test_sinusoids(layout, base, offset):
    found = check({"table": repr((layout, base, offset))}).position
    assert (found.kind, found.sinusoidal) == ("sinusoidal", SinusoidalSpec(layout, base, offset))
