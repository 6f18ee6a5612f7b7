"""MLA: multi-head latent attention, whose cache holds one latent and one rotated key per token."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin import compiled_ops
from trtllm_scaffold.standin.attention import build, mla_build
from trtllm_scaffold.standin.attention.batch import Segment
from trtllm_scaffold.standin.attention.kernel import causal_mask
from trtllm_scaffold.standin.attention.metadata import AttentionMetadata
from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.interface import PositionalEmbeddingParams
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig


@contract("MLA")
class MLA(compiled_ops.Findable):
    """Attention through low-rank latents, over packed tokens (arXiv:2405.04434, section 2.1).

    Prefill expands keys and values by ``kv_b_proj``; a generated token meets the latents
    themselves, by ``k_b_proj_trans`` and ``v_b_proj``. With N heads on this rank:

    - ``kv_a_proj_with_mqa``: rows of the query's latent, the latent, the shared key;
      without ``q_lora_rank`` the query has ``q_proj`` of its own instead of ``q_b_proj``;
    - ``kv_b_proj``: the keys' rows of all heads, then the values' rows of all heads;
    - ``k_b_proj_trans`` [N, kv_lora_rank, nope] and ``v_b_proj`` [N, v_head_dim, kv_lora_rank]:
      the same numbers again.

    The softmax scale is ``m^2 / sqrt(nope + rope)``, m being YaRN's magnitude for
    ``mscale_all_dim``.

    Raises:
        AssertionError: If the backend has no latent attention, positions are missing, or the
            heads do not fit the tensor-parallel size.
        NotImplementedError: For biases, quantization and speculative decoding.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        qk_nope_head_dim: int,
        qk_rope_head_dim: int,
        v_head_dim: int,
        q_lora_rank: int | None,
        kv_lora_rank: int,
        predicted_tokens_per_seq: int,
        max_position_embeddings: int,
        bias: bool,
        aux_stream: Any = None,
        pos_embd_params: PositionalEmbeddingParams | None = None,
        layer_idx: int | None = None,
        dtype: torch.dtype | None = None,
        dense_bias: bool | None = None,
        config: ModelConfig[Any] | None = None,
        enable_helix_test: bool = False,
        mapping_with_cp: Mapping | None = None,
        reduce_output: bool = True,
        aux_stream_dict: Any = None,
        num_groups: int = 1,
        o_lora_rank: int = 1024,
        fuse_qkv_a_proj: bool = True,
        rms_norm_eps: float | None = None,
        flashinfer_mla_backend: str | None = None,
    ) -> None:
        super().__init__()
        config = config or ModelConfig()
        mla_build.check_supported(
            config,
            bias=bias or bool(dense_bias),
            predicted_tokens_per_seq=predicted_tokens_per_seq,
            grouped=num_groups != 1,
            fused=fuse_qkv_a_proj,
        )
        assert pos_embd_params is not None and pos_embd_params.rope is not None, (
            "MLA needs pos_embd_params with rope parameters"
        )
        assert num_attention_heads == num_key_value_heads, (
            f"MLA has as many key/value heads as query heads: {num_key_value_heads} are not "
            f"{num_attention_heads}"
        )
        self.layer_idx = layer_idx
        self.layer_idx_str = build.register(self, config, "mla")
        self.hidden_size, self.dtype = hidden_size, dtype
        self.max_position_embeddings = max_position_embeddings
        self.qk_nope_head_dim, self.qk_rope_head_dim = qk_nope_head_dim, qk_rope_head_dim
        self.qk_head_dim, self.v_head_dim = qk_nope_head_dim + qk_rope_head_dim, v_head_dim
        self.q_lora_rank, self.kv_lora_rank = q_lora_rank, kv_lora_rank
        self.is_lite, self.is_dsa = q_lora_rank is None, False
        self.pos_embd_params, self.quant_config = pos_embd_params, config.get_quant_config()
        self.mapping = mapping_with_cp or config.mapping
        mapping = build.attention_mapping(self.mapping)
        self.tp_size, self.tp_rank = mapping.tp_size, mapping.tp_rank
        assert num_attention_heads % self.tp_size == 0, (
            f"num_attention_heads {num_attention_heads} is not divisible by the tensor-parallel "
            f"size {self.tp_size}"
        )
        self.num_heads = self.num_heads_tp = num_attention_heads // self.tp_size
        self.num_heads_tp_cp = self.num_heads
        mla_build.make_projections(self, config, mapping, reduce_output)
        mla_build.make_norms(self, config, rms_norm_eps)
        self.softmax_scale = self._softmax_scale()
        self.rope_fusion = config.attn_backend == "TRTLLM"
        self.rotary_emb = mla_build.make_rotary(self)
        if not config.skip_create_weights_in_init:
            self.create_weights()

    def _softmax_scale(self) -> float:
        assert self.pos_embd_params is not None and self.pos_embd_params.rope is not None
        rope = self.pos_embd_params.rope
        magnitude = 1.0
        if rope.scale > 1:
            magnitude = 0.1 * rope.mscale_all_dim * math.log(rope.scale) + 1.0
        return magnitude**2 / math.sqrt(self.qk_head_dim)

    def create_weights(self) -> None:
        """Make the two parameters that decoding reads in place of ``kv_b_proj``."""
        keys = self.num_heads, self.kv_lora_rank, self.qk_nope_head_dim
        values = self.num_heads, self.v_head_dim, self.kv_lora_rank
        self.k_b_proj_trans = mla_build.empty_parameter(keys, self.dtype)
        self.v_b_proj = mla_build.empty_parameter(values, self.dtype)
        self.o_proj.create_weights()

    # ------------------------------------------------------------------ computation

    def forward(
        self,
        position_ids: torch.Tensor | None,
        hidden_states: torch.Tensor,
        attn_metadata: AttentionMetadata,
        all_reduce_params: Any = None,
        latent_cache_gen: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Latent attention of packed tokens.

        Args:
            position_ids: ``[1, tokens]``; not read where the backend rotates (TRTLLM).
            hidden_states: ``[tokens, hidden_size]``.
            attn_metadata: The prepared batch.
            all_reduce_params: Options of the output projection's all-reduce.
            latent_cache_gen: Not supported.
            **kwargs: Ignored in 1.4; 1.2 takes none, ``lora_params`` included.

        Returns:
            ``[tokens, hidden_size]``, reduced over the tensor-parallel group.
        """
        if active() == "1.2" and kwargs:
            raise TypeError(f"MLA.forward() got unexpected keyword arguments {list(kwargs)}")
        if latent_cache_gen is not None:
            raise NotImplementedError("the stand-in has no context parallelism")
        if torch.compiler.is_compiling():
            output = compiled_ops.latent_attention(self, position_ids, hidden_states, attn_metadata)
        else:
            output = self.operator_forward(position_ids, hidden_states, attn_metadata)
        return self.o_proj(output, all_reduce_params=all_reduce_params)

    def operator_forward(
        self,
        position_ids: torch.Tensor | None,
        hidden_states: torch.Tensor,
        metadata: AttentionMetadata,
    ) -> torch.Tensor:
        """``[num_tokens, heads * v_head_dim]``: all but the output projection.

        What a compiler sees as one operator (the stand-in's own name).
        """
        hidden_states = hidden_states[: metadata.num_tokens]
        q, latents = self._projected(position_ids, hidden_states, metadata)
        held_by = mla_build.stored(self, latents, metadata)
        outputs = []
        for segment in metadata.prepared().segments:
            rows = slice(segment.first_token, segment.first_token + segment.num_tokens)
            held = held_by(segment)
            attend = self._expanded if segment.is_context else self._absorbed
            outputs.append(segment.unpad(attend(segment.pad(q[rows]), held, segment)))
        return torch.cat(outputs).flatten(1)

    def _projected(
        self, position_ids: torch.Tensor | None, x: torch.Tensor, metadata: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries [tokens, heads, qk_head_dim], and [tokens, kv_lora_rank + rope]: both rotated."""
        widths = [self.kv_lora_rank, self.qk_rope_head_dim]
        if self.is_lite:
            latent, key = self.kv_a_proj_with_mqa(x).split(widths, dim=-1)
            q = self.q_proj(x)
        else:
            assert self.q_lora_rank is not None
            widths = [self.q_lora_rank, *widths]
            q, latent, key = self.kv_a_proj_with_mqa(x).split(widths, dim=-1)
            q = self.q_b_proj(self.q_a_layernorm(q.contiguous()))
        latent = self.kv_a_layernorm(latent.contiguous())
        q = q.view(-1, self.num_heads, self.qk_head_dim)
        nope, turned = q.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        turned, key = self._rotated(position_ids, turned, key, metadata)
        return torch.cat([nope, turned], dim=-1), torch.cat([latent, key], dim=-1)

    def _rotated(
        self,
        position_ids: torch.Tensor | None,
        q: torch.Tensor,
        k: torch.Tensor,
        metadata: AttentionMetadata,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """TRTLLM rotates at the cache's positions; the others where position ids are given."""
        if self.rope_fusion:
            position_ids = metadata.prepared().token_positions
        elif position_ids is None:
            return q, k
        else:
            position_ids = position_ids.reshape(-1)[: k.shape[0]]
        turned = self.rotary_emb(position_ids, [q.flatten(1), k.contiguous()])
        return turned[0].view(q.shape), turned[1]

    def _expanded(self, q: torch.Tensor, held: torch.Tensor, segment: Segment) -> torch.Tensor:
        """[sequences, queries, heads, v_head_dim], keys and values expanded by ``kv_b_proj``.

        Args:
            q: [sequences, queries, heads, qk_head_dim].
            held: [sequences, keys, kv_lora_rank + rope].
            segment: The sequences.
        """
        latent, turned = held.split([self.kv_lora_rank, self.qk_rope_head_dim], dim=-1)
        both = self.kv_b_proj(latent)
        rows = self.num_heads * self.qk_nope_head_dim
        # all heads' keys come before all heads' values
        nope = both[..., :rows].unflatten(-1, (self.num_heads, self.qk_nope_head_dim))
        values = both[..., rows:].unflatten(-1, (self.num_heads, self.v_head_dim))
        shared = turned.unsqueeze(2).expand(-1, -1, self.num_heads, -1)
        return self._softmax(q, torch.cat([nope, shared], dim=-1), values, segment)

    def _absorbed(self, q: torch.Tensor, held: torch.Tensor, segment: Segment) -> torch.Tensor:
        """As `_expanded`, in the space of the latents, by the two derived parameters."""
        nope, turned = q.split([self.qk_nope_head_dim, self.qk_rope_head_dim], dim=-1)
        absorbed = torch.einsum("sqhn,hrn->sqhr", nope, self.k_b_proj_trans)
        query = torch.cat([absorbed, turned], dim=-1)
        keys = held.unsqueeze(2).expand(-1, -1, self.num_heads, -1)
        output = self._softmax(query, keys, keys[..., : self.kv_lora_rank], segment)
        return torch.einsum("sqhr,hvr->sqhv", output, self.v_b_proj)

    def _softmax(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segment: Segment
    ) -> torch.Tensor:
        mask = causal_mask(segment.positions, segment.num_keys)
        output = nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            scale=self.softmax_scale,
        )
        return output.transpose(1, 2)
