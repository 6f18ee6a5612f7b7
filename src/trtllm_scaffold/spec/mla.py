"""Multi-head latent attention: the widths of its latents and heads, and the latents' norms."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class MlaSpec:
    """Attention whose keys and values are expanded from one latent per token.

    With x the attention's input, for each head::

        c_q = q_norm(q_a(x));    q = [q_nope | rope(q_rope)] = q_b(c_q), or q(x) without q_a
        c = kv_norm(kv_a(x));    k = [k_b(c) | rope(k_rope(x))];    v = v_b(c)

    The rotated part of the keys is shared by all heads.

    Attributes:
        q_lora_rank: Width of the query's latent, or None for one projection of the input.
        kv_lora_rank: Width of the latent.
        qk_nope_head_dim, qk_rope_head_dim: The plain and the rotated part of a head, in this
            order; `AttentionSpec.head_dim` is their sum.
        v_head_dim: Width of a head's value.
        q_norm, kv_norm: The latents' norms; the first is None without a query's latent.
        biases: Which of q_a, q_b (or q), kv_a, k_b, v_b and o have one.
        magnitude: The softmax scale is magnitude ** 2 / sqrt(head_dim): YaRN's magnitude for
            ``mscale_all_dim`` where the rope settings have it, else 1.
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
