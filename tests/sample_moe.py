"""Hand-written specs of mixtures of experts: routers, layouts and layer patterns."""

from __future__ import annotations

import dataclasses

from sample_specs import HIDDEN, LAYERS, key, llama, separate, with_layer

from trtllm_scaffold.spec import (
    CheckpointSpec,
    LayerKind,
    MlpSpec,
    ModelSpec,
    MoeSpec,
    Quantity,
    RouterSpec,
    SharedSpec,
    TensorSpec,
)

EXPERTS, TOP, INNER, SHARED = 8, 2, 48, 80
EXPERT = MlpSpec("gated", "silu", key("moe_intermediate_size", INNER), False, False)
LAYER = "model.layers.{i}."


def router(scores: str = "softmax", **more: object) -> RouterSpec:
    counts = key("num_experts", EXPERTS), key("num_experts_per_tok", TOP)
    return RouterSpec(scores, *counts, **more)


def one_by_one(names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")):
    shapes = ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER))
    return tuple(
        TensorSpec(f"{LAYER}mlp.experts.{{e}}.{name}.weight", shape, (f"moe.{part}.weight",))
        for part, name, shape in zip(("gate", "up", "down"), names, shapes, strict=True)
    )


def stacked(*, transposed: bool, layout: str = "rows", bias: bool = False):
    both, down = (2 * INNER, HIDDEN), (HIDDEN, INNER)
    if transposed:
        both, down = both[::-1], down[::-1]
    roles = ("moe.gate.weight", "moe.up.weight")
    kind = {"transposed": transposed, "experts": "stacked"}
    tensors = [
        TensorSpec(f"{LAYER}mlp.experts.gate_up", (EXPERTS, *both), roles, layout, **kind),
        TensorSpec(f"{LAYER}mlp.experts.down", (EXPERTS, *down), ("moe.down.weight",), **kind),
    ]
    if bias:
        roles = ("moe.gate.bias", "moe.up.bias")
        name = f"{LAYER}mlp.experts."
        tensors += [
            TensorSpec(
                f"{name}gate_up_bias", (EXPERTS, 2 * INNER), roles, layout, experts="stacked"
            ),
            TensorSpec(
                f"{name}down_bias", (EXPERTS, HIDDEN), ("moe.down.bias",), experts="stacked"
            ),
        ]
    return tuple(tensors)


def flat():
    shape = (EXPERTS * INNER, HIDDEN)
    names = {"w1": "gate", "v1": "up", "w2": "down"}
    return tuple(
        TensorSpec(
            f"{LAYER}ffn.experts.mlp.{name}",
            shape,
            (f"moe.{part}.weight",),
            transposed=part == "down",
            experts="flat",
        )
        for name, part in names.items()
    )


def vector(name: str, role: str, *shape: int) -> TensorSpec:
    return TensorSpec(f"{LAYER}mlp.{name}", shape, (role,))


def shared(*, gate: bool = False) -> tuple[TensorSpec, ...]:
    shapes = {"gate": (SHARED, HIDDEN), "up": (SHARED, HIDDEN), "down": (HIDDEN, SHARED)}
    tensors = tuple(
        vector(f"shared_expert.{part}_proj.weight", f"moe.shared.{part}.weight", *shape)
        for part, shape in shapes.items()
    )
    join = (vector("shared_expert_gate.weight", "moe.shared_gate.weight", 1, HIDDEN),)
    return (*tensors, *(join if gate else ()))


def shared_spec(join: str) -> SharedSpec:
    width = key("shared_expert_intermediate_size", SHARED)
    return SharedSpec(dataclasses.replace(EXPERT, intermediate_size=width), join)


def moe(
    moe_spec: MoeSpec, tensors: tuple[TensorSpec, ...], mlp: MlpSpec = EXPERT, **changes: object
) -> ModelSpec:
    gate = [vector("gate.weight", "moe.router.weight", EXPERTS, HIDDEN)]
    if moe_spec.router.selection_bias:
        gate.append(vector("gate.bias", "moe.router.selection_bias", EXPERTS))
    if moe_spec.router.logit_bias:
        gate.append(vector("gate.own_bias", "moe.router.bias", EXPERTS))
    kept = tuple(tensor for tensor in separate() if ".mlp." not in tensor.name)
    checkpoint = CheckpointSpec((*kept, *gate, *tensors))
    return dataclasses.replace(
        with_layer(llama(), moe=moe_spec, mlp=mlp), checkpoint=checkpoint, **changes
    )


def dense_first(spec: ModelSpec) -> ModelSpec:
    """The same with a dense first layer."""
    dense = LayerKind(
        spec.layer.attention, llama().layer.mlp, spec.layer.block, spec.layer.rope, "layer_idx < 1"
    )
    experts = dataclasses.replace(spec.layer, condition="layer_idx >= 1")
    only = tuple(range(1, LAYERS))
    tensors = tuple(
        dataclasses.replace(tensor, only_layers=only) if "moe." in tensor.roles[0] else tensor
        for tensor in spec.checkpoint.tensors
    )
    own = tuple(
        dataclasses.replace(tensor, only_layers=(0,))
        for tensor in separate()
        if ".mlp." in tensor.name
    )
    return dataclasses.replace(
        spec,
        layer_kinds=(dense, experts),
        layer_pattern=(0, *(1 for _ in only)),
        checkpoint=CheckpointSpec((*tensors, *own)),
    )


GPT_OSS = MoeSpec(router("topk_softmax", logit_bias=True))
SLOPED = dataclasses.replace(
    EXPERT,
    clamp=key("swiglu_limit", 7.0),
    swish_beta=Quantity(1.702, "1.702"),
    up_offset=1.0,
)
BIASED = dataclasses.replace(SLOPED, gate_bias=True, up_bias=True, down_bias=True)
GROUPS = {"num_groups": key("n_group", 4), "top_groups": key("topk_group", 2)}
GLM = router(
    "sigmoid",
    renormalised=True,
    epsilon=1e-20,
    selection_bias=True,
    scaling=key("routed_scaling_factor", 2.5),
)
DEEPSEEK_V2 = router(scaling=key("routed_scaling_factor", 16.0), **GROUPS)
ERNIE = router(renormalised=True, selection_bias=True, floor=key("moe_norm_min", 1e-12))
LLAMA4 = dataclasses.replace(router("sigmoid"), top_k=Quantity(1, "1"))


def _all_sloped(spec: ModelSpec) -> ModelSpec:
    """The same with the activation of `SLOPED` in every feed-forward."""
    given = {name: getattr(SLOPED, name) for name in ("clamp", "swish_beta", "up_offset")}
    kinds = []
    for kind in spec.layer_kinds:
        changed = dataclasses.replace(kind, mlp=dataclasses.replace(kind.mlp, **given))
        if kind.moe is not None and kind.moe.shared is not None:
            mlp = dataclasses.replace(kind.moe.shared.mlp, **given)
            shared = dataclasses.replace(kind.moe.shared, mlp=mlp)
            changed = dataclasses.replace(changed, moe=dataclasses.replace(kind.moe, shared=shared))
        kinds.append(changed)
    return dataclasses.replace(spec, layer_kinds=tuple(kinds))


#: Name -> spec.
MOE_SPECS: dict[str, ModelSpec] = {
    "mixtral": moe(MoeSpec(router(renormalised=True)), one_by_one(("w1", "w3", "w2"))),
    "qwen2_moe": moe(
        MoeSpec(router(), shared_spec("sigmoid_gate")), (*one_by_one(), *shared(gate=True))
    ),
    "granitemoe": moe(MoeSpec(router("topk_softmax")), stacked(transposed=False)),
    "gpt_oss": moe(GPT_OSS, stacked(transposed=True, layout="alternating", bias=True), mlp=BIASED),
    "dbrx": moe(MoeSpec(router(renormalised=True)), flat()),
    "glm4_moe": dense_first(moe(MoeSpec(GLM, shared_spec("sum")), (*one_by_one(), *shared()))),
    "deepseek_v3": moe(
        MoeSpec(dataclasses.replace(GLM, group_score="top2_sum", **GROUPS)), one_by_one()
    ),
    "deepseek_v2": dense_first(
        moe(MoeSpec(DEEPSEEK_V2, shared_spec("sum")), (*one_by_one(), *shared()))
    ),
    "ernie4_5_moe": moe(MoeSpec(ERNIE, shared_spec("sum")), (*one_by_one(), *shared())),
    "flint": moe(MoeSpec(router("sigmoid", renormalised=True, epsilon=1e-9)), one_by_one()),
    "biased_logits": moe(
        MoeSpec(router("topk_sigmoid", renormalised=True, epsilon=1e-6, selection_bias=True)),
        one_by_one(),
    ),
    "llama4": moe(
        MoeSpec(LLAMA4, shared_spec("sum"), weight_on="input"),
        (*stacked(transposed=True), *shared()),
    ),
    "cohere2_moe": moe(
        MoeSpec(
            router("topk_softmax", softcap=key("router_softcap", 20.0)),
            shared_spec("mean"),
        ),
        (*one_by_one(), *shared()),
        mlp=dataclasses.replace(EXPERT, clamp=key("swiglu_limit", 7.0)),
    ),
    "minimax_m3": _all_sloped(
        dense_first(moe(MoeSpec(ERNIE, shared_spec("sum")), (*one_by_one(), *shared())))
    ),
    "phimoe": moe(
        MoeSpec(router("sparsemixer", jitter=key("router_jitter_noise", 0.01))), one_by_one()
    ),
    "hunyuan": moe(MoeSpec(router(renormalised=True, scaling=key("scale", 2.0))), one_by_one()),
}
