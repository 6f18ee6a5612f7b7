"""The load proof: by shapes and indices alone, every stored element reaches one parameter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from trtllm_scaffold.errors import CheckFailed, InputError
from trtllm_scaffold.verify.expected import (
    TP_SIZES,
    Parameter,
    expected_parameters,
    obstacle,
    read_sizes,
    small_sizes,
    tiling_problems,
)
from trtllm_scaffold.verify.port_files import PortFiles, StoredTensor
from trtllm_scaffold.verify.report import Check, verdict
from trtllm_scaffold.verify.weight_table import WeightTable, read_weight_table

#: Indices are this far apart, so that a norm's "+ 1" at load still shows which one it was.
_SPACING = 4

#: The layer's number in a name.
_LAYER = re.compile(r"\.\d+\.")

Shapes = dict[str, tuple[int, ...]]


def check_load(
    port: PortFiles,
    checkpoint: Path | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Check:
    """Run the port's own weight functions on arrays that carry shapes or indices, not data.

    At real sizes every array has stride zero and holds one byte; at small sizes every element
    is its own number.

    Args:
        port: The port.
        checkpoint: A folder whose safetensors headers say what is stored, in place of the
            port's ``checkpoint.json``.
        sizes: The real sizes, in place of the recorded answers.

    Raises:
        InputError: If answers or headers are unreadable.
    """
    real = dict(sizes) if sizes is not None else read_sizes(port.answers)
    wanted = expected_parameters(port.answers, real)
    stored = _from_header(checkpoint) if checkpoint else _expand(port.tensors)
    measured: dict[str, Any] = {
        "stored_tensors": len(stored),
        "parameters": len(_concrete(wanted, real)),
        "source": "checkpoint headers" if checkpoint else "checkpoint.json",
    }
    try:
        table = read_weight_table(port.weights_module)
        problems = _table_problems(table, port.tensors, wanted)
        if not problems:
            problems = _shape_problems(table, stored, wanted, real)
        if not problems:
            problems = _index_problems(table, port, stored, real)
    except CheckFailed as error:
        problems = [str(error)]
    split = {size: obstacle(wanted, size) for size in TP_SIZES}
    for size in (size for size, reason in split.items() if not reason):
        problems += tiling_problems(wanted, size)
    measured["largest_tp"] = max((size for size, why in split.items() if not why), default=0)
    measured["cannot_split"] = {str(size): why for size, why in split.items() if why}
    problems = _once_per_layer(problems)
    measured["problems"] = len(problems)
    return verdict("load", problems, measured=measured, bound={"problems": 0})


def _expand(tensors: tuple[StoredTensor, ...]) -> Shapes:
    """Name -> shape of every stored tensor, layers written out."""
    return {
        item.name.replace("{i}", str(layer)): item.shape
        for item in tensors
        for layer in range(item.layers or 1)
    }


def _from_header(folder: Path) -> Shapes:
    from trtllm_scaffold.sources.checkpoint import read_header

    header = read_header(folder)
    if header is None or not header.tensors:
        raise InputError("no safetensors files", where=str(folder))
    unknown = [name for name, info in header.tensors.items() if info.shape is None]
    if unknown:
        raise InputError(
            f"the shape of {unknown[0]!r} and {len(unknown) - 1} more is not known",
            where=str(folder),
            hint="the weight files themselves are needed, not only their index",
        )
    return {name: info.shape for name, info in header.tensors.items() if info.shape is not None}


def _concrete(wanted: Mapping[str, Parameter], sizes: Mapping[str, int]) -> dict[str, Parameter]:
    """`wanted` with its layers written out."""
    return {
        name.replace("{i}", str(layer)): item
        for name, item in wanted.items()
        for layer in range(sizes["num_hidden_layers"] if "{i}" in name else 1)
    }


def _table_problems(
    table: WeightTable, tensors: tuple[StoredTensor, ...], wanted: Mapping[str, Parameter]
) -> list[str]:
    """What is wrong with the literal table by itself."""
    targets = [target for row in table.weights.values() for target in row]
    problems = [
        f"WEIGHTS fills {name} twice" for name in dict.fromkeys(targets) if targets.count(name) > 1
    ]
    problems += [f"nothing in WEIGHTS fills {name}" for name in wanted if name not in targets]
    problems += [
        f"WEIGHTS fills {name}, which the model does not have"
        for name in targets
        if name not in wanted
    ]
    problems += [
        f"{name} is both used and dropped" for name in table.weights if name in table.dropped
    ]
    known = {item.name for item in tensors}
    problems += [
        f"the checkpoint stores {name}, which is neither in WEIGHTS nor in DROPPED"
        for name in known
        if name not in table.weights and name not in table.dropped
    ]
    problems += [
        f"WEIGHTS reads {name}, which the checkpoint does not store"
        for name in table.weights
        if name not in known
    ]
    return sorted(problems)


def _config(sizes: Mapping[str, int]) -> SimpleNamespace:
    return SimpleNamespace(**sizes)


def _run(table: WeightTable, arrays: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    try:
        found = table.canonical_weights(arrays, _config(sizes))
    except Exception as error:  # the port's own code
        text = str(error).strip("'\"") or "no message"
        raise CheckFailed(f"canonical_weights: {type(error).__name__}: {text}") from error
    if not isinstance(found, dict):
        raise CheckFailed(f"canonical_weights returns a {type(found).__name__}, not a dict")
    return found


def _compare(found: Mapping[str, Any], wanted: Mapping[str, Parameter]) -> Iterator[str]:
    """Parameters that are missing, unknown or of another shape."""
    for name, item in wanted.items():
        if name not in found:
            yield f"canonical_weights leaves {name} unfilled"
        elif tuple(found[name].shape) != item.shape:
            shape = list(found[name].shape)
            yield f"{name} becomes {shape}, the model has {list(item.shape)}"
    for name in found:
        if name not in wanted:
            yield f"canonical_weights makes {name}, which the model does not have"


def _shape_problems(
    table: WeightTable, stored: Shapes, wanted: Mapping[str, Parameter], real: Mapping[str, int]
) -> list[str]:
    """Run at real sizes on arrays that take no memory."""
    byte = np.zeros((), dtype=np.int8)
    arrays = {name: np.broadcast_to(byte, shape) for name, shape in stored.items()}
    found = _run(table, arrays, real)
    return list(_compare(found, _concrete(wanted, real)))


def _index_problems(
    table: WeightTable, port: PortFiles, stored: Shapes, real: Mapping[str, int]
) -> list[str]:
    """Run at small sizes on arrays whose every element is its own number."""
    small = small_sizes(real)
    wanted = _concrete(expected_parameters(port.answers, small), small)
    arrays: dict[str, Any] = {}
    first = 0
    starts: list[tuple[int, str]] = []
    for name, shape in _small_shapes(table, port, stored, real, small).items():
        count = int(np.prod(shape))
        values = np.arange(first, first + count, dtype=np.float64) * _SPACING
        arrays[name] = values.reshape(shape)
        starts.append((first, name))
        first += count
    kept = [name for name in arrays if _pattern(name) not in table.dropped]
    found = _run(table, arrays, small)
    problems = list(_compare(found, wanted))
    if problems:
        return [f"at small sizes {text}" for text in problems]
    return _use_problems(found, arrays, kept, starts, first)


def _once_per_layer(problems: list[str]) -> list[str]:
    """Say what is wrong with every layer once."""
    found: dict[str, list[str]] = {}
    for text in problems:
        found.setdefault(_LAYER.sub(".{i}.", text, count=1), []).append(text)
    return [
        texts[0] + (f" (and {len(texts) - 1} layers more)" if len(texts) > 1 else "")
        for texts in found.values()
    ]


def _use_problems(
    found: Mapping[str, Any],
    arrays: Mapping[str, Any],
    kept: list[str],
    starts: list[tuple[int, str]],
    total: int,
) -> list[str]:
    """Elements that no parameter holds, or more than one."""
    used = np.zeros(total, dtype=np.int64)
    for value in found.values():
        indices = np.rint(np.asarray(value, dtype=np.float64).ravel() / _SPACING).astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= total):
            return ["canonical_weights computes new values: the load proof cannot follow them"]
        np.add.at(used, indices, 1)
    problems = []
    for start, name in starts:
        if name not in kept:
            continue
        part = used[start : start + arrays[name].size]
        lost, twice = int((part == 0).sum()), int((part > 1).sum())
        if lost:
            problems.append(f"{lost} of {part.size} elements of {name} reach no parameter")
        if twice:
            problems.append(f"{twice} of {part.size} elements of {name} are used twice")
    return problems


def _pattern(name: str) -> str:
    """A stored name with its layer written as ``{i}``."""
    return _LAYER.sub(".{i}.", name, count=1)


def _small_shapes(
    table: WeightTable,
    port: PortFiles,
    stored: Shapes,
    real: Mapping[str, int],
    small: Mapping[str, int],
) -> Shapes:
    """What the small model stores, laid out as the real shapes show."""
    before = expected_parameters(port.answers, real)
    after = expected_parameters(port.answers, small)
    shapes: Shapes = {}
    for item in port.tensors:
        shape: tuple[int, ...] = (3,)
        if item.name in table.weights:
            targets = table.weights[item.name]
            held = stored.get(item.name.replace("{i}", "0"), item.shape)
            parts = [before[name].shape for name in targets]
            shape = _small_shape(item.name, held, parts, [after[name].shape for name in targets])
        for layer in range(small["num_hidden_layers"] if item.layers else 1):
            shapes[item.name.replace("{i}", str(layer))] = shape
    return shapes


def _small_shape(
    name: str,
    held: tuple[int, ...],
    real: list[tuple[int, ...]],
    small: list[tuple[int, ...]],
) -> tuple[int, ...]:
    """The small shape of a tensor that holds parts one after another, transposed or not."""
    rows = (sum(shape[0] for shape in small), *small[0][1:])
    joined = (sum(shape[0] for shape in real), *real[0][1:])
    if held == joined:
        return rows
    if held == joined[::-1]:
        return rows[::-1]
    raise CheckFailed(f"{name} stores {list(held)}, its parameters need {list(joined)}")
