from __future__ import annotations

import pytest
import torch

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules.embedding import Embedding, LMHead
from trtllm_scaffold.standin.quantization import QuantConfig
from trtllm_scaffold.standin.weight_shards import TensorParallelMode

from ..statements import states

COLUMN, ROW = TensorParallelMode.COLUMN, TensorParallelMode.ROW
VOCABULARY, WIDTH = 11, 7


def ranks(size: int) -> list[Mapping]:
    return [Mapping(world_size=size, tp_size=size, rank=rank) for rank in range(size)]


def alone(layer: torch.nn.Module) -> torch.nn.Module:
    """The layer without its exchange, so that one process can run every rank."""
    layer.all_reduce = None
    layer.gather_output = False
    return layer


def test_a_whole_table_is_looked_up(generation):
    table, ids = torch.randn(VOCABULARY, WIDTH), torch.tensor([3, 0, 10, 3])
    layer = Embedding(VOCABULARY, WIDTH)
    layer.load_weights([{"weight": table}])
    torch.testing.assert_close(layer(ids), table[ids])


@states("C5-1")
@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_vocabulary_parallel_parts_added_equal_the_whole(size, generation):
    table, ids = torch.randn(VOCABULARY, WIDTH), torch.arange(VOCABULARY)
    total = torch.zeros(VOCABULARY, WIDTH)
    for mapping in ranks(size):
        layer = Embedding(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN)
        layer.load_weights([{"weight": table}])
        assert layer.weight.shape == (-(-VOCABULARY // size), WIDTH)
        total += alone(layer)(ids)
    torch.testing.assert_close(total, table)


@states("W2.8-1")
def test_a_vocabulary_parallel_shard_that_lies_beyond_the_vocabulary_is_zero(generation):
    # 11 rows over 8 ranks: 2 each, so rank 5 has one real row and ranks 6 and 7 have none.
    for rank, real in ((5, 1), (6, 0), (7, 0)):
        mapping = Mapping(world_size=8, tp_size=8, rank=rank)
        layer = Embedding(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN)
        layer.weight.data.fill_(9.0)
        layer.load_weights([{"weight": torch.randn(VOCABULARY, WIDTH)}])
        assert (layer.weight.data[real:] == 0).all() and (layer.weight.data[:real] != 9).all()
        assert layer.vocab_end_index - layer.vocab_start_index == real


@states("C5-1")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_width_parallel_parts_joined_equal_the_whole(size, generation):
    table, ids = torch.randn(VOCABULARY, WIDTH), torch.tensor([[1, 2], [10, 0]])
    parts = []
    for mapping in ranks(size):
        layer = Embedding(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=ROW)
        layer.load_weights([{"weight": table}])
        parts.append(alone(layer)(ids))
    torch.testing.assert_close(torch.cat(parts, dim=-1), table[ids])


def test_ids_outside_of_the_vocabulary_fail_in_1_2_and_are_zero_in_1_4():
    table = torch.randn(VOCABULARY, WIDTH)
    for name in ("1.2", "1.4"):
        generations.set_active(name)
        layer = Embedding(VOCABULARY, WIDTH)
        layer.load_weights([{"weight": table}])
        if name == "1.2":
            with pytest.raises(IndexError):
                layer(torch.tensor([-1]))
        else:
            assert (layer(torch.tensor([-1])) == 0).all()


@states("C5-3", "W2.8-1")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_head_shards_joined_and_trimmed_equal_the_whole(size, generation):
    weight, x = torch.randn(VOCABULARY, WIDTH), torch.randn(3, WIDTH)
    parts = []
    for mapping in ranks(size):
        layer = LMHead(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN)
        layer.load_weights([{"weight": weight}])
        parts.append(layer(x))
        assert layer.padding_size == (-VOCABULARY) % size
    logits = torch.cat(parts, dim=-1)
    assert (logits[:, VOCABULARY:] == 0).all()
    torch.testing.assert_close(logits[:, :VOCABULARY], x @ weight.T)


@states("C5-3")
def test_the_padded_vocabulary_is_known_to_the_head(generation):
    mapping = Mapping(world_size=2, tp_size=2, rank=0)
    gathered = LMHead(
        VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN, gather_output=True
    )
    local = LMHead(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN)
    assert (gathered.vocab_size_padded, local.vocab_size_padded) == (12, 6)


@states("C4-1", "W2.8-2")
def test_a_head_never_has_a_bias(generation):
    head = LMHead(VOCABULARY, WIDTH)
    assert head.bias is None and [name for name, _ in head.named_parameters()] == ["weight"]
    with pytest.raises(TypeError, match="bias"):
        LMHead(VOCABULARY, WIDTH, bias=True)


def test_a_head_split_by_rows_adds_up(generation):
    weight, x = torch.randn(VOCABULARY, WIDTH), torch.randn(3, WIDTH)
    total = torch.zeros(3, VOCABULARY)
    first = 0
    for mapping in ranks(2):
        layer = LMHead(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=ROW)
        layer.load_weights([{"weight": weight}])
        width = layer.weight.shape[1]
        total += alone(layer)(x[:, first : first + width])
        first += width
    torch.testing.assert_close(total, x @ weight.T)


@states("C5-2")
@pytest.mark.parametrize("kind", [Embedding, LMHead])
def test_attention_dp_keeps_the_whole_table_on_every_rank(kind, generation):
    mapping = Mapping(world_size=2, tp_size=2, rank=1, enable_attention_dp=True)
    layer = kind(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN)
    assert layer.tp_mode is None and layer.weight.shape == (VOCABULARY, WIDTH)
    table = torch.randn(VOCABULARY, WIDTH)
    layer.load_weights([{"weight": table}])
    if kind is Embedding:
        torch.testing.assert_close(layer(torch.tensor([5])), table[[5]])
    else:
        x = torch.randn(2, WIDTH)
        torch.testing.assert_close(layer(x), x @ table.T)


def test_a_head_cut_for_speculation_under_attention_dp(generation):
    mapping = Mapping(
        world_size=2,
        tp_size=2,
        rank=1,
        enable_attention_dp=True,
        enable_lm_head_tp_in_adp=True,
    )
    layer = LMHead(VOCABULARY, WIDTH, mapping=mapping, tensor_parallel_mode=COLUMN)
    weight, x = torch.randn(VOCABULARY, WIDTH), torch.randn(2, WIDTH)
    layer.load_weights([{"weight": weight}])
    for rank, rows in ((0, slice(0, 6)), (1, slice(6, 11))):
        part = Mapping(world_size=2, tp_size=2, rank=rank)
        logits = layer(x, mapping_lm_head_tp=part, is_spec_decoding_head=True)
        torch.testing.assert_close(logits, x @ weight[rows].T)


def test_skipped_stages_give_the_shapes(generation):
    x = torch.randn(3, WIDTH)
    assert LMHead(VOCABULARY, WIDTH).skip_forward(x).shape == (3, VOCABULARY)
    skipped = Embedding(VOCABULARY, WIDTH, dtype=torch.bfloat16).skip_forward(torch.arange(5))
    assert skipped.shape == (5, WIDTH) and skipped.dtype == torch.bfloat16


def test_a_quantized_head_exists_in_1_4_only():
    quantized = QuantConfig(quant_algo="FP8")
    generations.set_active("1.2")
    with pytest.raises(TypeError, match="quant_config"):
        LMHead(VOCABULARY, WIDTH, quant_config=quantized)
    generations.set_active("1.4")
    head = LMHead(VOCABULARY, WIDTH, quant_config=quantized)
    weight = torch.randn(VOCABULARY, WIDTH).to(torch.float8_e4m3fn)
    head.load_weights([{"weight": weight, "weight_scale": torch.tensor(0.5)}])
    torch.testing.assert_close(head.weight.data, weight.float() / 2)
    mapping = Mapping(world_size=2, tp_size=2, rank=0)
    with pytest.raises(NotImplementedError, match="padding"):
        LMHead(
            VOCABULARY,
            WIDTH,
            mapping=mapping,
            tensor_parallel_mode=COLUMN,
            quant_config=quantized,
        )
