"""A small configuration of latent attention to chosen keys, with dense feed-forwards alone."""

from __future__ import annotations

from typing import Any

from latent_sizes import SIZES

SPARSE: dict[str, Any] = {
    **SIZES,
    "mlp_layer_types": ["dense"] * SIZES["num_hidden_layers"],
    "index_topk": 2048,
    "index_head_dim": 32,
    "index_n_heads": 16,
}
#: Only the first and the third layer choose; each other sees what the one before it sees.
SHARED: dict[str, Any] = {**SPARSE, "indexer_types": ["full", "shared", "full", "shared"]}
