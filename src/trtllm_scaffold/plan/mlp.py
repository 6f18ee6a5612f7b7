"""The mlp axis of a port: GatedMLP or MLP, and the activation's code."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.block_indexer import block_indexer_of
from trtllm_scaffold.plan.gated_norm import gated_norms
from trtllm_scaffold.plan.moe import dense_kind, plain_mlp
from trtllm_scaffold.spec import MlpSpec, ModelSpec, Quantity


@dataclass(frozen=True)
class ActivationCode:
    """Attributes:
    name: What the MLP receives.
    body: Expression over `x` where the name is a function of the port, else empty.
    summary: That function's docstring.
    gate: Expression over `gate` for a gated feed-forward.
    """

    name: str
    gate: str
    body: str = ""
    summary: str = ""


ACTIVATION_CODE: dict[str, ActivationCode] = {
    "silu": ActivationCode("F.silu", "F.silu(gate)"),
    "gelu": ActivationCode("F.gelu", "F.gelu(gate)"),
    "gelu_tanh": ActivationCode(
        "gelu_tanh",
        'F.gelu(gate, approximate="tanh")',
        'F.gelu(x, approximate="tanh")',
        "GELU by its tanh approximation.",
    ),
    "relu": ActivationCode("F.relu", "F.relu(gate)"),
    "xielu": ActivationCode("XIELU()", ""),
    "relu2": ActivationCode(
        "relu2", "F.relu(gate).square()", "F.relu(x).square()", "The square of ReLU."
    ),
}


def _uses_functional(spec: ModelSpec) -> bool:
    """Whether the modeling file calls torch.nn.functional."""
    mlp, dense = plain_mlp(spec), spec.head.dense
    norm = spec.layer.attention.qk_norm
    own_norm = norm is not None and norm.scope == "per_head_weight"
    own_mlp = mlp is not None and (mlp.kind == "plain" or mlp.activation != "silu")
    gate = spec.layer.attention.output_gate
    own_gate = gate is not None and gate.activation == "softplus"
    chooses = block_indexer_of(spec) is not None
    gated = bool(gated_norms(spec))
    return own_mlp or dense is not None or own_norm or own_gate or chooses or gated


def plan_mlp(spec: ModelSpec) -> Answers:
    """Answers of the mlp axis: of dense layers, or where there are none of shared experts."""
    mlp = plain_mlp(spec) or MlpSpec("gated", "silu", Quantity(0, "0"), False, False)
    constants = dict(mlp.activation_parameters)
    activation = ACTIVATION_CODE[mlp.activation]
    return {
        "mlp_kind": mlp.kind if dense_kind(spec) else "",
        "mlp_activation": mlp.activation,
        "mlp_activation_name": activation.name,
        "mlp_activation_function": activation.body,
        "mlp_activation_summary": activation.summary,
        "mlp_activation_gate": activation.gate,
        "mlp_bias": mlp.gate_bias or mlp.up_bias or mlp.down_bias,
        "mlp_changed": mlp.clamp is not None or mlp.swish_beta is not None or mlp.up_offset != 0,
        "mlp_clamp": code(mlp.clamp),
        "mlp_swish_beta": code(mlp.swish_beta),
        "mlp_up_offset": float(mlp.up_offset),
        "mlp_down_norm": mlp.down_norm is not None,
        "xielu_beta": constants.get("beta", 0.0),
        "xielu_eps": constants.get("eps", 0.0),
        "modeling_uses_functional": _uses_functional(spec),
    }
