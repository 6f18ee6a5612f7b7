"""Two and four real processes by gloo; each computes everything once, the tests look at it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from trtllm_scaffold.standin.distributed import (
    AllReduce,
    allgather,
    pp_recv,
    pp_send,
    reducescatter,
)
from trtllm_scaffold.standin.functional import AllReduceFusionOp, AllReduceParams
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.modules.embedding import Embedding, LMHead
from trtllm_scaffold.standin.modules.linear import Linear
from trtllm_scaffold.standin.modules.mlp import GatedMLP
from trtllm_scaffold.standin.weight_shards import TensorParallelMode

from ..statements import states

pytestmark = pytest.mark.slow  # each process imports torch

COLUMN, ROW = TensorParallelMode.COLUMN, TensorParallelMode.ROW
HIDDEN, INNER, VOCABULARY, TOKENS = 6, 8, 11, 5
EPS = 1e-3


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {
        "x": (TOKENS, HIDDEN),
        "gate": (INNER, HIDDEN),
        "up": (INNER, HIDDEN),
        "down": (HIDDEN, INNER),
        "down_bias": (HIDDEN,),
        "table": (VOCABULARY, HIDDEN),
        "residual": (TOKENS, HIDDEN),
        "norm": (HIDDEN,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def two_ranks(mapping: Mapping) -> dict[str, object]:
    data, rank = inputs(), mapping.tp_rank
    found: dict[str, object] = {}
    own = data["x"] * (rank + 1)
    kept = own.clone()
    reduce = AllReduce(mapping)
    found["sum"] = reduce(own)
    found["untouched"] = torch.equal(own, kept)
    found["half sum"] = reduce(own.bfloat16())
    found["switched off"] = reduce(own, all_reduce_params=AllReduceParams(enable_allreduce=False))
    found["gathered"] = allgather(own, mapping)
    found["gathered rows"] = allgather([own[: rank + 1], None], mapping, dim=0, sizes=[1, 2])
    found["scattered"] = reducescatter(own, mapping)
    params = AllReduceParams(
        fusion_op=AllReduceFusionOp.RESIDUAL_RMS_NORM,
        residual=data["residual"],
        norm_weight=data["norm"],
        eps=EPS,
    )
    row = Linear(INNER, HIDDEN, mapping=mapping, tensor_parallel_mode=ROW)
    row.load_weights([{"weight": data["down"], "bias": data["down_bias"]}])
    inner = (data["x"] @ data["up"].T).chunk(2, dim=-1)[rank]
    found["row"] = row(inner)
    found["row with norm"] = row(inner, all_reduce_params=params)
    column = Linear(
        HIDDEN, INNER, False, mapping=mapping, tensor_parallel_mode=COLUMN, gather_output=True
    )
    column.load_weights([{"weight": data["up"]}])
    found["column"] = column(data["x"])
    mlp = GatedMLP(
        hidden_size=HIDDEN, intermediate_size=INNER, bias=False, config=ModelConfig(mapping=mapping)
    )
    mlp.gate_up_proj.load_weights([{"weight": data["gate"]}, {"weight": data["up"]}])
    mlp.down_proj.load_weights([{"weight": data["down"]}])
    found["mlp"] = mlp(data["x"])
    ids = torch.arange(VOCABULARY)
    for mode in (COLUMN, ROW):
        table = Embedding(
            VOCABULARY, HIDDEN, mapping=mapping, tensor_parallel_mode=mode, gather_output=True
        )
        table.load_weights([{"weight": data["table"]}])
        found[f"embedding {mode.value}"] = table(ids)
    odd = Embedding(VOCABULARY, 5, mapping=mapping, tensor_parallel_mode=ROW, gather_output=True)
    odd.load_weights([{"weight": data["table"][:, :5].contiguous()}])
    found["odd embedding"] = odd(ids)
    head = LMHead(
        VOCABULARY, HIDDEN, mapping=mapping, tensor_parallel_mode=COLUMN, gather_output=True
    )
    head.load_weights([{"weight": data["table"]}])
    found["logits"] = head(data["x"])
    return found


def four_ranks(mapping: Mapping) -> dict[str, object]:
    """Two stages of two ranks: sums stay inside of a stage, hand-over keeps the place."""
    own = torch.full((3,), float(10**mapping.rank))
    found: dict[str, object] = {}
    if mapping.is_first_pp_rank():
        found["sum"] = AllReduce(mapping)(own)
        pp_send(own, mapping)
    else:
        found["received"] = pp_recv(torch.empty(3), mapping)
        found["sum"] = AllReduce(mapping)(own)
    return found


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store{world}", world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    with torch.inference_mode():
        if world == 2:
            found = two_ranks(Mapping(world_size=2, rank=rank, tp_size=2))
        else:
            found = four_ranks(Mapping(world_size=4, rank=rank, tp_size=2, pp_size=2))
    torch.save(found, f"{folder}/{world}-{rank}.pt")
    dist.destroy_process_group()


def run(world: int, folder: Path) -> list[dict[str, object]]:
    mp.spawn(work, args=(world, str(folder)), nprocs=world)
    return [torch.load(folder / f"{world}-{rank}.pt") for rank in range(world)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return run(2, tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    return run(4, tmp_path_factory.mktemp("stages"))


def both(pair: list[dict[str, object]], name: str, expected: torch.Tensor, **close: float) -> None:
    for found in pair:
        torch.testing.assert_close(found[name], expected, **close)


def test_all_reduce_adds_and_leaves_its_input(pair):
    both(pair, "sum", inputs()["x"] * 3)
    assert all(found["untouched"] for found in pair)


def test_half_sums_are_added_in_float32(pair):
    x = inputs()["x"]
    expected = (x.bfloat16().float() + (2 * x).bfloat16().float()).bfloat16()
    both(pair, "half sum", expected, rtol=0, atol=0)


def test_a_reduction_switched_off_is_the_identity(pair):
    for rank, found in enumerate(pair):
        torch.testing.assert_close(found["switched off"], inputs()["x"] * (rank + 1))


def test_allgather_joins_the_last_dimension_or_unequal_rows(pair):
    x = inputs()["x"]
    both(pair, "gathered", torch.cat((x, 2 * x), dim=-1))
    for found in pair:
        rows, nothing = found["gathered rows"]
        torch.testing.assert_close(rows, torch.cat((x[:1], 2 * x[:2])))
        assert nothing is None


def test_reducescatter_keeps_the_part_of_the_rank(pair):
    for rank, found in enumerate(pair):
        expected = (inputs()["x"] * 3).chunk(2, dim=-1)[rank]
        torch.testing.assert_close(found["scattered"], expected)


def test_row_parallel_sums_and_adds_the_bias_once(pair):
    data = inputs()
    expected = data["x"] @ data["up"].T @ data["down"].T + data["down_bias"]
    both(pair, "row", expected)


def test_residual_and_norm_fused_into_the_reduction_with_the_bias(pair):
    data = inputs()
    total = data["x"] @ data["up"].T @ data["down"].T + data["down_bias"] + data["residual"]
    normed = total / (total.square().mean(-1, keepdim=True) + EPS).sqrt() * data["norm"]
    for found in pair:
        torch.testing.assert_close(found["row with norm"][0], normed)
        torch.testing.assert_close(found["row with norm"][1], total)


def test_column_parallel_gathers(pair):
    both(pair, "column", inputs()["x"] @ inputs()["up"].T)


def test_a_gated_mlp_equals_the_whole(pair):
    data = inputs()
    inner = F.silu(data["x"] @ data["gate"].T) * (data["x"] @ data["up"].T)
    both(pair, "mlp", inner @ data["down"].T)


@states("C5-1")
def test_embeddings_cut_by_vocabulary_or_width_equal_the_table(pair):
    table = inputs()["table"]
    both(pair, "embedding column", table)
    both(pair, "embedding row", table)
    both(pair, "odd embedding", table[:, :5])


@states("C4-1")
def test_logits_of_a_padded_vocabulary_are_trimmed(pair):
    both(pair, "logits", inputs()["x"] @ inputs()["table"].T)


def test_sums_stay_inside_of_a_pipeline_stage(stages):
    for rank, found in enumerate(stages):
        expected = 11.0 if rank < 2 else 1100.0
        torch.testing.assert_close(found["sum"], torch.full((3,), expected))


def test_a_stage_hands_over_to_the_same_place_of_the_next(stages):
    torch.testing.assert_close(stages[2]["received"], torch.full((3,), 1.0))
    torch.testing.assert_close(stages[3]["received"], torch.full((3,), 10.0))
