"""Saves a tiny model as HF would, and tells which parameter each stored tensor comes from."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.effective import one_line
from trtllm_scaffold.infer.stored_experts import find_expert_part


@dataclass(frozen=True)
class Piece:
    """Rows of one module parameter, or of experts' matrices in one.

    Attributes:
        parameter: Its name.
        start, stop: The rows.
        rows: How many the parameter has.
        index, count: The piece is the `index`-th of `count` that the parameter is stored in.
        of_experts: The rows are those of each expert's matrix, and the parameter holds several.
        expert: The one expert whose rows they are, or None.
        turned: The rows are those of the transposed matrix.
    """

    parameter: str
    start: int
    stop: int
    rows: int
    index: int = 0
    count: int = 1
    of_experts: bool = False
    expert: int | None = None
    turned: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is the parameter itself."""
        return self.start == 0 and self.stop == self.rows


@dataclass(frozen=True)
class Stored:
    """One tensor of the saved checkpoint.

    Attributes:
        name: Its stored name.
        shape: Its stored shape.
        pieces: What it holds along dimension 0; empty for a buffer.
        transposed: Whether it holds the transpose of its one piece.
        buffer: The name of the buffer that it holds, if it holds one.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    transposed: bool = False
    buffer: str = ""


def saved_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Return what `save_pretrained` writes, by stored name.

    Raises:
        InputError: The class cannot save it.
    """
    with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-") as folder, _quiet():
        try:
            model.save_pretrained(folder, safe_serialization=True)
        except Exception as error:  # whatever a class's own saving raises
            raise InputError(
                f"{type(model).__name__} cannot be saved: {one_line(error)}",
                where="save_pretrained of a tiny model",
            ) from error
        tensors: dict[str, torch.Tensor] = {}
        for path in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})
    return tensors


def match_stored(model: Any, tensors: Mapping[str, torch.Tensor]) -> tuple[Stored, ...]:
    """Find, by value, what each stored tensor holds, in the order of the model's parameters.

    Args:
        model: The model that was saved. Every parameter must hold random values.
        tensors: Its stored tensors, as `saved_tensors` returns them.

    Raises:
        Refused: A stored tensor is not a parameter, its transpose, a run of its rows, or
            several parameters one after another, and no part of experts' parameters.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    stored = [_match(name, tensor, parameters, buffers) for name, tensor in tensors.items()]
    order = {name: index for index, name in enumerate(parameters)}
    last = len(order)

    def place(item: Stored) -> tuple[int, int]:
        piece = item.pieces[0] if item.pieces else None
        return (order.get(piece.parameter, last), piece.start) if piece else (last, 0)

    return tuple(sorted(_counted(stored), key=place))


def _match(
    name: str,
    tensor: torch.Tensor,
    parameters: Mapping[str, torch.Tensor],
    buffers: Mapping[str, torch.Tensor],
) -> Stored:
    shape = tuple(tensor.shape)
    first = [name] if name in parameters else []
    for candidate in (*first, *parameters):
        value = parameters[candidate]
        rows = value.shape[0] if value.dim() else 1
        piece = Piece(candidate, 0, rows, rows)
        if value.shape == tensor.shape and torch.equal(value, tensor):
            return Stored(name, shape, (piece,))
        if value.dim() == 2 and value.T.shape == tensor.shape and torch.equal(value.T, tensor):
            return Stored(name, shape, (piece,), transposed=True)
    for candidate, value in buffers.items():
        if value.shape == tensor.shape and torch.equal(value, tensor):
            return Stored(name, shape, (), buffer=candidate)
    part = find_expert_part(tensor, parameters)
    if part is not None:
        run = part.start, part.stop, part.rows
        piece = Piece(part.parameter, *run, of_experts=True, expert=part.expert, turned=part.turned)
        return Stored(name, shape, (piece,), part.transposed)
    pieces = _pieces(tensor, parameters)
    if pieces is None:
        raise Refused(
            "checkpoint",
            f"{name} {list(shape)} is stored in a form that no parameter has",
            where="save_pretrained of a tiny model",
            hint="renamed, transposed, fused and split tensors are expressed",
        )
    return Stored(name, shape, pieces)


def _pieces(
    tensor: torch.Tensor, parameters: Mapping[str, torch.Tensor]
) -> tuple[Piece, ...] | None:
    """Return the runs of rows that `tensor` is made of, or None."""
    pieces: list[Piece] = []
    row = 0
    while tensor.dim() and row < tensor.shape[0]:
        found = _longest_run(tensor[row:], parameters)
        if found is None:
            return None
        pieces.append(found)
        row += found.stop - found.start
    return tuple(pieces) or None


def _longest_run(tensor: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> Piece | None:
    """Return the longest run of a parameter's rows that `tensor` begins with."""
    best: Piece | None = None
    for name, value in parameters.items():
        if value.dim() != tensor.dim() or value.shape[1:] != tensor.shape[1:]:
            continue
        same = (value == tensor[0]).flatten(1).all(1) if value.dim() > 1 else value == tensor[0]
        for start in same.nonzero().flatten().tolist():
            length = min(value.shape[0] - start, tensor.shape[0])
            equal = value[start : start + length] == tensor[:length]
            rows = equal.flatten(1).all(1) if equal.dim() > 1 else equal
            run = length if bool(rows.all()) else int(rows.int().argmin())
            if best is None or run > best.stop - best.start:
                best = Piece(name, start, start + run, value.shape[0])
    return best


def _counted(stored: list[Stored]) -> list[Stored]:
    """Number the pieces of each parameter that is stored in several tensors."""
    starts: dict[tuple[str, int | None], list[int]] = {}
    for item in stored:
        for piece in item.pieces:
            starts.setdefault((piece.parameter, piece.expert), []).append(piece.start)
    counted = []
    for item in stored:
        pieces = tuple(
            replace(
                piece,
                index=sorted(starts[piece.parameter, piece.expert]).index(piece.start),
                count=len(starts[piece.parameter, piece.expert]),
            )
            for piece in item.pieces
        )
        counted.append(Stored(item.name, item.shape, pieces, item.transposed, item.buffer))
    return counted


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars off the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
