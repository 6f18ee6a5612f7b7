"""Reads what a checkpoint stores (names, dtypes, shapes) from its headers, never its data."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import parse_object, read_bytes, shown

MAX_HEADER_BYTES = 100_000_000
"""The safetensors format's own limit."""

MAX_INDEX_BYTES = 64 << 20
"""An index of 300 000 experts' tensors, twice the largest published one."""

MAX_FILES = 4096
_LARGEST = (1 << 63) - 1
MAX_DIMS = 8

_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
_NAME = re.compile(r"[\x20-\x7e]{1,512}")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\.(safetensors|bin)")
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor.

    Attributes:
        dtype: The safetensors dtype, such as "BF16"; None where only the name is known.
        shape: The stored shape; None where only the name is known.
        file: The name of the file that holds it.
    """

    dtype: str | None
    shape: tuple[int, ...] | None
    file: str


@dataclass(frozen=True)
class CheckpointHeader:
    """What a checkpoint stores, by tensor name.

    An index without its weight files gives names only; see `complete`.
    """

    tensors: dict[str, TensorInfo]

    @property
    def complete(self) -> bool:
        """Whether every tensor's dtype and shape are known, not only its name."""
        return all(info.shape is not None for info in self.tensors.values())


def read_header(folder: str | Path, *, partial: bool = False) -> CheckpointHeader | None:
    """Read the names, dtypes and shapes that the weight files of a folder store.

    The order is: a safetensors index and its files, model.safetensors, every other safetensors
    file that is not an adapter or a second copy ("consolidated"), an index of .bin files.

    Args:
        folder: A model's folder.
        partial: Where only some of an index's files are there, as in a download cache, take the
            names from the index alone.

    Returns:
        The header, or None when the folder has no weights that can be read without loading.

    Raises:
        InputError: A header or an index is malformed, contradicts its file's size, names a file
            outside the folder, or some of the files that it names are missing.
    """
    folder = Path(folder)
    if (folder / SAFETENSORS_INDEX).exists():
        return _read_indexed(folder, partial)
    files = _single_files(folder)
    if files:
        return _merge(folder, files)
    if (folder / BIN_INDEX).exists():
        return _names_of(_weight_map(folder / BIN_INDEX))
    return None


def _single_files(folder: Path) -> list[str]:
    """Return the safetensors files of a folder without an index."""
    if (folder / "model.safetensors").exists():
        return ["model.safetensors"]
    if not folder.is_dir():
        return []
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    files = [name for name in found if not name.startswith(("consolidated", "adapter"))]
    if len(files) > MAX_FILES:
        raise InputError(f"{len(files)} weight files in one folder", where=str(folder))
    return files


def _names_of(weight_map: dict[str, str]) -> CheckpointHeader:
    return CheckpointHeader(
        {name: TensorInfo(None, None, file) for name, file in weight_map.items()}
    )


def _read_indexed(folder: Path, partial: bool) -> CheckpointHeader:
    path = folder / SAFETENSORS_INDEX
    weight_map = _weight_map(path)
    files = sorted(set(weight_map.values()))
    present = [name for name in files if (folder / name).exists()]
    if not present or (partial and len(present) < len(files)):
        return _names_of(weight_map)
    if len(present) < len(files):
        missing = [name for name in files if name not in present]
        raise InputError(
            f"{len(missing)} of {len(files)} weight files are missing, first {missing[0]!r}",
            where=str(path),
            hint="download the rest, or give the config.json alone",
        )
    header = _merge(folder, files)
    for name, file in weight_map.items():
        stored = header.tensors.get(name)
        if stored is None or stored.file != file:
            actual = f"is in {stored.file}" if stored else "is in no file"
            raise InputError(
                f"the index puts {shown(name)} in {file}, but it {actual}", where=str(path)
            )
    return header


def _weight_map(path: Path) -> dict[str, str]:
    """Return the index's map from tensor name to file name, both checked."""
    where = str(path)
    raw = parse_object(read_bytes(path, MAX_INDEX_BYTES), where, shallow=True)
    weight_map = raw.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError("the key 'weight_map' must be an object with entries", where=where)
    for name, file in weight_map.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"{shown(name)} is not a tensor name", where=where)
        if not isinstance(file, str) or not _FILE.fullmatch(file):
            raise InputError(
                f"{shown(name)} is said to be in {shown(file)}, "
                "which is not the name of a weight file in this folder",
                where=where,
            )
    if len(set(weight_map.values())) > MAX_FILES:
        raise InputError(f"the index names more than {MAX_FILES} files", where=where)
    return weight_map


def _merge(folder: Path, files: list[str]) -> CheckpointHeader:
    tensors: dict[str, TensorInfo] = {}
    for name in files:
        for tensor, info in _read_file(folder / name).items():
            if tensor in tensors:
                both = f"{tensors[tensor].file} and {name}"
                raise InputError(f"{shown(tensor)} is stored twice: {both}", where=str(folder))
            tensors[tensor] = info
    return CheckpointHeader(tensors)


def _read_file(path: Path) -> dict[str, TensorInfo]:
    """Read one safetensors header: 8 bytes of little-endian length, then that much JSON."""
    where = str(path)
    try:
        if not path.is_file():
            raise InputError("not a regular file", where=where)
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > size - 8:
                claim = (
                    f"claims a header of {length} bytes" if len(prefix) == 8 else "has no header"
                )
                raise InputError(f"a file of {size} bytes {claim}", where=where)
            if length > MAX_HEADER_BYTES:
                raise InputError(
                    f"a header of {length} bytes is over the format's limit of {MAX_HEADER_BYTES}",
                    where=where,
                )
            data = file.read(length)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=where) from None
    with _no_collection():
        raw = parse_object(data, where, shallow=True)
        return parse_header(raw, path.name, where=where, data_bytes=size - 8 - length)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Read many small objects without looking for garbage among them: that costs a quarter.

    There is none, and the search goes through all that the process holds besides, such as torch.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def parse_header(
    raw: Mapping[str, Any], file: str, *, where: str, data_bytes: int | None
) -> dict[str, TensorInfo]:
    """Check the entries of one safetensors header.

    Args:
        raw: The header's JSON object.
        file: The name of the file, kept in each entry.
        where: The file as messages name it.
        data_bytes: The size of the data behind the header, or None where it is not known.

    Raises:
        InputError: A name, dtype, shape or offset is malformed, a tensor's bytes are not dtype x
            shape, tensors overlap or leave a gap, or reach outside the file.
    """
    tensors: dict[str, TensorInfo] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in raw.items():
        if name == "__metadata__":
            continue
        if not _NAME.fullmatch(name):
            raise InputError(f"{shown(name)} is not a tensor name", where=where)
        tensors[name], span = _entry(name, entry, file, where)
        spans.append((*span, name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            problem = "overlaps the one before" if start < end else "leaves a gap before it"
            raise InputError(f"the data of {shown(name)} {problem}", where=where)
        end = stop
    if data_bytes is not None and end != data_bytes:
        raise InputError(
            f"the header describes {end} bytes of data, the file has {data_bytes}",
            where=where,
            hint="the file may be cut short: download it again",
        )
    return tensors


def _entry(name: str, entry: Any, file: str, where: str) -> tuple[TensorInfo, tuple[int, int]]:
    """Return one tensor's facts and its byte range."""
    fields = entry if isinstance(entry, dict) else {}
    dtype = fields.get("dtype")
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise InputError(f"{shown(name)} has the unknown dtype {shown(dtype)}", where=where)
    shape = _sizes(fields.get("shape"))
    if shape is None or len(shape) > MAX_DIMS:
        raise InputError(f"{shown(name)} has no valid shape", where=where)
    span = _sizes(fields.get("data_offsets"))
    if span is None or len(span) != 2 or span[0] > span[1]:
        raise InputError(f"{shown(name)} has no valid data_offsets", where=where)
    bits = math.prod(shape) * _BITS[dtype]
    if bits != 8 * (span[1] - span[0]):
        raise InputError(
            f"{shown(name)} of {dtype} {shape} is given {span[1] - span[0]} bytes, "
            f"it needs {bits / 8:g}",
            where=where,
        )
    return TensorInfo(dtype, shape, file), (span[0], span[1])


def _sizes(value: Any) -> tuple[int, ...] | None:
    """Return a list of sizes that fit in 64 bits as a tuple; None for anything else."""
    if not isinstance(value, list | tuple):
        return None
    for item in value:
        if type(item) is not int or not 0 <= item <= _LARGEST:
            return None
    return tuple(value)
