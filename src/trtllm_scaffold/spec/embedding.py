"""The embedding axis: from token ids to the first layer's input."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding.

    Attributes:
        dim: Width of the embedding rows (hidden_size unless projected).
        multiplier: Factor on the rows, if any; HF rounds it to the model's dtype.
        projection: Whether a bias-free linear maps `dim` to hidden_size.
        norm: The norm on the embedded tokens, if any.
        rows: Rows of the table where it has more than vocab_size, else None.
    """

    dim: Quantity
    multiplier: Quantity | None = None
    projection: bool = False
    norm: NormSpec | None = None
    rows: Quantity | None = None
