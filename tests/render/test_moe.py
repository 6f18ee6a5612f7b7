"""Ports of mixtures of experts: formatted, within both contracts, each stored element used once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sample_moe import EXPERTS, MOE_SPECS

from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.render import publish, rendered_aside
from trtllm_scaffold.verify.contract import check_contract
from trtllm_scaffold.verify.load import check_load
from trtllm_scaffold.verify.port_files import read_port


def entry(tensor, layers: int) -> dict[str, object]:
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "layers": layers if tensor.per_layer else None,
        "only_layers": list(tensor.only_layers),
        **({"experts": EXPERTS} if "{e}" in tensor.name else {}),
    }


@pytest.fixture(scope="module")
def ports(tmp_path_factory) -> Path:
    """Every sample port, rendered once."""
    folder = tmp_path_factory.mktemp("ports")
    for name, spec in MOE_SPECS.items():
        tensors = [entry(t, spec.num_hidden_layers.value) for t in spec.checkpoint.tensors]
        owned = {"config.json": {}, "checkpoint.json": {"tensors": tensors}}
        answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
        with rendered_aside(answers, owned, folder / name) as port:
            publish(port, folder / name)
    return folder


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]])
def test_ruff_has_nothing_to_say(ports: Path, command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", str(ports)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", MOE_SPECS)
def test_contract_and_load(ports: Path, name: str) -> None:
    port = read_port(ports / name)
    checks = [check_load(port), *(check_contract(port, trtllm) for trtllm in ("1.2", "1.4"))]
    assert {check.status for check in checks} == {"passed"}, checks
    assert checks[0].measured["largest_ep"] == 8
    assert checks[0].measured["largest_tp"] == 4, "4 heads; experts of width 48 divide by 8"


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("dbrx", "tensor.swapaxes(-1, -2)", "tensor", "mlp.experts.0.w2.weight becomes"),
        ("gpt_oss", "tensor[:, 1::2]", "tensor[:, ::2]", "reach no parameter"),
        ("glm4_moe", "is_dense != (", "is_dense == (", "canonical_weights"),
        ("mixtral", ".{e}.w3.weight\",", ".{e}.w1.weight\",", "fills model.layers.{i}"),
    ],
)  # fmt: skip
def test_a_fault_in_the_weights_is_named(
    ports: Path, name: str, old: str, new: str, says: str
) -> None:
    path = ports / name / "llama_trtllm" / "weights_llama.py"
    text = path.read_text()
    assert old in text
    try:
        path.write_text(text.replace(old, new))
        check = check_load(read_port(ports / name))
    finally:
        path.write_text(text)
    assert check.status == "failed"
    assert says in check.reason


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("mixtral", "RenormalizeMoeRoutingMethod(", "AllReduce"),
        ("qwen2_moe", "torch.sigmoid(self.shared_expert_gate", "MoeRoutingMethod):"),
        ("glm4_moe", "layer_idx in config.sparse_layers", "Routing(Base"),
        ("deepseek_v2", "grouped.amax(dim=-1)", "selection_bias"),
        ("ernie4_5_moe", "clamp(min=self.floor)", "self.scaling"),
        ("llama4", "apply_router_weight_on_input=True", "swiglu"),
        ("hunyuan", "output * self.scaling", "Routing(Base"),
    ],
)
def test_a_port_has_what_its_model_has(ports: Path, name: str, present: str, absent: str) -> None:
    text = (ports / name / "llama_trtllm" / "modeling_llama.py").read_text()
    assert present in text
    assert absent not in text
