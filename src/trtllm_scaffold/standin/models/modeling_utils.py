"""DecoderModel and DecoderModelForCausalLM: what every decoder port derives from."""

from __future__ import annotations

import math
from collections.abc import Mapping as Dict
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.late_methods import since_1_4
from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.logits_processor import LogitsProcessor
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.models import quant_rules
from trtllm_scaffold.standin.models.loading import _load_weights_impl, _load_weights_impl_v2
from trtllm_scaffold.standin.models.pipeline import skip_forward, split_layers
from trtllm_scaffold.standin.modules.embedding import LMHead
from trtllm_scaffold.standin.modules.linear import TensorParallelMode

TModel = TypeVar("TModel", bound="DecoderModel")
TConfig = TypeVar("TConfig")

#: Rope scalings that already name the final length: the inferred one is not multiplied.
UNSCALED_ROPE = ("su", "longrope", "llama3", "yarn")
DEFAULT_MAX_SEQ_LEN = 2048


@contract("EagerFusionConfig")
@dataclass
class EagerFusionConfig:
    """Which all-reduces a layer fuses with a norm. The stand-in has no fused kernels."""

    PRE_MOE_FUSION: bool = False
    PRE_MLP_FUSION: bool = False
    POST_MLP_FUSION: bool = False
    POST_MOE_FUSION: bool = False


class PPInitCaller(type):
    """Metaclass of the inner model: construction only, its head starts the pipeline set-up."""


class PostInitCaller(type):
    """Metaclass of the whole model: ``__init__``, ``__post_init__``, pipeline set-up."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """Construct, make the parameters, then drop those of other stages."""
        made = super().__call__(*args, **kwargs)
        made.__post_init__()
        made.__pp_init__()
        return made


@contract("DecoderModel")
class DecoderModel(nn.Module, metaclass=PPInitCaller):
    """The decoder without its head.

    A subclass sets ``embed_tokens``, ``layers`` and ``norm``: pipeline parallelism finds them by
    these names.
    """

    embed_tokens: nn.Module
    layers: nn.ModuleList
    norm: nn.Module

    def __init__(self, model_config: ModelConfig) -> None:
        super().__init__()
        self.dtype = model_config.pretrained_config.torch_dtype
        self.model_config = model_config
        self.prologue: list[nn.Module] = []
        self.epilogue: list[nn.Module] = []
        self.keep_embed_tokens = False

    def forward(
        self,
        attn_metadata: Any,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        lora_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Hidden states of packed tokens.

        Args:
            attn_metadata: The prepared batch.
            input_ids: ``[tokens]``; exactly one of this and ``inputs_embeds``.
            position_ids: ``[1, tokens]``.
            inputs_embeds: ``[tokens, hidden_size]``.
            lora_params: Handed to the layers.
            **kwargs: Ignored.

        Raises:
            ValueError: If both or none of ids and embeddings are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("exactly one of input_ids and inputs_embeds must be given")
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        for layer in self.layers:
            hidden_states = layer(
                position_ids=position_ids,
                hidden_states=hidden_states,
                attn_metadata=attn_metadata,
                lora_params=lora_params,
            )
        out: torch.Tensor = self.norm(hidden_states)
        return out

    def __pp_init__(self) -> None:
        """Skip what belongs to other stages and wire the ends of this one."""
        mapping = self.model_config.mapping
        if not mapping.has_pp():
            return
        if not hasattr(self, "layers"):
            logger.warning(f"{type(self).__name__} has no `layers`: no pipeline parallelism")
            return
        if hasattr(self, "embed_tokens") and not self.keep_embed_tokens:
            self.prologue.append(self.embed_tokens)
        if hasattr(self, "norm"):
            self.epilogue.append(self.norm)
        _skip_foreign(self.prologue, self.epilogue, mapping)
        split_layers(self.layers, self.model_config.pretrained_config.num_hidden_layers, mapping)


def _skip_foreign(prologue: list[nn.Module], epilogue: list[nn.Module], mapping: Any) -> None:
    for module in [] if mapping.is_first_pp_rank() else prologue:
        skip_forward(module)
    for module in [] if mapping.is_last_pp_rank() else epilogue:
        skip_forward(module)


@contract("DecoderModelForCausalLM")
class DecoderModelForCausalLM(nn.Module, Generic[TModel, TConfig], metaclass=PostInitCaller):
    """A decoder with its head.

    Under ``AutoModelForCausalLM`` the parameters of linear layers exist only after ``__init__``.

    Raises:
        AssertionError: If embeddings are tied but head and embedding are not split alike.
    """

    def __init__(
        self, model: TModel, *, config: ModelConfig, hidden_size: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.model_config = config
        self.model = model
        self.pp_rank, self.pp_size = config.mapping.pp_rank, config.mapping.pp_size
        self.has_custom_lm_head = False
        split: dict[str, Any] = {}
        apart = config.mapping.enable_attention_dp
        if active() == "1.4" and config.mapping.enable_lm_head_tp_in_adp:
            apart = False
        if not apart:
            gather = True if active() == "1.2" else getattr(config, "lm_head_gather_output", True)
            split = {
                "mapping": config.mapping,
                "tensor_parallel_mode": TensorParallelMode.COLUMN,
                "gather_output": gather,
            }
        self.lm_head = LMHead(
            vocab_size, hidden_size, dtype=config.pretrained_config.torch_dtype, **split
        )
        if _tied(config.pretrained_config):
            self._tie()
        self.logits_processor = LogitsProcessor()
        self.prologue: list[nn.Module] = []
        self.epilogue: list[nn.Module] = [self.lm_head]

    def _tie(self) -> None:
        head, embedding = self.lm_head, self.model.embed_tokens
        for name in ("tp_size", "tp_mode"):
            mine, other = getattr(head, name), getattr(embedding, name)
            assert mine == other, (
                f"tie_word_embeddings: lm_head has {name} {mine}, embed_tokens has {other}"
            )
        head.weight = embedding.weight
        if self.model_config.mapping.is_last_pp_rank():
            self.model.keep_embed_tokens = True

    # ------------------------------------------------------------------ construction

    def __post_init__(self) -> None:
        """Resolve the quantization of every module, then make the parameters."""
        self.apply_layerwise_quant_config()
        self.apply_quant_config_exclude_modules()
        for module in self.modules():
            create = getattr(module, "create_weights", None)
            if callable(create):
                create()

    def apply_layerwise_quant_config(self) -> None:
        """Give modules their own quantization where the checkpoint mixes algorithms."""
        quant_rules.apply_layerwise(self, self.model_config.quant_config_dict)

    def apply_quant_config_exclude_modules(self) -> None:
        """Leave the excluded modules unquantized."""
        quant_rules.apply_exclusions(self, self.model_config.quant_config)

    def __pp_init__(self) -> None:
        """Skip what belongs to other stages."""
        mapping = self.model_config.mapping
        if not mapping.has_pp():
            return
        _skip_foreign(self.prologue, self.epilogue, mapping)
        self.model.__pp_init__()

    # ------------------------------------------------------------------ use

    @property
    def config(self) -> Any:
        """The HuggingFace config."""
        return self.model_config.pretrained_config

    @property
    def vocab_size_padded(self) -> int:
        """Vocabulary rounded up to a multiple of the tensor-parallel size."""
        return int(self.lm_head.vocab_size_padded)

    def forward(
        self,
        attn_metadata: Any,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        return_context_logits: bool = False,
        spec_metadata: Any = None,
        lora_params: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Logits of the last token of each sequence.

        Args:
            attn_metadata: The prepared batch.
            input_ids: ``[tokens]``; exactly one of this and ``inputs_embeds``.
            position_ids: ``[1, tokens]``.
            inputs_embeds: ``[tokens, hidden_size]``.
            return_context_logits: Logits of every token instead.
            spec_metadata: Handed to the inner model.
            lora_params: Handed to the inner model.
            **kwargs: Ignored.

        Returns:
            ``[sequences, vocab]`` or ``[tokens, vocab]``, float32.
        """
        output = self.model(
            input_ids=input_ids,
            attn_metadata=attn_metadata,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            spec_metadata=spec_metadata,
            lora_params=lora_params,
        )
        return self.logits_processor.forward(
            output, self.lm_head, attn_metadata, return_context_logits
        )

    def infer_max_seq_len(self) -> int:
        """Longest sequence: ``max_position_embeddings`` (else 2048), times a plain rope factor."""
        scaling = getattr(self.config, "rope_scaling", None)
        length = getattr(self.config, "max_position_embeddings", None) or DEFAULT_MAX_SEQ_LEN
        if not scaling:
            return int(length)
        kind = scaling.get("type", scaling.get("rope_type"))
        factor = 1.0 if kind in UNSCALED_ROPE else scaling.get("factor") or 1.0
        if factor != 1.0:
            logger.warning(f"max_seq_len {length} is multiplied by the rope factor {factor}")
        return math.ceil(length * factor)

    # ------------------------------------------------------------------ weights

    def load_weights(
        self,
        weights: Dict[str, Any],
        weight_mapper: Any = None,
        skip_modules: list[str] = [],  # noqa: B006  (the real signature)
        params_map: dict[str, str] | None = None,
        allow_partial_loading: bool = False,
    ) -> None:
        """Fill the parameters.

        Args:
            weights: Checkpoint name -> tensor.
            weight_mapper: Initialised mapper; without one the default fused names apply.
            skip_modules: Modules whose name contains one of these are left as they are.
            params_map: Pattern -> replacement of checkpoint names, first match wins.
            allow_partial_loading: Accept missing tensors.
        """
        options: dict[str, Any] = {
            "params_map": params_map,
            "preload_weight_modules": getattr(self, "preload_weight_modules", None),
            "allow_partial_loading": allow_partial_loading,
        }
        if weight_mapper is None:
            _load_weights_impl(self, weights, skip_modules, **options)
        else:
            _load_weights_impl_v2(self, weights, weight_mapper, skip_modules, **options)

    @since_1_4
    def setup_aliases(self) -> None:
        """Stage of :meth:`post_load_weights` without tensor access: share modules."""

    @since_1_4
    def transform_weights(self) -> None:
        """Stage of :meth:`post_load_weights` that changes parameters, once per load."""

    @since_1_4
    def cache_derived_state(self) -> None:
        """Stage of :meth:`post_load_weights` that may be repeated."""

    @since_1_4
    def post_load_weights(self) -> None:
        """Run the three stages; the model loader calls this after loading."""
        self.setup_aliases()
        self.transform_weights()
        self.cache_derived_state()

    @since_1_4
    @classmethod
    def get_model_defaults(cls, llm_args: Any) -> dict[str, Any]:
        """Defaults of the LLM arguments for this model."""
        return {}

    @since_1_4
    @classmethod
    def get_preferred_kv_cache_manager_version(cls, pretrained_config: Any = None) -> str | None:
        """Cache manager that the model wants, None for the runtime's choice."""
        return None

    @since_1_4
    @classmethod
    def get_preferred_transceiver_runtime(cls, pretrained_config: Any = None) -> str | None:
        """Transceiver that the model wants, None for the runtime's choice."""
        return None


def _tied(config: Any) -> bool:
    """Whether the head is the embedding. 1.2 reads the attribute without a default."""
    if active() == "1.2":
        return bool(config.tie_word_embeddings)
    return bool(getattr(config, "tie_word_embeddings", False))
