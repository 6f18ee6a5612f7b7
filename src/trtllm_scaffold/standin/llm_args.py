"""Options of the LLM API that the stand-in understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trtllm_scaffold.standin.generation import contract


@contract(
    "tensorrt_llm.llmapi.llm_args.KvCacheConfig",
    defaults={"1.4": {"use_kv_cache_manager_v2": "auto"}},
)
@dataclass(kw_only=True)
class KvCacheConfig:
    """Cache options. The stand-in uses ``max_tokens``, ``max_attention_window`` and the block
    size, and accepts the others.
    """

    enable_block_reuse: bool = True
    max_tokens: int | None = None
    max_attention_window: list[int] | None = None
    sink_token_length: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    host_cache_size: int | None = None
    onboard_blocks: bool = True
    cross_kv_cache_fraction: float | None = None
    secondary_offload_min_priority: int | None = None
    event_buffer_max_size: int = 0
    attention_dp_events_gather_period_ms: int = 5
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    use_uvm: bool = False
    max_gpu_total_bytes: int = 0
    dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"
    tokens_per_block: int = 32
    use_kv_cache_manager_v2: bool | str = False
    max_util_for_resume: float = 0.95


@dataclass
class EngineArgs:
    """Arguments of ``LLM(...)`` beyond its named ones, with the stand-in's defaults.

    Attributes:
        max_batch_size: Sequences decoded together.
        max_num_tokens: Packed tokens of one forward pass; longer prompts are cut into chunks.
        max_seq_len: Prompt and generated tokens of a sequence, None to infer it.
        cuda_graph_config: None decodes eagerly; else a GPU decodes in CUDA graphs, the default.
            What it says about batch sizes is ignored: each size that decodes is captured.
    """

    pipeline_parallel_size: int = 1
    max_batch_size: int = 8
    max_num_tokens: int = 8192
    max_seq_len: int | None = None
    attn_backend: str = "TRTLLM"
    kv_cache_config: Any = None
    cuda_graph_config: Any = field(default_factory=dict)
    checkpoint_format: str = "HF"
    checkpoint_loader: Any = None
    load_format: str = "auto"
    model_kwargs: dict[str, Any] | None = None


#: Arguments of the real constructor that change speed or placement only.
IGNORED = frozenset(
    {
        "backend",
        "torch_compile_config",
        "disable_overlap_scheduler",
        "enable_chunked_prefill",
        "moe_config",
        "moe_expert_parallel_size",
        "moe_tensor_parallel_size",
        "gpus_per_node",
        "max_beam_width",
        "print_iter_log",
        "enable_iter_perf_stats",
        "scheduler_config",
        "allreduce_strategy",
        "max_input_len",
    }
)


def engine_args(given: dict[str, Any]) -> EngineArgs:
    """The arguments that matter.

    Raises:
        ValueError: If one is not known, or of a wrong type: the real constructor rejects it too.
        NotImplementedError: If one is known, but outside the stand-in.
    """
    known = {name: value for name, value in given.items() if name in EngineArgs.__annotations__}
    for name in given:
        if name not in known and name not in IGNORED:
            raise ValueError(f"the stand-in's LLM has no argument {name!r}")
    if given.get("max_beam_width", 1) != 1:
        raise NotImplementedError("the stand-in decodes greedily, without beams")
    graphs = given.get("cuda_graph_config")
    if isinstance(graphs, (bool, int, float, str)):  # False is no way to say None there either
        raise ValueError(f"cuda_graph_config is a CudaGraphConfig, a dict or None, not {graphs!r}")
    return EngineArgs(**known)
