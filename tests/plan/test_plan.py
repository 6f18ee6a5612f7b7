"""Plans of hand-written specs: modules, weight map, support levels and refusals."""

from __future__ import annotations

import dataclasses
import json

import pytest
from sample_specs import SPECS, llama, with_attention

from trtllm_scaffold.errors import InputError, Refused, UsageError
from trtllm_scaffold.plan import plan_port, port_names, support
from trtllm_scaffold.plan.answers import code
from trtllm_scaffold.plan.weights import parameter_name
from trtllm_scaffold.spec import NormSpec, Quantity, TensorSpec


def plan(name: str):
    return plan_port(SPECS[name], port_names(SPECS[name], None, None), "1.2")


@pytest.mark.parametrize("name", SPECS)
def test_answers_are_flat_and_json_plain(name: str) -> None:
    answers = plan(name).answers
    assert json.loads(json.dumps(answers)) == answers
    for value in answers.values():
        scalars = value if isinstance(value, list) else [value]
        assert all(isinstance(item, str | int | float | bool) for item in scalars)


@pytest.mark.parametrize(
    ("name", "level"), [("llama", "native"), ("qwen3", "native"), ("olmo2", "expressed")]
)
def test_support_level(name: str, level: str) -> None:
    found = support(SPECS[name], "1.4")
    assert found.level.name == level
    assert bool(found.because) == (level != "native")


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("llama", "fused"),
        ("gpt2", "fused"),
        ("gpt_neox", "parallel"),
        ("opt_350m", "sequential"),
        ("olmo2", "sequential"),
    ],
)
def test_block_form(name: str, form: str) -> None:
    assert plan(name).answers["block_form"] == form


def test_fused_rotary_norm_only_without_scaling() -> None:
    assert plan("qwen3").answers["attention_fuse_qk_norm"] is True
    scaled = dataclasses.replace(SPECS["qwen3"], position=SPECS["llama3"].position)
    answers = plan_port(scaled, port_names(scaled, None, None), "1.2").answers
    assert answers["attention_fuse_qk_norm"] is False


@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        (with_attention(llama(), head_dim=Quantity(320, "config.head_dim")), "attention.head_dim"),
        (
            with_attention(llama(), output_norm=NormSpec("layernorm", Quantity(1e-5, "1e-05"))),
            "attention.output_norm",
        ),
    ],
)
def test_refusal_names_the_axis(spec, axis: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan_port(spec, port_names(spec, None, None), "1.2")
    assert refusal.value.axis == axis
    assert refusal.value.exit_code == 4
    assert support(spec, "1.2").level.name == "refused"


def test_longrope_with_another_magnitude_is_refused() -> None:
    position = SPECS["longrope"].position
    scaling = position.rope.scaling
    other = dataclasses.replace(
        scaling, parameters=(*scaling.parameters, ("attention_factor", 1.5))
    )
    rope = dataclasses.replace(position.rope, scaling=other)
    spec = llama(position=dataclasses.replace(position, rope=rope))
    with pytest.raises(Refused, match=r"attention_factor 1\.5"):
        plan_port(spec, port_names(spec, None, None), "1.2")


def test_position_table_that_does_not_fit_is_refused() -> None:
    position = SPECS["opt_350m"].position
    learned = dataclasses.replace(position.learned, rows=Quantity(70, ""))
    spec = dataclasses.replace(
        SPECS["opt_350m"], position=dataclasses.replace(position, learned=learned)
    )
    with pytest.raises(Refused, match="70 rows"):
        plan_port(spec, port_names(spec, None, None), "1.2")


def test_unknown_layout_is_refused() -> None:
    odd = TensorSpec("x", (4, 4), ("mlp.up.weight", "attention.q.weight"), "rows")
    checkpoint = dataclasses.replace(llama().checkpoint, tensors=(odd,))
    with pytest.raises(Refused, match="no transform"):
        plan_port(llama(checkpoint=checkpoint), port_names(llama(), None, None), "1.2")


@pytest.mark.parametrize(
    ("role", "parameter"),
    [
        ("embedding.weight", "model.embed_tokens.weight"),
        ("attention.k.bias", "model.layers.{i}.self_attn.k_proj.bias"),
        ("norm.ln_1.bias", "model.layers.{i}.ln_1.bias"),
        ("mlp.down.weight", "model.layers.{i}.mlp.down_proj.weight"),
        ("head.projection.weight", "model.project_out.weight"),
    ],
)
def test_roles(role: str, parameter: str) -> None:
    assert parameter_name(role) == parameter


@pytest.mark.parametrize("package", ["torch", "os", "class", "a b", "x;y"])
def test_package_names_that_shadow_or_are_none(package: str) -> None:
    with pytest.raises(UsageError):
        port_names(llama(), None, package)


def test_architecture_must_be_an_identifier() -> None:
    with pytest.raises(InputError):
        port_names(llama(architecture="X; import os"), None, None)


@pytest.mark.parametrize(
    ("expr", "text"),
    [
        ("config.hidden_size ** 0.5", "config.hidden_size**0.5"),
        ("4 * config.hidden_size", "4 * config.hidden_size"),
        ("1e-05", "1e-05"),
    ],
)
def test_code_is_formatted(expr: str, text: str) -> None:
    assert code(Quantity(1, expr)) == text


def test_code_must_be_an_expression() -> None:
    with pytest.raises(SyntaxError):
        code(Quantity(1, "import os"))
