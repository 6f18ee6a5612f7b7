"""The attention axis: heads, biases, scale, window and query-key norm of one layer kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.block_indexer import BlockIndexerSpec
from trtllm_scaffold.spec.mla import MlaSpec
from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class QKNormSpec:
    """A norm on queries and keys between their projections and the score product.

    Attributes:
        norm: What it computes.
        scope: ``head`` normalises each head by itself (weight [head_dim]); ``full`` the whole
            projection (weight [heads * head_dim]); ``per_head_weight`` each head by itself
            with a weight of its own (weight [heads, head_dim]).
        when: Before or after the rotary embedding.
    """

    norm: NormSpec
    scope: Literal["head", "full", "per_head_weight"]
    when: Literal["before_rope", "after_rope"] = "before_rope"


@dataclass(frozen=True)
class GateSpec:
    """A factor on the attention's output before its last projection, from the layer's input.

    Attributes:
        activation: ``sigmoid`` or ``softplus``, of a linear function of the attention's input.
        width: ``full`` gives each element its own factor, ``head`` one to each head.
        bias: Whether the linear function has a bias.
        head_bias: Whether one stored number for each head is added to all its columns.
        beside_queries: With latents: it is computed by the projection of queries from their
            latent, not from the attention's input.
    """

    activation: Literal["sigmoid", "softplus"]
    width: Literal["full", "head"]
    bias: bool = False
    head_bias: bool = False
    beside_queries: bool = False


@dataclass(frozen=True)
class QueryFactorSpec:
    """A factor on queries that grows with the position.

    Attributes:
        scale, period: Its numbers.
        form: ``steps`` for ``1 + scale * log(1 + floor((position + 1) / period))``, ``power``
            for ``(1 + (position + 1) / period) ** scale``.
    """

    scale: Quantity
    period: Quantity
    form: Literal["steps", "power"] = "steps"


@dataclass(frozen=True)
class AttentionSpec:
    """Softmax attention of one layer kind.

    Attributes:
        num_attention_heads: Query heads; the expression may use ``layer_idx``.
        num_key_value_heads: Key and value heads (1 for MQA).
        head_dim: Width of one head.
        q_bias, k_bias, v_bias, o_bias: Whether each projection adds a bias.
        scale: The factor on q.k before the softmax; its expression may use ``layer_idx``.
        window: Visible keys including the current one, or None for all.
        chunked: The window does not slide: visible are the keys since the last position that is
            a multiple of its size.
        qk_norm: The query-key norm, if any.
        softcap: c of ``c * tanh(scores / c)``, if any.
        sinks: Whether a learned logit per head joins the softmax (an extra column without a
            value, or, which is equal, a factor sigmoid(logsumexp(scores) - sink)).
        qkv_clip: Bound on the absolute value of q, k and v, if any.
        clips_normed: The bound applies to queries and keys behind their norm, not before it.
        output_gate: The gate on the output, if any.
        output_norm: A norm over all heads' outputs before the last projection, if any.
        mla: The latents of multi-head latent attention, if it is that. `head_dim` is the width
            of its keys then, and its biases are told there.
        query_factor: The factor on queries that grows with the position, if any.
        block_indexer: The choice of blocks of keys that are seen, if there is one.
        shares_choice: The layer sees the keys that the last layer before it with an indexer of
            its own has chosen (`MlaSpec.indexer` is that layer's).
        value_dim: Width of a value head, where it is narrower than a key head.
        value_scale: The factor on values, or None for 1.
    """

    num_attention_heads: Quantity
    num_key_value_heads: Quantity
    head_dim: Quantity
    q_bias: bool
    k_bias: bool
    v_bias: bool
    o_bias: bool
    scale: Quantity
    window: Quantity | None = None
    qk_norm: QKNormSpec | None = None
    softcap: Quantity | None = None
    sinks: bool = False
    qkv_clip: Quantity | None = None
    clips_normed: bool = False
    output_gate: GateSpec | None = None
    output_norm: NormSpec | None = None
    mla: MlaSpec | None = None
    chunked: bool = False
    query_factor: QueryFactorSpec | None = None
    block_indexer: BlockIndexerSpec | None = None
    shares_choice: bool = False
    value_dim: Quantity | None = None
    value_scale: Quantity | None = None

    @property
    def kind(self) -> str:
        """MHA, GQA, MQA or MLA."""
        if self.mla is not None:
            return "MLA"
        if self.num_key_value_heads.value == 1:
            return "MQA"
        same = self.num_key_value_heads.value == self.num_attention_heads.value
        return "MHA" if same else "GQA"

    @property
    def has_default_scale(self) -> bool:
        """Whether the scale is the usual 1 / sqrt(head_dim), for every configuration.

        A key of its own, such as ``query_pre_attn_scalar``, may hold head_dim in this one alone.
        """
        equal = abs(self.scale.value * float(self.head_dim.value) ** 0.5 - 1.0) < 1e-6
        usual = self.head_dim.keys | {"head_dim"}
        return equal and bool(self.scale.keys) and self.scale.keys <= usual
