"""ModelConfig: the HuggingFace config and everything the runtime decided about a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from trtllm_scaffold.standin.functional import AllReduceStrategy
from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.quant_sources import read_quantization
from trtllm_scaffold.standin.quantization import QuantConfig

TConfig = TypeVar("TConfig")

_FREE_WHEN_FROZEN = ("_frozen", "extra_attrs", "pretrained_config", "quant_config")
_NOT_GENERATIVE = (
    "BertForSequenceClassification",
    "Qwen2ForProcessRewardModel",
    "Qwen2ForRewardModel",
    "LlamaForTextEmbedding",
)


@contract("tensorrt_llm._torch.model_config.ModelConfig")
@dataclass(kw_only=True)
class ModelConfig(Generic[TConfig]):
    """What a model is built from. ``from_pretrained`` freezes it.

    A frozen instance lets only ``extra_attrs``, ``pretrained_config`` and ``quant_config`` be
    assigned.
    """

    pretrained_config: Any = None
    mapping: Mapping = field(default_factory=Mapping)
    quant_config: QuantConfig = field(default_factory=QuantConfig)
    quant_config_dict: dict[str, QuantConfig] | None = None
    skip_create_weights_in_init: bool = False
    spec_config: Any = None
    lora_config: Any = None
    sparse_attention_config: Any = None
    is_generation: bool = True
    is_encoder_decoder: bool = False
    max_num_tokens: int = 8192
    max_seq_len: int | None = None
    moe_max_num_tokens: int | None = None
    moe_load_balancer: Any = None
    attn_backend: str = "TRTLLM"
    moe_backend: str = "CUTLASS"
    moe_disable_finalize_fusion: bool = False
    use_low_precision_moe_combine: bool = False
    nvfp4_gemm_allowed_backends: list[str] = field(
        default_factory=lambda: ["cutlass", "cublaslt", "cuda_core"]
    )
    allreduce_strategy: Any = AllReduceStrategy.AUTO
    enable_min_latency: bool = False
    use_cuda_graph: bool = False
    force_dynamic_quantization: bool = False
    use_cute_dsl_blockscaling_mm: bool = False
    use_cute_dsl_blockscaling_bmm: bool = False
    use_cute_dsl_bf16_bmm: bool = False
    use_cute_dsl_bf16_gemm: bool = False
    mm_encoder_only: bool = False
    disable_mm_encoder: bool = False
    video_pruning_rate: float | None = None
    multimodal_config: Any = None
    extra_attrs: dict[str, Any] = field(default_factory=dict, repr=False, init=False)
    _frozen: bool = field(default=False, init=False, repr=False)

    enable_torch_compile_for_embedding = False

    def __setattr__(self, key: str, value: Any) -> None:
        if getattr(self, "_frozen", False) and key not in _FREE_WHEN_FROZEN:
            raise AttributeError(f"Cannot modify ModelConfig.{key!r} - instance is frozen")
        super().__setattr__(key, value)

    def __post_init__(self) -> None:
        architectures = getattr(self.pretrained_config, "architectures", None)
        if architectures is not None:
            self.is_generation = self.is_generation_model(architectures, self.mm_encoder_only)
        if isinstance(self.allreduce_strategy, str):
            self.allreduce_strategy = _strategy(self.allreduce_strategy)
        if self.moe_max_num_tokens is None:
            self.moe_max_num_tokens = self.max_num_tokens * self.mapping.dp_size

    @property
    def torch_dtype(self) -> torch.dtype:
        """Dtype of the model: that of the config, else bfloat16."""
        config = self.pretrained_config
        # transformers 5 warns about the old name.
        found = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
        return found or torch.bfloat16

    @property
    def fuse_pos_embd(self) -> bool:
        """Whether the backend rotates inside of its kernel: TRTLLM only."""
        return self.attn_backend == "TRTLLM"

    @property
    def enable_flash_mla(self) -> bool:
        """Never: the stand-in has no MLA kernel."""
        return False

    def get_quant_config(self, name: str | None = None) -> QuantConfig:
        """The general quantization of the model.

        Raises:
            AttributeError: If a name is given: the real method then reads an attribute that the
                class has in neither generation. The table per module is ``quant_config_dict``.
        """
        if name is None:
            return self.quant_config
        raise AttributeError(
            f"{type(self).__name__!r} object has no attribute 'per_layer_quant_configs': "
            f"get_quant_config({name!r}) fails in TensorRT-LLM too, call it without a name"
        )

    @staticmethod
    def is_generation_model(
        model_architectures: list[str] | None, mm_encoder_only: bool = False
    ) -> bool:
        """Whether the architecture generates text."""
        if model_architectures is None:
            return True
        return not mm_encoder_only and model_architectures[0] not in _NOT_GENERATIVE

    @staticmethod
    def resolve_moe_backend(
        moe_backend: str, architecture: str, quant_config: QuantConfig | None = None
    ) -> str:
        """The expert backend for AUTO; the stand-in has no device-dependent choice."""
        return "CUTLASS" if moe_backend.upper() == "AUTO" else moe_backend

    @classmethod
    def from_pretrained(
        cls, checkpoint_dir: str | Path, trust_remote_code: bool = False, **kwargs: Any
    ) -> ModelConfig[Any]:
        """Read config and quantization of a checkpoint folder, and freeze.

        Args:
            checkpoint_dir: A folder, or a model id that transformers can resolve.
            trust_remote_code: Whether the checkpoint's own config class may run.
            kwargs: Fields of this class; ``model_kwargs`` overrides config attributes.

        Raises:
            ValueError: If ``checkpoint_dir`` is None.
        """
        if checkpoint_dir is None:
            raise ValueError("checkpoint_dir is None: a model config needs a checkpoint")
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(checkpoint_dir, trust_remote_code=trust_remote_code)
        if not hasattr(type(config), "torch_dtype"):  # transformers 5 has it as a property
            config.torch_dtype = getattr(config, "dtype", None)
        for key, value in (kwargs.pop("model_kwargs", None) or {}).items():
            _override(config, key, value)
        kwargs["moe_backend"] = cls.resolve_moe_backend(
            kwargs.get("moe_backend", "AUTO"), config.architectures[0]
        )
        general, per_module = read_quantization(Path(checkpoint_dir), config)
        made = cls(
            pretrained_config=config, quant_config=general, quant_config_dict=per_module, **kwargs
        )
        made._frozen = True
        return made


def _strategy(name: str) -> AllReduceStrategy:
    name = {"MINLATENCY": "MIN_LATENCY"}.get(name.upper(), name.upper())
    return AllReduceStrategy.__members__.get(name, AllReduceStrategy.AUTO)


def _override(config: Any, key: str, value: Any) -> None:
    inner = getattr(config, key, None)
    if isinstance(value, dict) and hasattr(inner, "to_dict"):
        for inner_key, inner_value in value.items():
            _override(inner, inner_key, inner_value)
    elif key in ("torch_dtype", "dtype") and isinstance(value, str) and value != "auto":
        setattr(config, key, getattr(torch, value))
    else:
        setattr(config, key, value)
