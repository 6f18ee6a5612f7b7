"""A port's Triton attention against its plain formula: compiled on a GPU, else interpreted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sample_specs import SPECS

from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.render import publish, rendered_aside
from trtllm_scaffold.standin.attention.backend_metadata import TrtllmAttentionMetadata
from trtllm_scaffold.standin.executor.bindings import CacheType, DataType
from trtllm_scaffold.standin.executor.kv_cache import KVCacheManager
from trtllm_scaffold.standin.interface import KVCacheParams
from trtllm_scaffold.standin.llm_args import KvCacheConfig
from trtllm_scaffold.standin.mapping import Mapping

pytest.importorskip("triton", reason="needs triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {torch.float32: DataType.FLOAT, torch.float16: DataType.HALF}

#: Port: what its attention takes beside queries, keys and values, in each kind of layers.
PORTS: dict[str, list[dict[str, Any]]] = {
    "gemma2": [{"softcap": 3.0, "window": 9}, {"softcap": 3.0, "window": None}],
    "bloom": [{"slopes": True}],
    "mpt": [{"slopes": True}],
    "chunked": [{"chunk": 8}, {"chunk": None}],
}
#: Query heads, key/value heads, head_dim: no powers of two where heads share their keys.
HEADS = {"gemma2": (6, 2, 24), "chunked": (6, 2, 24), "bloom": (3, 3, 16), "mpt": (4, 4, 16)}
#: New and cached tokens of each sequence, how many sequences are prefill, and the dtype.
BATCHES = {
    "prefill": ([37, 1, 4], [0, 0, 0], 3, torch.float16),
    "chunked prefill": ([11, 9], [26, 33], 2, torch.float16),
    "mixed": ([13, 1, 1], [7, 0, 50], 1, torch.float32),
    "decode": ([1, 1, 1], [70, 0, 8], 0, torch.float32),
    "decode in 16 bits": ([1, 1], [35, 12], 0, torch.float16),
}


@pytest.fixture(scope="module", params=list(PORTS))
def port(request, tmp_path_factory) -> Iterator[tuple[str, ModuleType, ModuleType]]:
    """Both modules of a rendered port, imported without a runtime."""
    name = request.param
    spec = SPECS[name]
    answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
    dest = tmp_path_factory.mktemp("port") / name
    with rendered_aside(answers, {"config.json": {"a": 1}}, dest) as folder:
        publish(folder, dest)
    package = ModuleType("kernel_port")
    package.__path__ = [str(dest / answers["package"])]
    names = ModuleType("kernel_port._trtllm")
    names.AttentionMetadata = TrtllmAttentionMetadata
    sys.modules |= {"kernel_port": package, "kernel_port._trtllm": names}
    found = (importlib.import_module(f"kernel_port.{stem}") for stem in STEMS)
    yield name, *found
    for known in [key for key in sys.modules if key.startswith("kernel_port")]:
        del sys.modules[known]


STEMS = ("reference_attention", "attention_kernel")


def manager(heads: int, width: int, dtype: torch.dtype) -> KVCacheManager:
    return KVCacheManager(
        KvCacheConfig(max_tokens=500),
        CacheType.SELF,
        num_layers=3,
        num_kv_heads=heads,
        head_dim=width,
        tokens_per_block=4,
        max_seq_len=100,
        max_batch_size=4,
        mapping=Mapping(),
        dtype=DTYPES[dtype],
    )


def prepared(cache: KVCacheManager, batch: str) -> TrtllmAttentionMetadata:
    lens, cached, contexts, _ = BATCHES[batch]
    metadata = TrtllmAttentionMetadata(
        max_num_requests=4, max_num_tokens=200, kv_cache_manager=cache
    )
    metadata.seq_lens, metadata.num_contexts = torch.tensor(lens, dtype=torch.int), contexts
    metadata.request_ids = list(range(len(lens)))
    metadata.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=cached)
    metadata.prepare()
    return metadata


@pytest.mark.parametrize("batch", BATCHES)
def test_the_kernel_computes_the_formula(port, batch):
    name, plain, kernel = port
    num_heads, kv_heads, head_dim = HEADS[name]
    lens, cached, _, dtype = BATCHES[batch]
    generator = torch.Generator().manual_seed(sum(lens))

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    for options in PORTS[name]:
        if "slopes" in options:
            options = {"slopes": plain.alibi_slopes(num_heads)}
        caches = [manager(kv_heads, head_dim, dtype) for _ in range(2)]
        sizes = [num_heads, kv_heads, kv_heads]
        fused = random(sum(lens), sum(sizes) * head_dim).unflatten(-1, (-1, head_dim))
        q, k, v = fused.split(sizes, dim=1)
        past = random(*caches[0].get_buffers(1).shape)
        found = []
        for cache, attention in zip(caches, (formula(plain), kernel.kernel_attention), strict=True):
            cache.add_dummy_requests(
                range(len(lens)), [new + old for new, old in zip(lens, cached, strict=True)]
            )
            cache.get_buffers(1).copy_(past)
            metadata = prepared(cache, batch)
            given = {"layer_idx": 1, "metadata": metadata, "scale": 0.4, **options}
            found.append(attention(q, k, v, **given))
        error = (found[0].float() - found[1].float()).abs().max()
        assert error <= 8 * torch.finfo(dtype).eps * found[0].float().abs().max()
        first, second = (cache.get_buffers(1) for cache in caches)
        assert torch.equal(first, second) and not torch.equal(first, past)
        assert all(not cache.get_buffers(layer).any() for cache in caches for layer in (0, 2))


def formula(plain: ModuleType) -> Any:
    """The plain path, on a GPU too: the batch's tables on the device are hidden from it."""

    class Hidden:
        def __init__(self, metadata: Any) -> None:
            self.metadata = metadata

        def __getattr__(self, name: str) -> Any:
            if name == "kv_cache_block_offsets":
                raise AttributeError(name)
            return getattr(self.metadata, name)

    def attention(*args: Any, metadata: Any, **options: Any) -> Any:
        return plain.paged_attention(*args, metadata=Hidden(metadata), **options)

    return attention


def test_several_caches_are_refused(port):
    name, _, kernel = port
    cache = manager(2, 16, torch.float32)
    cache.add_dummy_requests([0, 1, 2], [40] * 3)
    metadata = prepared(cache, "prefill")
    metadata.kv_cache_block_offsets = metadata.kv_cache_block_offsets.repeat(2, 1, 1, 1)
    q = torch.zeros(42, 2, 16, device=DEVICE)
    options = {**PORTS[name][0], **({"slopes": [1.0, 0.5]} if name in ("bloom", "mpt") else {})}
    with pytest.raises(ValueError, match="several kinds"):
        kernel.kernel_attention(q, q, q, layer_idx=1, metadata=metadata, scale=1.0, **options)


@pytest.mark.parametrize("kilobytes", [99, 163, 227])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 256])
def test_programs_fit_the_shared_memory_of_other_gpus(
    port, monkeypatch, head_dim, dtype, kilobytes
):
    kernel = port[2]
    monkeypatch.setattr(kernel, "_shared_memory", lambda _: kilobytes << 10)
    q = torch.empty(2, 8, head_dim, dtype=dtype)
    on_gpu = SimpleNamespace(
        shape=q.shape, dtype=dtype, element_size=q.element_size, is_cuda=True, device="cuda"
    )
    for group, decodes in ((1, False), (1, True), (24, True)):
        found = kernel._tiling(on_gpu, group, decodes)
        rows, tile = found["ROWS"], found["TILE"]
        assert rows >= max(16, group) and tile >= 16
        assert (rows + 4 * tile) * head_dim * q.element_size() <= kilobytes << 10


def test_a_compiler_takes_the_shared_memory_for_a_constant(port, monkeypatch):
    kernel = port[2]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties())

    def scaled(x: torch.Tensor) -> torch.Tensor:
        return x * kernel._shared_memory(x.device)

    compiled = torch.compile(scaled, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [7.0, 7.0]


class Properties:
    shared_memory_per_block_optin = 7
