from __future__ import annotations

import pytest

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.functional import (
    AllReduceFusionOp,
    AllReduceParams,
    PositionEmbeddingType,
    RotaryScalingType,
)
from trtllm_scaffold.standin.interface import PositionalEmbeddingParams, RopeParams
from trtllm_scaffold.standin.mapping import Mapping

from ..statements import states


def test_ranks_run_over_tensor_then_context_then_pipeline(generation):
    seen = []
    for rank in range(8):
        mapping = Mapping(world_size=8, rank=rank, tp_size=2, cp_size=2, pp_size=2)
        seen.append((mapping.pp_rank, mapping.cp_rank, mapping.tp_rank))
    assert seen == [(p, c, t) for p in range(2) for c in range(2) for t in range(2)]


def test_groups_hold_the_ranks_that_share_the_other_places(generation):
    mapping = Mapping(world_size=8, rank=5, tp_size=2, cp_size=2, pp_size=2)
    assert mapping.tp_group == [4, 5]
    assert mapping.cp_group == [5, 7]
    assert mapping.pp_group == [1, 5]


@states("W6.2-4")
@pytest.mark.parametrize("layers", [4, 5, 6, 7])
def test_pipeline_stages_share_the_layers_and_the_first_take_more(layers, generation):
    stages = [Mapping(world_size=4, rank=r, pp_size=4).pp_layers(layers) for r in range(4)]
    assert sum(stages, []) == list(range(layers))
    sizes = [len(stage) for stage in stages]
    assert sizes == sorted(sizes, reverse=True) and max(sizes) - min(sizes) <= 1


@states("W6.2-4")
def test_a_given_partition_is_followed_and_checked(generation):
    stages = [Mapping(world_size=2, rank=r, pp_size=2, pp_partition=[1, 3]) for r in range(2)]
    assert [stage.pp_layers(4) for stage in stages] == [[0], [1, 2, 3]]
    with pytest.raises(ValueError, match=r"\[1, 3\].*5"):
        stages[0].pp_layers(5)
    with pytest.raises(ValueError, match="pp_partition"):
        Mapping(world_size=2, rank=0, pp_size=2, pp_partition=[4])
    with pytest.raises(ValueError, match="larger"):
        stages[0].pp_layers(1)


def test_neighbours_in_the_pipeline_wrap_around(generation):
    mapping = Mapping(world_size=4, rank=3, tp_size=2, pp_size=2)
    assert (mapping.prev_pp_rank(), mapping.next_pp_rank()) == (1, 1)
    assert mapping.is_last_pp_rank() and not mapping.is_first_pp_rank() and mapping.has_pp()


def test_sizes_must_multiply_to_the_world_and_ranks_lie_inside(generation):
    with pytest.raises(ValueError, match=r"4 != 2 \* 1 \* 1"):
        Mapping(world_size=4, tp_size=2)
    with pytest.raises(ValueError, match="rank"):
        Mapping(world_size=2, rank=2, tp_size=2)
    with pytest.raises(ValueError, match="moe"):
        Mapping(world_size=4, tp_size=4, moe_tp_size=3, moe_ep_size=2)


def test_expert_sizes_complete_one_another(generation):
    mapping = Mapping(world_size=8, rank=6, tp_size=8, moe_ep_size=4)
    assert (mapping.moe_tp_size, mapping.moe_ep_size) == (2, 4)
    assert (mapping.moe_tp_rank, mapping.moe_ep_rank) == (1, 2)
    assert mapping.ep_experts(8) == [4, 5]


def test_attention_dp_counts_as_data_parallel(generation):
    assert Mapping(world_size=4, tp_size=4, enable_attention_dp=True).dp_size == 4
    assert Mapping(world_size=4, tp_size=4).dp_size == 1


def test_equal_layouts_are_equal_and_hash_alike(generation):
    one, other = (Mapping(world_size=2, tp_size=2, rank=1) for _ in range(2))
    assert one == other and hash(one) == hash(other)
    assert one != Mapping(world_size=2, tp_size=2, rank=0)


@states("A9-8")
def test_rope_types_do_not_include_yarn(generation):
    rope = {member.name for member in PositionEmbeddingType if member.is_rope()}
    assert rope == {"rope_gptj", "rope_gpt_neox", "long_rope", "mrope"}
    assert PositionEmbeddingType.alibi_with_scale.is_alibi()
    assert PositionEmbeddingType.deferred.is_deferred() and PositionEmbeddingType.mrope.is_mrope()
    assert PositionEmbeddingType.from_string("rope_gptj") is PositionEmbeddingType.rope_gptj
    with pytest.raises(ValueError, match="'nope'"):
        PositionEmbeddingType.from_string("nope")


@states("A9-6")
def test_scaling_names_are_exact_in_1_2_and_forgiving_in_1_4():
    generations.set_active("1.2")
    assert RotaryScalingType.from_string("llama3") is RotaryScalingType.llama3
    for bad in ("default", None, "LLAMA3", "su", "proportional"):
        with pytest.raises(ValueError):
            RotaryScalingType.from_string(bad)
    generations.set_active("1.4")
    assert RotaryScalingType.from_string("default") is RotaryScalingType.none
    assert RotaryScalingType.from_string(None) is RotaryScalingType.none
    assert RotaryScalingType.from_string("LLAMA3") is RotaryScalingType.llama3
    assert RotaryScalingType.from_string(RotaryScalingType.yarn) is RotaryScalingType.yarn
    for bad in ("su", "proportional"):
        with pytest.raises(ValueError):
            RotaryScalingType.from_string(bad)
    assert PositionEmbeddingType.from_string("default") is PositionEmbeddingType.rope_gpt_neox


@states("A9-8")
def test_positions_of_a_rope_type_need_rope_parameters_but_yarn_is_not_checked(generation):
    with pytest.raises(AssertionError, match="rope"):
        PositionalEmbeddingParams(type=PositionEmbeddingType.rope_gpt_neox)
    PositionalEmbeddingParams(type=PositionEmbeddingType.yarn)
    PositionalEmbeddingParams(type=PositionEmbeddingType.learned_absolute)
    with pytest.raises(AssertionError, match="embedder"):
        PositionalEmbeddingParams(type=PositionEmbeddingType.deferred)
    with pytest.raises(AssertionError, match="embedder"):
        PositionalEmbeddingParams(
            type=PositionEmbeddingType.rope_gptj, rope=RopeParams(dim=4), embedder=print
        )
    params = PositionalEmbeddingParams(type=PositionEmbeddingType.rope_gptj, rope=RopeParams(dim=4))
    with pytest.raises(AttributeError):
        params.is_neox = False
    with pytest.raises(TypeError):
        PositionalEmbeddingParams(PositionEmbeddingType.yarn)


def test_a_fusion_needs_a_residual_except_a_bare_norm_in_1_4():
    for name in ("1.2", "1.4"):
        generations.set_active(name)
        with pytest.raises(AssertionError, match="residual"):
            AllReduceParams(fusion_op=AllReduceFusionOp.RESIDUAL_RMS_NORM)
    AllReduceParams(fusion_op=AllReduceFusionOp.RMS_NORM)
    generations.set_active("1.2")
    with pytest.raises(AssertionError, match="residual"):
        AllReduceParams(fusion_op=AllReduceFusionOp.RMS_NORM)
