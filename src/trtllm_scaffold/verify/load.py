"""The load proof: by shapes and indices alone, every stored element reaches one parameter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_scaffold.errors import CheckFailed, InputError
from trtllm_scaffold.verify.expected import (
    TP_SIZES,
    Parameter,
    obstacle,
    read_sizes,
    tiling_problems,
)
from trtllm_scaffold.verify.expected_moe import division_problems, expert_division
from trtllm_scaffold.verify.layer_sizes import parameters_of_layers, read_layer_sizes
from trtllm_scaffold.verify.load_indices import index_problems
from trtllm_scaffold.verify.load_run import (
    Shapes,
    compare,
    concrete,
    once_per_layer,
    run_port,
)
from trtllm_scaffold.verify.port_files import PortFiles, StoredTensor
from trtllm_scaffold.verify.report import Check, verdict
from trtllm_scaffold.verify.weight_table import WeightTable, read_weight_table


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
    layers = read_layer_sizes(port.answers, real)
    tables = parameters_of_layers(port.answers, real, layers)
    stored = _from_header(checkpoint) if checkpoint else _expand(port.tensors)
    measured: dict[str, Any] = {
        "stored_tensors": len(stored),
        "source": "checkpoint headers" if checkpoint else "checkpoint.json",
    }
    try:
        problems = _problems(port, stored, real, measured)
    except CheckFailed as error:
        problems = [str(error)]
    distinct = list({id(table): table for table in tables}.values())
    split = {
        size: next(filter(None, (obstacle(table, size) for table in distinct)), "")
        for size in TP_SIZES
    }
    for size in (size for size, reason in split.items() if not reason):
        problems += [text for table in distinct for text in tiling_problems(table, size)]
    measured["largest_tp"] = max((size for size, why in split.items() if not why), default=0)
    measured["cannot_split"] = {str(size): why for size, why in split.items() if why}
    problems += division_problems(real)
    measured.update(expert_division(real))
    problems = once_per_layer(problems)
    measured["problems"] = len(problems)
    return verdict("load", problems, measured=measured, bound={"problems": 0})


def _problems(
    port: PortFiles, stored: Shapes, real: dict[str, int], measured: dict[str, Any]
) -> list[str]:
    """What the table, the real shapes and the small indices show, the first that finds any."""
    table = read_weight_table(port.weights_module)
    if port.answers.get("embedding_rows"):
        real = {**real, "embedding_rows": _table_rows(port, table)}
    layers = read_layer_sizes(port.answers, real)
    tables = parameters_of_layers(port.answers, real, layers)
    partial = _partial(port, table)
    parameters = concrete(tables, real, partial)
    measured["parameters"] = len(parameters)
    problems = _table_problems(table, port.tensors, tables[0])
    if not problems:
        byte = np.zeros((), dtype=np.int8)
        arrays = {name: np.broadcast_to(byte, shape) for name, shape in stored.items()}
        problems = list(compare(run_port(table, arrays, port, real), parameters))
    return problems or index_problems(table, port, stored, real, partial)


def _table_rows(port: PortFiles, table: WeightTable) -> int:
    """Rows of an embedding that is longer than the vocabulary: what its tensor has."""
    for item in port.tensors:
        if "model.embed_tokens.weight" in table.weights.get(item.name, ()):
            return item.shape[0]
    raise CheckFailed("nothing in WEIGHTS fills model.embed_tokens.weight")


def _expand(tensors: tuple[StoredTensor, ...]) -> Shapes:
    """Name -> shape of every stored tensor, layers written out."""
    return {
        name: shape
        for item in tensors
        for layer, shape in item.by_layer()
        for name in item.names((layer,))
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


def _partial(port: PortFiles, table: WeightTable) -> dict[str, set[int]]:
    """Parameters that only some layers have, and which."""
    return {
        target: set(item.only_layers)
        for item in port.tensors
        if item.only_layers
        for target in table.weights.get(item.name, ())
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
