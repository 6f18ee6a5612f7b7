"""What a configuration says of experts becomes small, and stays of the same kind."""

from __future__ import annotations

from typing import Any

import pytest

from trtllm_scaffold.infer.nested import names_in, nested_edits, read_key
from trtllm_scaffold.infer.tiny_moe import tiny_moe

DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "intermediate_size": 18432,
}  # fmt: skip


def test_groups_stay_and_bite() -> None:
    one, other = tiny_moe(DEEPSEEK, "odd", 0), tiny_moe(DEEPSEEK, "odd", 1)
    assert one.keys() == other.keys() == DEEPSEEK.keys()
    assert all(one[key] != other[key] for key in one)
    for tiny in (one, other, tiny_moe(DEEPSEEK, "published", 0)):
        assert tiny["n_routed_experts"] % tiny["n_group"] == 0
        assert 1 < tiny["topk_group"] < tiny["n_group"]
        # with as many groups as experts chosen, the best group would always hold the best
        assert tiny["topk_group"] < tiny["num_experts_per_tok"]
        assert tiny["n_routed_experts"] // tiny["n_group"] >= 2
        assert tiny["moe_intermediate_size"] % 8 == tiny.get("intermediate_size", 0) % 8 == 0


@pytest.mark.parametrize("style", ["odd", "published"])
def test_one_group_one_expert_and_none(style: Any) -> None:
    plain = {**DEEPSEEK, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}
    tiny = tiny_moe({**plain, "n_shared_experts": 0}, style, 0)
    assert (tiny["n_group"], tiny["topk_group"], tiny["num_experts_per_tok"]) == (1, 1, 1)
    assert "n_shared_experts" not in tiny
    every = tiny_moe({**DEEPSEEK, "topk_group": 8}, style, 0)
    assert every["topk_group"] == every["n_group"] > 1
    assert tiny_moe({"intermediate_size": 4096, "hidden_size": 1024}, style, 0) == {}


def test_lists_by_layer() -> None:
    tiny = tiny_moe({"num_experts": 64, "moe_topk": [8] * 5, "num_shared": [1, 2]}, "odd", 0)
    assert tiny == {"num_experts": 10, "moe_topk": [2] * 5}
    assert "moe_topk" not in tiny_moe({"num_experts": 64, "moe_topk": [8, 4]}, "odd", 0)


def test_nested_configurations() -> None:
    full = {"ffn_config": {"moe_top_k": 4, "kind": "x"}, "rope_scaling": {"factor": 2}}
    source = {"ffn_config": {"kind": "x"}}
    edits = nested_edits(source, full, lambda v: {k: 2 for k in v if k == "moe_top_k"})
    assert edits == {"ffn_config": {"kind": "x", "moe_top_k": 2}}

    class Inner:
        moe_top_k = 4

    class Outer:
        ffn_config = Inner()
        picks = (8, 8)

    assert read_key(Outer(), "ffn_config.moe_top_k") == 4
    assert read_key(Outer(), "picks[0]") == 8
    assert read_key(Outer(), "picks.moe_top_k") is None
    expr = "config.ffn_config.moe_top_k // config.a + config.picks[0]"
    assert names_in(expr) == ("ffn_config.moe_top_k", "a", "picks")
