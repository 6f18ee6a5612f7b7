"""SpecMetadata: the annotation that ports use; the stand-in does not speculate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class SpecMetadata:
    """State of speculative decoding, never made by the stand-in's own runtime."""

    max_num_requests: int
    max_draft_len: int
    max_total_draft_tokens: int
    num_generations: int = 0
    is_cuda_graph: bool = False
    spec_dec_mode: Any = None
    draft_tokens: torch.Tensor | None = None
    draft_lens: torch.Tensor | None = None
    request_ids: list[int] | None = None

    def prepare(self) -> None:
        """Nothing to prepare."""

    def is_layer_capture(self, layer_id: int) -> bool:
        """No layer is captured."""
        return False

    def maybe_capture_hidden_states(
        self, layer_id: int, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> None:
        """Nothing is captured."""
