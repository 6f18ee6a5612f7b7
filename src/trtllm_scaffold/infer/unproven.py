"""A configuration without any class to run, read as if it were a plain decoder. Proves nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from trtllm_scaffold.errors import Refused, ScaffoldError
from trtllm_scaffold.infer.assembly import assemble
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import Evidence, ModelSpec

#: Causal language models whose configuration keys mean what their names say, the plainest first.
#: Those after the first two differ from them in what no key shows (biases, norms of heads): they
#: are tried only where a checkpoint's header tells the difference.
_PLAIN = ("LlamaForCausalLM", "MistralForCausalLM")
_BY_HEADER = ("Qwen2ForCausalLM", "Qwen3ForCausalLM")

#: Keys that say nothing of the equation.
_SILENT = frozenset(
    {
        "architectures", "auto_map", "model_type", "torch_dtype", "dtype", "transformers_version",
        "use_cache", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id",
        "unk_token_id", "name_or_path", "_name_or_path", "attention_dropout", "hidden_dropout",
        "quantization_config", "rope_theta", "rope_scaling", "rope_parameters",
    }
)  # fmt: skip


#: Keys that the file must hold: the assumed class's own defaults say nothing of this model.
_NEEDED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
    "rms_norm_eps",
    "tie_word_embeddings",
)


def infer_unproven(sources: Sources) -> tuple[ModelSpec, Sources, HFClasses]:
    """The spec under an assumption, and the sources and classes that make it.

    Each key of the configuration must be one that the assumed class knows, and the checkpoint's
    header, where there is one, must agree with it in every name and shape. Nothing that decides the
    equation may come from that class's defaults.

    Raises:
        Refused: No plain decoder has these keys, or stores these tensors.
    """
    problems: list[str] = []
    absent = [key for key in _NEEDED if sources.raw.get(key) is None]
    if sources.raw.get("rope_theta") is None and not sources.raw.get("rope_parameters"):
        absent.append("rope_theta")
    if absent:
        problems.append(f"it does not say {', '.join(absent)}")
    for name, classes in () if absent else _candidates(sources.header is not None):
        unknown = _unknown_keys(sources.raw, classes)
        if unknown:
            problems.append(f"{name} does not know {', '.join(unknown[:3])}")
            continue
        assumed_type = getattr(classes.config_class, "model_type", "")
        assumed = replace(sources, raw={**sources.raw, "model_type": assumed_type})
        try:
            spec = assemble(assumed, classes)
        except ScaffoldError as error:
            problems.append(f"as {name}: {error.message}")
            continue
        return _marked(spec, sources, name), assumed, classes
    raise Refused(
        "model_type",
        f"no class can run {sources.raw.get('model_type')!r}, and it does not read as a plain "
        f"decoder: {'; '.join(problems)}",
        where=str(sources.where),
        hint="upgrade transformers, or give --trust-remote-code where the model brings its own "
        "class",
    )


def _candidates(has_header: bool) -> Iterator[tuple[str, HFClasses]]:
    import transformers

    for name in (*_PLAIN, *(_BY_HEADER if has_header else ())):
        model_class = getattr(transformers, name)
        yield name, HFClasses(model_class.config_class, model_class)


def _unknown_keys(raw: Mapping[str, Any], classes: HFClasses) -> list[str]:
    """Keys that say something, and that the class does not have."""
    known = set(classes.config_class().to_dict())
    said = {key for key, value in raw.items() if value not in (None, False)}
    return sorted(said - known - _SILENT)


def _marked(spec: ModelSpec, sources: Sources, name: str) -> ModelSpec:
    """`spec` under the model's own names, with the assumption as a witness of the whole."""
    assumption = Evidence(
        fact="model_type",
        witness="assumption",
        where=str(sources.where),
        value=f"read as {name}: no class of its own can be run",
    )
    return replace(
        spec,
        model_type=str(sources.raw["model_type"]),
        architecture=str(sources.raw["architectures"][0]),
        proven=False,
        assumed=(spec.config_class[0], name),
        evidence=(assumption, *spec.evidence),
    )
