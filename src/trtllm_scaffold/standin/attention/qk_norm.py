"""QKNormRoPEAttention: RMS norms of each query and key head before the rotation."""

from __future__ import annotations

import math
from typing import Any

import torch

from trtllm_scaffold.standin.attention.attention import Attention
from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.interface import PositionalEmbeddingParams
from trtllm_scaffold.standin.kernels.choice import fits
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.modules.norms import RMSNorm


def compute_yarn_parameters(config: Any) -> tuple[float, float, float, float]:
    """What the fused op is told about YaRN, read from the model's config.

    1.2 asks the scaling *dict* for an attribute, so it never finds YaRN there.

    Returns:
        Factor, first and last interpolated dimension, factor of cos and sin;
        ``(1.0, 0, 0, 1.0)`` without YaRN (Peng et al., arXiv 2309.00071, equations 17 to 22).
    """
    scaling = getattr(config, "rope_scaling", None)
    none = (1.0, 0, 0, 1.0)
    if scaling is None:
        return none
    kind = getattr(scaling, "rope_type", None) if active() == "1.2" else scaling.get("rope_type")
    if kind != "yarn":
        return none
    head_dim = getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    dim = int(head_dim * getattr(config, "partial_rotary_factor", 1.0))
    longest = config.max_position_embeddings
    original = scaling.get("original_max_position_embeddings", longest)
    factor = scaling.get("factor", 1.0)
    if "original_max_position_embeddings" in scaling:
        factor = longest / original
    turns = (scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1)
    low, high = (
        dim * math.log(original / (count * 2 * math.pi)) / (2 * math.log(config.rope_theta))
        for count in turns
    )
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    magnitude = scaling.get("attention_factor")
    if magnitude is None:
        magnitude = _yarn_magnitude(scaling, factor)
    return factor, max(low, 0), min(high, dim - 1), magnitude


def _yarn_magnitude(scaling: dict[str, Any], factor: float) -> float:
    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    return magnitude(1.0)


@contract("QKNormRoPEAttention")
class QKNormRoPEAttention(Attention):
    """Attention with ``q_norm`` and ``k_norm`` over ``head_dim``, before rope.

    With ``fuse_qk_norm_rope`` norm and rope are one op that knows theta, the pairing and YaRN
    only, and reads the rotary share (1.4; 1.2 turns whole heads) and YaRN from the model's
    config: any other scaling of the layer's rope parameters is silently lost, as in the real
    library.

    Raises:
        AssertionError: If ``fuse_qk_norm_rope`` is combined with ``skip_rope``, or in 1.2 with
            ``use_gemma_rms_norm``.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        max_position_embeddings: int,
        bias: bool,
        pos_embd_params: PositionalEmbeddingParams | None = None,
        skip_rope: bool = False,
        fuse_qk_norm_rope: bool = True,
        layer_idx: int | None = None,
        dtype: torch.dtype | None = None,
        dense_bias: bool | None = None,
        config: ModelConfig,
        q_scaling: float = 1.0,
        disable_deep_gemm: bool = False,
        use_gemma_rms_norm: bool = False,
        attn_output_gate: bool | None = None,
        is_qk_norm: bool = True,
        reduce_output: bool = True,
        rope_fusion: bool = True,
        mapping_with_cp: Mapping | None = None,
    ) -> None:
        assert not (fuse_qk_norm_rope and skip_rope), "fuse_qk_norm_rope excludes skip_rope"
        if active() == "1.2":
            assert not (fuse_qk_norm_rope and use_gemma_rms_norm), (
                "fuse_qk_norm_rope excludes use_gemma_rms_norm"
            )
        later: dict[str, Any] = {} if active() == "1.2" else {"mapping_with_cp": mapping_with_cp}
        super().__init__(
            hidden_size=hidden_size,
            num_attention_heads=num_attention_heads,
            num_key_value_heads=num_key_value_heads,
            max_position_embeddings=max_position_embeddings,
            bias=bias,
            pos_embd_params=pos_embd_params,
            rope_fusion=rope_fusion
            and not (fuse_qk_norm_rope or skip_rope or attn_output_gate or use_gemma_rms_norm),
            layer_idx=layer_idx,
            dtype=dtype,
            dense_bias=dense_bias,
            config=config,
            q_scaling=q_scaling,
            disable_deep_gemm=disable_deep_gemm,
            attn_output_gate=attn_output_gate,
            reduce_output=reduce_output,
            **later,
        )
        self.pretrained_config = config.pretrained_config
        self.fuse_qk_norm_rope, self.skip_rope = fuse_qk_norm_rope, skip_rope
        self.use_gemma_rms_norm, self.is_qk_norm = use_gemma_rms_norm, is_qk_norm
        options: dict[str, Any] = {
            "hidden_size": self.head_dim,
            "eps": self.pretrained_config.rms_norm_eps,
            "dtype": self.pretrained_config.torch_dtype,
            "has_weights": is_qk_norm,
            "use_gemma": use_gemma_rms_norm,
        }
        self.q_norm = RMSNorm(**options)
        self.k_norm = RMSNorm(**options)
        cuda = torch.cuda.is_available()
        self.aux_stream = torch.cuda.Stream() if cuda else None
        self.ln_events = [torch.cuda.Event(), torch.cuda.Event()] if cuda else [None, None]

    def apply_qk_norm(self, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Norm of each head: ``[tokens, heads * head_dim]`` in and out."""
        # [tokens, heads * head_dim] -> [tokens * heads, head_dim]
        q = self.q_norm(q.reshape(-1, self.head_dim)).reshape(-1, self.q_size)
        k = self.k_norm(k.reshape(-1, self.head_dim)).reshape(-1, self.kv_size)
        return q, k

    def apply_qk_norm_rope(
        self, qkv: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, None, None]:
        """What the fused op computes: norms, then rope by theta, pairing and YaRN alone."""
        assert self.pos_embd_params is not None and self.pos_embd_params.rope is not None
        frequencies, magnitude = self._frequencies(self.pos_embd_params.rope.theta, qkv.device)
        if fits(qkv):
            neox = self.pos_embd_params.is_neox
            self._norm_and_rotate(qkv, position_ids, frequencies, magnitude, neox)
            return qkv, None, None
        q, k, v = self.split_qkv(qkv)
        if self.is_qk_norm:
            q, k = self.apply_qk_norm(q, k)
        angle = position_ids.reshape(-1, 1).float() * frequencies
        cos, sin = angle.cos() * magnitude, angle.sin() * magnitude
        neox = self.pos_embd_params.is_neox
        q = rotate_heads(q.view(-1, self.num_heads, self.head_dim), cos, sin, neox)
        k = rotate_heads(k.view(-1, self.num_key_value_heads, self.head_dim), cos, sin, neox)
        return torch.cat([q.flatten(1), k.flatten(1), v], dim=-1), None, None

    def _frequencies(self, theta: float, device: torch.device) -> tuple[torch.Tensor, float]:
        """As :func:`fused_op_frequencies`, made once: a transfer per call waits for the host."""
        held: tuple[torch.Tensor, float] | None = self.__dict__.get("_held_frequencies")
        if held is None or held[0].device != device:
            share = 1.0  # the op of 1.2 has no argument for the width: it turns whole heads
            if active() == "1.4":
                share = getattr(self.pretrained_config, "partial_rotary_factor", 1.0)
            width = int(self.head_dim * share)
            yarn = compute_yarn_parameters(self.pretrained_config)
            made, magnitude = fused_op_frequencies(width, theta, yarn)
            held = self.__dict__["_held_frequencies"] = made.to(device), magnitude
        return held

    def _norm_and_rotate(
        self,
        qkv: torch.Tensor,
        position_ids: torch.Tensor,
        frequencies: torch.Tensor,
        magnitude: float,
        neox: bool,
    ) -> None:
        from trtllm_scaffold.standin.kernels.rotary import norm_and_rotate

        norm_and_rotate(
            qkv,
            (self.num_heads, self.num_key_value_heads, self.head_dim),
            (self.q_norm.weight, self.k_norm.weight) if self.is_qk_norm else None,
            self.q_norm.variance_epsilon,
            frequencies,
            magnitude,
            position_ids,
            neox,
        )

    def apply_rope(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Norm and rope: fused, or the norms here and rope as the base does it."""
        if not self.fuse_qk_norm_rope:
            q, k, v = self.split_qkv(q, k, v)
            q, k = self.apply_qk_norm(q, k)
            return (q, k, v) if self.skip_rope else super().apply_rope(q, k, v, position_ids)
        if position_ids is None:
            raise TypeError("the fused norm and rope need position_ids")
        if k is not None and v is not None:
            q = torch.cat([q, k, v], dim=-1)
        return self.apply_qk_norm_rope(q, position_ids)


def fused_op_frequencies(
    dim: int, theta: float, yarn: tuple[float, float, float, float]
) -> tuple[torch.Tensor, float]:
    """Radians per position ``[dim / 2]`` float32, and the factor of cos and sin."""
    factor, low, high, magnitude = yarn
    half = torch.arange(0, dim, 2, dtype=torch.float32)
    frequency = theta ** (-half / dim)
    if factor != 1.0:
        step = torch.arange(dim // 2, dtype=torch.float32)
        ramp = ((step - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        frequency = frequency / factor * ramp + frequency * (1 - ramp)
    return frequency, magnitude


def rotate_heads(
    heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, neox: bool
) -> torch.Tensor:
    """Rotate the first ``2 * cos.shape[1]`` numbers of each head.

    Args:
        heads: ``[tokens, heads, head_dim]``.
        cos: ``[tokens, rotary / 2]``.
        sin: Like ``cos``.
        neox: Pair ``i`` with ``i + rotary / 2``; else neighbours.
    """
    rotary = 2 * cos.shape[1]
    turned, rest = heads[..., :rotary].float(), heads[..., rotary:]
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    first, second = turned.chunk(2, -1) if neox else (turned[..., 0::2], turned[..., 1::2])
    pair = (first * cos - second * sin, second * cos + first * sin)
    out = torch.cat(pair, -1) if neox else torch.stack(pair, -1).flatten(-2)
    return torch.cat([out.to(heads.dtype), rest], dim=-1)
