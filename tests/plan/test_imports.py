"""The import table agrees with both manifests."""

from __future__ import annotations

import pytest

from trtllm_scaffold.plan.imports import PATHS, import_order
from trtllm_scaffold.targets.contract import load_contract


@pytest.mark.parametrize(("generation", "column"), [("1.4", 0), ("1.2", 1)])
@pytest.mark.parametrize("symbol", sorted(PATHS))
def test_symbol_exists_at_its_path(symbol: str, generation: str, column: int) -> None:
    assert load_contract(generation).find(PATHS[symbol][column], symbol) is not None


def test_order_is_ruffs() -> None:
    names = ["register_auto_model", "PositionEmbeddingType", "PositionalEmbeddingParams", "MLP"]
    expected = ["MLP", "PositionalEmbeddingParams", "PositionEmbeddingType", "register_auto_model"]
    assert sorted(names, key=import_order) == expected
