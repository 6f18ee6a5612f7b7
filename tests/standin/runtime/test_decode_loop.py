"""Decoding in runs of steps gives what the eager engine gives; a CPU runs what a graph replays."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from trtllm_scaffold.standin.executor import decode_loop
from trtllm_scaffold.standin.executor.decode_graph import DecodeGraph, greedy
from trtllm_scaffold.standin.executor.decode_loop import StepsBySize, reserve_ahead
from trtllm_scaffold.standin.executor.sequence import Sequence

from .harness import tokens
from .test_llm import folder_of

VOCAB = 97


class Uncaptured(DecodeGraph):
    """A decode step with the fixed tensors of a graph, run instead of captured."""

    starts = steps = 0

    def _capture(self):
        self._graph = "nothing is captured on a CPU"

    def start(self, *given):
        Uncaptured.starts += 1
        super().start(*given)

    def step(self):
        Uncaptured.steps += 1
        logits = self._forward()
        if self.logits is None:
            self.logits = torch.empty_like(logits)
        self.logits.copy_(logits)  # in place, as a replay: what is kept must be a copy
        self.tokens.copy_(greedy(self.logits))
        self._advance(self.metadata.prepared())
        return self.tokens

    def _advance(self, batch):
        """The kernel's formula: positions from the device, blocks from the table of `start`."""
        (segment,) = batch.segments
        manager = self.metadata.kv_cache_manager
        size = manager.tokens_per_block
        position = batch.token_positions + 1
        self.position_ids.copy_(position.unsqueeze(0))
        batch.token_positions.copy_(position)
        segment.positions.copy_(position.unsqueeze(1))
        segment.kv_lens.copy_(position + 1)
        place = (position // size).clamp(max=segment.block_table.shape[1] - 1)
        block = segment.block_table.gather(1, place.unsqueeze(1)).squeeze(1)
        batch.token_slots.copy_(block * manager.rows_per_block + position % size)


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.setattr(Uncaptured, "starts", 0)
    monkeypatch.setattr(Uncaptured, "steps", 0)
    return Uncaptured


def engine_of(tmp_path, case="llama", gen="1.2", blocks=None, **options):
    folder, _ = folder_of(tmp_path, gen, case)
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    room = None if blocks is None else 8 * blocks
    cache = KvCacheConfig(tokens_per_block=8, enable_block_reuse=False, max_tokens=room)
    given = {"max_batch_size": 3, "max_num_tokens": 10, **options}
    engine = LLM(model=str(folder), kv_cache_config=cache, **given)._engine
    assert engine.captured is None, "nothing is captured on a CPU"
    return engine


def in_runs(engine):
    return StepsBySize(lambda size: Uncaptured(engine.model, engine.metadata, size))


def ran(engine, wanted, captured=None):
    """Fresh copies of `wanted` after the engine ran them."""
    copies = [replace(item, output=[], generation_logits=[], cached=0) for item in wanted]
    engine.captured = captured
    free = engine.cache.num_blocks
    try:
        engine.run(copies)
    finally:
        engine.captured = None
        engine.cache.add_dummy_requests([10**6], [1])  # nothing leaked: all but this is free
        owned = engine.cache.get_batch_cache_indices([10**6])[0]
        engine.cache.free_resources(10**6)
        assert len(owned) == 1 and len(engine.cache._free) == free
    return copies


def same(found, wanted):
    for ours, eager in zip(found, wanted, strict=True):
        for name in ("output", "cached", "finish_reason", "request_id"):
            assert getattr(ours, name) == getattr(eager, name), name
        assert len(ours.generation_logits) == len(eager.generation_logits)
        for one, other in zip(ours.generation_logits, eager.generation_logits, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def requests(seed, count=6, longest=64):
    chooser = random.Random(seed)
    return [
        Sequence(
            request_id=number,
            prompt=tokens(chooser.choice((1, 3, 8, 9, 17, 23)), VOCAB, 100 * seed + number),
            max_tokens=chooser.choice((1, 2, 16, 17, 18, 34, longest)),
            keep_generation_logits=chooser.random() < 0.5,
        )
        for number in range(count)
    ]


def with_ends(wanted, seed):
    """The requests, most of them with an end token that comes up, some before `min_tokens`."""
    chooser, found = random.Random(seed), []
    for item in wanted:
        ends = chooser.sample(item.output, min(len(item.output), chooser.choice((0, 1, 1, 2))))
        least = chooser.choice((0, 0, 5, 20))
        found.append(replace(item, end_ids=frozenset(ends), min_tokens=least, finish_reason=None))
    return found


@pytest.mark.parametrize(
    ("gen", "case"), [("1.2", "llama"), ("1.4", "mistral"), ("1.2", "mistral"), ("1.4", "qwen3")]
)
def test_runs_of_steps_are_the_eager_engine(tmp_path, gen, case, counts):
    engine = engine_of(tmp_path, case, gen)
    captured, reasons = in_runs(engine), set()
    for seed in range(2):
        plain = ran(engine, requests(seed))
        same(ran(engine, requests(seed), captured), plain)
        ending = with_ends(plain, seed)
        wanted = ran(engine, ending)
        same(ran(engine, ending, captured), wanted)
        reasons |= {(item.finish_reason, len(item.output) % 16) for item in wanted}
    assert len([1 for reason, _ in reasons if reason == "stop"]) > 3, "stops at few places"
    assert 2 * counts.starts < counts.steps, "the host looks at the tokens too often"


@pytest.mark.parametrize("limit", [24, 25, 33])
def test_the_longest_sequence(tmp_path, limit, counts):
    engine = engine_of(tmp_path, max_seq_len=limit)
    wanted = ran(engine, requests(5))
    assert any(len(item.tokens) == limit for item in wanted)
    same(ran(engine, requests(5), in_runs(engine)), wanted)


def outcome(engine, wanted, captured=None):
    try:
        return ran(engine, wanted, captured)
    except RuntimeError as error:
        return str(error)


def test_a_full_cache(tmp_path, counts):
    """With less room there are fewer steps at a time; it is full where it is eagerly."""
    wide = engine_of(tmp_path / "wide")
    ending = with_ends(ran(wide, requests(3, longest=40)), 3)
    failed, sizes = 0, range(6, 15)
    for blocks in sizes:
        engine = engine_of(tmp_path / str(blocks), blocks=blocks)
        wanted = outcome(engine, ending)
        found = outcome(engine, ending, in_runs(engine))
        if isinstance(wanted, str):
            failed += 1
            assert found == wanted
        else:
            same(found, wanted)
    assert 1 < failed < len(sizes) - 1


def test_a_sequence_that_ends_before_the_cache_is_full(tmp_path, counts):
    """There is no room for all steps of the first run, and the end token makes them needless."""
    engine = engine_of(tmp_path, blocks=2)
    long = Sequence(0, tokens(8, VOCAB), max_tokens=8)
    (wanted,) = ran(engine, [long])
    ends = frozenset(wanted.output[2:3])
    ending = replace(long, max_tokens=40, end_ids=ends, min_tokens=3, finish_reason=None)
    same(ran(engine, [ending], in_runs(engine)), ran(engine, [ending]))
    assert counts.steps == 8


def test_steps_that_the_cache_has_room_for(tmp_path):
    cache = engine_of(tmp_path, blocks=5).cache
    both = [Sequence(0, [1] * 8, 99, cached=8), Sequence(1, [1] * 7, 99, cached=7)]
    cache.add_dummy_requests([0, 1], [8, 7])
    assert reserve_ahead(cache, both, 4) == 4
    assert reserve_ahead(cache, both, 16) == 9, "the second has no block for its 17th token"
    both[0].cached, both[1].cached = 24, 16
    with pytest.raises(RuntimeError, match="0 free blocks"):
        reserve_ahead(cache, both, 16)


def test_a_prompt_is_read_beside_what_decodes(tmp_path, counts):
    """While a long prompt is read in chunks the others decode in the same passes, eagerly."""
    engine = engine_of(tmp_path, max_num_tokens=4)
    wanted = [Sequence(0, tokens(2, VOCAB), 30), Sequence(1, tokens(21, VOCAB, 2), 9)]
    same(ran(engine, wanted, in_runs(engine)), ran(engine, wanted))
    assert 0 < counts.steps < 29


def test_a_model_that_cannot_be_captured(tmp_path):
    engine = engine_of(tmp_path)

    class Refuses(Uncaptured):
        def _capture(self):
            raise NotImplementedError("this attention cannot be captured")

    captured = StepsBySize(lambda size: Refuses(engine.model, engine.metadata, size))
    for _ in range(2):  # the second attempt is no other than the first
        with pytest.raises(NotImplementedError, match="attention.*cuda_graph_config=None"):
            ran(engine, requests(0), captured)
    assert all(item.finish_reason for item in ran(engine, requests(0)))


def test_steps_are_kept_by_size():
    made = []
    steps = StepsBySize(lambda size: made.append(size) or size, most=2)
    assert [steps.of(size) for size in (3, 2, 3, 1, 3, 2)] == [3, 2, 3, 1, 3, 2]
    assert made == [3, 2, 1, 2], "the size not used for longest goes"
    steps.clear()
    assert steps.of(3) == 3 and made[-1] == 3


def test_the_number_of_steps_at_a_time(tmp_path, monkeypatch, counts):
    engine = engine_of(tmp_path)
    wanted = ran(engine, requests(1))
    for steps in (1, 7, 100):
        monkeypatch.setattr(decode_loop, "STEPS_PER_LOOK", steps)
        same(ran(engine, requests(1), in_runs(engine)), wanted)


@pytest.mark.parametrize("given", [True, False, 0, "off"])
def test_what_cuda_graph_config_cannot_be(tmp_path, given):
    with pytest.raises(ValueError, match="cuda_graph_config is a CudaGraphConfig, a dict or None"):
        engine_of(tmp_path, cuda_graph_config=given)


@pytest.mark.parametrize("given", [{}, {"cuda_graph_config": None}, {"cuda_graph_config": {}}])
def test_a_cpu_captures_nothing(tmp_path, given):
    engine_of(tmp_path, **given)
