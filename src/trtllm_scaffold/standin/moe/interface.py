"""MoE: the layer that routes tokens to expert MLPs, over expert- and tensor-parallel ranks."""

from __future__ import annotations

import weakref
from enum import Enum
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin import compiled_ops
from trtllm_scaffold.standin.distributed import AllReduce, allgather, reducescatter
from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.moe import expert_products, experts
from trtllm_scaffold.standin.moe.activation import (
    formula_of,
    formula_of_arguments,
)
from trtllm_scaffold.standin.quantization import QuantMode
from trtllm_scaffold.standin.utils import ActivationType

#: Shared default, as in the library.
_PLAIN: ModelConfig[Any] = ModelConfig()


class MoEWeightLoadingMode(Enum):
    """How a checkpoint keeps the experts."""

    VANILLA = 0
    FUSED_GATE_UP_PROJ = 1
    W4A8_CUSTOM = 2


@contract("MoE")
class MoE(compiled_ops.Findable):
    """Experts behind a router: ``sum_k weight_k * down(act(gate(x)) * up(x))`` per token.

    ``w3_w1_weight`` is ``[local experts, 2 * inner, hidden]`` with up before gate and
    ``w2_weight`` is ``[local experts, hidden, inner]``: fill them by :meth:`load_weights`, the
    layout is private. Experts are divided over ``moe_ep_size`` ranks, their width over
    ``moe_tp_size``.

    Raises:
        NotImplementedError: For quantized experts: the stand-in has plain ones.
        AssertionError: If experts or their width do not divide.
    """

    def __init__(
        self,
        *,
        routing_method: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        dtype: torch.dtype | None = None,
        reduce_results: bool = False,
        model_config: ModelConfig[Any] = _PLAIN,
        aux_stream_dict: Any = None,
        weight_loading_mode: MoEWeightLoadingMode = MoEWeightLoadingMode.VANILLA,
        bias: bool = False,
        swiglu_alpha: torch.Tensor | None = None,
        swiglu_beta: torch.Tensor | None = None,
        swiglu_limit: torch.Tensor | None = None,
        layer_idx: int | None = None,
        activation_type: Any = ActivationType.Swiglu,
        init_load_balancer: bool = True,
        apply_router_weight_on_input: bool = False,
        activation: Any = None,
        quant_config: Any = None,
    ) -> None:
        super().__init__()
        config = model_config
        self.routing_method = routing_method
        self.num_experts, self.hidden_size = num_experts, hidden_size
        self.intermediate_size, self.dtype = intermediate_size, dtype
        self.reduce_results, self.bias = reduce_results, bias
        self.weight_loading_mode = weight_loading_mode
        self.aux_stream_dict = aux_stream_dict
        self.layer_idx, self.layer_idx_str = layer_idx, str(layer_idx)
        self.apply_router_weight_on_input = apply_router_weight_on_input
        self.quant_config = quant_config or config.get_quant_config()
        self.moe_backend = config.moe_backend
        kind = ActivationType(int(activation_type))
        self.formula = (
            formula_of_arguments(kind, swiglu_alpha, swiglu_beta, swiglu_limit)
            if activation is None
            else formula_of(activation)
        )
        self.activation_type = self.formula.kind
        self._place(config)
        self._register(config)
        self._weights_created = False
        if not config.skip_create_weights_in_init:
            self.create_weights()

    def _place(self, config: ModelConfig[Any]) -> None:
        mapping = self.mapping = config.mapping
        self.use_dp = mapping.enable_attention_dp
        self.parallel_size = mapping.tp_size
        self.tp_size, self.tp_rank = mapping.moe_tp_size, mapping.moe_tp_rank
        self.ep_size, self.ep_rank = mapping.moe_ep_size, mapping.moe_ep_rank
        assert self.num_experts % self.ep_size == 0, (
            f"{self.num_experts} experts do not divide over {self.ep_size} expert-parallel ranks"
        )
        assert self.intermediate_size % self.tp_size == 0, (
            f"expert width {self.intermediate_size} does not divide over {self.tp_size} ranks"
        )
        self.expert_size_per_partition = self.num_experts // self.ep_size
        self.intermediate_size_per_partition = self.intermediate_size // self.tp_size
        first = self.ep_rank * self.expert_size_per_partition
        self.initial_local_expert_ids = list(range(first, first + self.expert_size_per_partition))
        self.slot_start = first
        self.all_reduce = None
        if self.reduce_results and not self.use_dp and mapping.tp_size > 1:
            self.all_reduce = AllReduce(mapping=mapping, strategy=config.allreduce_strategy)

    def _register(self, config: ModelConfig[Any]) -> None:
        """Let custom ops find the layer by its index, as attention layers are."""
        if self.layer_idx is None:
            return
        known = config.extra_attrs.setdefault("moe_layers", {})
        suffix = 0
        while self.layer_idx_str in known:
            self.layer_idx_str, suffix = f"{self.layer_idx}_{suffix}", suffix + 1
        known[self.layer_idx_str] = weakref.ref(self)

    # ------------------------------------------------------------------ weights

    def create_weights(self) -> None:
        """Make the parameters, once; 1.4 and 1.2 do so after quantization is resolved."""
        if self._weights_created:
            return
        if self.has_any_quant:
            raise NotImplementedError(
                f"the stand-in has no quantized experts, this layer has {self.quant_config}"
            )
        experts.create(self)
        self._weights_created = True

    def load_weights(
        self, weights: list[dict[str, Any]], allow_partial_loading: bool = False
    ) -> None:
        """Load one dict of ``{e}.w1/w2/w3.weight`` or of stacked ``gate_up_proj``, ``down_proj``.

        Stacked tensors are ``[experts, in, out]``, gate before up. Biases are ``{e}.w1.bias``
        and so on, or ``gate_up_proj.bias``.

        Raises:
            KeyError: If a tensor is missing.
            AssertionError: If there is not one dict, or a shape is wrong.
        """
        assert self._weights_created, "load_weights before create_weights"
        assert len(weights) == 1, f"experts load one dict, got {len(weights)}"
        stacked = self.weight_loading_mode is MoEWeightLoadingMode.FUSED_GATE_UP_PROJ
        load = experts.load_stacked if stacked else experts.load_each
        load(self, weights[0], allow_partial_loading)

    def post_load_weights(self) -> None:
        """Nothing: the stand-in keeps no kernel layouts."""

    # ------------------------------------------------------------------ use

    def forward(
        self,
        x: torch.Tensor,
        router_logits: torch.Tensor,
        *,
        do_finalize: bool = True,
        output_dtype: torch.dtype | None = None,
        all_rank_num_tokens: list[int] | None = None,
        use_dp_padding: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Route and compute.

        Args:
            x: ``[tokens, hidden]``.
            router_logits: ``[tokens, experts]``, raw: the routing method does the rest.
            do_finalize: Must be true.
            output_dtype: Dtype of the result, that of ``x`` if None.
            all_rank_num_tokens: Tokens of every rank, needed under attention DP.
            use_dp_padding: Whether every rank brings the largest rank's token count.
            **kwargs: ``input_ids`` for routing by token; LoRA is not supported.

        Returns:
            ``[tokens, hidden]``: summed over the ranks with ``reduce_results``, else this
            rank's part of the sum; under attention DP this rank's own tokens, complete.
        """
        return self.forward_impl(
            x,
            router_logits,
            do_finalize=do_finalize,
            output_dtype=output_dtype,
            all_rank_num_tokens=all_rank_num_tokens,
            use_dp_padding=use_dp_padding,
            **kwargs,
        )

    def forward_impl(
        self,
        x: torch.Tensor,
        router_logits: torch.Tensor,
        *,
        do_finalize: bool = True,
        output_dtype: torch.dtype | None = None,
        all_rank_num_tokens: list[int] | None = None,
        use_dp_padding: bool | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """See :meth:`forward`."""
        if not do_finalize or kwargs.get("lora_params"):
            raise NotImplementedError("the stand-in's experts always finalize and have no LoRA")
        given = x, router_logits, kwargs.get("input_ids"), all_rank_num_tokens, use_dp_padding
        if torch.compiler.is_compiling():
            return compiled_ops.experts(self, *given, output_dtype)
        output = self.operator_forward(*given)
        return output if output_dtype is None else output.to(output_dtype)

    def operator_forward(
        self,
        x: torch.Tensor,
        router_logits: torch.Tensor,
        input_ids: torch.Tensor | None,
        tokens: list[int] | None,
        padded: bool | None,
    ) -> torch.Tensor:
        """What a compiler sees as one operator (the stand-in's own name)."""
        sizes = None
        if self.use_dp and self.parallel_size > 1:
            sizes = _sizes(x, tokens, padded, self.mapping.tp_rank)
            x, router_logits = allgather([x, router_logits], self.mapping, dim=0, sizes=sizes)
        later = (input_ids,) if active() == "1.4" else ()
        chosen, weights = self.routing_method.apply(router_logits, *later)
        output = expert_products.compute(self, x, chosen.long(), weights)
        if sizes is not None:
            output = reducescatter(output, self.mapping, dim=0, sizes=sizes)
        elif self.all_reduce is not None:
            output = self.all_reduce(output)
        return output

    # ------------------------------------------------------------------ quantization

    def _quant_mode(self) -> QuantMode:
        return QuantMode(0) if self.quant_config is None else self.quant_config.layer_quant_mode

    @property
    def has_any_quant(self) -> bool:
        """Whether weights or activations are quantized."""
        return self._quant_mode().has_any_quant(exclude_kv_cache=True)

    @property
    def has_nvfp4(self) -> bool:
        """Whether the checkpoint is NVFP4."""
        return self._quant_mode().has_nvfp4()

    @property
    def has_fp8_qdq(self) -> bool:
        """Whether the checkpoint is FP8 with one scale per tensor."""
        return self._quant_mode().has_fp8_qdq()

    @property
    def enable_alltoall(self) -> bool:
        """Never: tokens travel by all-gather and reduce-scatter."""
        return False


def _sizes(x: torch.Tensor, tokens: list[int] | None, padded: bool | None, rank: int) -> list[int]:
    assert tokens is not None, "attention data parallelism needs all_rank_num_tokens"
    sizes = [max(tokens)] * len(tokens) if padded else list(tokens)
    assert x.shape[0] == sizes[rank], f"{x.shape[0]} tokens on rank {rank}, announced {sizes}"
    return sizes


class VanillaMoE(MoE):
    """What the VANILLA backend gives. The library's has another parameter layout."""


class CutlassFusedMoE(MoE):
    """What the CUTLASS backend gives."""


class ConfigurableMoE(MoE):
    """What 1.4 puts around most backends."""


class TritonFusedMoE(MoE):
    """What the TRITON backend gives."""


class TRTLLMGenFusedMoE(MoE):
    """What the TRTLLM backend gives, for quantized experts only."""


def is_moe_weight_owner(module: nn.Module) -> bool:
    """Whether expert weights are loaded through ``module`` (1.4)."""
    return isinstance(module, MoE)
