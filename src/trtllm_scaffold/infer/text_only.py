"""A text decoder taken out of a model that reads more than text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.assembly import assemble, odd_tiny
from trtllm_scaffold.infer.effective import build_config, effective
from trtllm_scaffold.infer.quantization import read_quantization
from trtllm_scaffold.infer.stored import saved_tensors
from trtllm_scaffold.infer.stored_prefixes import Spelling, decoder_header, find_spelling
from trtllm_scaffold.infer.tiny import build
from trtllm_scaffold.infer.whole import build_whole, check_same_text
from trtllm_scaffold.infer.whole_widths import following_widths
from trtllm_scaffold.sources import Sources, validate_config
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.sources.wrapper import Wrapper, whole_config
from trtllm_scaffold.spec import CheckpointSpec, Evidence, ModelSpec
from trtllm_scaffold.spec.wrapper import WrapperSpec

_TIE = "tie_word_embeddings"

#: Keys that belong to a file, and rotary ones, which have several spellings.
_NOT_COMPARED = frozenset(
    {
        "architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path",
        "model_type", "rope_theta", "rope_scaling", "rope_parameters", _TIE,
    }
)  # fmt: skip

_SEED = 7


@dataclass(frozen=True)
class _Whole:
    """What a small whole model showed: its spellings, how far its logits are off, and its head.

    `following` has the widths of other parts that are the decoder's.
    """

    spellings: tuple[Spelling, ...]
    embedding: str
    head: str | None
    error: float | None
    following: tuple[str, ...]


def infer_text(sources: Sources, classes: HFClasses) -> tuple[ModelSpec, Sources]:
    """The spec of the text decoder inside a whole model, and the sources of the decoder alone.

    The whole model is built around a tiny decoder and must give its logits for text; what it
    saves says under which names the decoder's tensors are stored.

    Args:
        sources: What was read of the whole model.
        classes: The decoder's classes, with their `wrapper`.

    Raises:
        Refused: Some axis of the decoder has no label, or the whole model computes something else
            for text.
        InputError: The files disagree.
    """
    wrapper = classes.wrapper
    assert wrapper is not None
    if read_quantization(sources.raw, sources.quant) is not None:
        raise Refused(
            "quantization",
            f"{wrapper.architecture} is quantized: what it excludes is named by modules of the "
            "whole model",
            where=sources.where,
            hint="the unquantized checkpoint works",
        )
    tied = _tied(sources, classes, wrapper)
    raw = _text_raw(sources, classes, wrapper, tied)
    seen = _look(sources, raw, classes, wrapper)
    header, spelling = sources.header, seen.spellings[0]
    if header is not None:
        header, spelling = decoder_header(
            header, seen.spellings, (seen.embedding,), "checkpoint header"
        )
    text = replace(sources, raw=raw, header=header)
    spec = assemble(text, replace(classes, wrapper=None))
    return _around(spec, sources, wrapper, spelling, seen), text


def _tied(sources: Sources, classes: HFClasses, wrapper: Wrapper) -> bool:
    """Whether the head is the embedding: both configurations, or else the checkpoint, say so."""
    config = whole_config(sources.raw, wrapper.config_class, sources.where)
    outer, inner = (getattr(c, _TIE, None) for c in (config, config.get_text_config()))
    if outer is None or inner is None or outer == inner or wrapper.model_class is None:
        return bool(inner if inner is not None else outer)
    if sources.header is None:
        raise Refused(
            "head",
            f"{_TIE} is {outer} in {wrapper.config_class.__name__}, but {inner} in its "
            f"{wrapper.key}: only the checkpoint says whether it stores a head",
            where=sources.where,
            hint=f"give the folder or hub id of the checkpoint, or write {_TIE} in both places",
        )
    raw = _text_raw(sources, classes, wrapper, tied=False)
    seen = _look(sources, raw, classes, wrapper)
    heads = {spelling.stored(seen.head) for spelling in seen.spellings if seen.head}
    return not heads & set(sources.header.tensors)


def _text_raw(sources: Sources, classes: HFClasses, wrapper: Wrapper, tied: bool) -> dict[str, Any]:
    """The decoder's configuration as a config.json of its own."""
    nested = dict(sources.raw[wrapper.key])
    whole = whole_config(sources.raw, wrapper.config_class, sources.where).get_text_config()
    raw = {
        **{key: sources.raw[key] for key in ("torch_dtype", "dtype") if key in sources.raw},
        **nested,
        "model_type": whole.model_type,
        "architectures": [classes.model_class.__name__],
        _TIE: tied,
    }
    found, alone = effective(whole), effective(build_config(raw, classes))
    raw.update(
        {
            key: value
            for key, value in found.items()
            if key not in _NOT_COMPARED and not key.startswith("_") and alone.get(key) != value
        }
    )
    validate_config(raw, f"{sources.where}: {wrapper.key}")
    return raw


def _look(sources: Sources, raw: dict[str, Any], classes: HFClasses, wrapper: Wrapper) -> _Whole:
    """Build the decoder alone and the whole model around it, compare them, and save both."""
    tiny = odd_tiny(raw, replace(classes, wrapper=None), 0)
    decoder, _ = build(tiny, classes.config_class, classes.model_class, seed=_SEED)
    own = saved_tensors(decoder)
    embedding = _holder(own, decoder.get_input_embeddings())  # type: ignore[operator]
    head = None if raw[_TIE] else _holder(own, decoder.get_output_embeddings())  # type: ignore[operator]
    following = following_widths(sources.raw, tiny, wrapper)
    if wrapper.model_class is None:
        return _Whole((Spelling(),), embedding, head, None, following)
    whole = build_whole(sources.raw, tiny, wrapper, decoder, _SEED + 1)
    error = check_same_text(whole, decoder, _SEED)
    saved = find_spelling(own, saved_tensors(whole), f"save_pretrained of {wrapper.architecture}")
    spellings = [saved]
    try:  # files that were saved under the names of the modules load as well
        modules = find_spelling(decoder.state_dict(), whole.state_dict(), wrapper.architecture)
        spellings += [modules] if modules != saved else []
    except Refused:
        pass
    return _Whole(tuple(spellings), embedding, head, error, following)


def _holder(tensors: dict[str, Any], module: nn.Module) -> str:
    """The stored name of a module's weight."""
    weight = module.weight
    return next(
        name for name, t in tensors.items() if t.shape == weight.shape and bool((t == weight).all())
    )


def _around(
    spec: ModelSpec, sources: Sources, wrapper: Wrapper, spelling: Spelling, seen: _Whole
) -> ModelSpec:
    """`spec` as that of a decoder inside the whole model: its names, and its stored ones."""
    checkpoint = CheckpointSpec(
        tensors=tuple(
            replace(item, name=spelling.stored(item.name)) for item in spec.checkpoint.tensors
        ),
        dropped=tuple((spelling.stored(name), why) for name, why in spec.checkpoint.dropped),
        base_prefix="" if spelling.prefixes else spec.checkpoint.base_prefix,
    )
    around = WrapperSpec(
        config_class=wrapper.config_class.__name__,
        key=wrapper.key,
        text_class=spec.architecture,
        stored_prefixes=spelling.prefixes,
        others=spelling.others,
        following=seen.following,
    )
    told = "the same logits for text"
    value = told if seen.error is None else f"{told}, within {seen.error:.1e}"
    where = f"{wrapper.architecture} around a tiny {spec.architecture}"
    evidence = Evidence("modality", "trace" if seen.error is not None else "config", where, value)
    return replace(
        spec,
        model_type=str(sources.raw["model_type"]),
        architecture=wrapper.architecture,
        checkpoint=checkpoint,
        wrapper=around,
        evidence=(evidence, *spec.evidence),
    )
