"""The TensorRT-LLM names that a port's layers of experts use."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.routing import OWN

#: How the table of capabilities calls an activation -> 1.4's carrier of it. 1.2 takes constants.
ACTIVATION_CARRIERS = {
    "gated silu, clamped": "SwigluActivation",
    "gated silu, with a slope and an offset": "SwigluBiasActivation",
}


def moe_symbols(answers: Answers) -> set[str]:
    """Names that the modeling file imports for experts; none in a dense model."""
    if not answers["moe"]:
        return set()
    routing = str(answers["moe_routing"])
    own = {"BaseMoeRoutingMethod", "RoutingMethodType"}
    symbols = {"Linear", "create_moe", *(own if routing == OWN else {routing})}
    if answers["moe_shared"]:
        symbols |= {"AllReduce", "GatedMLP"}
    carrier = ACTIVATION_CARRIERS.get(str(answers["moe_activation"]))
    return symbols | ({carrier} if carrier else set())
