from __future__ import annotations

import textwrap

import faults
import pytest

from trtllm_scaffold.errors import InputError, UsageError
from trtllm_scaffold.verify.check import check_port
from trtllm_scaffold.verify.contract import check_contract, generations_to_check
from trtllm_scaffold.verify.port_files import read_port

CONTRACT = [fault for fault in faults.STATIC if fault.caught_by.startswith("contract")]


@pytest.mark.parametrize("generation", ["1.2", "1.4"])
def test_the_sample_port_keeps_the_contract(generation):
    check = check_contract(read_port(faults.SAMPLE), generation)
    assert check.status == "passed", check.reason
    assert check.name == f"contract {generation}"
    assert check.measured["imports"] == 14
    assert check.measured["calls"] >= 25
    assert check.measured["overrides"] == 4


@pytest.mark.parametrize("fault", CONTRACT, ids=lambda fault: fault.name)
def test_a_fault_is_caught_and_named(fault, tmp_path):
    checks = check_port(faults.seed(fault, tmp_path), trtllm="all")
    failed = [check for check in checks if check.status == "failed"]
    named = [check for check in failed if check.name.startswith(fault.caught_by)]
    assert named, [check.reason for check in checks]
    assert fault.says in named[0].reason
    assert f"{fault.file.split('/')[-1]}:" in named[0].reason
    assert all(check.name.startswith("contract") for check in failed), "only the contract broke"


def test_a_violation_names_line_and_generation(tmp_path):
    fault = next(item for item in faults.STATIC if item.name == "unknown enum member")
    port = faults.seed(fault, tmp_path)
    line = 1 + (port / fault.file).read_text().split("rope_neox,")[0].count("\n")
    check = check_contract(read_port(port), "1.2")
    assert check.reason.startswith(f"modeling_mistral.py:{line}: ")
    assert check.reason.endswith("(TensorRT-LLM 1.2)")
    assert check.measured["violations"] == [check.reason]


def add(port, text):
    """Append `text` to the modeling file, which has everything imported."""
    path = port / faults.MODELING
    path.write_text(path.read_text() + "\n\n" + textwrap.dedent(text))


def reason(port, generation="1.2"):
    return "; ".join(check_contract(read_port(port), generation).measured["violations"])


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("params = RopeParams(dim=4, theta=1.0, base=2.0)", "RopeParams has no parameter 'base'"),
        ("params = RopeParams(4, theta=1.0)", "RopeParams: pass"),
        ("params = RopeParams.from_config()", "RopeParams.from_config needs 'config'"),
        ("kind = RotaryScalingType.ntk", "RotaryScalingType has no member 'ntk'"),
        ("make = rope_params(config=1, scale=2)", "rope_params has no parameter 'scale'"),
        ("make = MistralModel()", "MistralModel needs 'model_config'"),
        ("register = register_auto_model()", "register_auto_model needs 'name'"),
    ],
)
def test_calls_outside_classes(code, problem, tmp_path):
    port = faults.copy_sample(tmp_path)
    add(port, code)
    assert problem in reason(port)


def test_a_kernel_is_launched_with_options_of_its_own(tmp_path):
    port = faults.copy_sample(tmp_path)
    add(port, "def kernel(x): ...\n\nkernel[(1,)](1, num_warps=4)")
    assert reason(port) == ""
    add(port, "kernel(1, num_warps=4)")
    assert "kernel has no parameter 'num_warps'" in reason(port)


@pytest.mark.parametrize(
    ("method", "problem"),
    [
        ("def apply_rope(self, q, k, v): ...", "must accept 'position_ids'"),
        ("def apply_rope(self, k, q, v, position_ids): ...", "the runtime passes (q, k, v, "),
        ("def apply_rope(self, q, k, v, position_ids, extra): ...", "asks for 'extra'"),
        ("def apply_rope(self, q, k, v, position_ids, extra=None): ...", ""),
        ("def apply_rope(self, *args, **kwargs): ...", ""),
        ("def forward(self, position_ids, hidden_states, attn_metadata): ...", "**kwargs"),
        ("def forward(self, hidden_states, **kwargs): ...", "the runtime passes (position_ids"),
        ("def helper(self, anything, at, all): ...", ""),
    ],
)
def test_overrides(method, problem, tmp_path):
    port = faults.copy_sample(tmp_path)
    add(port, f"class Other(Attention):\n    {method}")
    found = reason(port)
    assert (problem in found) if problem else found == ""


def test_a_hook_of_the_other_generation_is_never_called(tmp_path):
    port = faults.copy_sample(tmp_path)
    add(port, "class Other(Attention):\n    def preprocess_qkv(self, qkv, position_ids): ...")
    assert "Attention.preprocess_qkv is a hook of 1.4 only" in reason(port, "1.2")
    assert reason(port, "1.4") == ""


def test_a_class_inherits_its_constructor_and_forward_through_the_port(tmp_path):
    port = faults.copy_sample(tmp_path)
    add(
        port,
        """
        class Base(RMSNorm):
            pass


        class Scaled(Base):
            def __init__(self, width):
                super().__init__(hidden_size=width, epsilon=1e-6)


        class Holder(nn.Module):
            def __init__(self):
                super().__init__()
                self.norm = Scaled(4)
                self.norms = nn.ModuleList([Scaled(4) for _ in range(2)])

            def forward(self, x):
                for norm in self.norms:
                    x = norm(x, scale=2)
                return self.norm(x, residual=x, gain=1)
        """,
    )
    found = reason(port)
    assert "RMSNorm has no parameter 'epsilon'" in found
    assert "RMSNorm needs 'eps'" in found
    assert "RMSNorm.forward has no parameter 'scale'" in found
    assert "RMSNorm.forward has no parameter 'gain'" in found


def test_post_load_weights_must_call_super_where_the_base_has_it(tmp_path):
    port = faults.copy_sample(tmp_path)
    add(port, "class Other(MistralForCausalLM):\n    def post_load_weights(self): ...")
    assert reason(port, "1.2") == ""
    assert "must call super().post_load_weights()" in reason(port, "1.4")


def test_the_module_may_be_imported_whole(tmp_path):
    port = faults.copy_sample(tmp_path)
    add(port, "from . import _trtllm\n\nnorm = _trtllm.RMSNorm(hidden_size=4, eps=1, width=2)")
    assert "RMSNorm has no parameter 'width'" in reason(port)


def test_generations(tmp_path):
    port = read_port(faults.SAMPLE)
    assert generations_to_check(port, None) == ("1.2",)
    assert generations_to_check(port, "all") == ("1.2", "1.4")
    with pytest.raises(UsageError, match="'2.0'"):
        generations_to_check(port, "2.0")
    other = faults.copy_sample(tmp_path)
    faults.edit(other / ".copier-answers.yml", 'trtllm: "1.2"', 'trtllm: "0.9"')
    with pytest.raises(InputError, match="'0.9'"):
        generations_to_check(read_port(other), None)


@pytest.mark.parametrize("text", ["def broken(:\n", "\0", "x = " + "(" * 500 + ")" * 500])
def test_a_file_that_is_not_python_is_an_input_error(text, tmp_path):
    port = faults.copy_sample(tmp_path)
    (port / faults.MODELING).write_text(text)
    with pytest.raises(InputError, match="not Python"):
        check_contract(read_port(port), "1.2")
