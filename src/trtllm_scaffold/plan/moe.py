"""The moe axis of a port: routing method, experts' activation, shared experts, which layers."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.kinds import condition_of
from trtllm_scaffold.plan.routing import is_own, routing_class, scales_weights
from trtllm_scaffold.spec import LayerKind, MlpSpec, ModelSpec, MoeSpec, Quantity, RouterSpec

_NOTHING: Answers = {
    "moe": False,
    "moe_condition": "",
    "moe_layers": [],
    "moe_routing": "",
    "moe_routing_groups": False,
    "moe_routing_scores": "",
    "moe_routing_group_score": "",
    "moe_routing_group_fill": "",
    "moe_routing_epsilon": "",
    "moe_routing_floor": "",
    "moe_routing_renormalised": False,
    "moe_num_groups": "",
    "moe_top_groups": "",
    "moe_jitter": "",
    "moe_scaling": "",
    "moe_scaling_on_output": False,
    "moe_softcap": "",
    "moe_logit_bias": False,
    "moe_selection_bias": False,
    "moe_router_fp32": False,
    "moe_bias": False,
    "moe_weight_on_input": False,
    "moe_clamp": "",
    "moe_swish_beta": "",
    "moe_up_offset": 0.0,
    "moe_activation": "",
    "moe_shared": "",
    "moe_shared_bias": False,
    "num_experts": 0,
    "num_experts_per_tok": 0,
    "moe_intermediate_size": 0,
    "shared_expert_intermediate_size": 0,
}


def has_experts(kind: LayerKind) -> bool:
    """Whether layers of the kind choose among experts."""
    return kind.moe is not None


def experts_kind(spec: ModelSpec) -> LayerKind | None:
    """The layers with experts, or None in a dense model.

    Raises:
        Refused: There are several kinds of experts.
    """
    kinds = [kind for kind in spec.layer_kinds if has_experts(kind)]
    if len({(kind.moe, kind.mlp) for kind in kinds}) > 1:
        raise Refused("moe", "layers have experts of several kinds", where=spec.source)
    return kinds[0] if kinds else None


def dense_kind(spec: ModelSpec) -> LayerKind | None:
    """The layers with one feed-forward, or None where all have experts.

    Raises:
        Refused: They differ in it.
    """
    kinds = [kind for kind in spec.layer_kinds if not has_experts(kind)]
    values = list(dict.fromkeys(kind.mlp for kind in kinds))
    if len(values) > 1:
        raise Refused("mlp", f"layers differ: {values[0]} and {values[1]}", where=spec.source)
    return kinds[0] if kinds else None


def dense_width(spec: ModelSpec) -> str:
    """The attribute with the width of dense layers.

    Beside experts `intermediate_size` may be theirs: then the dense width has another name.
    """
    dense = dense_kind(spec)
    own = dense is None or dense.mlp.intermediate_size.expr == "config.intermediate_size"
    return "intermediate_size" if own or not expert_sizes(spec) else "dense_intermediate_size"


def plain_mlp(spec: ModelSpec) -> MlpSpec | None:
    """The feed-forward that is a module of its own: of dense layers, or of shared experts."""
    dense, experts = dense_kind(spec), experts_kind(spec)
    if dense is not None:
        return dense.mlp
    assert experts is not None and experts.moe is not None
    return experts.moe.shared.mlp if experts.moe.shared else None


def expert_sizes(spec: ModelSpec) -> dict[str, Quantity]:
    """The sizes that a port with experts reads by fixed names; none in a dense model."""
    kind = experts_kind(spec)
    if kind is None or kind.moe is None:
        return {}
    router, shared = kind.moe.router, kind.moe.shared
    sizes = {
        "num_experts": router.num_experts,
        "num_experts_per_tok": router.top_k,
        "moe_intermediate_size": kind.mlp.intermediate_size,
    }
    if shared:
        sizes["shared_expert_intermediate_size"] = shared.mlp.intermediate_size
    return sizes


def _router_answers(router: RouterSpec) -> Answers:
    own = is_own(router)
    return {
        "moe_routing": routing_class(router),
        "moe_routing_scores": router.scores,
        "moe_routing_groups": router.num_groups is not None,
        "moe_routing_group_score": router.group_score,
        "moe_routing_group_fill": router.group_fill,
        "moe_routing_renormalised": router.renormalised,
        "moe_routing_epsilon": repr(router.epsilon) if own and router.epsilon else "",
        "moe_routing_floor": code(router.floor) if own else "",
        "moe_num_groups": code(router.num_groups),
        "moe_top_groups": code(router.top_groups),
        "moe_jitter": code(router.jitter),
        "moe_scaling": code(router.scaling),
        "moe_softcap": code(router.softcap),
        "moe_logit_bias": router.logit_bias,
        "moe_selection_bias": router.selection_bias,
        # Sigmoids of large logits lie close together: such routers are kept in fp32.
        "moe_router_fp32": router.scores in ("sigmoid", "topk_sigmoid"),
    }


def _experts_answers(kind: LayerKind, moe: MoeSpec) -> Answers:
    return {
        "moe_bias": kind.mlp.up_bias,
        "moe_weight_on_input": moe.weight_on == "input",
        "moe_clamp": code(kind.mlp.clamp),
        "moe_swish_beta": code(kind.mlp.swish_beta),
        "moe_up_offset": float(kind.mlp.up_offset),
        "moe_activation": kind.mlp.label,
        "moe_shared": moe.shared.join if moe.shared else "",
        "moe_shared_bias": moe.shared.mlp.up_bias if moe.shared else False,
    }


def _shown(mlp: MlpSpec) -> str:
    numbers = [repr(part.expr if isinstance(part, Quantity) else part) for part in mlp.constants]
    return f"{mlp.label} ({', '.join(numbers)})"


def _sparse_layers(spec: ModelSpec) -> list[int]:
    kinds = spec.layer_kinds
    return [index for index, kind in enumerate(spec.layer_pattern) if has_experts(kinds[kind])]


def plan_moe(spec: ModelSpec) -> Answers:
    """Answers of the moe axis; empty ones in a dense model."""
    kind = experts_kind(spec)
    if kind is None or kind.moe is None:
        return dict(_NOTHING)
    moe, dense = kind.moe, dense_kind(spec)
    if moe.shared and dense:
        ours, theirs = moe.shared.mlp, dense.mlp
        if (ours.label, ours.constants) != (theirs.label, theirs.constants):
            raise Refused(
                "moe.shared",
                f"shared experts have {_shown(ours)}, dense layers {_shown(theirs)}",
            )
    if dense and dense.mlp.kind == "plain":
        raise Refused("mlp.kind", "a plain feed-forward in layers beside layers of experts")
    for name, size in expert_sizes(spec).items():
        if "layer_idx" in size.expr:
            raise Refused("moe", f"{name} differs by layer: {size.expr}", where=spec.source)
    return {
        **_NOTHING,
        "moe": True,
        "moe_layers": [] if dense is None else _sparse_layers(spec),
        "moe_condition": condition_of(spec, "moe", has_experts, True),
        **_router_answers(moe.router),
        "moe_scaling_on_output": moe.router.scaling is not None and not scales_weights(moe.router),
        **_experts_answers(kind, moe),
        **{name: int(size.value) for name, size in expert_sizes(spec).items()},
    }
