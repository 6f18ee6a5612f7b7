"""SamplingParams: accepted in full, honoured as far as greedy decoding goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(kw_only=True)
class SamplingParams:
    """How to generate. The stand-in decodes greedily: anything that would sample is refused.

    Attributes:
        max_tokens: New tokens of a sequence.
        end_id: Token that ends a sequence, None for the model's.
        ignore_eos: Go on after it.
        stop_token_ids: Further tokens that end a sequence.
        min_tokens: The end token does not count before so many.
        return_context_logits: Keep the logits of the prompt.
        return_generation_logits: Keep the logits of each new token.
    """

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: str | list[str] | None = None
    bad_token_ids: list[int] | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    embedding_bias: torch.Tensor | None = None
    logits_processor: Any = None
    apply_batched_logits_processor: bool = False
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: int | None = None
    no_repeat_ngram_size: int | None = None
    min_p: float | None = None
    beam_width_array: list[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = True
    return_encoder_output: bool = False
    return_perf_metrics: bool = False
    additional_model_outputs: list[Any] | None = None
    lookahead_config: Any = None
    guided_decoding: Any = None
    ignore_eos: bool = False
    detokenize: bool = True
    add_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True

    def check_greedy(self) -> None:
        """Refuse what the stand-in would ignore.

        Raises:
            NotImplementedError: If an option would change the chosen tokens.
        """
        greedy_values: dict[str, tuple[Any, ...]] = {
            "n": (1,),
            "best_of": (None, 1),
            "use_beam_search": (False,),
            "top_k": (None, 1),
            "repetition_penalty": (None, 1.0),
            "presence_penalty": (None, 0.0),
            "frequency_penalty": (None, 0.0),
            "no_repeat_ngram_size": (None, 0),
            "embedding_bias": (None,),
            "logits_processor": (None,),
            "guided_decoding": (None,),
            "bad": (None,),
            "bad_token_ids": (None,),
            "stop": (None,),
            "logprobs": (None,),
            "prompt_logprobs": (None,),
        }
        for name, accepted in greedy_values.items():
            value = getattr(self, name)
            if not any(value is item or value == item for item in accepted):
                raise NotImplementedError(f"the stand-in decodes greedily: {name}={value!r}")
        if self.top_k != 1 and self.temperature not in (None, 0, 0.0):
            if self.top_p not in (None, 0, 0.0):
                raise NotImplementedError(
                    f"the stand-in decodes greedily: temperature={self.temperature!r}, "
                    f"top_p={self.top_p!r} would sample; use temperature=0"
                )
