"""Every TensorRT-LLM import of the port, new path first."""

from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.modeling_utils import (
    DecoderModel,
    DecoderModelForCausalLM,
    register_auto_model,
)
from tensorrt_llm._torch.modules.decoder_layer import DecoderLayer
from tensorrt_llm._torch.modules.embedding import Embedding
from tensorrt_llm._torch.modules.gated_mlp import GatedMLP
from tensorrt_llm._torch.modules.linear import TensorParallelMode
from tensorrt_llm._torch.modules.rms_norm import RMSNorm
from tensorrt_llm.functional import PositionEmbeddingType, RotaryScalingType

try:
    from tensorrt_llm._torch.attention.attention import Attention
except ImportError:
    from tensorrt_llm._torch.modules.attention import Attention

try:
    from tensorrt_llm._torch.attention.backends.interface import PositionalEmbeddingParams
except ImportError:
    from tensorrt_llm._torch.attention_backend.interface import PositionalEmbeddingParams

try:
    from tensorrt_llm._torch.attention.backends.interface import RopeParams
except ImportError:
    from tensorrt_llm._torch.attention_backend.interface import RopeParams

__all__ = [
    "Attention",
    "DecoderLayer",
    "DecoderModel",
    "DecoderModelForCausalLM",
    "Embedding",
    "GatedMLP",
    "ModelConfig",
    "PositionEmbeddingType",
    "PositionalEmbeddingParams",
    "RMSNorm",
    "RopeParams",
    "RotaryScalingType",
    "TensorParallelMode",
    "register_auto_model",
]
