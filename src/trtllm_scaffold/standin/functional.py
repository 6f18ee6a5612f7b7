"""Enumerations of ``tensorrt_llm.functional`` and the options of an all-reduce."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

from trtllm_scaffold.standin.generation import active, contract

if TYPE_CHECKING:
    from torch import Tensor


class PositionEmbeddingType(IntEnum):
    """How positions enter the model. The values are constants of the library's binary API."""

    learned_absolute = 0
    rope_gptj = 1
    rope_gpt_neox = 2
    long_rope = 3
    alibi = 4
    alibi_with_scale = 5
    relative = 6
    chatglm = 7
    yarn = 8
    mrope = 9
    deferred = 10

    def is_rope(self) -> bool:
        """Whether the type needs rope parameters. ``yarn`` is not counted, as in the library."""
        return self in (
            PositionEmbeddingType.rope_gptj,
            PositionEmbeddingType.rope_gpt_neox,
            PositionEmbeddingType.long_rope,
            PositionEmbeddingType.mrope,
        )

    def is_mrope(self) -> bool:
        """Whether positions have several axes."""
        return self is PositionEmbeddingType.mrope

    def is_alibi(self) -> bool:
        """Whether positions are a bias on the scores."""
        return self in (PositionEmbeddingType.alibi, PositionEmbeddingType.alibi_with_scale)

    def is_deferred(self) -> bool:
        """Whether the port supplies its own embedder."""
        return self is PositionEmbeddingType.deferred

    @staticmethod
    def choices() -> list[str]:
        """Names of all members."""
        return [member.name for member in PositionEmbeddingType]

    @staticmethod
    def from_string(s: str) -> PositionEmbeddingType:
        """The member named ``s``; ``default`` is plain rotary in 1.4.

        Raises:
            ValueError: If there is no such member.
        """
        if s == "default" and active() == "1.4":
            return PositionEmbeddingType.rope_gpt_neox
        return _member(PositionEmbeddingType, s)

    def __str__(self) -> str:
        return self.name


class RotaryScalingType(IntEnum):
    """How rotary frequencies are stretched."""

    none = 0
    linear = 1
    dynamic = 2
    longrope = 3
    llama3 = 4
    yarn = 5
    mrope = 6

    @staticmethod
    def from_string(s: Any) -> RotaryScalingType:
        """The member named ``s``.

        1.4 also takes a member, None and ``default`` (no scaling), in any case. 1.2 takes exact
        names only: a port must turn ``default`` into no scaling itself.

        Raises:
            ValueError: If there is no such member.
        """
        if active() == "1.4":
            if isinstance(s, RotaryScalingType):
                return s
            if s is None or str(s).lower() == "default":
                return RotaryScalingType.none
            s = str(s).lower()
        return _member(RotaryScalingType, s)


class AttentionMaskType(IntEnum):
    """Shape of the attention mask."""

    padding = 0
    causal = 1
    sliding_window_causal = 2
    bidirectional = 3
    bidirectionalglm = 4
    blocksparse = 5
    custom_mask = 6


class AllReduceStrategy(IntEnum):
    """Which algorithm an all-reduce uses. The stand-in has one and ignores the choice."""

    NCCL = 0
    MIN_LATENCY = 1
    UB = 2
    AUTO = 3
    ONESHOT = 4
    TWOSHOT = 5
    LOWPRECISION = 6
    MNNVL = 7
    NCCL_SYMMETRIC = 8
    SYMM_MEM = 9


class AllReduceFusionOp(IntEnum):
    """What is fused behind an all-reduce."""

    NONE = 0
    RESIDUAL_RMS_NORM = 1
    LAST_PROCESS_FOR_UB = 2
    RESIDUAL_RMS_PREPOST_NORM = 3
    RESIDUAL_RMS_NORM_QUANT_FP8 = 4
    RESIDUAL_RMS_NORM_QUANT_NVFP4 = 5
    RESIDUAL_RMS_NORM_OUT_QUANT_FP8 = 6
    RESIDUAL_RMS_NORM_OUT_QUANT_NVFP4 = 7
    MOE_FINALIZE_ALLREDUCE_RESIDUAL_RMS_NORM = 8
    RMS_NORM = 9


@contract("AllReduceParams")
class AllReduceParams:
    """Options of one all-reduce. A fusion other than NONE (1.4: or RMS_NORM) needs a residual."""

    def __init__(
        self,
        strategy: AllReduceStrategy = AllReduceStrategy.AUTO,
        fusion_op: AllReduceFusionOp = AllReduceFusionOp.NONE,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        norm_weight: Tensor | None = None,
        scale: Tensor | None = None,
        norm_pre_residual_weight: Tensor | None = None,
        eps: float = 1e-06,
        enable_allreduce: bool = True,
        trigger_completion_at_end: bool = True,
    ) -> None:
        free = {AllReduceFusionOp.NONE}
        if active() == "1.4":
            free.add(AllReduceFusionOp.RMS_NORM)
        assert fusion_op in free or residual is not None, f"{fusion_op!r} needs a residual"
        self.strategy = strategy
        self.fusion_op = fusion_op
        self.bias = bias
        self.residual = residual
        self.norm_weight = norm_weight
        self.scale = scale
        self.norm_pre_residual_weight = norm_pre_residual_weight
        self.eps = eps
        self.enable_allreduce = enable_allreduce
        self.trigger_completion_at_end = trigger_completion_at_end

    def has_affine(self) -> int:
        """1 if a norm weight was given."""
        return int(self.norm_weight is not None)

    def has_bias(self) -> int:
        """1 if a bias was given."""
        return int(self.bias is not None)

    def has_scale(self) -> int:
        """1 if a quantization scale was given."""
        return int(self.scale is not None)


@contract("MoEAllReduceParams")
class MoEAllReduceParams(AllReduceParams):
    """Options of the all-reduce behind a mixture of experts (1.4)."""

    def __init__(
        self,
        device_num_experts: Tensor | None = None,
        expert_scale_factor: Tensor | None = None,
        expanded_idx_to_permuted_idx: Tensor | None = None,
        shared_expert_output: Tensor | None = None,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        norm_weight: Tensor | None = None,
        scale: Tensor | None = None,
        norm_pre_residual_weight: Tensor | None = None,
        eps: float = 1e-06,
        enable_allreduce: bool = True,
        is_cutlass_min_latency: bool = False,
    ) -> None:
        super().__init__(
            bias=bias,
            residual=residual,
            norm_weight=norm_weight,
            scale=scale,
            norm_pre_residual_weight=norm_pre_residual_weight,
            eps=eps,
            enable_allreduce=enable_allreduce,
        )
        self.device_num_experts = device_num_experts
        self.expert_scale_factor = expert_scale_factor
        self.expanded_idx_to_permuted_idx = expanded_idx_to_permuted_idx
        self.shared_expert_output = shared_expert_output
        self.is_cutlass_min_latency = is_cutlass_min_latency

    def is_valid(self) -> bool:
        """Whether the tensors that the chosen kernel needs were given."""
        if not self.is_cutlass_min_latency:
            return self.expanded_idx_to_permuted_idx is not None
        needed = (self.device_num_experts, self.expert_scale_factor, self.shared_expert_output)
        return all(item is not None for item in needed)


def _member(kind: Any, name: Any) -> Any:
    try:
        return kind[name]
    except KeyError:
        raise ValueError(
            f"Unsupported {kind.__name__}: {name!r} in TensorRT-LLM {active()}, "
            f"known are {', '.join(member.name for member in kind)}"
        ) from None
