"""How each TensorRT-LLM generation can express each value of each axis."""

from __future__ import annotations

from collections.abc import Iterable

from trtllm_scaffold.targets.capability_moe import MOE
from trtllm_scaffold.targets.level import NATIVE, Capability, Level, expressed

__all__ = ["GENERATIONS", "KERNEL_HEAD_DIMS", "Capability", "Level", "capability", "worst"]

GENERATIONS = ("1.2", "1.4")

#: Head sizes that the TRTLLM attention kernels are built for.
KERNEL_HEAD_DIMS = frozenset({32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256})

#: Widths of a head's parts, its value and the latent that MLA's kernels are known to take.
KERNEL_LATENT_WIDTHS = "128 + 64, values 128, latent 512"


_NATIVE, _expressed = NATIVE, expressed


def _reference(because: str) -> Capability:
    return Capability(Level.reference, because)


def _refused(because: str) -> Capability:
    return Capability(Level.refused, because)


#: Norms that TensorRT-LLM's two classes compute, by `NormSpec.label`.
_NORMS = (
    "rmsnorm",
    "rmsnorm 1+w",
    "rmsnorm without weight",
    "layernorm",
    "layernorm 1+w",
    "layernorm without bias",
    "layernorm without weight",
)

_ZERO_BIASES = "projections without a bias share a module with some that have one: theirs is zero"

#: (axis, value) -> capability, the same in both generations. A value that is not listed is
#: refused: nobody has said how to express it.
_COMMON: dict[tuple[str, str], Capability] = {
    **MOE,
    ("attention.kind", "MHA"): _NATIVE,
    ("attention.kind", "GQA"): _NATIVE,
    ("attention.kind", "MQA"): _NATIVE,
    ("attention.kind", "MLA"): _NATIVE,
    ("attention.latent_widths", KERNEL_LATENT_WIDTHS): _NATIVE,
    ("attention.latent_widths", "others"): _reference(
        f"TensorRT-LLM is known to have kernels for {KERNEL_LATENT_WIDTHS} alone"
    ),
    ("attention.latent_widths", "any, by the port's own attention"): _NATIVE,
    ("attention.indexer", "none"): _NATIVE,
    **{
        ("attention.indexer", f"{style}, layernorm"): _reference(
            "TensorRT-LLM's own choice of keys is no part of the API that ports use"
        )
        for style in ("neox", "interleaved")
    },
    ("attention.query_latent", "as it is"): _NATIVE,
    ("attention.query_latent", "normed and raw"): _reference(
        "TensorRT-LLM's module for latent attention projects queries from one normed latent"
    ),
    ("attention.output_gate", "sigmoid, full, with latents, beside queries"): _reference(
        "TensorRT-LLM's module for latent attention has no gate"
    ),
    ("attention.latent_norm", "rmsnorm"): _NATIVE,
    ("attention.latent_bias", "none"): _NATIVE,
    ("attention.latent_scale", "none"): _NATIVE,
    ("attention.latent_scale", "set"): _reference(
        "TensorRT-LLM's module for latent attention has no factor on latents"
    ),
    ("attention.latent_rope_norm", "none"): _NATIVE,
    ("attention.latent_rope_norm", "rmsnorm"): _reference(
        "TensorRT-LLM's module for latent attention does not norm the shared key"
    ),
    ("attention.latent_sizes", "the same"): _NATIVE,
    ("attention.latent_sizes", "differ by layer"): _reference(
        "TensorRT-LLM's module for latent attention takes the cache's rows to be as wide as its own"
    ),
    ("attention.latent_ropes", "the same"): _NATIVE,
    ("attention.latent_ropes", "differ by layer"): _reference(
        "nobody has tried TensorRT-LLM's module for latent attention with several rotations"
    ),
    ("attention.window", "with latents"): _reference(
        "TensorRT-LLM's module for latent attention has no window"
    ),
    **{
        ("attention.output_gate", f"{activation}, {width}, with latents"): _reference(
            "TensorRT-LLM's module for latent attention has no gate"
        )
        for activation in ("sigmoid", "softplus")
        for width in ("full", "head")
    },
    ("attention.latent_style", "interleaved"): _NATIVE,
    ("attention.latent_style", "neox"): _expressed(
        "the rotated rows are put in pairs when weights are loaded: MLA rotates neighbours"
    ),
    ("attention.latent_scaling", "none"): _NATIVE,
    ("attention.latent_scaling", "yarn"): _NATIVE,
    ("attention.head_dim", "a size of the TRTLLM kernels"): _NATIVE,
    ("attention.head_dim", "another size up to 256"): _reference(
        "the TRTLLM backend aborts on it; serve with attn_backend FLASHINFER or VANILLA"
    ),
    ("attention.head_dim", "above 256"): _refused("no attention backend has heads that wide"),
    ("attention.scale", "1/sqrt(head_dim)"): _NATIVE,
    ("attention.scale", "other"): _NATIVE,
    ("attention.window", "none"): _NATIVE,
    ("attention.window", "all layers"): _NATIVE,
    ("attention.window", "some layers"): _NATIVE,
    ("attention.qkv_bias", "none"): _NATIVE,
    ("attention.qkv_bias", "q, k and v"): _NATIVE,
    **{
        ("attention.qkv_bias", some): _expressed(_ZERO_BIASES)
        for some in ("q", "k", "v", "q, k", "q, v", "k, v")
    },
    ("attention.qk_norm", "none"): _NATIVE,
    **{
        ("attention.qk_norm", f"{norm}, {scope}, {when}"): _expressed(
            "queries and keys are normalised in the port's attention"
        )
        for norms, scope in (
            (_NORMS, "head"),
            (("rmsnorm",), "full"),
            (("layernorm without bias",), "per_head_weight"),
        )
        for norm in norms
        for when in ("before_rope", "after_rope")
    },
    ("attention.qk_norm", "rmsnorm, head, before_rope"): _NATIVE,
    ("attention.qk_norm", "rmsnorm 1+w, head, before_rope"): _NATIVE,
    ("attention.softcap", "none"): _NATIVE,
    ("attention.softcap", "set"): _reference("no stock attention backend caps scores"),
    ("attention.sinks", "none"): _NATIVE,
    ("attention.sinks", "set"): _NATIVE,
    ("attention.chunk", "none"): _NATIVE,
    ("attention.chunk", "set"): _reference(
        "the stock backend cuts the sequence into chunks in prefill alone"
    ),
    ("attention.query_factor", "none"): _NATIVE,
    **{
        ("attention.query_factor", form): _expressed(
            "queries of layers without positions are scaled in the port's attention"
        )
        for form in ("steps", "power")
    },
    ("attention.block_indexer", "none"): _NATIVE,
    **{
        ("attention.block_indexer", f"{style}, {norm}"): _reference(
            "no stock attention backend chooses blocks of keys"
        )
        for style in ("neox", "interleaved")
        for norm in ("rmsnorm", "rmsnorm 1+w")
    },
    ("attention.query_heads", "the same"): _NATIVE,
    ("attention.query_heads", "differ by layer"): _NATIVE,
    ("attention.key_value_heads", "the same"): _NATIVE,
    ("attention.key_value_heads", "differ by layer"): _expressed(
        "layers with fewer key-value heads repeat theirs, so that the cache has one number of them"
    ),
    ("attention.key_value_heads", "differ by layer and quantized"): _refused(
        "rows that are repeated at loading would need their scales repeated too"
    ),
    ("attention.value_width", "as keys"): _NATIVE,
    ("attention.value_width", "narrower than keys and quantized"): _refused(
        "rows of zeros that are added at loading would need scales too"
    ),
    ("attention.value_width", "narrower than keys"): _expressed(
        "values are padded with zeros to the width of keys when weights are loaded"
    ),
    ("attention.value_scale", "none"): _NATIVE,
    ("attention.value_scale", "set"): _expressed("the heads' outputs are scaled in the port"),
    ("attention.qkv_clip", "none"): _NATIVE,
    ("attention.qkv_clip", "set"): _expressed("q, k and v are clamped in the port's attention"),
    ("attention.output_gate", "none"): _NATIVE,
    **{
        ("attention.output_gate", f"{activation}, {width}"): _expressed(
            "the gate on the attention's output is a projection of the port"
        )
        for activation in ("sigmoid", "softplus")
        for width in ("full", "full, bias per head", "head")
    },
    ("attention.output_norm", "none"): _NATIVE,
    ("attention.output_norm", "rmsnorm"): _expressed(
        "the norm before the output projection is a module of the port"
    ),
    ("position.kind", "rope"): _NATIVE,
    ("position.kind", "none"): _NATIVE,
    ("position.kind", "learned"): _expressed("learned positions are added in the port's model"),
    ("position.kind", "sinusoidal"): _expressed("sines are added in the port's model"),
    ("position.kind", "alibi"): _reference("no stock attention backend biases scores by position"),
    ("position.direction", "usual"): _NATIVE,
    ("position.direction", "inverse"): _expressed(
        "the halves of each query and key head are swapped when weights are loaded"
    ),
    ("position.style", "neox"): _NATIVE,
    ("position.style", "interleaved"): _NATIVE,
    ("position.scaling", "none"): _NATIVE,
    ("position.scaling", "linear"): _NATIVE,
    ("position.scaling", "llama3"): _NATIVE,
    ("position.scaling", "yarn"): _NATIVE,
    ("position.scaling", "yarn, ends not rounded"): _expressed(
        "the factor of each dimension is computed in the port's configuration"
    ),
    ("position.scaling", "dynamic"): _refused(
        "TensorRT-LLM has one rotary table per engine, HF one per sequence length"
    ),
    ("position.scaling", "longrope"): _NATIVE,
    **{("norm.kind", norm): _NATIVE for norm in _NORMS},
    ("norm.kind", "layernorm 1+w"): _expressed("1 is added to the norm's weight at loading"),
    ("norm.kind", "rmsnorm, gated"): _expressed("the gate on a norm is a module of the port"),
    ("norm.kind", "none"): _NATIVE,
    ("block.placement", "pre"): _NATIVE,
    ("block.placement", "post"): _expressed("residual additions are written out in the layer"),
    ("block.placement", "parallel, one norm"): _expressed("the parallel block is written out"),
    ("block.placement", "parallel, two norms"): _expressed("the parallel block is written out"),
    ("block.placement", "branch_output"): _expressed("norms on branch outputs are written out"),
    ("block.placement", "sandwich"): _expressed("norms on branch outputs are written out"),
    ("block.coefficient", "none"): _NATIVE,
    ("block.coefficient", "set"): _expressed("branches are scaled in the layer"),
    ("block.residual", "none"): _NATIVE,
    ("block.residual", "set"): _expressed("the residual stream is scaled in the layer"),
    ("mlp.kind", "gated silu"): _NATIVE,
    **{
        ("mlp.kind", f"gated {activation}"): _expressed(
            "the gated activation is a function of the port"
        )
        for activation in (
            "gelu",
            "gelu_tanh",
            "relu",
            "relu2",
            "silu, clamped",
            "silu, with a slope and an offset",
        )
    },
    ("mlp.kind", "plain xielu"): _expressed("the activation is a module of the port"),
    ("mlp.kind", "plain silu"): _NATIVE,
    ("mlp.kind", "plain gelu"): _NATIVE,
    ("mlp.kind", "plain gelu_tanh"): _NATIVE,
    ("mlp.kind", "plain relu"): _NATIVE,
    ("mlp.kind", "plain relu2"): _NATIVE,
    ("mlp.bias", "none"): _NATIVE,
    ("mlp.bias", "all"): _NATIVE,
    **{
        ("mlp.bias", some): _expressed(_ZERO_BIASES)
        for some in ("gate", "up", "down", "up, gate", "down, gate", "up, down")
    },
    ("mlp.down_norm", "none"): _NATIVE,
    ("mlp.down_norm", "rmsnorm"): _expressed(
        "the norm before the down projection is a module of the port"
    ),
    ("embedding.norm", "none"): _NATIVE,
    **{
        ("embedding.norm", norm): _expressed("the embedding is normalised in the port's model")
        for norm in _NORMS
    },
    ("embedding.multiplier", "none"): _NATIVE,
    ("embedding.multiplier", "set"): _expressed("the embedding's factor is applied in the model"),
    ("embedding.projection", "none"): _NATIVE,
    ("embedding.projection", "linear"): _expressed("the embedding is projected in the model"),
    ("head.dense", "none"): _NATIVE,
    **{
        ("head.dense", activation): _expressed("the dense layer before the head is in the model")
        for activation in ("gelu", "gelu_tanh", "silu", "relu")
    },
    ("head.bias", "none"): _NATIVE,
    ("head.bias", "set"): _expressed("the head's bias is added to the logits"),
    ("head.multiplier", "none"): _NATIVE,
    ("head.multiplier", "set"): _expressed("logits are scaled after the head"),
    ("head.softcap", "none"): _NATIVE,
    ("head.softcap", "set"): _expressed("logits are capped after the head"),
    ("quantization", "none"): _NATIVE,
}

#: What one generation alone expresses differently.
_ONLY: dict[str, dict[tuple[str, str], Capability]] = {
    "1.2": {
        ("attention.latent_scaling", kind): _refused(
            "its MLA reads a rotary table that it lays out for yarn alone"
        )
        for kind in ("linear", "llama3", "longrope")
    },
    "1.4": {
        ("attention.latent_scaling", kind): _NATIVE for kind in ("linear", "llama3", "longrope")
    },
}


def capability(generation: str, axis: str, value: str) -> Capability:
    """What `generation` makes of `value` on `axis`; refused where nothing is known."""
    unknown = _refused(f"no way to express {value!r} is known yet")
    found = _ONLY[generation].get((axis, value), _COMMON.get((axis, value), unknown))
    return found


def worst(found: Iterable[Capability]) -> Level:
    """The level of a whole port."""
    return max((each.level for each in found), default=Level.native)
