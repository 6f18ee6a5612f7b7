from __future__ import annotations

import subprocess
import sys

import pytest

from trtllm_scaffold.errors import UsageError
from trtllm_scaffold.targets.contract import GENERATIONS, load_contract

T = "tensorrt_llm._torch"


def test_attention_lives_at_another_path_in_each_generation():
    old, new = load_contract("1.2"), load_contract("1.4")
    assert old.find(f"{T}.modules.attention", "Attention") is not None
    assert old.find(f"{T}.attention.attention", "Attention") is None
    assert new.find(f"{T}.attention.attention", "Attention") is not None
    assert new.homes("Attention") == (f"{T}.attention.attention",)


def test_parameters_keep_order_kind_and_default():
    linear = load_contract("1.2").find(f"{T}.modules.linear", "Linear")
    assert linear is not None and linear.parameters is not None
    names = [parameter.name for parameter in linear.parameters]
    assert names[:3] == ["in_features", "out_features", "bias"]
    first, _, bias = linear.parameters[:3]
    assert first.required and first.default is None
    assert not bias.required and bias.default == "True"
    norm = load_contract("1.2").find(f"{T}.modules.rms_norm", "RMSNorm")
    assert norm is not None and norm.parameters is not None
    assert {parameter.kind for parameter in norm.parameters} == {"keyword_only"}


def test_reexports_are_followed_to_their_definition():
    contract = load_contract("1.2")
    symbol = contract.find(f"{T}.distributed", "AllReduceParams")
    assert symbol is not None and symbol.kind == "reexport"
    resolved = contract.resolve(f"{T}.distributed", "AllReduceParams")
    assert resolved is not None and resolved.path == "tensorrt_llm.functional.AllReduceParams"


def test_a_package_above_a_listed_module_is_a_module():
    contract = load_contract("1.4")
    assert contract.has_module("tensorrt_llm") and contract.has_module(f"{T}.attention")
    assert not contract.has_module(f"{T}.attention_backend")
    assert not contract.has_module(f"{T}.atten")


def test_an_unread_constructor_is_none_and_an_empty_one_is_empty():
    contract = load_contract("1.2")
    unread = contract.find(f"{T}.models.checkpoints.base_weight_loader", "BaseWeightLoader")
    empty = contract.find(f"{T}.modules.logits_processor", "LogitsProcessor")
    assert unread is not None and unread.parameters is None
    assert empty is not None and empty.parameters == ()


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_symbol_names_a_known_kind_and_a_method_list(generation):
    kinds = {"class", "dataclass", "pydantic_model", "function", "enum", "variable", "reexport"}
    for names in load_contract(generation).symbols.values():
        for symbol in names.values():
            assert symbol.kind in kinds
            assert (symbol.kind == "reexport") == (symbol.target is not None)


def test_an_unknown_generation_is_a_usage_error():
    with pytest.raises(UsageError, match="'2.0'"):
        load_contract("2.0")


def test_loading_needs_no_torch():
    code = (
        "import sys; from trtllm_scaffold.targets.contract import load_contract;"
        "load_contract('1.2'); load_contract('1.4');"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
