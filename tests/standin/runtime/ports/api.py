"""Every TensorRT-LLM name that the hand-written models use, from either generation's path."""

# ruff: noqa: F401
from tensorrt_llm._torch.metadata import KVCacheParams
from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.modeling_utils import (
    DecoderModel,
    DecoderModelForCausalLM,
    register_auto_model,
)
from tensorrt_llm._torch.modules.decoder_layer import DecoderLayer
from tensorrt_llm._torch.modules.embedding import Embedding
from tensorrt_llm._torch.modules.gated_mlp import GatedMLP
from tensorrt_llm._torch.modules.layer_norm import LayerNorm
from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode
from tensorrt_llm._torch.modules.mlp import MLP
from tensorrt_llm._torch.modules.rms_norm import RMSNorm
from tensorrt_llm.functional import PositionEmbeddingType, RotaryScalingType
from tensorrt_llm.mapping import Mapping

try:
    from tensorrt_llm._torch.attention.attention import Attention
except ImportError:
    from tensorrt_llm._torch.modules.attention import Attention
try:
    from tensorrt_llm._torch.attention.qk_norm_attention import QKNormRoPEAttention
except ImportError:
    from tensorrt_llm._torch.modules.qk_norm_attention import QKNormRoPEAttention
try:
    from tensorrt_llm._torch.attention.backends.interface import (
        PositionalEmbeddingParams,
        RopeParams,
    )
except ImportError:
    from tensorrt_llm._torch.attention_backend.interface import (
        PositionalEmbeddingParams,
        RopeParams,
    )
try:
    from tensorrt_llm._torch.attention.backends.utils import get_attention_backend
except ImportError:
    from tensorrt_llm._torch.attention_backend.utils import get_attention_backend
