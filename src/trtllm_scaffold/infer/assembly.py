"""The assembly of a model's spec: shrink, trace twice, read, attribute, hold witnesses to agree."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.checkpoint import infer_checkpoint
from trtllm_scaffold.infer.effective import build_config, effective
from trtllm_scaffold.infer.evidence import Witnesses
from trtllm_scaffold.infer.kinds import check_uniform, layer_pattern, listed_heads, listed_window
from trtllm_scaffold.infer.labels import structure
from trtllm_scaffold.infer.moe_sizes import check_experts
from trtllm_scaffold.infer.normalize import dtype
from trtllm_scaffold.infer.positions import build_position, build_ropes
from trtllm_scaffold.infer.quantity import Fitter
from trtllm_scaffold.infer.quantization import quantization_evidence, read_quantization
from trtllm_scaffold.infer.real_size import check_real_size
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.infer.sizes import ObservedSizes, infer_sizes
from trtllm_scaffold.infer.specs import SpecBuilder
from trtllm_scaffold.infer.tiny_layers import own_sizes
from trtllm_scaffold.infer.trace import Observation, observe
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import ModelSpec, Quantity

_VARIANTS = (0, 1)


def assemble(sources: Sources, classes: HFClasses) -> ModelSpec:
    """See `infer`.

    Args:
        sources: What was read of the model.
        classes: Its HF classes.

    Raises:
        Refused: Some axis of the model has no label; names the axis and the module.
        InputError: The configuration is inconsistent, or disagrees with the trace.
    """
    config = build_config(sources.raw, classes)
    observations = [_observe(sources, classes, variant) for variant in _VARIANTS]
    witnesses = Witnesses(sources.raw, config, sources.where)
    _agree(witnesses, observations, config)
    fitter = Fitter([o.config for o in observations], config, held=sources.raw)
    builder = SpecBuilder(observations, fitter, witnesses)
    checkpoint, stored = infer_checkpoint(
        observations[0].graph.model, observations[0].roles, config, classes, sources.header
    )
    observed = [_observed_sizes(observation) for observation in observations]
    sizes, sized = infer_sizes(fitter, observed, config, checkpoint)
    quantization = read_quantization(sources.raw, sources.quant)
    declared = quantization_evidence(quantization) if quantization else ()
    depth, deep = sizes.num_hidden_layers, None
    if depth.value > max(len(o.layers) for o in observations):
        deep = _observe(sources, classes, 0, whole_depth=True)
    pattern = layer_pattern(observations, config, depth, deep)
    for fact, key in pattern.keys:
        witnesses.config(fact, key, f"one of {len(pattern.kinds)} kinds for each layer")
    ropes = build_ropes(builder, pattern, config)
    window = listed_window(observations, pattern, config)
    by_layer, heads = listed_heads(pattern, config), None
    if by_layer:
        heads = Quantity(max(by_layer), f"config.{pattern.heads_list}[layer_idx]")
        witnesses.config("attention.num_attention_heads", pattern.heads_list, str(list(by_layer)))
    kinds = tuple(
        builder.layer(kind, rope, pattern, window, heads)
        for kind, rope in zip(pattern.kinds, ropes, strict=True)
    )
    check_experts(kinds, checkpoint)
    spec = ModelSpec(
        source=sources.hf_id or str(sources.where),
        model_type=str(sources.raw["model_type"]),
        architecture=_architecture(sources, classes),
        config_class=(classes.config_class.__name__, classes.config_class.__module__),
        **vars(sizes),
        dtype=dtype(sources.raw),
        layer_kinds=kinds,
        layer_pattern=pattern.layers,
        heads_by_layer=by_layer,
        position=build_position(builder, ropes, pattern),
        embedding=builder.embedding(),
        head=builder.head(),
        checkpoint=checkpoint,
        quantization=quantization,
        proven=True,
        evidence=(*sized, *witnesses.evidence, *declared, *stored),
        layers_name=observations[0].layers_name,
        reference_attention=str(observations[0].config._attn_implementation),
        own_code=_last_names(classes.model_class) if classes.remote else None,
    )
    seen = check_real_size(spec, observations, config, classes)
    return replace(spec, evidence=(*spec.evidence, *seen))


def _architecture(sources: Sources, classes: HFClasses) -> str:
    """The name that a runtime finds the model by; that of its own class may be another."""
    if classes.remote:
        return str(sources.raw["architectures"][0])
    return str(classes.model_class.__name__)


def _last_names(found: type) -> tuple[str, str]:
    """(module, class), without the packages around the module."""
    return found.__module__.rpartition(".")[2], found.__name__


def odd_tiny(
    raw: dict[str, Any], classes: HFClasses, variant: int, *, whole_depth: bool = False
) -> dict[str, Any]:
    """The tiny configuration that a trace runs on.

    Raises:
        Refused: The class takes the real one, but no tiny one; names the layers' own sizes where
            there are some.
    """
    try:
        return shrink(raw, classes, style="odd", variant=variant, whole_depth=whole_depth)
    except InputError as error:  # the class has taken the real one
        own = own_sizes({**raw, **effective(build_config(raw, classes))})
        raise Refused(
            "attention" if own else "model",
            own or f"no tiny configuration of it is consistent: {error.message}",
            where=error.where,
            hint="models whose sizes are numbers at the top of the configuration are observed",
        ) from error


def _observe(
    sources: Sources, classes: HFClasses, variant: int, *, whole_depth: bool = False
) -> Observation:
    tiny = odd_tiny(sources.raw, classes, variant, whole_depth=whole_depth)
    found = observe(tiny, classes.config_class, classes.model_class, seed=variant)
    check_uniform(found)
    return found


def _agree(witnesses: Witnesses, observations: list[Observation], config: Any) -> None:
    """Hold the two traces to the same structure, and the head to what the configuration says."""
    _agree_on_blocks(*observations)
    first, second = map(structure, observations)
    for fact, (where, label) in first.items():
        witnesses.agree(fact, ("one tiny model", label), ("another", second[fact][1]))
        if fact != "checkpoint.roles":
            witnesses.trace(fact, where, label)
    said = getattr(config, "tie_word_embeddings", None)
    if isinstance(said, bool):
        witnesses.config("head.tied", "tie_word_embeddings", said)
        witnesses.agree("head.tied", ("the trace", first["head.tied"][1]), ("the config", said))


def _agree_on_blocks(one: Observation, other: Observation) -> None:
    """A number of blocks must not go with the sizes: a port takes it for a constant.

    A block per head is a coincidence where the other tiny model has as many blocks, but not
    as many heads.
    """
    for name in sorted(one.roles.keys() & other.roles.keys()):
        for seen, told in ((one, other), (other, one)):
            blocks = told.roles[name].blocks
            if seen.roles[name].layout == "per_head" and blocks == seen.layers[0].attention.heads:
                seen.roles[name] = replace(seen.roles[name], layout="blocks", blocks=blocks)
        first, second = one.roles[name].blocks, other.roles[name].blocks
        if first != second:
            raise Refused(
                "checkpoint",
                f"{name} is stored in {first} blocks in one tiny model, in {second} in another",
                hint="a fixed number of blocks is expressed, and q, k and v per head or group",
            )


def _observed_sizes(observation: Observation) -> ObservedSizes:

    return ObservedSizes(
        hidden_size=observation.layers[0].layer.input.shape[-1],
        num_hidden_layers=len(observation.layers),
        vocab_size=observation.head.linear.rows,
        embedding_rows=observation.embedding.rows,
    )
