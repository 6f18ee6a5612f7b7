"""Mapping: which part of the model this rank holds under tensor, pipeline and context parallel."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from typing import Any

from trtllm_scaffold.standin.generation import contract


@contract("tensorrt_llm.mapping.Mapping")
class Mapping:
    """Rank layout: tensor-parallel ranks are neighbours, then context, then pipeline.

    Attributes: every constructor argument, and the ranks and groups derived from them.

    Raises:
        ValueError: If the sizes do not multiply to the world size, or a rank lies outside it.
    """

    def __init__(
        self,
        world_size: int = 1,
        rank: int = 0,
        gpus_per_node: int = 8,
        *,
        cp_size: int = 1,
        cp_config: Dict[str, Any] | None = None,
        tp_size: int = 1,
        pp_size: int = 1,
        pp_partition: list[int] | None = None,
        moe_cluster_size: int = -1,
        moe_tp_size: int = -1,
        moe_ep_size: int = -1,
        attn_tp_size: int = -1,
        attn_cp_size: int = -1,
        enable_attention_dp: bool = False,
        enable_lm_head_tp_in_adp: bool = False,
    ) -> None:
        if tp_size * pp_size * cp_size != world_size:
            raise ValueError(
                "world_size must equal tp_size * pp_size * cp_size, "
                f"but got {world_size} != {tp_size} * {pp_size} * {cp_size}"
            )
        if not isinstance(rank, int) or not (enable_attention_dp or 0 <= rank < world_size):
            raise ValueError(f"rank should be an integer in 0..{world_size - 1}, but got {rank!r}")
        if pp_partition is not None and len(pp_partition) != pp_size:
            raise ValueError(f"pp_partition {pp_partition} does not have pp_size {pp_size} entries")
        self.world_size, self.rank, self.gpus_per_node = world_size, rank, gpus_per_node
        self.tp_size, self.pp_size, self.cp_size = tp_size, pp_size, cp_size
        self.cp_config = dict(cp_config or {})
        self.pp_partition = pp_partition
        self.enable_attention_dp = enable_attention_dp
        self.enable_lm_head_tp_in_adp = enable_lm_head_tp_in_adp
        self._set_moe(moe_cluster_size, moe_tp_size, moe_ep_size)
        self._set_attention(attn_tp_size, attn_cp_size)

    def _set_moe(self, cluster: int, tensor: int, expert: int) -> None:
        cluster = 1 if cluster == -1 else cluster
        if tensor == -1 and expert == -1:
            tensor, expert = self.tp_size // cluster, 1
        elif tensor == -1:
            tensor = self.tp_size // (expert * cluster)
        elif expert == -1:
            expert = self.tp_size // (tensor * cluster)
        if tensor * expert * cluster != self.tp_size:
            raise ValueError(
                "tp_size must equal moe_tp_size * moe_ep_size * moe_cluster_size, "
                f"but got {self.tp_size} != {tensor} * {expert} * {cluster}"
            )
        self.moe_cluster_size, self.moe_tp_size, self.moe_ep_size = cluster, tensor, expert

    def _set_attention(self, tensor: int, context: int) -> None:
        both = self.tp_size * self.cp_size
        if tensor == -1 and context == -1:
            tensor, context = both, 1
        elif tensor == -1:
            tensor = both // context
        elif context == -1:
            context = both // tensor
        if tensor * context != both:
            raise ValueError(
                "tp_size * cp_size must equal attn_tp_size * attn_cp_size, "
                f"but got {self.tp_size} * {self.cp_size} != {tensor} * {context}"
            )
        self.attn_tp_size, self.attn_cp_size = tensor, context

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Mapping) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return (
            f"Mapping(rank={self.rank}, world_size={self.world_size}, tp_size={self.tp_size}, "
            f"pp_size={self.pp_size}, cp_size={self.cp_size})"
        )

    def _key(self) -> tuple[int, ...]:
        sizes = (self.world_size, self.rank, self.gpus_per_node, self.cp_size, self.tp_size)
        moe = (self.moe_cluster_size, self.moe_tp_size, self.moe_ep_size)
        return (*sizes, self.pp_size, *moe, self.attn_tp_size, self.attn_cp_size)

    @property
    def tp_rank(self) -> int:
        """Place in the tensor-parallel group."""
        return self.rank % self.tp_size

    @property
    def cp_rank(self) -> int:
        """Place in the context-parallel group."""
        return self.rank % (self.tp_size * self.cp_size) // self.tp_size

    @property
    def pp_rank(self) -> int:
        """Place in the pipeline."""
        return self.rank // (self.tp_size * self.cp_size)

    @property
    def dp_size(self) -> int:
        """Data-parallel width of attention: the tensor-parallel size under attention DP."""
        return self.tp_size if self.enable_attention_dp else 1

    @property
    def moe_tp_rank(self) -> int:
        """Place in the tensor-parallel group of the experts."""
        return self.tp_rank // (self.moe_ep_size * self.moe_cluster_size)

    @property
    def moe_cluster_rank(self) -> int:
        """Place in the expert cluster."""
        return self.tp_rank % self.moe_cluster_size

    @property
    def moe_ep_rank(self) -> int:
        """Place in the expert-parallel group."""
        return self.tp_rank % self.moe_ep_size

    @property
    def tp_group(self) -> list[int]:
        """World ranks of this rank's tensor-parallel group."""
        first = self.rank - self.tp_rank
        return list(range(first, first + self.tp_size))

    @property
    def cp_group(self) -> list[int]:
        """World ranks of this rank's context-parallel group."""
        first = self.pp_rank * self.tp_size * self.cp_size + self.tp_rank
        return list(range(first, first + self.cp_size * self.tp_size, self.tp_size))

    @property
    def pp_group(self) -> list[int]:
        """World ranks of this rank's pipeline."""
        step = self.tp_size * self.cp_size
        return list(range(self.rank % step, self.world_size, step))

    @property
    def node_rank(self) -> int:
        """Number of the machine that this rank runs on."""
        return self.rank // self.gpus_per_node

    @property
    def local_rank(self) -> int:
        """Number of the device on its machine."""
        return self.rank % self.gpus_per_node

    def has_tp(self) -> bool:
        """Whether there is tensor parallelism."""
        return self.tp_size > 1

    def has_pp(self) -> bool:
        """Whether there is pipeline parallelism."""
        return self.pp_size > 1

    def has_cp(self) -> bool:
        """Whether there is context parallelism."""
        return self.cp_size > 1

    def has_cp_helix(self) -> bool:
        """Whether context parallelism is of the helix kind."""
        return self._cp_kind() == "HELIX"

    def has_cp_ulysses(self) -> bool:
        """Whether context parallelism is of the ulysses kind."""
        return self._cp_kind() == "ULYSSES"

    def _cp_kind(self) -> str:
        kind = self.cp_config.get("cp_type", "")
        return str(getattr(kind, "name", kind)).upper() if self.has_cp() else ""

    def is_first_pp_rank(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.pp_rank == 0

    def is_last_pp_rank(self) -> bool:
        """Whether this rank holds the head."""
        return self.pp_rank == self.pp_size - 1

    def prev_pp_rank(self) -> int:
        """World rank of the pipeline stage before, around the end."""
        return (self.rank - self.tp_size * self.cp_size) % self.world_size

    def next_pp_rank(self) -> int:
        """World rank of the pipeline stage after, around the end."""
        return (self.rank + self.tp_size * self.cp_size) % self.world_size

    def pp_layers(self, num_layers: int) -> list[int]:
        """Layers of this pipeline stage: ``pp_partition``, else even with the first taking more.

        Raises:
            ValueError: If there are fewer layers than stages or the partition does not add up.
        """
        if self.pp_size > num_layers:
            raise ValueError(f"pp size {self.pp_size} is larger than num_layers {num_layers}")
        share, more = divmod(num_layers, self.pp_size)
        counts = self.pp_partition or [share + (i < more) for i in range(self.pp_size)]
        if sum(counts) != num_layers or min(counts) < 1:
            raise ValueError(f"pp_partition {counts} does not divide {num_layers} layers")
        first = sum(counts[: self.pp_rank])
        return list(range(first, first + counts[self.pp_rank]))

    def ep_experts(self, num_experts: int) -> list[int]:
        """Experts of this expert-parallel rank."""
        share = num_experts // self.moe_ep_size
        return list(range(self.moe_ep_rank * share, (self.moe_ep_rank + 1) * share))
