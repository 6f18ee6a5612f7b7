"""LogitsProcessor: from hidden states to the logits that sampling needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.generation import only_in


class LogitsProcessor(nn.Module):
    """Keeps the last token of each sequence and applies the head."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        lm_head: nn.Module,
        attn_metadata: Any,
        return_context_logits: bool = False,
        *,
        upcast_to_float: bool = True,
    ) -> torch.Tensor:
        """Float32 logits.

        Args:
            hidden_states: ``[tokens, hidden]``, sequences one after the other.
            lm_head: The head.
            attn_metadata: Its ``seq_lens_cuda`` says where sequences end; None means one.
            return_context_logits: Whether to keep every token.
            upcast_to_float: Whether to return float32 (1.4).

        Returns:
            ``[sequences, vocabulary]``, or ``[tokens, vocabulary]``.
        """
        only_in("1.4", "LogitsProcessor.forward", upcast_to_float=None if upcast_to_float else 0)
        if not return_context_logits:
            if attn_metadata is None:
                hidden_states = hidden_states[-1]
            elif hidden_states.shape[0] != attn_metadata.seq_lens_cuda.shape[0]:
                ends = torch.cumsum(attn_metadata.seq_lens_cuda, dim=0, dtype=torch.long) - 1
                hidden_states = hidden_states[ends]
        logits = lm_head(hidden_states)
        return logits.float() if upcast_to_float else logits
