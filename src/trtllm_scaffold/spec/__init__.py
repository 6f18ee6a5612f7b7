"""What a model is: frozen facts, one module per axis, with the evidence for each fact."""

from trtllm_scaffold.spec.attention import AttentionSpec, GateSpec, QKNormSpec, QueryFactorSpec
from trtllm_scaffold.spec.block import BlockSpec
from trtllm_scaffold.spec.block_indexer import BlockIndexerSpec
from trtllm_scaffold.spec.checkpoint import CheckpointSpec, Layout, TensorSpec
from trtllm_scaffold.spec.embedding import EmbeddingSpec
from trtllm_scaffold.spec.evidence import Evidence
from trtllm_scaffold.spec.head import DenseHead, HeadSpec
from trtllm_scaffold.spec.mla import IndexerSpec, MlaSpec
from trtllm_scaffold.spec.mlp import ACTIVATIONS, MlpSpec
from trtllm_scaffold.spec.model import LayerKind, ModelSpec
from trtllm_scaffold.spec.moe import MoeSpec, RouterSpec, SharedSpec
from trtllm_scaffold.spec.norm import NormGateSpec, NormSpec
from trtllm_scaffold.spec.position import (
    AlibiSpec,
    LearnedSpec,
    PositionSpec,
    RopeScaling,
    RopeSpec,
    SinusoidalSpec,
)
from trtllm_scaffold.spec.quantity import Quantity
from trtllm_scaffold.spec.quantization import QuantizationSpec

__all__ = [
    "ACTIVATIONS",
    "AlibiSpec",
    "AttentionSpec",
    "BlockIndexerSpec",
    "BlockSpec",
    "CheckpointSpec",
    "DenseHead",
    "EmbeddingSpec",
    "Evidence",
    "GateSpec",
    "HeadSpec",
    "IndexerSpec",
    "LayerKind",
    "Layout",
    "LearnedSpec",
    "MlaSpec",
    "MlpSpec",
    "ModelSpec",
    "MoeSpec",
    "NormGateSpec",
    "NormSpec",
    "PositionSpec",
    "QKNormSpec",
    "Quantity",
    "QueryFactorSpec",
    "QuantizationSpec",
    "RopeScaling",
    "RopeSpec",
    "RouterSpec",
    "SharedSpec",
    "SinusoidalSpec",
    "TensorSpec",
]
