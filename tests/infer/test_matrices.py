"""The linear map of each position: found with five probes where it turns pairs, else one by one."""

from __future__ import annotations

import pytest
import torch

from trtllm_scaffold.infer.matrices import matrices

torch.set_num_threads(1)

SEQUENCE, WIDTH, LAST = 12, 24, 60


def turned(dim: int, style: str, theta: float) -> torch.Tensor:
    """[sequence, width, width] rotations of the first `dim` dimensions."""
    found = torch.eye(WIDTH).repeat(SEQUENCE, 1, 1) * 0.7
    for j in range(dim // 2):
        a, b = (j, j + dim // 2) if style == "neox" else (2 * j, 2 * j + 1)
        angle = torch.arange(SEQUENCE) * theta ** (-2 * j / dim)
        found[:, a, a] = found[:, b, b] = angle.cos() * 0.7
        found[:, b, a], found[:, a, b] = angle.sin() * 0.7, -angle.sin() * 0.7
    return found


def measured(wanted: torch.Tensor) -> tuple[torch.Tensor | None, int]:
    """What is measured of a map, and the number of probes."""
    columns = torch.randperm(LAST, generator=torch.Generator().manual_seed(1))[:WIDTH]
    calls = []

    def outputs(vector: torch.Tensor) -> torch.Tensor:
        calls.append(vector)
        return torch.einsum("soi,i->so", wanted, vector[columns])

    return matrices(outputs, columns, LAST, SEQUENCE), len(calls)


@pytest.mark.parametrize("style", ["neox", "interleaved"])
@pytest.mark.parametrize("dim", [8, 24])
@pytest.mark.parametrize("theta", [100.0, 1e4, 1e6])
def test_pairs_are_read_off_exactly(style: str, dim: int, theta: float) -> None:
    wanted = turned(dim, style, theta)
    found, probes = measured(wanted)
    assert found is not None
    assert torch.equal(found, wanted)
    assert probes == 5 or theta > 1e5  # pairs that hardly turn are probed one by one


def test_what_ignores_the_position_has_no_map() -> None:
    assert measured(turned(8, "neox", 100.0)[:1].repeat(SEQUENCE, 1, 1)) == (None, 3)


def test_other_maps_are_probed_one_by_one() -> None:
    wanted = torch.randn(SEQUENCE, WIDTH, WIDTH, generator=torch.Generator().manual_seed(2))
    found, probes = measured(wanted)
    assert found is not None and torch.equal(found, wanted)
    assert probes == 3 + WIDTH
