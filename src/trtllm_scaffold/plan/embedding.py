"""The embedding axis of a port."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.spec import ModelSpec


def plan_embedding(spec: ModelSpec) -> Answers:
    """Answers of the embedding axis."""
    embedding = spec.embedding
    return {
        "embedding_multiplier": code(embedding.multiplier),
        "embedding_projection": embedding.projection,
        "embedding_norm": embedding.norm is not None,
        "embedding_rows": code(embedding.rows),
    }
