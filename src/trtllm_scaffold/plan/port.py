"""ModelSpec x generation -> PortPlan: the answers that render one port, and its support level."""

from __future__ import annotations

import json
from dataclasses import dataclass

from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.attention import plan_attention
from trtllm_scaffold.plan.block import plan_block
from trtllm_scaffold.plan.block_indexer import SYMBOLS as BLOCK_SYMBOLS
from trtllm_scaffold.plan.block_indexer import plan_block_indexer
from trtllm_scaffold.plan.embedding import plan_embedding
from trtllm_scaffold.plan.gated_norm import plan_gated_norm
from trtllm_scaffold.plan.head import plan_head
from trtllm_scaffold.plan.imports import import_answers
from trtllm_scaffold.plan.indexer import SYMBOLS, plan_indexer
from trtllm_scaffold.plan.layer_sizes import plan_layer_sizes
from trtllm_scaffold.plan.mla import plan_mla
from trtllm_scaffold.plan.mlp import plan_mlp
from trtllm_scaffold.plan.moe import plan_moe
from trtllm_scaffold.plan.moe_symbols import moe_symbols
from trtllm_scaffold.plan.names import PortNames
from trtllm_scaffold.plan.norm import plan_norm
from trtllm_scaffold.plan.position import plan_position
from trtllm_scaffold.plan.sizes import plan_sizes
from trtllm_scaffold.plan.support import Support, refuse_unless_supported
from trtllm_scaffold.plan.weights import plan_weights
from trtllm_scaffold.plan.wrapper import plan_wrapper
from trtllm_scaffold.spec import ModelSpec

#: Symbols of every dense port.
_ALWAYS = (
    "AttentionMetadata",
    "DecoderLayer",
    "DecoderModel",
    "DecoderModelForCausalLM",
    "Embedding",
    "ModelConfig",
    "TensorParallelMode",
    "register_auto_model",
)


@dataclass(frozen=True)
class PortPlan:
    """Attributes:
    names: The port's names.
    answers: Flat, JSON-plain copier answers.
    support: How well the chosen generation supports the model.
    """

    names: PortNames
    answers: Answers
    support: Support


def _modeling_symbols(answers: Answers) -> set[str]:
    """TensorRT-LLM names that the rendered modeling file uses."""
    symbols = {*_ALWAYS, *_library_norms(answers)}
    own_latents = not answers["attention_base"]
    symbols |= set(SYMBOLS) if own_latents else {str(answers["attention_base"])}
    symbols |= set(BLOCK_SYMBOLS) if answers["block_indexer"] else set()
    if answers["mlp_kind"]:
        symbols.add("GatedMLP" if answers["mlp_kind"] == "gated" else "MLP")
    symbols |= moe_symbols(answers)
    if answers["position_kind"] == "rope" and not own_latents:
        symbols |= {"PositionalEmbeddingParams", "PositionEmbeddingType"}
    if answers["qk_norm"] == "full" or answers["output_norm"] or answers["mlp_down_norm"]:
        symbols |= {"AllReduce", "AllReduceStrategy", "Mapping"}
    if answers["qk_norm"] == "per_head_weight":
        symbols.add("Mapping")
    linears = ("embedding_projection", "head_projection", "head_dense", "attention_gate")
    if any(answers[name] for name in (*linears, "gated_norms")):
        symbols.add("Linear")
    return symbols


#: Norms that span the width which tensor parallelism splits are modules of the port.
_OWN_NORMS = ("output_norm", "down_norm")


def _library_norms(answers: Answers) -> set[str]:
    """The norm classes of the library that the port uses."""
    names, classes = answers["norm_names"], answers["norm_classes"]
    assert isinstance(names, list) and isinstance(classes, list)
    own = set(_OWN_NORMS)
    if answers["qk_norm"] != "head" or answers["attention_base"] != "Attention":
        own.add("qk_norm")
    return {str(kind) for name, kind in zip(names, classes, strict=True) if name not in own}


def _configuration_symbols(answers: Answers) -> set[str]:
    if answers["position_kind"] != "rope":
        return set()
    named = answers["rope_scaling"] or answers["attention_base"] == "MLA"
    return {"RopeParams", "RotaryScalingType"} if named else {"RopeParams"}


def _reference_class(spec: ModelSpec) -> str:
    """Name of the HF class that the port's tests hold it against."""
    if spec.own_code:
        return spec.own_code[1]
    if spec.wrapper:
        return spec.wrapper.text_class
    return spec.assumed[1] if spec.assumed else spec.architecture


def plan_port(spec: ModelSpec, names: PortNames, trtllm: str) -> PortPlan:
    """Plans the port of `spec` for the TensorRT-LLM generation `trtllm`.

    Raises:
        Refused: An axis has no expression; names it, the value and the evidence.
    """
    support = refuse_unless_supported(spec, trtllm)
    own = spec.own_code
    answers: Answers = {
        "name": names.name,
        "package": names.package,
        "class_prefix": names.class_prefix,
        "title": names.class_prefix,
        "architecture": spec.architecture,
        "model_type": spec.model_type,
        "config_class": "PretrainedConfig" if own or spec.assumed else spec.config_class[0],
        "reference_attention": spec.reference_attention,
        "reference_layers": spec.layers_name,
        "reference_class": _reference_class(spec),
        "reference_config_class": spec.config_class[0],
        "reference_modules": [spec.config_class[1].rpartition(".")[2], own[0]] if own else [],
        "trtllm": trtllm,
        "support_level": support.level.name,
        "support_reasons": list(support.because),
        "proven": spec.proven,
    }
    attention = (plan_attention, plan_mla, plan_indexer, plan_layer_sizes, plan_block_indexer)
    norms = (plan_norm, plan_gated_norm)
    axes = (plan_sizes, *attention, plan_position, *norms, plan_block, plan_mlp)
    for axis in (*axes, plan_moe, plan_embedding, plan_head, plan_weights, plan_wrapper):
        answers.update(axis(spec))
    answers.update(import_answers(_modeling_symbols(answers), _configuration_symbols(answers)))
    assert json.loads(json.dumps(answers)) == answers, "answers must be JSON-plain"
    return PortPlan(names, answers, support)
