"""create_moe of both generations, and the choice of the class that it makes."""

from __future__ import annotations

from typing import Any

import torch

from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.moe.activation import DEFAULT_MOE_ACTIVATION
from trtllm_scaffold.standin.moe.interface import (
    ConfigurableMoE,
    CutlassFusedMoE,
    MoE,
    MoEWeightLoadingMode,
    TritonFusedMoE,
    VanillaMoE,
)
from trtllm_scaffold.standin.utils import ActivationType

#: Where a config may keep the number of experts, first match; 1.2 knows the first one only.
COUNTS = ("num_experts", "n_routed_experts", "num_local_experts")
WIDTHS = ("moe_intermediate_size", "intermediate_size")
#: Shared default, as in the library.
_PLAIN: ModelConfig[Any] = ModelConfig()
#: Backends that run plain (unquantized) experts; others fall back to CUTLASS.
PLAIN_BACKENDS: dict[str, type[MoE]] = {
    "CUTLASS": CutlassFusedMoE,
    "VANILLA": VanillaMoE,
    "TRITON": TritonFusedMoE,
}
QUANTIZED_BACKENDS = ("TRTLLM", "WIDEEP", "CUTEDSL", "DEEPGEMM", "DENSEGEMM", "MARLIN", "AUTO")
MoEImplClass = type[MoE] | type[VanillaMoE]


@contract("create_moe")
def create_moe(
    routing_method: Any,
    num_experts: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    dtype: torch.dtype | None = None,
    reduce_results: bool = False,
    model_config: ModelConfig[Any] = _PLAIN,
    override_quant_config: Any = None,
    aux_stream_dict: Any = None,
    weight_loading_mode: MoEWeightLoadingMode = MoEWeightLoadingMode.VANILLA,
    bias: bool = False,
    apply_router_weight_on_input: bool = False,
    layer_idx: int | None = None,
    swiglu_alpha: torch.Tensor | None = None,
    swiglu_beta: torch.Tensor | None = None,
    swiglu_limit: torch.Tensor | None = None,
    activation_type: Any = ActivationType.Swiglu,
    activation: Any = DEFAULT_MOE_ACTIVATION,
    communication_method: str | None = None,
    allow_backend_degradation: bool = True,
) -> MoE:
    """The expert layer of a model; sizes left out are read from the config.

    Activations: 1.2 takes ``activation_type`` and constants per local expert, 1.4 one
    ``activation`` object. Streams and ``communication_method`` are ignored here.

    Raises:
        AssertionError: If a size is neither given nor in the config.
        ValueError: If the backend is unknown, or cannot serve and must not be replaced.
    """
    sizes = _sizes(model_config.pretrained_config, num_experts, hidden_size, intermediate_size)
    kind: dict[str, Any] = {"activation": activation}
    if active() == "1.2":
        constants = {"swiglu_alpha": swiglu_alpha, "swiglu_beta": swiglu_beta}
        kind = {**constants, "swiglu_limit": swiglu_limit, "activation_type": activation_type}
    cls = _class(model_config, allow_backend_degradation)
    made = cls.__new__(cls)
    plain_init(
        made,
        routing_method=routing_method,
        dtype=dtype or getattr(model_config.pretrained_config, "torch_dtype", None),
        reduce_results=reduce_results,
        model_config=model_config,
        aux_stream_dict=aux_stream_dict,
        weight_loading_mode=weight_loading_mode,
        bias=bias,
        layer_idx=layer_idx,
        apply_router_weight_on_input=apply_router_weight_on_input,
        quant_config=override_quant_config,
        **sizes,
        **kind,
    )
    return made


def _sizes(
    config: Any, num_experts: int | None, hidden_size: int | None, intermediate_size: int | None
) -> dict[str, int]:
    """Sizes as given, else from the HuggingFace config."""
    counts = COUNTS[:1] if active() == "1.2" else COUNTS
    found = {
        "num_experts": _given(num_experts, config, counts),
        "hidden_size": _given(hidden_size, config, ("hidden_size",)),
        "intermediate_size": _given(intermediate_size, config, WIDTHS),
    }
    for name, size in found.items():
        assert size is not None, f"create_moe: {name} is neither given nor in the config"
    return {name: int(size) for name, size in found.items() if size is not None}


#: MoE's constructor with the parameters that only the factory passes.
plain_init: Any = MoE.__init__.__wrapped__  # type: ignore[attr-defined]


def _given(value: int | None, config: Any, names: tuple[str, ...]) -> int | None:
    if value is not None:
        return value
    return next((found for name in names if (found := getattr(config, name, None))), None)


def _class(config: ModelConfig[Any], may_degrade: bool = True) -> type[MoE]:
    name = str(config.moe_backend).upper()
    cls = PLAIN_BACKENDS.get(name)
    if cls is None:
        if name not in QUANTIZED_BACKENDS:
            raise ValueError(f"Unsupported moe backend: {config.moe_backend}")
        if not may_degrade:
            raise ValueError(f"the {name} expert backend cannot serve unquantized experts")
        logger.warning_once(f"the {name} expert backend needs quantized experts: using CUTLASS")
        cls = CutlassFusedMoE
    return ConfigurableMoE if active() == "1.4" and cls is CutlassFusedMoE else cls


@contract("get_moe_cls")
def get_moe_cls(model_config: ModelConfig[Any], override_quant_config: Any = None) -> type[MoE]:
    """Class that :func:`create_moe` would make (1.2)."""
    return _class(model_config)


@contract("resolve_moe_cls")
def resolve_moe_cls(
    model_config: ModelConfig[Any],
    override_quant_config: Any = None,
    dtype: torch.dtype | None = None,
    num_experts: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    swiglu_gptoss_style: bool | None = None,
    bias: bool | None = None,
    activation: Any = None,
    routing: Any = None,
    layer_idx: int | None = None,
    allow_degradation: bool = True,
) -> type[MoE]:
    """Class of the backend that would run such a layer (1.4)."""
    cls = _class(model_config, allow_degradation)
    return CutlassFusedMoE if cls is ConfigurableMoE else cls


def resolve_moe_impl(model_config: ModelConfig[Any], **options: Any) -> type[MoE]:
    """As :func:`resolve_moe_cls` (1.4)."""
    found: type[MoE] = resolve_moe_cls(model_config, **options)
    return found
