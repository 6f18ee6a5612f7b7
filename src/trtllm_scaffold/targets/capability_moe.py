"""How TensorRT-LLM expresses each value of the moe axis."""

from __future__ import annotations

from trtllm_scaffold.targets.level import NATIVE, Capability, expressed

MOE: dict[tuple[str, str], Capability] = {
    ("mlp.kind", "experts"): NATIVE,
    ("moe.routing", "a formula of the library"): NATIVE,
    ("moe.routing", "a formula of its own"): expressed(
        "the routing method is a class of the port; serve with moe_config backend CUTLASS or "
        "VANILLA, which take its choice as it is"
    ),
    ("moe.scaling", "none"): NATIVE,
    ("moe.scaling", "by the routing method"): NATIVE,
    ("moe.scaling", "on the output"): expressed("the experts' sum is scaled in the port"),
    ("moe.softcap", "none"): NATIVE,
    ("moe.softcap", "set"): expressed("router logits are capped in the port"),
    ("moe.activation", "gated silu"): NATIVE,
    ("moe.activation", "gated silu, clamped"): NATIVE,
    ("moe.activation", "gated silu, with a slope and an offset"): NATIVE,
    ("moe.bias", "none"): NATIVE,
    ("moe.bias", "all"): NATIVE,
    ("moe.down_norm", "none"): NATIVE,
    ("moe.weight_on", "output"): NATIVE,
    ("moe.weight_on", "input, one expert"): NATIVE,
    ("moe.shared", "none"): NATIVE,
    ("moe.shared", "sum"): NATIVE,
    ("moe.shared", "sigmoid_gate"): NATIVE,
    ("moe.shared", "mean"): expressed("the mean with the shared experts is taken in the port"),
    ("moe.shared_mlp", "gated silu"): NATIVE,
    **{
        ("moe.shared_mlp", changed): expressed("the gated activation is a function of the port")
        for changed in ("gated silu, clamped", "gated silu, with a slope and an offset")
    },
    ("moe.shared_bias", "none"): NATIVE,
    ("moe.shared_bias", "all"): NATIVE,
}
