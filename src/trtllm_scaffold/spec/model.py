"""ModelSpec: what a model is, one dataclass per axis, one layer kind per distinct equation."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.spec.attention import AttentionSpec
from trtllm_scaffold.spec.block import BlockSpec
from trtllm_scaffold.spec.checkpoint import CheckpointSpec
from trtllm_scaffold.spec.embedding import EmbeddingSpec
from trtllm_scaffold.spec.evidence import Evidence
from trtllm_scaffold.spec.head import HeadSpec
from trtllm_scaffold.spec.mlp import MlpSpec
from trtllm_scaffold.spec.moe import MoeSpec
from trtllm_scaffold.spec.position import PositionSpec, RopeSpec
from trtllm_scaffold.spec.quantity import Quantity
from trtllm_scaffold.spec.quantization import QuantizationSpec
from trtllm_scaffold.spec.wrapper import WrapperSpec


@dataclass(frozen=True)
class LayerKind:
    """Layers whose equations are equal.

    Attributes:
        attention, mlp, block: The axes of the layer. Where `moe` is set, `mlp` is one expert.
        moe: The choice among experts, or None in a layer with one dense feed-forward.
        rope: Its rotary embedding, or None where it has none (in a model whose position is
            ``rope``, a layer without positions).
        condition: A Python condition over ``config`` and ``layer_idx`` that is true for exactly
            the layers of this kind, such as
            ``config.layer_types[layer_idx] == "sliding_attention"``; empty in a uniform model.
    """

    attention: AttentionSpec
    mlp: MlpSpec
    block: BlockSpec
    rope: RopeSpec | None = None
    condition: str = ""
    moe: MoeSpec | None = None


@dataclass(frozen=True)
class ModelSpec:
    """Everything the plan needs to know about a model.

    Attributes:
        source: The path or hub id it was read from.
        model_type, architecture: As the configuration says; names, never reasons.
        config_class: Name of the HF configuration class and the module that defines it.
        layers_name: Name of the HF module that lists the layers, such as ``model.layers``.
        reference_attention: Which of HF's attentions was read: ``eager`` (written out), or the
            class's default one where the written-out one has no label.
        assumed: HF's configuration and model class that an unproven model was read as, or None.
        wrapper: The whole model that this is the text decoder of, or None. `architecture` and
            `model_type` are then the whole model's.
        own_code: (module, class) of the HF model where the model brings its own code, else None.
        hidden_size, num_hidden_layers, vocab_size, max_position_embeddings: Sizes.
        dtype: ``bfloat16``, ``float16`` or ``float32``.
        layer_kinds: The distinct layers.
        layer_pattern: For each layer, the index of its kind.
        heads_by_layer: For each layer its number of query heads, where a list of the configuration
            holds it; empty where it does not. The kinds' own numbers are the largest then.
        position, embedding, head, checkpoint, quantization: The model-wide axes.
        proven: Whether an HF class was run to find the facts.
        evidence: Every witness of every fact.
    """

    source: str
    model_type: str
    architecture: str
    config_class: tuple[str, str]
    hidden_size: Quantity
    num_hidden_layers: Quantity
    vocab_size: Quantity
    max_position_embeddings: Quantity
    dtype: str
    layer_kinds: tuple[LayerKind, ...]
    layer_pattern: tuple[int, ...]
    position: PositionSpec
    embedding: EmbeddingSpec
    head: HeadSpec
    checkpoint: CheckpointSpec
    quantization: QuantizationSpec | None
    proven: bool
    evidence: tuple[Evidence, ...]
    layers_name: str = "model.layers"
    reference_attention: str = "eager"
    own_code: tuple[str, str] | None = None
    assumed: tuple[str, str] | None = None
    wrapper: WrapperSpec | None = None
    heads_by_layer: tuple[int, ...] = ()

    @property
    def layer(self) -> LayerKind:
        """The first layer kind; the only one of a uniform model."""
        return self.layer_kinds[0]
