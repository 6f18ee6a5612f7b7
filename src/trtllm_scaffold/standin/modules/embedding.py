"""Embedding and LMHead: the vocabulary at both ends, cut by vocabulary or by width."""

from __future__ import annotations

import math
from collections.abc import Mapping as Dict
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.parameter import Parameter

from trtllm_scaffold.standin.distributed import allgather
from trtllm_scaffold.standin.functional import AllReduceParams
from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules.linear import Linear
from trtllm_scaffold.standin.quantization import QuantConfig
from trtllm_scaffold.standin.weight_shards import TensorParallelMode

#: Whether an id outside of a whole vocabulary embeds to zero (1.2: an index error).
_ZERO_FOR_FOREIGN_IDS = {"1.2": False, "1.4": True}


@contract("LMHead")
class LMHead(Linear):
    """Hidden states to logits; never a bias; unsharded under attention data parallelism.

    By columns the vocabulary is padded up to a multiple of the tensor-parallel size; the last
    rank's tail is zero and gathered logits are trimmed.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        mapping: Mapping | None = None,
        tensor_parallel_mode: TensorParallelMode | None = None,
        gather_output: bool = False,
        reduce_output: bool = True,
        use_custom_cublas_mm: bool = False,
        quant_config: QuantConfig | None = None,
    ) -> None:
        mapping = mapping or Mapping()
        if mapping.enable_attention_dp:
            tensor_parallel_mode = None
        column = tensor_parallel_mode == TensorParallelMode.COLUMN
        row = tensor_parallel_mode == TensorParallelMode.ROW
        rows = _padded(num_embeddings, mapping.tp_size if column else 1)
        width = _padded(embedding_dim, mapping.tp_size if row else 1)
        super().__init__(
            width,
            rows,
            bias=False,
            dtype=dtype,
            mapping=mapping,
            tensor_parallel_mode=tensor_parallel_mode,
            gather_output=gather_output,
            quant_config=quant_config,
            reduce_output=reduce_output,
            use_custom_cublas_mm=use_custom_cublas_mm,
        )
        self.padding_size = rows - num_embeddings + width - embedding_dim
        self.enable_lm_head_tp_in_adp = (
            mapping.enable_attention_dp and mapping.enable_lm_head_tp_in_adp
        )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if self.has_any_quant:
            self._refuse_quantized(row)
            return
        if row and self.tp_rank == self.tp_size - 1:
            self.in_features -= self.padding_size
        self.weight = Parameter(torch.empty(self.out_features, self.in_features, dtype=dtype))

    def _refuse_quantized(self, row: bool) -> None:
        if self.padding_size > 0 or row:
            raise NotImplementedError("a quantized head takes no padding and no ROW mode")
        if self.enable_lm_head_tp_in_adp:
            raise NotImplementedError("a quantized head takes no lm_head TP in attention DP")

    @property
    def vocab_size_padded(self) -> int:
        """Vocabulary with padding where it is gathered, else this rank's rows."""
        if self.tp_mode == TensorParallelMode.COLUMN and self.gather_output:
            return self.out_features * self.tp_size
        return self.out_features

    def forward(  # type: ignore[override]
        self,
        input: torch.Tensor,
        *,
        all_reduce_params: AllReduceParams | None = None,
        mapping_lm_head_tp: Mapping | None = None,
        is_spec_decoding_head: bool = False,
    ) -> torch.Tensor:
        """``[..., hidden]`` to logits: whole if gathered or unsharded, else this rank's rows."""
        if is_spec_decoding_head and self.enable_lm_head_tp_in_adp:
            assert mapping_lm_head_tp is not None
            width = math.ceil(self.out_features / mapping_lm_head_tp.tp_size)
            first = mapping_lm_head_tp.tp_rank * width
            return F.linear(input, self.weight[first : first + width])
        output = super().forward(input, all_reduce_params=all_reduce_params)
        if self._gathers_padding():
            output = output[..., : -self.padding_size]
        return output

    def _gathers_padding(self) -> bool:
        gathers = self.tp_mode == TensorParallelMode.COLUMN and self.gather_output
        return gathers and self.padding_size > 0

    def skip_forward(
        self, input: torch.Tensor, *, all_reduce_params: AllReduceParams | None = None
    ) -> torch.Tensor:
        """Uninitialised logits of the right shape: the pipeline stage has no head."""
        return input.new_empty((*input.shape[:-1], self.num_embeddings))

    def load_weights(
        self, weights: list[Dict[str, Any]], allow_partial_loading: bool = False
    ) -> None:
        """Load ``weight`` [vocabulary, hidden]; the last rank's padding becomes zero."""
        padded = self.weight.data
        cut = self.tp_mode == TensorParallelMode.COLUMN and self.padding_size > 0
        if cut:
            present = self.num_embeddings - self.tp_rank * self.out_features
            present = min(max(present, 0), self.out_features)
            padded.zero_()
            self.weight.data = padded[:present]
        try:
            super().load_weights(weights, allow_partial_loading=allow_partial_loading)
        finally:
            self.weight.data = padded


@contract("Embedding")
class Embedding(LMHead):
    """Token ids to vectors: by columns the vocabulary is cut, by rows the width.

    Under attention data parallelism every rank holds the whole table.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype | None = None,
        mapping: Mapping | None = None,
        tensor_parallel_mode: TensorParallelMode | None = None,
        gather_output: bool = False,
        reduce_output: bool = True,
        enable_torch_compile_for_embedding: bool | None = False,
        use_custom_cublas_mm: bool = False,
    ) -> None:
        options: dict[str, Any] = {"reduce_output": reduce_output} if active() == "1.4" else {}
        super().__init__(
            num_embeddings,
            embedding_dim,
            dtype=dtype,
            mapping=mapping,
            tensor_parallel_mode=tensor_parallel_mode,
            gather_output=gather_output,
            use_custom_cublas_mm=use_custom_cublas_mm,
            **options,
        )
        self.enable_torch_compile_for_embedding = enable_torch_compile_for_embedding
        width = math.ceil(num_embeddings / self.tp_size)
        self.vocab_start_index = min(self.tp_rank * width, num_embeddings)
        self.vocab_end_index = min((self.tp_rank + 1) * width, num_embeddings)

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Ids ``[tokens]`` (any shape) to ``[tokens, width]``.

        The width is whole, except by rows without ``gather_output``: then this rank's part.
        """
        if self.tp_mode == TensorParallelMode.COLUMN:
            output = self._look_up(input, self.vocab_start_index, self.vocab_end_index)
            if self.tp_size > 1 and self.all_reduce is not None:
                output = self.all_reduce(output)
            return output
        if _ZERO_FOR_FOREIGN_IDS[active()]:
            output = self._look_up(input, 0, self.weight.shape[0])
        else:
            output = F.embedding(input, self.weight)
        if self.tp_mode == TensorParallelMode.ROW and self.gather_output and self.tp_size > 1:
            return self._gather_width(output)
        return output

    def _look_up(self, ids: torch.Tensor, first: int, last: int) -> torch.Tensor:
        mine = (ids >= first) & (ids < last)
        vectors = F.embedding(torch.where(mine, ids - first, 0), self.weight)
        return vectors.masked_fill(~mine.unsqueeze(-1), 0)

    def _gather_width(self, output: torch.Tensor) -> torch.Tensor:
        if self.padding_size == 0:
            return allgather(output, self.mapping)
        if self.tp_rank == self.tp_size - 1:
            output = F.pad(output, (0, self.padding_size))
        return allgather(output, self.mapping)[..., : -self.padding_size]

    def skip_forward(self, input: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Uninitialised vectors of the right shape: the pipeline stage has no embedding."""
        shape = (*input.shape, self.embedding_dim)
        return torch.empty(shape, dtype=self.dtype, device=input.device)


def _padded(size: int, parts: int) -> int:
    return math.ceil(size / parts) * parts
