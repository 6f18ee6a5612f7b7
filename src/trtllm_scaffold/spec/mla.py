"""Multi-head latent attention: the widths of its latents and heads, and the latents' norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class IndexerSpec:
    """A choice of the keys that a token sees: those of the largest index scores.

    With c_q the normed latent of queries and x the attention's input, for each index head::

        i = rope(index_q(c_q));  k = rope(key_norm(index_k(x)));  w = index_weights(x)
        score(s, t) = sum over heads of w(s) * max(i(s) . k(t), 0)

    The rotation turns the first `MlaSpec.qk_rope_head_dim` numbers, with the frequencies of
    the attention's own. Earlier tokens and the token itself can be chosen.

    Attributes:
        num_heads: Index heads.
        head_dim: Width of an index head and of the index key.
        top_k: Keys that are chosen.
        key_norm: The norm on index keys.
        style: How the rotation pairs numbers; see `RopeSpec`.
    """

    num_heads: Quantity
    head_dim: Quantity
    top_k: Quantity
    key_norm: NormSpec
    style: Literal["neox", "interleaved"]


@dataclass(frozen=True)
class MlaSpec:
    """Attention whose keys and values are expanded from one latent per token.

    With x the attention's input, for each head::

        c_q = q_norm(q_a(x));    q = [q_nope | rope(q_rope)] = q_b(c_q), or q(x) without q_a
        c = kv_norm(kv_a(x));    k = [k_b(c) | rope(k_rope(x))];    v = v_b(c)

    The rotated part of the keys is shared by all heads. c_q and c may be multiplied by a factor,
    which an indexer then sees as well, and k_rope(x) may pass a norm before its rotation.

    Attributes:
        q_lora_rank: Width of the query's latent, or None for one projection of the input.
        kv_lora_rank: Width of the latent.
        qk_nope_head_dim, qk_rope_head_dim: The plain and the rotated part of a head, in this
            order; `AttentionSpec.head_dim` is their sum.
        v_head_dim: Width of a head's value.
        q_norm, kv_norm: The latents' norms; the first is None without a query's latent.
        q_scale, kv_scale: The factors on the normed latents, None for 1.
        rope_norm: The norm on the shared part of the keys, if any.
        biases: Which of q_a, q_b (or q), kv_a, k_b, v_b and o have one.
        magnitude: The softmax scale is magnitude ** 2 / sqrt(head_dim): YaRN's magnitude for
            ``mscale_all_dim`` where the rope settings have it, else 1.
        indexer: The choice of keys, if each token sees chosen ones alone.
        raw_latent: q_b reads [c_q | q_a(x)], the latent behind and before its norm.
    """

    q_lora_rank: Quantity | None
    kv_lora_rank: Quantity
    qk_nope_head_dim: Quantity
    qk_rope_head_dim: Quantity
    v_head_dim: Quantity
    q_norm: NormSpec | None
    kv_norm: NormSpec
    biases: tuple[str, ...] = ()
    magnitude: float = 1.0
    indexer: IndexerSpec | None = None
    raw_latent: bool = False
    q_scale: Quantity | None = None
    kv_scale: Quantity | None = None
    rope_norm: NormSpec | None = None

    @property
    def is_plain(self) -> bool:
        """Whether nothing happens to latents and shared keys but the norms of the latents."""
        scaled = self.q_scale is not None or self.kv_scale is not None
        return not scaled and self.rope_norm is None and not self.raw_latent
