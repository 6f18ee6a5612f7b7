"""Linear: the one matrix product of every model, cut over tensor-parallel ranks."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.distributed import AllReduce, allgather
from trtllm_scaffold.standin.functional import (
    AllReduceFusionOp,
    AllReduceParams,
    AllReduceStrategy,
)
from trtllm_scaffold.standin.generation import active, contract, only_in
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.quant_linear import UnquantizedLinearMethod, get_quant_method
from trtllm_scaffold.standin.quantization import QuantAlgo, QuantConfig, QuantMode
from trtllm_scaffold.standin.weight_shards import (
    TensorParallelMode,
    WeightMode,
    WeightsLoadingConfig,
)

__all__ = ["Linear", "TensorParallelMode", "WeightMode", "WeightsLoadingConfig"]

NVFP4_BACKENDS = ("cutlass", "cublaslt", "cuda_core")


@contract("Linear")
class Linear(nn.Module):
    """``x @ weight.T + bias``, whole or cut by columns (outputs) or rows (inputs).

    ``in_features`` and ``out_features`` are the whole sizes in the constructor and this rank's
    sizes as attributes. With ``skip_create_weights_in_init`` there is no ``weight`` before
    ``create_weights``.

    Raises:
        AssertionError: If the cut dimension is not divisible by the tensor-parallel size.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    input_scale: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        mapping: Mapping | None = None,
        tensor_parallel_mode: TensorParallelMode | None = None,
        gather_output: bool = False,
        quant_config: QuantConfig | None = None,
        weights_loading_config: WeightsLoadingConfig | None = None,
        reduce_output: bool = True,
        skip_create_weights_in_init: bool = False,
        use_custom_cublas_mm: bool = False,
        lora: nn.Module | None = None,
        allreduce_strategy: AllReduceStrategy = AllReduceStrategy.AUTO,
        force_dynamic_quantization: bool = False,
        use_cute_dsl_blockscaling_mm: bool = False,
        disable_deep_gemm: bool = False,
        fused_weight_shard_indices_mapping: Dict[str, tuple[int, int]] | None = None,
        nvfp4_allowed_backends: list[str] | None = None,
        enable_gemm_allreduce_fusion: bool = True,
    ) -> None:
        super().__init__()
        self.has_bias = bias
        self.dtype = dtype
        self.mapping = mapping or Mapping()
        self.quant_config = quant_config
        self.weights_loading_config = weights_loading_config or WeightsLoadingConfig()
        self.tp_size, self.tp_rank = self.mapping.tp_size, self.mapping.tp_rank
        self.tp_mode = tensor_parallel_mode
        self.gather_output = gather_output
        self.use_custom_cublas_mm = use_custom_cublas_mm
        self.lora = lora
        self.force_dynamic_quantization = force_dynamic_quantization
        self.use_cute_dsl_blockscaling_mm = use_cute_dsl_blockscaling_mm
        self.disable_deep_gemm = disable_deep_gemm
        self.fused_weight_shard_indices_mapping = fused_weight_shard_indices_mapping
        self.nvfp4_allowed_backends = nvfp4_allowed_backends or list(NVFP4_BACKENDS)
        self.in_features, self.out_features = self._local_sizes(in_features, out_features)
        self.reduce_output = reduce_output and not self._has_own_tokens()
        self.all_reduce = (
            AllReduce(mapping=self.mapping, strategy=allreduce_strategy, dtype=dtype)
            if self.reduce_output
            else None
        )
        self._weights_created = False
        if not skip_create_weights_in_init:
            self.create_weights()

    def _local_sizes(self, in_features: int, out_features: int) -> tuple[int, int]:
        if self.tp_mode == TensorParallelMode.ROW:
            assert in_features % self.tp_size == 0, (
                f"in_features {in_features} must be divisible by tp_size {self.tp_size}"
            )
            return in_features // self.tp_size, out_features
        if self.tp_mode == TensorParallelMode.COLUMN:
            assert out_features % self.tp_size == 0, (
                f"out_features {out_features} must be divisible by tp_size {self.tp_size}"
            )
            return in_features, out_features // self.tp_size
        assert self.tp_mode is None, f"unsupported tensor parallel mode: {self.tp_mode}"
        return in_features, out_features

    def _has_own_tokens(self) -> bool:
        """Whether 1.4 drops the reduction: under attention DP each rank has its own tokens."""
        column = self.tp_mode == TensorParallelMode.COLUMN
        return active() == "1.4" and column and self.mapping.enable_attention_dp

    def get_quant_method(self, quant_config: QuantConfig | None = None) -> UnquantizedLinearMethod:
        """The way of loading and multiplying for ``quant_config``."""
        return get_quant_method(quant_config)

    def create_weights(self) -> None:
        """Create the parameters, once."""
        if self._weights_created:
            return
        self.quant_method = self.get_quant_method(self.quant_config)
        self.quant_method.create_weights(
            self, self.in_features, self.out_features, self.has_bias, self.dtype
        )
        self._weights_created = True

    def apply_linear(
        self,
        input: torch.Tensor,
        bias: torch.Tensor | None,
        lora_params: Dict[str, Any] | None = None,
        layer_idx: int | None = None,
    ) -> torch.Tensor:
        """This rank's product, with the low-rank update added if there is one."""
        output = self.quant_method.apply(self, input, bias)
        if self.lora is not None and lora_params:
            update = self.lora(input, lora_params, layer_idx)
            if update is not None:
                output = output + update
        return output

    def forward(
        self,
        input: torch.Tensor,
        *,
        all_reduce_params: AllReduceParams | None = None,
        prefer_window_output: bool | None = None,
        lora_params: Dict[str, Any] | None = None,
        layer_idx: int | None = None,
    ) -> Any:
        """``[..., in]`` of this rank to ``[..., out]``: reduced, gathered or this rank's part.

        With a fused all-reduce the result is what the fusion returns (normed, residual).
        """
        only_in("1.4", "Linear.forward", prefer_window_output=prefer_window_output)
        if self.tp_mode == TensorParallelMode.ROW:
            return self._forward_row(input, all_reduce_params, lora_params, layer_idx)
        output = self.apply_linear(input, self.bias, lora_params, layer_idx)
        if self.tp_mode == TensorParallelMode.COLUMN and self.gather_output:
            return allgather(output, self.mapping)
        return output

    def _forward_row(
        self,
        input: torch.Tensor,
        params: AllReduceParams | None,
        lora_params: Dict[str, Any] | None,
        layer_idx: int | None,
    ) -> Any:
        bias = self.bias if self.tp_rank == 0 else None
        if self.all_reduce is None:
            return self.apply_linear(input, bias, lora_params, layer_idx)
        if self.tp_size == 1:
            assert params is None or params.enable_allreduce is False, (
                "norm, residual and bias cannot be fused into an all-reduce at tp_size 1"
            )
        elif self._fuses_bias(params):
            assert params is not None
            params.bias, bias = self.bias, None
        output = self.apply_linear(input, bias, lora_params, layer_idx)
        return self.all_reduce(output, all_reduce_params=params)

    def _fuses_bias(self, params: AllReduceParams | None) -> bool:
        if self.bias is None or params is None:
            return False
        return params.fusion_op == AllReduceFusionOp.RESIDUAL_RMS_NORM

    def load_weights(
        self, weights: list[Dict[str, Any]], allow_partial_loading: bool = False
    ) -> None:
        """Load one dict per part: one, ``[gate, up]`` or ``[q, k, v]``, by the weight mode.

        Raises:
            AssertionError: If the weights were not created, or parts, keys or shapes are wrong.
        """
        assert self._weights_created, "load_weights before create_weights"
        assert self.quant_method.supports_partial_loading or not allow_partial_loading, (
            "allow_partial_loading is for unquantized linears"
        )
        mode = self.weights_loading_config.weight_mode
        self.quant_method.load_weights(self, weights, mode, allow_partial_loading)

    def process_weights_after_loading(self) -> None:
        """Nothing: the stand-in de-quantises while loading."""

    def post_load_weights(self) -> None:
        """Nothing: the stand-in keeps no kernel layouts."""

    def pre_reload_weights(self) -> None:
        """Nothing: parameters keep their storage."""

    def _quant_mode(self) -> QuantMode:
        assert self._weights_created
        return QuantMode(0) if self.quant_config is None else self.quant_config.layer_quant_mode

    def _is_awq(self, algorithm: QuantAlgo) -> bool:
        grouped = self._quant_mode().is_int4_weight_only_per_group()
        return (
            grouped and self.quant_config is not None and self.quant_config.quant_algo == algorithm
        )

    @property
    def has_any_quant(self) -> bool:
        """Whether weights or activations are quantized."""
        return self._quant_mode().has_any_quant(exclude_kv_cache=True)

    @property
    def has_fp8_qdq(self) -> bool:
        """Whether the checkpoint is FP8 with one scale per tensor."""
        return self._quant_mode().has_fp8_qdq()

    @property
    def has_fp8_rowwise(self) -> bool:
        """Whether the checkpoint is FP8 with one scale per row."""
        return self._quant_mode().has_fp8_rowwise()

    @property
    def has_fp8_block_scales(self) -> bool:
        """Whether the checkpoint is FP8 with one scale per tile."""
        return self._quant_mode().has_fp8_block_scales()

    @property
    def has_nvfp4(self) -> bool:
        """Whether the checkpoint is NVFP4."""
        return self._quant_mode().has_nvfp4()

    @property
    def has_weight_only_quant(self) -> bool:
        """Whether only weights are quantized."""
        return self._quant_mode().is_weight_only()

    @property
    def has_w4a16_awq(self) -> bool:
        """Whether the checkpoint is W4A16 AWQ."""
        return self._is_awq(QuantAlgo.W4A16_AWQ)

    @property
    def has_w4a8_awq(self) -> bool:
        """Whether the checkpoint is W4A8 AWQ."""
        return self._is_awq(QuantAlgo.W4A8_AWQ)

    @property
    def has_w4a8_nvfp4_fp8(self) -> bool:
        """Whether the checkpoint is W4A8 NVFP4 and FP8."""
        return self._quant_mode().has_w4a8_nvfp4_fp8()

    @property
    def has_w4a8_mxfp4_fp8(self) -> bool:
        """Whether the checkpoint is W4A8 MXFP4 and FP8."""
        return self._quant_mode().has_w4a8_mxfp4_fp8()
