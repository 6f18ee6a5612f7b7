"""Masks, sinks, paging and batch checks, against attention written out token by token."""

from __future__ import annotations

import math
import random

import pytest
import torch

from trtllm_scaffold.standin.attention.kernel import attend, causal_mask
from trtllm_scaffold.standin.attention.selection import create_attention
from trtllm_scaffold.standin.executor.bindings import CacheType, DataType, KvCacheConfig
from trtllm_scaffold.standin.executor.kv_cache import KVCacheManager
from trtllm_scaffold.standin.interface import (
    CustomAttentionMask,
    KVCacheParams,
    PredefinedAttentionMask,
)
from trtllm_scaffold.standin.mapping import Mapping

from ..statements import states

HEADS, KV, DIM = 6, 2, 8
SCALE = 1 / math.sqrt(DIM)


def by_hand(q, k, v, visible, scale, sinks=None):
    """``q`` [queries, heads, dim], ``k`` and ``v`` [keys, kv_heads, dim], one query at a time."""
    out = torch.zeros_like(q)
    for i in range(q.shape[0]):
        seen = [j for j in range(k.shape[0]) if visible(i, j)]
        for head in range(q.shape[1]):
            mine = head * k.shape[1] // q.shape[1]
            scores = torch.stack([q[i, head] @ k[j, mine] * scale for j in seen])
            if sinks is not None:
                scores = torch.cat([scores, sinks[head : head + 1]])
            weights = scores.softmax(0)[: len(seen)]
            out[i, head] = sum(w * v[j, mine] for w, j in zip(weights, seen, strict=True))
    return out


def manager(**changes):
    given = {
        "num_layers": 2,
        "num_kv_heads": KV,
        "head_dim": DIM,
        "tokens_per_block": 4,
        "max_seq_len": 40,
        "max_batch_size": 3,
        "mapping": Mapping(),
        "dtype": DataType.FLOAT,
    }
    config = changes.pop("config", KvCacheConfig(max_tokens=120))
    return KVCacheManager(config, CacheType.SELF, **{**given, **changes})


class Case:
    """Sequences with history, played into one layer of a backend and by hand."""

    def __init__(self, backend, lens, cached, contexts, **layer_options):
        torch.manual_seed(len(lens) + sum(lens))
        size = 40 if backend == "VANILLA" else 4
        self.cache = manager(tokens_per_block=size)
        self.layer = create_attention(backend, 1, HEADS, DIM, KV, **layer_options)
        self.lens, self.cached, self.contexts = lens, cached, contexts
        total = [a + b for a, b in zip(lens, cached, strict=True)]
        self.k = [torch.randn(n, KV, DIM) for n in total]
        self.v = [torch.randn(n, KV, DIM) for n in total]
        self.q = [torch.randn(n, HEADS, DIM) for n in total]
        self.cache.add_dummy_requests(range(len(lens)), total)
        if any(cached):
            self._play([0] * len(lens), cached, len(lens), {})

    def _play(self, start, count, contexts, options):
        md = self.layer.Metadata(
            max_num_requests=3, max_num_tokens=200, kv_cache_manager=self.cache
        )
        kept = [i for i, n in enumerate(count) if n]
        md.seq_lens = torch.tensor([count[i] for i in kept], dtype=torch.int)
        md.num_contexts = contexts if len(kept) == len(count) else len(kept)
        md.request_ids = kept
        md.prompt_lens = [count[i] for i in kept]
        md.kv_cache_params = KVCacheParams(
            use_cache=True, num_cached_tokens_per_seq=[start[i] for i in kept]
        )
        md.prepare()

        def packed(parts):
            return torch.cat([parts[i][start[i] : start[i] + count[i]] for i in kept]).flatten(1)

        q, k, v = packed(self.q), packed(self.k), packed(self.v)
        if self.layer.support_fused_qkv():
            return self.layer.forward(torch.cat([q, k, v], -1), None, None, md, **options)
        return self.layer.forward(q, k, v, md, **options)

    def check(self, visible, scale=SCALE, sinks=None, **options):
        """``visible(sequence, query position, key position)``."""
        got = self._play(self.cached, self.lens, self.contexts, options)
        wanted = []
        for n, (new, old) in enumerate(zip(self.lens, self.cached, strict=True)):
            q = self.q[n][old : old + new]
            wanted.append(
                by_hand(
                    q,
                    self.k[n],
                    self.v[n],
                    lambda i, j, n=n, old=old: visible(n, old + i, j),
                    scale,
                    sinks,
                )
            )
        torch.testing.assert_close(got, torch.cat(wanted).flatten(1), rtol=1e-5, atol=1e-5)


BATCHES = {
    "prefill": ([9, 13, 5], [0, 0, 0], 3),
    "equal prefill": ([7, 7], [0, 0], 2),
    "decode": ([1, 1, 1], [11, 3, 20], 0),
    "mixed": ([8, 1, 1], [0, 14, 6], 1),
    "chunked": ([6, 3, 1], [9, 14, 6], 2),
    "several new tokens": ([3, 3, 2], [9, 2, 5], 0),
}


@pytest.fixture(params=BATCHES)
def batch(request):
    return BATCHES[request.param]


@states("A4-1", "B-6")
@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM", "FLASHINFER"])
def test_causal_and_scale(generation, backend, batch):
    Case(backend, *batch).check(lambda n, i, j: j <= i)
    scaled = Case(backend, *batch, q_scaling=1.7)
    scaled.check(lambda n, i, j: j <= i, scale=1 / (math.sqrt(DIM) * 1.7))


@states("A5-1", "D-7")
@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM", "FLASHINFER"])
@pytest.mark.parametrize("window", [1, 4, 500])
def test_window_counts_the_current_key(generation, backend, window, batch):
    case = Case(backend, *batch)
    case.check(lambda n, i, j: i - window < j <= i, attention_window_size=window)


@states("A6-2", "B-8")
@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM", "FLASHINFER"])
def test_full_mask(generation, backend, batch):
    case = Case(backend, *batch)
    case.check(lambda n, i, j: True, attention_mask=PredefinedAttentionMask.FULL)


@states("A6-1")
def test_sinks(generation, batch):
    sinks = torch.linspace(-1, 2, HEADS)
    Case("TRTLLM", *batch).check(lambda n, i, j: j <= i, sinks=sinks, attention_sinks=sinks)
    Case("TRTLLM", *batch).check(
        lambda n, i, j: i - 4 < j <= i,
        sinks=sinks,
        attention_sinks=sinks,
        attention_window_size=4,
    )


@states("A6-1")
def test_sinks_are_checked(generation, batch):
    with pytest.raises(ValueError, match="TRTLLM"):
        Case("VANILLA", *batch).check(lambda n, i, j: True, attention_sinks=torch.zeros(HEADS))
    with pytest.raises(RuntimeError, match="float32"):
        Case("TRTLLM", *batch).check(
            lambda n, i, j: True, attention_sinks=torch.zeros(HEADS, dtype=torch.float16)
        )


@states("A6-5")
def test_chunks_cut_prefill_only(generation, batch):
    case = Case("TRTLLM", *batch, attention_chunk_size=4)

    def visible(n, i, j):
        return j <= i and (n >= case.contexts or i // 4 == j // 4)

    case.check(visible)


@states("A6-2", "A6-3", "A6-4")
def test_custom_mask(generation, batch):
    lens, cached, contexts = batch
    chooser = random.Random(3)
    masks = [
        [
            [j == i or chooser.random() < 0.5 for j in range(old + new)]
            for i in range(old, old + new)
        ]
        for new, old in zip(lens[:contexts], cached, strict=False)
    ]
    data = torch.tensor([item for mask in masks for row in mask for item in row])
    options = {"attention_mask": CustomAttentionMask.CUSTOM, "attention_mask_data": data}

    def visible(n, i, j):
        return masks[n][i - cached[n]][j] if n < contexts else j <= i

    Case("FLASHINFER", *batch).check(visible, **options)
    with pytest.raises(ValueError, match="custom mask"):
        Case("VANILLA", *batch).check(visible, **options)
    if generation == "1.4":
        Case("TRTLLM", *batch).check(visible, **options)
    else:
        with pytest.raises(ValueError, match="custom mask"):
            Case("TRTLLM", *batch).check(visible, **options)
    if contexts:
        with pytest.raises(ValueError, match="elements"):
            Case("FLASHINFER", *batch).check(
                visible, **{**options, "attention_mask_data": data[1:]}
            )


@states("A5-2")
def test_a_custom_mask_disables_the_window(generation, batch):
    lens, cached, contexts = batch
    sizes = [(new, old + new) for new, old in zip(lens[:contexts], cached, strict=False)]
    data = torch.ones(sum(new * keys for new, keys in sizes), dtype=torch.bool)
    Case("FLASHINFER", *batch).check(
        lambda n, i, j: n < contexts or i - 3 < j <= i,
        attention_mask=CustomAttentionMask.CUSTOM,
        attention_mask_data=data,
        attention_window_size=3,
    )


@states("B-17", "B-18")
def test_unknown_options(generation, batch):
    case = Case("VANILLA", *batch)
    if generation == "1.2":
        case.check(lambda n, i, j: j <= i, nonsense=3)
    else:
        with pytest.raises(ValueError, match="nonsense"):
            case.check(lambda n, i, j: j <= i, nonsense=3)
    with pytest.raises(NotImplementedError, match="latent_cache"):
        Case("TRTLLM", *batch).check(lambda n, i, j: True, latent_cache=torch.zeros(1))


@states("A4-4", "A4-5")
def test_1_2_vanilla_without_a_cache_loses_q_scaling(generation):
    layer = create_attention("VANILLA", 0, HEADS, DIM, KV, q_scaling=2.0)
    md = layer.Metadata(max_num_requests=2, max_num_tokens=20, kv_cache_manager=None)
    md.seq_lens, md.num_contexts = torch.tensor([5, 3], dtype=torch.int), 2
    md.request_ids = [0, 1]
    md.prepare()
    q, k, v = (torch.randn(8, n, DIM) for n in (HEADS, KV, KV))
    got = layer.forward(q.flatten(1), k.flatten(1), v.flatten(1), md)
    scale = 1 / (math.sqrt(DIM) * (1.0 if generation == "1.2" else 2.0))
    parts = [
        by_hand(q[a:b], k[a:b], v[a:b], lambda i, j: j <= i, scale) for a, b in ((0, 5), (5, 8))
    ]
    torch.testing.assert_close(got, torch.cat(parts).flatten(1), rtol=1e-5, atol=1e-5)


@states("A5-3", "D-1", "D-5")
def test_cache_window_narrows_trtllm(generation):
    lens, cached, contexts = BATCHES["mixed"]
    case = Case("TRTLLM", lens, cached, contexts)
    case.cache._windows = [40, 3]
    case.check(lambda n, i, j: i - 3 < j <= i)
    case.check(lambda n, i, j: i - 2 < j <= i, attention_window_size=2)
    case.check(lambda n, i, j: i - 3 < j <= i, attention_window_size=9)


def test_mask_width_and_no_window():
    mask = causal_mask(torch.tensor([[2, 3]]), 5, window=2)
    assert mask.int().tolist() == [[[[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]]]]
    q, k = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 1, 3)
    sinks = torch.full((2,), -1e30)
    plain = attend(q, k, k, mask=None, scale=1.0)
    torch.testing.assert_close(attend(q, k, k, mask=None, scale=1.0, sinks=sinks), plain)


# ---------------------------------------------------------------- cache and metadata


@states("E1-2")
def test_blocks_are_shared_out_and_taken_back(generation):
    cache = manager(config=KvCacheConfig(max_tokens=20))
    made = cache.add_dummy_requests([5, 6], [9, 4])
    first, second = cache.get_batch_cache_indices([5, 6])
    assert (len(first), len(second)) == (3, 1) and not set(first) & set(second)
    assert all(abs(a - b) > 1 for a, b in zip(first, first[1:], strict=False))
    assert cache.get_buffers(1).shape == (5, 2, 4, KV, DIM)
    assert cache.get_buffers(1, kv_layout="HND").shape == (5, 2, KV, 4, DIM)
    with pytest.raises(RuntimeError, match="1 free blocks of 4 tokens, request 7 needs 2"):
        cache.add_dummy_requests([7], [8])
    with pytest.raises(ValueError, match="in the cache already"):
        cache.add_dummy_requests([5], [1])
    with pytest.raises(ValueError, match="no cache blocks"):
        cache.get_batch_cache_indices([99])
    with pytest.raises(ValueError, match="max_seq_len is 40"):
        cache.add_dummy_requests([8], [41])
    cache.free_resources(made[0])
    cache.add_dummy_requests([9], [16])
    with pytest.raises(KeyError):
        cache.get_buffers(2)


@states("B-20", "B-21")
def test_the_blocks_of_a_batch_are_on_the_device(generation):
    """Where a token's key and value lie, by the table alone and by the manager's lists."""
    cache = manager(num_layers=3)
    layer = create_attention("TRTLLM", 1, HEADS, DIM, KV)
    cache.add_dummy_requests([0, 1], [20, 9])
    md = layer.Metadata(max_num_requests=3, max_num_tokens=20, kv_cache_manager=cache)
    assert md.kv_cache_block_offsets is None
    md.request_ids, md.seq_lens = [1, 0], torch.tensor([3, 1], dtype=torch.int)
    md.num_contexts = 1
    md.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=[0, 17])
    md.prepare()
    assert md.kv_lens_cuda.tolist() == [3, 18] and md.kv_lens_cuda.dtype == torch.int32
    table = md.kv_cache_block_offsets
    assert table.dtype == torch.int32 and table.shape == (1, 2, 2, cache.max_blocks_per_seq)
    held = cache.get_buffers(1)
    assert not held.is_contiguous() and held.stride(0) == 3 * 2 * held.stride(1)
    held.copy_(torch.randn(held.shape))
    for row, blocks in enumerate(cache.get_batch_cache_indices([1, 0])):
        for kind in range(2):
            for place, block in enumerate(blocks):
                start = int(table[0, row, kind, place]) * held.stride(1)
                found = held.as_strided(
                    held.shape[2:], held.stride()[2:], held.storage_offset() + start
                )
                assert torch.equal(found, held[block, kind])
            assert table[0, row, kind, len(blocks) :].eq(-1).all()
    assert md.host_kv_cache_pool_mapping.tolist() == [[0, 0], [0, 1], [0, 2]]
    for backend in ("VANILLA", "FLASHINFER"):
        other = create_attention(backend, 0, HEADS, DIM, KV).Metadata
        assert not hasattr(other, "kv_cache_block_offsets")


@states("B-7")
def test_layers_that_differ_have_pools_of_their_own(generation):
    cache = manager(num_layers=2, num_kv_heads=[1, 2])
    assert cache.num_pools == 2
    assert cache.kv_cache_pool_mapping.tolist() == [[0, 0], [1, 0]]
    assert cache.get_buffers(1).is_contiguous()


@states("D-9")
def test_heads_and_layers_of_a_rank(generation):
    mapping = Mapping(world_size=4, tp_size=2, pp_size=2, rank=3)
    cache = manager(mapping=mapping, num_layers=5, num_kv_heads=3)
    assert cache.pp_layers == [3, 4] and cache.num_local_layers == 2
    assert cache.get_buffers(4).shape[3] == 2
    assert manager(num_kv_heads=[1, 2]).get_buffers(1).shape[3] == 2


@states("B-7", "D-3")
def test_different_windows_need_a_model_config(generation):
    config = KvCacheConfig(max_tokens=40, max_attention_window=[4, 40])
    with pytest.raises(ValueError, match="model_config"):
        manager(config=config)
    cache = manager(config=config, model_config=object())
    assert [cache.attention_window(layer) for layer in (0, 1)] == [4, 40]


@states("D-1", "D-2")
def test_windows_of_the_cache_repeat_over_the_layers(generation):
    config = KvCacheConfig(max_tokens=40, max_attention_window=[4, 100])
    cache = manager(config=config, num_layers=5, model_config=object())
    assert [cache.attention_window(layer) for layer in range(5)] == [4, 40, 4, 40, 4]
    assert manager().attention_window(1) is None
    one = manager(config=KvCacheConfig(max_tokens=40, max_attention_window=[7]))
    assert [one.attention_window(layer) for layer in (0, 1)] == [7, 7]


@states("D-12")
def test_a_layer_may_read_the_cache_of_another(generation):
    case = Case("TRTLLM", *BATCHES["decode"])
    case.check(lambda n, i, j: j <= i)
    other = create_attention("TRTLLM", 0, HEADS, DIM, KV)
    case.layer, layer = other, case.layer
    with pytest.raises(AssertionError):  # layer 0 holds nothing of the history
        case.check(lambda n, i, j: j <= i)
    case.layer.layer_idx = layer.layer_idx
    case.check(lambda n, i, j: j <= i)


@states("A1-5", "E1-3")
def test_metadata_checks(generation):
    cache = manager()
    layer = create_attention("TRTLLM", 0, HEADS, DIM, KV)
    md = layer.Metadata(max_num_requests=2, max_num_tokens=10, kv_cache_manager=cache)
    cache.add_dummy_requests([0, 1, 2], [4, 4, 4])

    def prepare(lens, cached, ids, contexts=None):
        md.seq_lens = torch.tensor(lens, dtype=torch.int)
        md.num_contexts = len(lens) if contexts is None else contexts
        md.request_ids = ids
        md.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=cached)
        md.prepare()

    prepare([3, 1], [0, 2], [0, 1], 1)
    assert (md.num_seqs, md.num_generations, md.num_tokens, md.num_ctx_tokens) == (2, 1, 4, 3)
    assert md.context_lens.tolist() == [3] and md.seq_lens_cuda.tolist() == [3, 1]
    for arguments, message in (
        (([1, 1, 1], [0, 0, 0], [0, 1, 2]), "3 sequences, but the metadata was made for 2"),
        (([9, 2], [0, 0], [0, 1]), "11 tokens, but the metadata was made for 10"),
        (([5], [0], [0]), "needs room for 5 tokens"),
        (([1, 1], [0], [0, 1]), "1 cached lengths for 2 sequences"),
        (([1, 1], [0, 0], [0]), "1 request_ids for 2 sequences"),
        (([1, 0], [0, 0], [0, 1]), "every sequence needs a new token"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(*arguments)
    md.seq_lens = torch.tensor([1], dtype=torch.int)
    with pytest.raises(RuntimeError, match="prepare"):
        layer.forward(torch.zeros(1, (HEADS + 2 * KV) * DIM), None, None, md)


@states("B-4")
def test_vanilla_reads_one_block(generation):
    cache = manager()
    layer = create_attention("VANILLA", 0, HEADS, DIM, KV)
    md = layer.Metadata(max_num_requests=2, max_num_tokens=10, kv_cache_manager=cache)
    cache.add_dummy_requests([0], [5])
    md.seq_lens, md.num_contexts, md.request_ids = torch.tensor([5]), 1, [0]
    md.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=[0])
    with pytest.raises(ValueError, match="one cache block per sequence: 5 tokens"):
        md.prepare()


def test_metadata_fields_of_the_generation(generation):
    layer = create_attention("TRTLLM", 0, HEADS, DIM, KV)
    if generation == "1.2":
        with pytest.raises(TypeError, match="kv_cache_manager"):
            layer.Metadata(max_num_requests=1, max_num_tokens=1)
        with pytest.raises(TypeError, match="kv_layout"):
            layer.Metadata(
                max_num_requests=1, max_num_tokens=1, kv_cache_manager=None, kv_layout="NHD"
            )
    else:
        assert layer.Metadata(max_num_requests=1, max_num_tokens=1).kv_cache_manager is None


@states("B-9", "E1-6")
def test_graph_metadata_keeps_its_tensors(generation):
    cache = manager()
    layer = create_attention("TRTLLM", 0, HEADS, DIM, KV)
    md = layer.Metadata(max_num_requests=3, max_num_tokens=20, kv_cache_manager=cache)
    cache.add_dummy_requests([0, 1], [20, 20])
    graph = md.create_cuda_graph_metadata(2)
    assert graph is not md and graph.is_cuda_graph and not md.is_cuda_graph
    assert graph.create_cuda_graph_metadata(2) is graph
    addresses = []
    for cached in ([3, 9], [4, 10], [18, 1]):
        graph.request_ids = [0, 1]
        graph.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=cached)
        graph.prepare()
        batch = graph.prepared()
        segment = batch.segments[0]
        held = (batch.token_positions, batch.token_slots, segment.positions, segment.slots)
        addresses.append([item.data_ptr() for item in held])
        assert batch.token_positions.tolist() == cached and segment.num_keys == 40
    assert addresses[0] == addresses[1] == addresses[2]
    with pytest.raises(ValueError, match="larger than the captured"):
        graph.max_num_requests = 9
        graph.seq_lens = torch.ones(3, dtype=torch.int)
