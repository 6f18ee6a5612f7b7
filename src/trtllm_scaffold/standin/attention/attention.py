"""Attention: fused QKV projection, rope, backend and output projection of one layer."""

from __future__ import annotations

from typing import Any

import torch

from trtllm_scaffold.standin import compiled_ops
from trtllm_scaffold.standin.attention import build
from trtllm_scaffold.standin.attention.metadata import AttentionMetadata
from trtllm_scaffold.standin.generation import active, contract, only_in
from trtllm_scaffold.standin.interface import (
    AttentionMask,
    PositionalEmbeddingParams,
    PredefinedAttentionMask,
)
from trtllm_scaffold.standin.late_methods import since_1_4
from trtllm_scaffold.standin.lora import LoraLayer
from trtllm_scaffold.standin.lora import LoraModuleType as kinds  # noqa: N813
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig


@contract("Attention")
class Attention(compiled_ops.Findable):
    """Multi-head, grouped-query or multi-query attention over packed tokens.

    ``num_heads``, ``num_key_value_heads``, ``q_size`` and ``kv_size`` are per rank. The softmax
    scale is ``1 / (sqrt(head_dim) * q_scaling)``.

    Raises:
        AssertionError: If the heads are not divisible by the tensor-parallel size.
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
        rope_fusion: bool | None = None,
        layer_idx: int | None = None,
        dtype: torch.dtype | None = None,
        dense_bias: bool | None = None,
        config: ModelConfig | None = None,
        q_scaling: float = 1.0,
        attention_chunk_size: int | None = None,
        disable_deep_gemm: bool = False,
        attn_output_gate: bool | None = None,
        use_custom_cublas_mm: bool = False,
        reduce_output: bool = True,
        mapping_with_cp: Mapping | None = None,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.layer_idx, self.layer_idx_str = layer_idx, str(layer_idx)
        self.register_to_config = config is not None
        if config is not None:
            self.layer_idx_str = build.register(self, config)
        config = config or ModelConfig()
        self.hidden_size = hidden_size
        self.max_position_embeddings = max_position_embeddings
        self.pos_embd_params = pos_embd_params
        self.dense_bias = bias if dense_bias is None else dense_bias
        self.q_scaling = q_scaling
        self.attn_output_gate = attn_output_gate
        self.attention_chunk_size = attention_chunk_size
        for name in build.CONFIG_FIELDS[active()]:
            setattr(self, name, getattr(config, name))
        self.mapping = mapping_with_cp or config.mapping
        mapping = build.attention_mapping(self.mapping)
        self._set_heads(config, mapping, num_attention_heads, num_key_value_heads, head_dim)
        self.quant_config = config.get_quant_config()
        self.attn_backend = config.attn_backend
        options = build.linear_options(
            config,
            dtype=dtype,
            mapping=mapping,
            disable_deep_gemm=disable_deep_gemm,
            use_custom_cublas_mm=use_custom_cublas_mm,
        )
        self._make_lora()
        self.qkv_proj = build.make_qkv_projection(self, bias, options)
        self.o_proj = build.make_output_projection(self, reduce_output, options)
        self.rope_fusion = build.fuses_rope(self.attn_backend, rope_fusion)
        self.rotary_emb = (
            None if self.rope_fusion else build.make_rotary(pos_embd_params, self.head_dim)
        )
        self.attn = build.make_backend(self, config)
        self.support_fused_qkv = self.attn.support_fused_qkv()
        if not config.skip_create_weights_in_init:
            self.create_weights()

    def _set_heads(
        self, config: ModelConfig, mapping: Mapping, heads: int, kv_heads: int, head_dim: int | None
    ) -> None:
        if head_dim is None:
            head_dim = getattr(config.pretrained_config, "head_dim", None)
        if not isinstance(head_dim, int):
            head_dim = self.hidden_size // heads
        self.head_dim = head_dim
        self.num_key_value_groups = heads // kv_heads
        self.tp_size, self.tp_rank, self.cp_size = mapping.tp_size, mapping.tp_rank, 1
        assert heads % self.tp_size == 0, (
            f"num_attention_heads {heads} is not divisible by the tensor-parallel size "
            f"{self.tp_size}"
        )
        self.num_heads = self.num_heads_tp_cp = heads // self.tp_size
        self.num_key_value_heads = -(-kv_heads // self.tp_size)
        self.q_size = self.num_heads * self.head_dim
        self.kv_size = self.num_key_value_heads * self.head_dim

    def _make_lora(self) -> None:
        """An adapter holds either q, k and v apart or the fused product."""
        sizes = [self.q_size, self.kv_size, self.kv_size]
        apart = [kinds.ATTENTION_Q, kinds.ATTENTION_K, kinds.ATTENTION_V]
        self.splitted_qkv_lora = LoraLayer(apart, sizes)
        self.fused_qkv_lora = LoraLayer([kinds.ATTENTION_QKV], [sum(sizes)])
        self.o_lora = LoraLayer([kinds.ATTENTION_DENSE], [self.hidden_size])

    def create_weights(self) -> None:
        """Make the output projection's parameters and tell the backend its quantization."""
        self.attn.update_quant_config(self.quant_config)
        self.o_proj.create_weights()

    # ------------------------------------------------------------------ q, k and v

    def split_qkv(
        self, q: torch.Tensor, k: torch.Tensor | None = None, v: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Fused ``[tokens, q_size + 2 * kv_size]`` apart; what is apart already is returned."""
        if k is None and v is None:
            q, k, v = q.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        assert k is not None and v is not None, "k and v must be given together"
        return q, k, v

    def convert_qkv(
        self, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The form that the backend takes: fused for TRTLLM, apart for the others."""
        if k is None and v is None and not self.support_fused_qkv:
            return self.split_qkv(q)
        if k is not None and v is not None and self.support_fused_qkv:
            return torch.cat([q, k, v], dim=-1), None, None
        return q, k, v

    @since_1_4
    def preprocess_qkv(
        self, qkv: torch.Tensor, position_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Gate split and rope (1.4).

        Returns:
            q, k, v and the output gate; k and v are None while fused, gate is None without one.
        """
        return self._split_and_rotate(qkv, position_ids)

    def _split_and_rotate(
        self, qkv: torch.Tensor, position_ids: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        q, k, v, gate = qkv, None, None, None
        if self.attn_output_gate:
            both, k, v = qkv.split([2 * self.q_size, self.kv_size, self.kv_size], dim=-1)
            # [tokens, heads, 2 * head_dim] -> q and gate, [tokens, heads * head_dim] each
            q, gate = (
                part.reshape(part.shape[0], -1)
                for part in both.view(both.shape[0], self.num_heads, -1).chunk(2, dim=-1)
            )
        q, k, v = self.apply_rope(q, k, v, position_ids)
        return q, k, v, gate

    def apply_rope(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        position_ids: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Rotate queries and keys here, unless the backend does it or there are no positions.

        Args:
            q: Queries, or q, k and v side by side if ``k`` and ``v`` are None.
            k: Keys.
            v: Values.
            position_ids: ``[1, tokens]``.

        Raises:
            TypeError: If positions are given, but the layer was made without rope parameters
                and the backend does not rotate.
        """
        if self.rope_fusion or position_ids is None:
            return q, k, v
        if self.rotary_emb is None:
            raise TypeError(
                "position_ids are given, but pos_embd_params is None and the backend does not "
                "rotate: a layer without rope must be called with position_ids=None"
            )
        q, k, v = self.split_qkv(q, k, v)
        q, k = self.rotary_emb(position_ids, [q, k])
        return q, k, v

    def apply_qk_norm(self, q: torch.Tensor, k: torch.Tensor) -> Any:
        """For subclasses that normalise queries and keys."""
        raise NotImplementedError(f"{type(self).__name__} does not define apply_qk_norm")

    @since_1_4
    def apply_output_gate(self, attention_output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """``attention_output * sigmoid(gate)``, both ``[tokens, heads * head_dim]`` (1.4)."""
        return attention_output * torch.sigmoid(gate)

    # ------------------------------------------------------------------ attention

    def create_output(
        self, q: torch.Tensor, attn_metadata: AttentionMetadata, mask_type: str
    ) -> list[torch.Tensor]:
        """An uninitialised attention output for ``q``."""
        return self.attn.create_output(q, metadata=attn_metadata, attention_mask=mask_type)

    def forward_impl(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        attn_metadata: AttentionMetadata,
        attention_mask: AttentionMask,
        attention_window_size: int | None,
        attention_mask_data: torch.Tensor | None,
        mrope_config: dict[str, Any] | None,
        attention_sinks: torch.Tensor | None = None,
        relative_attention_bias: torch.Tensor | None = None,
        relative_attention_max_distance: int = 0,
        has_lora: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        """The backend call, on the batch's own tokens: graph padding rows are cut off.

        Returns:
            ``[num_tokens, heads * head_dim]``.
        """
        if active() == "1.2" and kwargs:
            raise TypeError(f"forward_impl() got unexpected keyword arguments {list(kwargs)}")
        if mrope_config:
            raise NotImplementedError("the stand-in has no fused multi-axis rope")
        if relative_attention_bias is not None:
            raise NotImplementedError("the stand-in has no relative attention bias")
        given = q, k, v, attn_metadata, attention_mask
        options = attention_window_size, attention_mask_data, attention_sinks
        if torch.compiler.is_compiling():
            return compiled_ops.attention(self, *given, *options)
        return self.operator_forward(*given, *options)

    def operator_forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        metadata: AttentionMetadata,
        mask: AttentionMask,
        window: int | None,
        mask_data: torch.Tensor | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """What a compiler sees as one operator (the stand-in's own name)."""
        count = metadata.num_tokens
        return self.attn.forward(
            q[:count],
            None if k is None else k[:count],
            None if v is None else v[:count],
            metadata,
            attention_mask=mask,
            attention_window_size=window,
            attention_mask_data=mask_data,
            attention_sinks=sinks,
        )

    def forward(
        self,
        position_ids: torch.Tensor | None,
        hidden_states: torch.Tensor,
        attn_metadata: AttentionMetadata,
        attention_mask: AttentionMask = PredefinedAttentionMask.CAUSAL,
        mrope_config: dict[str, Any] | None = None,
        all_reduce_params: Any = None,
        lora_params: dict[str, Any] | None = None,
        attention_window_size: int | None = None,
        attention_mask_data: torch.Tensor | None = None,
        attention_sinks: torch.Tensor | None = None,
        relative_attention_bias: torch.Tensor | None = None,
        relative_attention_max_distance: int = 0,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of packed tokens.

        Args:
            position_ids: ``[1, tokens]``, or None for a layer without rope.
            hidden_states: ``[tokens, hidden_size]``.
            attn_metadata: The prepared batch.
            attention_mask: Causal, full or custom.
            mrope_config: Not supported.
            all_reduce_params: Options of the output projection's all-reduce.
            lora_params: Adapters by layer.
            attention_window_size: Visible keys of a query, its own included.
            attention_mask_data: Data of a custom mask.
            attention_sinks: ``[heads]`` float32; TRTLLM backend only.
            relative_attention_bias: Not supported (1.4).
            relative_attention_max_distance: Not supported (1.4).
            **kwargs: Ignored in 1.2, handed to ``forward_impl`` in 1.4.

        Returns:
            ``[tokens, hidden_size]``, reduced over the tensor-parallel group.
        """
        only_in("1.4", "Attention.forward", relative_attention_bias=relative_attention_bias)
        qkv = self.qkv_proj(hidden_states)
        if lora_params:
            for lora in (self.splitted_qkv_lora, self.fused_qkv_lora):
                update = lora(hidden_states, lora_params, self.layer_idx)
                qkv = qkv if update is None else qkv + update
        later = active() == "1.4"
        prepare = self.preprocess_qkv if later else self._split_and_rotate
        q, k, v, gate = prepare(qkv, position_ids)
        q, k, v = self.convert_qkv(q, k, v)
        assert attention_sinks is None or self.attn_backend == "TRTLLM", (
            f"attention sinks need attn_backend='TRTLLM', this is {self.attn_backend!r}"
        )
        options: dict[str, Any] = {
            "attention_sinks": attention_sinks,
            "has_lora": bool(lora_params),
        }
        if later:
            options |= {
                "relative_attention_bias": relative_attention_bias,
                "relative_attention_max_distance": relative_attention_max_distance,
                **kwargs,
            }
        output = self.forward_impl(
            q,
            k,
            v,
            attn_metadata,
            attention_mask,
            attention_window_size,
            attention_mask_data,
            mrope_config=mrope_config,
            **options,
        )
        if gate is not None:
            gate = gate[: output.shape[0]]
            output = self.apply_output_gate(output, gate) if later else output * gate.sigmoid()
        return self.o_proj(
            output,
            all_reduce_params=all_reduce_params,
            lora_params=lora_params,
            layer_idx=self.layer_idx,
        )
