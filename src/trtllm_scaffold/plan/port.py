"""ModelSpec x generation -> PortPlan: the answers that render one port, and its support level."""

from __future__ import annotations

import json
from dataclasses import dataclass

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.attention import plan_attention
from trtllm_scaffold.plan.block import plan_block
from trtllm_scaffold.plan.embedding import plan_embedding
from trtllm_scaffold.plan.head import plan_head
from trtllm_scaffold.plan.imports import import_answers
from trtllm_scaffold.plan.mlp import plan_mlp
from trtllm_scaffold.plan.names import PortNames
from trtllm_scaffold.plan.norm import plan_norm
from trtllm_scaffold.plan.position import plan_position
from trtllm_scaffold.plan.sizes import plan_sizes
from trtllm_scaffold.plan.support import Support, refuse_unless_supported
from trtllm_scaffold.plan.weights import plan_weights
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
    symbols = {*_ALWAYS, str(answers["attention_base"]), str(answers["norm_class"])}
    symbols.add("GatedMLP" if answers["mlp_kind"] == "gated" else "MLP")
    if answers["position_kind"] == "rope":
        symbols |= {"PositionalEmbeddingParams", "PositionEmbeddingType"}
    if answers["qk_norm"] == "full":
        symbols |= {"AllReduce", "AllReduceStrategy", "Mapping"}
    if answers["embedding_projection"] or answers["head_projection"]:
        symbols.add("Linear")
    return symbols


def _configuration_symbols(answers: Answers) -> set[str]:
    if answers["position_kind"] != "rope":
        return set()
    return {"RopeParams", "RotaryScalingType"} if answers["rope_scaling"] else {"RopeParams"}


def _one_equation(spec: ModelSpec) -> None:
    """Layers may differ in their window alone; anything else has no template yet."""
    first = spec.layer
    for kind in spec.layer_kinds[1:]:
        same_rest = (kind.mlp, kind.block) == (first.mlp, first.block)
        same_heads = kind.attention.head_dim == first.attention.head_dim
        if not (same_rest and same_heads and kind.attention.qk_norm == first.attention.qk_norm):
            raise Refused(
                "block",
                f"{len(spec.layer_kinds)} kinds of layers that differ in more than their window",
                where=spec.source,
            )


def plan_port(spec: ModelSpec, names: PortNames, trtllm: str) -> PortPlan:
    """Plans the port of `spec` for the TensorRT-LLM generation `trtllm`.

    Raises:
        Refused: An axis has no expression; names it, the value and the evidence.
    """
    support = refuse_unless_supported(spec, trtllm)
    _one_equation(spec)
    answers: Answers = {
        "name": names.name,
        "package": names.package,
        "class_prefix": names.class_prefix,
        "title": names.class_prefix,
        "architecture": spec.architecture,
        "model_type": spec.model_type,
        "config_class": spec.config_class[0],
        "trtllm": trtllm,
        "support_level": support.level.name,
        "support_reasons": list(support.because),
        "proven": spec.proven,
    }
    axes = (plan_sizes, plan_attention, plan_position, plan_norm, plan_block, plan_mlp)
    for axis in (*axes, plan_embedding, plan_head, plan_weights):
        answers.update(axis(spec))
    answers.update(import_answers(_modeling_symbols(answers), _configuration_symbols(answers)))
    assert json.loads(json.dumps(answers)) == answers, "answers must be JSON-plain"
    return PortPlan(names, answers, support)
