"""DecoderLayer: the base that pipeline parallelism can skip."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class DecoderLayer(nn.Module, ABC):
    """One layer; subclasses write ``forward`` with these parameter names."""

    @abstractmethod
    def forward(
        self,
        position_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        attn_metadata: Any,
        residual: Any = ...,
        **kwargs: Any,
    ) -> Any:
        """Hidden states, or ``(hidden_states, residual)`` if a residual was given."""

    def skip_forward(
        self,
        position_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        attn_metadata: Any,
        residual: Any = ...,
        **kwargs: Any,
    ) -> Any:
        """The inputs unchanged: what a layer of another pipeline stage does here."""
        return hidden_states if residual is ... else (hidden_states, residual)
