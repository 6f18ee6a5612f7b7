"""SpecDecOneEngineForCausalLM: head class of models that may speculate, without speculation."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.models.modeling_utils import (
    DecoderModelForCausalLM,
    TConfig,
    TModel,
)

DRAFT = "draft_model"


@contract("SpecDecOneEngineForCausalLM")
class SpecDecOneEngineForCausalLM(DecoderModelForCausalLM[TModel, TConfig]):
    """A decoder with its head, sizes read from the config.

    Raises:
        NotImplementedError: If the config asks for speculation.
    """

    def __init__(
        self,
        model: TModel,
        model_config: ModelConfig[Any],
        hidden_size: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        hf = model_config.pretrained_config
        head: Any = DecoderModelForCausalLM.__init__
        head(
            self,
            model,
            config=model_config,
            hidden_size=hf.hidden_size if hidden_size is None else hidden_size,
            vocab_size=hf.vocab_size if vocab_size is None else vocab_size,
        )
        if model_config.spec_config is not None:
            raise NotImplementedError("the stand-in does not speculate: spec_config must be None")
        self.spec_config = self.draft_config = self.draft_model = self.spec_worker = None

    def load_weights(  # type: ignore[override]
        self,
        weights: Dict[str, Any],
        weight_mapper: Any = None,
        params_map: dict[str, str] | None = None,
        allow_partial_loading: bool = False,
    ) -> None:
        """As the base, leaving a draft model out."""
        super().load_weights(
            weights,
            weight_mapper=weight_mapper,
            skip_modules=[DRAFT],
            params_map=params_map,
            allow_partial_loading=allow_partial_loading,
        )
