"""TensorRT-LLM names of the models here, from either generation's path."""

# ruff: noqa: F401
from tensorrt_llm._torch.distributed import (
    AllReduce,
    AllReduceFusionOp,
    AllReduceParams,
    MoEAllReduce,
)
from tensorrt_llm._torch.model_config import ModelConfig
from tensorrt_llm._torch.models.checkpoints.hf.weight_mapper import HfWeightMapper
from tensorrt_llm._torch.models.modeling_speculative import SpecDecOneEngineForCausalLM
from tensorrt_llm._torch.models.modeling_utils import (
    DecoderModel,
    EagerFusionConfig,
    register_auto_model,
    register_mapper,
)
from tensorrt_llm._torch.modules.decoder_layer import DecoderLayer
from tensorrt_llm._torch.modules.embedding import Embedding
from tensorrt_llm._torch.modules.gated_mlp import GatedMLP
from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode
from tensorrt_llm._torch.modules.multi_stream_utils import maybe_execute_in_parallel
from tensorrt_llm._torch.modules.rms_norm import RMSNorm
from tensorrt_llm._torch.speculative import SpecMetadata
from tensorrt_llm._torch.utils import AuxStreamType
from tensorrt_llm.functional import PositionEmbeddingType

try:
    from tensorrt_llm._torch.attention.attention import Attention
except ImportError:
    from tensorrt_llm._torch.modules.attention import Attention
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
    from tensorrt_llm._torch.moe.fused_moe import DefaultMoeRoutingMethod, MoE, create_moe
except ImportError:
    from tensorrt_llm._torch.modules.fused_moe import DefaultMoeRoutingMethod, MoE, create_moe
