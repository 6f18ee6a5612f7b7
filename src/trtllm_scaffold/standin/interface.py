"""Parameters of positions, masks and the attention runtime that models construct."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Union
from weakref import WeakValueDictionary

import torch

from trtllm_scaffold.standin import rope_tables
from trtllm_scaffold.standin.device import runtime_device
from trtllm_scaffold.standin.functional import PositionEmbeddingType, RotaryScalingType
from trtllm_scaffold.standin.generation import active, contract

#: Tables in use, shared by the layers of a model (one can be 64 MiB).
_tables: WeakValueDictionary[tuple[Any, ...], torch.Tensor] = WeakValueDictionary()


@contract("RopeParams", defaults={"1.2": {"duplicate_data": True}})
@dataclass(kw_only=True, unsafe_hash=True)
class RopeParams:
    """Rotary parameters. An instance is a key of the table cache: do not change it after use."""

    dim: int = 0
    theta: float = 10000.0
    alpha: float = 1.0
    scale_type: RotaryScalingType = RotaryScalingType.none
    scale: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    short_m_scale: float = 1.0
    long_m_scale: float = 1.0
    max_positions: int = 1024
    original_max_positions: int = 1024
    beta_fast: int = 32
    beta_slow: int = 1
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None
    max_seq_len: int | None = None
    duplicate_data: bool = False

    @staticmethod
    def from_config(config: Any) -> RopeParams:
        """Read the parameters from a HuggingFace config.

        1.2 knows ``rope_theta`` and ``rope_scaling`` only. 1.4 also reads ``rope_parameters``,
        and writes the chosen entry back by ``config.update``. Both take ``rotary_emb_base`` for
        a width, although GPT-NeoX configs keep theta there.
        """
        params = RopeParams()
        if active() == "1.4":
            _flatten_rope_parameters(config)
        head_dim = getattr(config, "head_dim", None)
        if not isinstance(head_dim, int):
            head_dim = config.hidden_size // config.num_attention_heads
        params.max_positions = config.max_position_embeddings
        params.theta = _theta(config)
        share = (
            getattr(config, "rotary_pct", None)
            or getattr(config, "partial_rotary_factor", None)
            or 1.0
        )
        latent = getattr(config, "qk_rope_head_dim", None)
        params.dim = (
            getattr(config, "rotary_dim", None)
            or getattr(config, "rotary_emb_base", None)
            or latent
            or int(head_dim * share)
        )
        if active() == "1.4" and latent is not None:
            params.duplicate_data = True
        _read_scaling(params, config)
        params.max_seq_len = getattr(config, "max_seq_len", None)
        return params

    def create_rope_const_params(
        self, interleave: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Inverse frequencies and the cos/sin table on the runtime's device.

        Args:
            interleave: Whether cos and sin alternate per frequency, or all cos of a position
                come before all its sin.

        Returns:
            ``[dim / 2]`` (None for longrope) and ``[1, max_positions * width * 2]`` float32, where
            width is ``dim / 2``, or ``dim`` if ``interleave`` and the data are duplicated.
            ``(None, None)`` if ``dim`` is 0.
        """
        if self.dim == 0:
            return None, None
        device = runtime_device()
        frequencies, magnitude = rope_tables.inverse_frequencies(self)
        key = (self, interleave, active(), str(device))
        table = _tables.get(key)
        if table is None:
            values = rope_tables.cos_sin_table(self, frequencies, magnitude)
            if not interleave:
                values = values.swapaxes(1, 2)
            elif self.has_duplicated_table:
                values = values.repeat(2, axis=0).reshape(self.max_positions, -1, 2)
            table = torch.from_numpy(values.reshape(1, -1).copy()).to(device)
            _tables[key] = table
        if self.scale_type is RotaryScalingType.longrope:
            return None, table
        return torch.from_numpy(frequencies).to(device), table

    @property
    def has_duplicated_table(self) -> bool:
        """Whether the interleaved table holds every number twice (the stand-in's own name)."""
        return self.duplicate_data and (
            active() == "1.4" or self.scale_type is RotaryScalingType.yarn
        )


def _flatten_rope_parameters(config: Any) -> None:
    found = getattr(config, "rope_parameters", None)
    if found is None:
        return
    if found and all(name.endswith("_attention") for name in found):
        found = found.get("full_attention") or next(iter(found.values()))
    config.update(found)


def _theta(config: Any) -> float:
    theta = getattr(config, "rope_theta", None)
    if theta is None and active() == "1.4":
        theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta")
    return 10000.0 if theta is None else theta


def _read_scaling(params: RopeParams, config: Any) -> None:
    scaling = getattr(config, "rope_scaling", None)
    if scaling is None and active() == "1.4":
        scaling = getattr(config, "rope_parameters", None)
    if scaling is None:
        if config.model_type == "deepseek_v3":
            params.scale_type = RotaryScalingType.yarn
        return
    kind = scaling.get("type") or scaling.get("rope_type")
    params.scale_type = RotaryScalingType.from_string(kind)
    params.alpha = scaling.get("alpha", 1.0)
    params.scale = scaling.get("factor", 1.0)
    params.low_freq_factor = scaling.get("low_freq_factor", 1.0)
    params.high_freq_factor = scaling.get("high_freq_factor", 4.0)
    params.original_max_positions = (
        getattr(config, "original_max_position_embeddings", None)
        or scaling.get("original_max_position_embeddings")
        or 1024
    )
    params.beta_fast = scaling.get("beta_fast", 32)
    params.beta_slow = scaling.get("beta_slow", 1)
    params.mscale = scaling.get("mscale", 1.0)
    params.mscale_all_dim = scaling.get("mscale_all_dim", 0.0)
    for name in ("short_factor", "long_factor"):
        if name in scaling:
            setattr(params, name, tuple(scaling[name]))


@contract("PositionalEmbeddingParams")
@dataclass(kw_only=True, frozen=True)
class PositionalEmbeddingParams:
    """Kind of positions and their parameters. A rope type needs ``rope``; yarn is not checked."""

    type: PositionEmbeddingType
    embedder: Callable[..., Any] | None = None
    rope: RopeParams | None = None
    is_neox: bool = True
    mrope_section: list[int] | None = None
    mrope_interleaved: bool = False

    def __post_init__(self) -> None:
        if self.type.is_deferred():
            assert self.embedder is not None, f"{self.type} needs an embedder"
        else:
            assert self.embedder is None, f"{self.type} takes no embedder"
        if self.type.is_rope():
            assert self.rope is not None, f"{self.type} needs rope parameters"


class PredefinedAttentionMask(str, Enum):
    """Masks that need no data."""

    CAUSAL = "causal"
    FULL = "full"


class CustomAttentionMask(str, Enum):
    """A mask given as data."""

    CUSTOM = "custom"


AttentionMask = Union[PredefinedAttentionMask, CustomAttentionMask]  # noqa: UP007


class AttentionInputType(IntEnum):
    """Which kinds of sequences a batch holds."""

    mixed = 0
    context_only = 1
    generation_only = 2


@contract("AttentionRuntimeFeatures")
@dataclass
class AttentionRuntimeFeatures:
    """Features of the executor that change what the attention sees."""

    chunked_prefill: bool = False
    cache_reuse: bool = False
    has_speculative_draft_tokens: bool = False
    chunk_size: int = 0
    chunked_prefill_buffer_batch_size: int = 4


@contract("KVCacheParams")
@dataclass
class KVCacheParams:
    """What the cache holds for each sequence before this step."""

    use_cache: bool
    num_cached_tokens_per_seq: list[int] | None = None
    block_ids_per_seq: list[list[int]] | None = None
    host_max_attention_window_sizes: torch.Tensor | None = None
    host_sink_token_length: torch.Tensor | None = None
    num_extra_kv_tokens: int = 0


@contract("MLAParams")
@dataclass(kw_only=True, unsafe_hash=True)
class MLAParams:
    """Widths of multi-head latent attention."""

    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_rope_head_dim: int = 0
    qk_nope_head_dim: int = 0
    v_head_dim: int = 0
    rope_append: bool = True
    predicted_tokens_per_seq: int = 1
    chunked_prefill_buffer_batch_size: int = 1
    hidden_size: int = 0
