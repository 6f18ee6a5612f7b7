"""Weight loading of a Linear: plain, and FP8 checkpoints by de-quantisation.

The real library keeps FP8 weights and multiplies in FP8. The stand-in stores the de-quantised
weight in the module's dtype and leaves activations alone, so it shows whether every tensor and
scale of a quantized checkpoint is read and cut rightly, not the error of FP8 arithmetic. Fused
parts keep their own scales here, where the library re-quantises them to the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.nn.parameter import Parameter

from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.kernels.choice import fits, is_one_row
from trtllm_scaffold.standin.weight_shards import (
    TensorParallelMode,
    WeightMode,
    copy_weight,
    load_weight_shard,
)

if TYPE_CHECKING:
    from trtllm_scaffold.standin.modules.linear import Linear
    from trtllm_scaffold.standin.quantization import QuantConfig

Weights = list[Mapping[str, Any]]
BLOCK = 128


class UnquantizedLinearMethod:
    """Weights in the module's dtype: ``weight`` [out, in] and ``bias`` [out] per part."""

    supports_partial_loading = True

    def create_weights(
        self,
        module: Linear,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: torch.dtype | None,
    ) -> None:
        """Create uninitialised parameters ``weight`` and, if wanted, ``bias``."""
        shape = (out_features, in_features)
        module.weight = Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)
        if bias:
            module.bias = Parameter(torch.empty(out_features, dtype=dtype), requires_grad=False)
        else:
            module.register_parameter("bias", None)

    def apply(self, module: Linear, input: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]`` of this rank."""
        if is_one_row(input) and fits(input, module.weight):
            from trtllm_scaffold.standin.kernels.matvec import matvec

            return matvec(input, module.weight, bias)
        return F.linear(input, module.weight, bias)

    def load_weights(
        self,
        module: Linear,
        weights: Weights,
        weight_mode: WeightMode,
        allow_partial_loading: bool = False,
    ) -> None:
        """Cut each part for this rank, join the parts and copy them.

        Raises:
            AssertionError: If parts or keys are missing, or shapes differ.
        """
        count = weight_mode.int_value
        assert len(weights) == count, f"{weight_mode.name} takes {count} dicts, got {len(weights)}"
        if allow_partial_loading:
            self._load_partial(module, weights, weight_mode)
            return
        self._require(weights, "weight")
        copy_weight(module.weight, torch.cat([self.weight_part(module, item) for item in weights]))
        if module.bias is not None:
            self._require(weights, "bias")
            copy_weight(module.bias, torch.cat([_part(module, item["bias"]) for item in weights]))

    def weight_part(self, module: Linear, part: Mapping[str, Any]) -> torch.Tensor:
        """This rank's rows or columns of one part's weight."""
        return _part(module, part["weight"])

    def _require(self, weights: Weights, key: str) -> None:
        missing = [index for index, item in enumerate(weights) if key not in item]
        assert not missing, f"{key!r} is missing from part {missing} of {len(weights)}"

    def _load_partial(self, module: Linear, weights: Weights, weight_mode: WeightMode) -> None:
        keys = weight_mode.shard_keys
        if keys is None:
            places: list[Any] = [slice(None)]
        else:
            known = module.fused_weight_shard_indices_mapping
            assert known is not None, "partial loading needs fused_weight_shard_indices_mapping"
            places = [slice(known[key][0], sum(known[key])) for key in keys]
        for place, item in zip(places, weights, strict=True):
            if "weight" in item:
                copy_weight(module.weight[place], self.weight_part(module, item))
            if "bias" in item and module.bias is not None:
                copy_weight(module.bias[place], _part(module, item["bias"]))


class _DequantizingMethod(UnquantizedLinearMethod):
    """Base of the FP8 methods: one multiplier tensor per part, and an optional input scale."""

    supports_partial_loading = False
    scale_keys: tuple[str, ...] = ("weight_scale",)

    def create_weights(
        self,
        module: Linear,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: torch.dtype | None,
    ) -> None:
        """As without quantization; ``input_scale`` is None until a checkpoint brings one."""
        super().create_weights(module, in_features, out_features, bias, dtype)
        module.input_scale = None

    def load_weights(
        self,
        module: Linear,
        weights: Weights,
        weight_mode: WeightMode,
        allow_partial_loading: bool = False,
    ) -> None:
        """Load de-quantised weights and keep the largest input scale of the parts."""
        super().load_weights(module, weights, weight_mode, allow_partial_loading)
        scales = [item["input_scale"][...].float() for item in weights if "input_scale" in item]
        if scales:
            largest = torch.stack([scale.reshape([]) for scale in scales]).max()
            module.input_scale = largest.to(module.weight.device)

    def weight_part(self, module: Linear, part: Mapping[str, Any]) -> torch.Tensor:
        """This rank's rows or columns of one part's weight, times its scale, in float32."""
        key = next((name for name in self.scale_keys if name in part), None)
        assert key is not None, f"{self.scale_keys[0]!r} is missing beside a quantized weight"
        weight = _part(module, part["weight"]).float()
        return self.scaled(module, weight, part[key])

    def scaled(self, module: Linear, weight: torch.Tensor, scale: Any) -> torch.Tensor:
        """``weight`` of this rank times its part of ``scale``."""
        raise NotImplementedError


class FP8QDQLinearMethod(_DequantizingMethod):
    """FP8 with one scale per tensor."""

    def scaled(self, module: Linear, weight: torch.Tensor, scale: Any) -> torch.Tensor:
        """Multiply by the scalar."""
        return weight * scale[...].float().reshape([]).to(weight.device)


class FP8RowwiseLinearMethod(_DequantizingMethod):
    """FP8 with one scale per output row."""

    def scaled(self, module: Linear, weight: torch.Tensor, scale: Any) -> torch.Tensor:
        """Multiply each row of this rank by its scale."""
        whole = scale[...].reshape(-1)
        rows = _part(module, whole).float().to(weight.device)
        return weight * rows[:, None]


class FP8BlockScalesLinearMethod(_DequantizingMethod):
    """FP8 with one multiplier per tile of 128 x 128 (the key says ``inv``; it multiplies)."""

    scale_keys = ("weight_scale_inv", "weight_scale")

    def scaled(self, module: Linear, weight: torch.Tensor, scale: Any) -> torch.Tensor:
        """Multiply each tile.

        Raises:
            AssertionError: If a shard does not hold whole tiles.
        """
        tiles = _part(module, scale).float().to(weight.device)
        need = tuple(math.ceil(size / BLOCK) for size in weight.shape)
        cut = module.tp_size > 1 and module.tp_mode is not None
        dim = TensorParallelMode.split_dim(module.tp_mode) if module.tp_mode else 0
        whole = not cut or weight.shape[dim] % BLOCK == 0
        assert whole and tuple(tiles.shape) == need, (
            f"a shard of shape {tuple(weight.shape)} with scales {tuple(tiles.shape)} "
            f"does not hold whole tiles of {BLOCK} x {BLOCK}"
        )
        spread = tiles.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return weight * spread[: weight.shape[0], : weight.shape[1]]


def _part(module: Linear, weight: Any) -> torch.Tensor:
    whole = module.weights_loading_config.ignore_tensor_parallel
    size, rank = (1, 0) if whole else (module.tp_size, module.tp_rank)
    return load_weight_shard(weight, size, rank, module.tp_mode, device=None)


@contract("get_quant_method")
def get_quant_method(quant_config: QuantConfig | None = None) -> UnquantizedLinearMethod:
    """The method for a quantization config.

    Raises:
        NotImplementedError: If the stand-in does not de-quantise the algorithm.
    """
    if quant_config is None or not quant_config.layer_quant_mode.has_any_quant(
        exclude_kv_cache=True
    ):
        return UnquantizedLinearMethod()
    mode = quant_config.layer_quant_mode
    if mode.has_fp8_qdq():
        return FP8QDQLinearMethod()
    if mode.has_fp8_rowwise():
        return FP8RowwiseLinearMethod()
    if mode.has_fp8_block_scales():
        return FP8BlockScalesLinearMethod()
    raise NotImplementedError(
        f"the stand-in does not load {quant_config.quant_algo} checkpoints, only FP8, "
        "FP8_PER_CHANNEL_PER_TOKEN and FP8_BLOCK_SCALES"
    )


def is_static_nvfp4_input_eligible(linear: Linear) -> bool:
    """Whether an NVFP4 product can take input quantized beforehand: never in the stand-in."""
    return False
