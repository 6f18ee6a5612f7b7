"""Which routing method computes a router's formula: one of the library's, or the port's own."""

from __future__ import annotations

from trtllm_scaffold.spec import RouterSpec

#: Weights that are divided by a sum of softmax shares are the same with such a summand: the sum
#: is at least top_k / num_experts.
_NEGLIGIBLE = 1e-9

#: The name that stands for a routing class in the port itself.
OWN = "own"


def _divides_by_its_sum(router: RouterSpec) -> bool:
    """Whether a softmax router's weights are shares of their sum, whatever guards the sum."""
    floor = router.floor.value if router.floor else 0.0
    return router.renormalised and max(router.epsilon, floor) <= _NEGLIGIBLE


def _is_deepseek(router: RouterSpec) -> bool:
    """Whether sigmoid scores choose with a bias and, by groups or not, become shares."""
    groups = router.num_groups is None or router.group_score == "top2_sum"
    guarded = router.epsilon <= 1e-12 and router.floor is None
    lowest = router.group_fill == "lowest"
    return router.selection_bias and router.renormalised and groups and guarded and lowest


def routing_class(router: RouterSpec) -> str:
    """The library's class that computes exactly this formula, or `OWN`.

    A factor on the weights and a cap on the logits are the port's business: the port applies
    them around the experts where the class does not.
    """
    plain = not router.selection_bias and router.num_groups is None
    if router.scores == "sparsemixer":
        return "SparseMixerMoeRoutingMethod" if plain and not router.renormalised else OWN
    if router.scores == "sigmoid":
        if _is_deepseek(router):
            return "DeepSeekV3MoeRoutingMethod"
        return "Llama4RenormalizeMoeRoutingMethod" if plain and not router.renormalised else OWN
    if not plain or router.scores == "topk_sigmoid":
        return OWN
    if router.scores == "topk_softmax" or _divides_by_its_sum(router):
        return "RenormalizeMoeRoutingMethod"
    return OWN if router.renormalised else "DefaultMoeRoutingMethod"


def is_own(router: RouterSpec) -> bool:
    """Whether the port carries the routing class itself."""
    return routing_class(router) == OWN


def scales_weights(router: RouterSpec) -> bool:
    """Whether the routing method applies the factor on the weights."""
    return routing_class(router) in (OWN, "DeepSeekV3MoeRoutingMethod")
