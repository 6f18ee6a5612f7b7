"""A layer of experts' values on each axis of the capability table."""

from __future__ import annotations

from trtllm_scaffold.plan.routing import is_own, scales_weights
from trtllm_scaffold.spec import LayerKind, MlpSpec, MoeSpec, RouterSpec

Fact = tuple[str, str]


def _biases(mlp: MlpSpec) -> str:
    found = {mlp.up_bias, mlp.down_bias} | ({mlp.gate_bias} if mlp.kind == "gated" else set())
    if len(found) > 1:
        return "some"
    return "all" if mlp.up_bias else "none"


def _routing(router: RouterSpec) -> str:
    if not is_own(router):
        return "a formula of the library"
    ranked = router.scores in ("softmax", "sigmoid", "topk_softmax", "topk_sigmoid")
    return "a formula of its own" if ranked else f"{router.scores} with more"


def _scaling(router: RouterSpec) -> str:
    if router.scaling is None:
        return "none"
    return "by the routing method" if scales_weights(router) else "on the output"


def _weight_on(moe: MoeSpec) -> str:
    if moe.weight_on == "output":
        return "output"
    return "input, one expert" if moe.router.top_k.value == 1 else "input, several experts"


def moe_facts(layer: LayerKind) -> list[Fact]:
    """Every (axis, value) of the experts of `layer`, which has some."""
    moe, mlp = layer.moe, layer.mlp
    assert moe is not None
    facts = [
        ("mlp.kind", "experts"),
        ("moe.routing", _routing(moe.router)),
        ("moe.scaling", _scaling(moe.router)),
        ("moe.softcap", "none" if moe.router.softcap is None else "set"),
        ("moe.activation", mlp.label),
        ("moe.bias", _biases(mlp)),
        ("moe.down_norm", mlp.down_norm.label if mlp.down_norm else "none"),
        ("moe.weight_on", _weight_on(moe)),
        ("moe.shared", moe.shared.join if moe.shared else "none"),
    ]
    if moe.shared:
        shared = moe.shared.mlp
        norm = ", normalised" if shared.down_norm else ""
        facts.append(("moe.shared_mlp", f"{shared.label}{norm}"))
        facts.append(("moe.shared_bias", _biases(shared)))
    return facts
