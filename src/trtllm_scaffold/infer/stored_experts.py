"""Finds, by value, the part of stacked experts' parameters that one stored tensor holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ExpertPart:
    """A run of rows of one expert's matrix, or of every expert's.

    Attributes:
        parameter: Name of the stacked parameter.
        expert: Which expert's; None for every one's, stacked.
        turned: The rows are those of the transposed matrix.
        start, stop, rows: The run, and how many rows the matrix has.
        transposed: The tensor holds the transpose of these rows.
    """

    parameter: str
    expert: int | None
    turned: bool
    start: int
    stop: int
    rows: int
    transposed: bool


def find_expert_part(
    tensor: torch.Tensor, parameters: Mapping[str, torch.Tensor]
) -> ExpertPart | None:
    """Return the part that `tensor` is, or None.

    Args:
        tensor: A stored tensor: one expert's [out, in], [in, out] or [out], or stacked ones.
        parameters: By name; those of dimension [experts, ...] are looked through.
    """
    for name, parameter in parameters.items():
        if parameter.dim() == 3 and tensor.dim() == 3 and parameter.shape[0] == tensor.shape[0]:
            for part in _runs(name, None, parameter, tensor):
                return part
        if parameter.dim() in (2, 3) and tensor.dim() == parameter.dim() - 1:
            for expert, matrix in enumerate(parameter):
                for part in _runs(name, expert, matrix, tensor):
                    return part
    return None


def _runs(
    name: str, expert: int | None, matrix: torch.Tensor, tensor: torch.Tensor
) -> Iterator[ExpertPart]:
    """The run of rows [..., rows, columns] that equals the tensor, in every orientation."""
    vectors = expert is not None and matrix.dim() == 1
    if vectors:
        matrix, tensor = matrix[:, None], tensor[:, None]
    for turned in (False,) if vectors else (False, True):
        rows = matrix.transpose(-1, -2) if turned else matrix
        for transposed in (False,) if vectors else (False, True):
            wanted = tensor.transpose(-1, -2) if transposed else tensor
            count, height = rows.shape[-2], wanted.shape[-2]
            if rows.shape[-1] != wanted.shape[-1] or height > count or count % height:
                continue
            for start in range(0, count, height):
                if torch.equal(rows[..., start : start + height, :], wanted):
                    yield ExpertPart(name, expert, turned, start, start + height, count, transposed)
