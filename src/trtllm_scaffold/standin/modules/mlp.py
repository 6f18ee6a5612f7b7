"""GatedMLP and MLP."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as Dict
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trtllm_scaffold.standin.functional import AllReduceParams
from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.kernels.choice import fits, is_one_row
from trtllm_scaffold.standin.lora import LoraLayer, LoraModuleType
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.modules.linear import Linear
from trtllm_scaffold.standin.modules.swiglu import fused_swiglu
from trtllm_scaffold.standin.weight_shards import (
    TensorParallelMode,
    WeightMode,
    WeightsLoadingConfig,
)

Activation = Callable[[torch.Tensor], torch.Tensor]


def _narrowed(mapping: Mapping, tp_size: int | None) -> Mapping:
    """The mapping of a layer that runs on ``tp_size`` ranks: more, smaller groups."""
    if tp_size is None:
        return mapping
    assert mapping.tp_size % tp_size == 0, (
        f"tp_size {mapping.tp_size} is not divisible by overridden_tp_size {tp_size}"
    )
    groups = mapping.pp_size * mapping.tp_size // tp_size
    return Mapping(
        world_size=tp_size * groups,
        rank=mapping.rank,
        gpus_per_node=mapping.gpus_per_node,
        tp_size=tp_size,
        pp_size=groups,
    )


@contract("GatedMLP")
class GatedMLP(nn.Module):
    """``down(activation(gate_up(x)))`` with a fused gate and up product.

    ``F.silu`` means ``silu(gate) * up``. Any other callable gets the fused tensor of twice the
    width, and must split and multiply itself.
    """

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        activation: Activation | None = F.silu,
        dtype: torch.dtype | None = None,
        config: ModelConfig | None = None,
        overridden_tp_size: int | None = None,
        reduce_output: bool = True,
        layer_idx: int | None = None,
        use_cute_dsl_blockscaling_mm: bool = False,
        disable_deep_gemm: bool = False,
        use_custom_cublas_mm: bool = False,
        is_shared_expert: bool = False,
        swiglu_limit: float | None = None,
        swiglu_alpha: float | None = None,
        swiglu_beta: float | None = None,
    ) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.layer_idx = layer_idx
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.activation = activation
        self.swiglu_limit = swiglu_limit
        self.swiglu_alpha, self.swiglu_beta = swiglu_alpha, swiglu_beta
        self.mapping = config.mapping
        mapping = _narrowed(config.mapping, overridden_tp_size)
        local = intermediate_size // mapping.tp_size
        options = _linear_options(config, mapping, bias, dtype, use_custom_cublas_mm)
        options["use_cute_dsl_blockscaling_mm"] = use_cute_dsl_blockscaling_mm
        options["disable_deep_gemm"] = disable_deep_gemm
        self.gate_up_proj = Linear(
            hidden_size,
            2 * intermediate_size,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            weights_loading_config=WeightsLoadingConfig(
                weight_mode=WeightMode.FUSED_GATE_UP_LINEAR
            ),
            reduce_output=False,
            fused_weight_shard_indices_mapping={"gate": (0, local), "up": (local, local)},
            **options,
        )
        down, up, gate = _lora_types(is_shared_expert)
        self.down_lora = LoraLayer([down], [hidden_size])
        self.down_proj = Linear(
            intermediate_size,
            hidden_size,
            tensor_parallel_mode=TensorParallelMode.ROW,
            reduce_output=reduce_output,
            lora=self.down_lora,
            **options,
        )
        self.splitted_gate_up_lora = LoraLayer([up, gate], [local, local])
        self.fused_gate_up_lora = LoraLayer([LoraModuleType.MLP_GATE_UP], [2 * local])

    def _constants(self) -> tuple[float | None, float, float]:
        """Limit, gain and offset of the gated SiLU."""
        gain = 1.0 if self.swiglu_alpha is None else self.swiglu_alpha
        return self.swiglu_limit, gain, self.swiglu_beta or 0.0

    def _between(self, x: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` to what ``down_proj`` takes, in one kernel for a single row."""
        product = self.gate_up_proj
        plain = self.activation == F.silu and product.bias is None
        if plain and is_one_row(x) and fits(x, product.weight):
            from trtllm_scaffold.standin.kernels.matvec import matvec_swiglu

            return matvec_swiglu(x, product.weight, *self._constants())
        return self._activate(product(x))

    def _activate(self, x: torch.Tensor) -> torch.Tensor:
        if self.activation == F.silu:
            return fused_swiglu(x, *self._constants())
        return x if self.activation is None else self.activation(x)

    def forward(
        self,
        x: torch.Tensor,
        all_rank_num_tokens: list[int] | None = None,
        final_all_reduce_params: AllReduceParams | None = None,
        lora_params: Dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """``[tokens, hidden]`` to ``[tokens, hidden]``, reduced unless ``reduce_output=False``."""
        if lora_params:
            return self.forward_lora(x, all_rank_num_tokens, final_all_reduce_params, lora_params)
        return self.down_proj(
            self._between(x), all_reduce_params=final_all_reduce_params, layer_idx=self.layer_idx
        )

    def forward_lora(
        self,
        x: torch.Tensor,
        all_rank_num_tokens: list[int] | None = None,
        final_all_reduce_params: AllReduceParams | None = None,
        lora_params: Dict[str, Any] | None = None,
    ) -> Any:
        """:meth:`forward` with low-rank updates; needs ``layer_idx``."""
        assert lora_params is not None
        assert self.layer_idx is not None, "layer_idx is required for lora"
        hidden = self.gate_up_proj(x)
        for lora in (self.splitted_gate_up_lora, self.fused_gate_up_lora):
            update = lora(x, lora_params, self.layer_idx)
            if update is not None:
                hidden = hidden + update
        return self.down_proj(
            self._activate(hidden),
            all_reduce_params=final_all_reduce_params,
            lora_params=lora_params,
            layer_idx=self.layer_idx,
        )


@contract("MLP")
class MLP(nn.Module):
    """``down(activation(up(x)))`` with an elementwise activation."""

    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        activation: Activation | None = None,
        dtype: torch.dtype | None = None,
        config: ModelConfig | None = None,
        layer_idx: int | None = None,
        reduce_output: bool = True,
        overridden_tp_size: int | None = None,
        lora_up_module_type: LoraModuleType = LoraModuleType.MLP_H_TO_4H,
        lora_down_module_type: LoraModuleType = LoraModuleType.MLP_4H_TO_H,
        use_custom_cublas_mm: bool = False,
    ) -> None:
        super().__init__()
        config = config or ModelConfig()
        self.layer_idx = layer_idx
        self.hidden_size, self.intermediate_size = hidden_size, intermediate_size
        self.activation = activation
        self.mapping = config.mapping
        mapping = _narrowed(config.mapping, overridden_tp_size)
        options = _linear_options(config, mapping, bias, dtype, use_custom_cublas_mm)
        self.up_lora = LoraLayer([lora_up_module_type], [intermediate_size // mapping.tp_size])
        self.up_proj = Linear(
            hidden_size,
            intermediate_size,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            lora=self.up_lora,
            **options,
        )
        self.down_lora = LoraLayer([lora_down_module_type], [hidden_size])
        self.down_proj = Linear(
            intermediate_size,
            hidden_size,
            tensor_parallel_mode=TensorParallelMode.ROW,
            reduce_output=reduce_output,
            lora=self.down_lora,
            **options,
        )

    def create_weights(self) -> None:
        """Create the parameters of both products."""
        self.up_proj.create_weights()
        self.down_proj.create_weights()

    def forward(self, x: torch.Tensor, lora_params: Dict[str, Any] | None = None) -> Any:
        """``[tokens, hidden]`` to ``[tokens, hidden]``, reduced unless ``reduce_output=False``."""
        if lora_params is not None:
            return self.forward_lora(x, lora_params=lora_params)
        assert self.activation is not None, "MLP was given no activation"
        return self.down_proj(self.activation(self.up_proj(x)))

    def forward_lora(self, x: torch.Tensor, lora_params: Dict[str, Any] | None = None) -> Any:
        """:meth:`forward` with low-rank updates; needs ``layer_idx``."""
        assert lora_params is not None
        assert self.layer_idx is not None, "layer_idx is required for lora"
        assert self.activation is not None, "MLP was given no activation"
        keys = {"lora_params": lora_params, "layer_idx": self.layer_idx}
        return self.down_proj(self.activation(self.up_proj(x, **keys)), **keys)


def _linear_options(
    config: ModelConfig,
    mapping: Mapping,
    bias: bool,
    dtype: torch.dtype | None,
    use_custom_cublas_mm: bool,
) -> dict[str, Any]:
    return {
        "bias": bias,
        "dtype": dtype,
        "mapping": mapping,
        "use_custom_cublas_mm": use_custom_cublas_mm,
        "quant_config": config.get_quant_config(),
        "skip_create_weights_in_init": config.skip_create_weights_in_init,
        "allreduce_strategy": config.allreduce_strategy,
        "force_dynamic_quantization": config.force_dynamic_quantization,
    }


def _lora_types(shared: bool) -> tuple[LoraModuleType, LoraModuleType, LoraModuleType]:
    prefix = "SHARED_EXPERT" if shared else "MLP"
    down, up, gate = (LoraModuleType[f"{prefix}_{part}"] for part in ("4H_TO_H", "H_TO_4H", "GATE"))
    return down, up, gate
