"""Infers what a model is: shrink, trace twice, read, attribute, and hold witnesses to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtllm_scaffold.errors import InputError

if TYPE_CHECKING:
    from trtllm_scaffold.infer.evidence import Witnesses
    from trtllm_scaffold.infer.specs import Builder
    from trtllm_scaffold.infer.trace import Observation
    from trtllm_scaffold.sources import Sources
    from trtllm_scaffold.sources.hf_class import HFClasses
    from trtllm_scaffold.spec import ModelSpec, Quantity

__all__ = ["infer"]

_VARIANTS = (0, 1)


def infer(sources: Sources, classes: HFClasses) -> ModelSpec:
    """Infer a model's spec by running its class on two tiny random instances.

    Args:
        sources: What was read of the model.
        classes: Its HF classes.

    Raises:
        Refused: Some axis of the model has no label; names the axis and the module.
        InputError: The configuration is inconsistent, or disagrees with the trace.
    """
    from trtllm_scaffold.infer.checkpoint import infer_checkpoint
    from trtllm_scaffold.infer.effective import build_config
    from trtllm_scaffold.infer.evidence import Witnesses
    from trtllm_scaffold.infer.kinds import layer_kinds
    from trtllm_scaffold.infer.normalize import dtype
    from trtllm_scaffold.infer.positions import build_position
    from trtllm_scaffold.infer.quantity import Fitter
    from trtllm_scaffold.infer.quantization import read_quantization
    from trtllm_scaffold.infer.specs import Builder
    from trtllm_scaffold.spec import ModelSpec

    config = build_config(sources.raw, classes)
    observations = [_observe(sources, classes, variant) for variant in _VARIANTS]
    config_class = (classes.config_class.__name__, classes.config_class.__module__)
    names = dict(getattr(config, "attribute_map", None) or {})
    witnesses = Witnesses(sources.raw, names, sources.where, config_class[0])
    _agree(witnesses, observations, config)
    builder = Builder(observations, Fitter([o.config for o in observations], config), witnesses)
    sizes = _sizes(builder, config)
    depth = int(sizes["num_hidden_layers"].value)
    kinds, pattern, key = layer_kinds(observations, config, depth)
    if key:
        witnesses.config("attention.window", key, f"one of {len(kinds)} kinds for each layer")
    checkpoint, stored = infer_checkpoint(
        observations[0].graph.model, observations[0].roles, config, classes, sources.header
    )
    return ModelSpec(
        source=sources.hf_id or str(sources.where),
        model_type=str(sources.raw["model_type"]),
        architecture=classes.model_class.__name__,
        config_class=config_class,
        **sizes,
        dtype=dtype(sources.raw),
        layer_kinds=tuple(builder.layer(windows) for windows in kinds),
        layer_pattern=pattern,
        position=build_position(builder, config),
        embedding=builder.embedding(),
        head=builder.head(),
        checkpoint=checkpoint,
        quantization=read_quantization(sources.raw, sources.quant),
        proven=True,
        evidence=(*witnesses.evidence, *stored),
    )


def _observe(sources: Sources, classes: HFClasses, variant: int) -> Observation:
    from trtllm_scaffold.infer.kinds import check_uniform
    from trtllm_scaffold.infer.shrink import shrink
    from trtllm_scaffold.infer.trace import observe

    tiny = shrink(sources.raw, classes, style="odd", variant=variant)
    found = observe(tiny, classes.config_class, classes.model_class, seed=variant)
    check_uniform(found)
    return found


def _agree(witnesses: Witnesses, observations: list[Observation], config: Any) -> None:
    """Hold the two traces to the same structure, and the head to what the configuration says."""
    from trtllm_scaffold.infer.labels import structure

    first, second = map(structure, observations)
    for fact, (where, label) in first.items():
        witnesses.agree(fact, ("one tiny model", label), ("another", second[fact][1]))
        if fact != "checkpoint.roles":
            witnesses.trace(fact, where, label)
    said = getattr(config, "tie_word_embeddings", None)
    if isinstance(said, bool):
        witnesses.config("head.tied", "tie_word_embeddings", said)
        witnesses.agree("head.tied", ("the trace", first["head.tied"][1]), ("the config", said))


def _sizes(builder: Builder, config: Any) -> dict[str, Quantity]:
    """The model-wide sizes; the longest length is the configuration's word alone."""
    from trtllm_scaffold.infer.keys import SYNONYMS
    from trtllm_scaffold.spec import Quantity

    key = next((k for k in SYNONYMS["max_position_embeddings"] if hasattr(config, k)), None)
    if key is None:
        raise InputError("no key gives the longest sequence", where="config.json")
    length = int(getattr(config, key))
    builder.witnesses.config("max_position_embeddings", key, length)
    return {
        "hidden_size": builder.fit("hidden_size", lambda o: o.layers[0].layer.input.shape[-1]),
        "num_hidden_layers": builder.fit("num_hidden_layers", lambda o: len(o.layers)),
        "vocab_size": builder.fit("vocab_size", lambda o: o.head.linear.rows),
        "max_position_embeddings": Quantity(length, f"config.{key}"),
    }
