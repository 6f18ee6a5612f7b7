"""Read a port's folder as plain files: nothing of it is imported and torch is not needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import parse_object, read_bytes, shown

#: No file that is read here is ever larger; a larger one is not ours.
MAX_BYTES = 32 * 1024 * 1024

#: Far more than any published model has; a larger number would only eat memory.
MAX_LAYERS = 4096

#: As for layers.
MAX_EXPERTS = 4096

_HINT = "give the folder that `trtllm-scaffold new` wrote"


@dataclass(frozen=True)
class PortFiles:
    """The parts of a port that a check reads.

    Attributes:
        root: The port's folder.
        package: The importable folder in it, what ``--custom_module_dirs`` points at.
        name: ``<name>`` of ``modeling_<name>.py``.
        answers: The recorded copier answers.
        config: The source ``config.json``.
        tensors: Entries of ``checkpoint.json``: name, shape, layers (None for a single tensor).
    """

    root: Path
    package: Path
    name: str
    answers: Mapping[str, Any]
    config: Mapping[str, Any]
    tensors: tuple[StoredTensor, ...]

    @property
    def weights_module(self) -> Path:
        """The file with the weight table."""
        return self.package / f"weights_{self.name}.py"

    @property
    def modeling_module(self) -> Path:
        """The file with the model classes."""
        return self.package / f"modeling_{self.name}.py"

    @property
    def generation(self) -> str | None:
        """The TensorRT-LLM generation that the port was rendered for."""
        recorded = self.answers.get("trtllm")
        return None if recorded is None else str(recorded)

    @property
    def tiny_configs(self) -> tuple[Path, ...]:
        """The tiny configurations that proofs run on, sorted by name."""
        return tuple(sorted((self.root / "tests" / "configs").glob("*.json")))


@dataclass(frozen=True)
class StoredTensor:
    """One stored tensor, or one per layer where `layers` is set and `name` holds ``{i}``.

    Attributes:
        name: The stored name.
        shape: The stored shape.
        layers: How many layers the model has.
        only_layers: Those that have the tensor, where not all have.
        experts: How many experts there are where `name` holds ``{e}``: each has one.
        heads: How many heads there are where `name` holds ``{j}``: each has one.
        shapes: The shape in each layer that has the tensor, where layers differ in it.
    """

    name: str
    shape: tuple[int, ...]
    layers: int | None = None
    only_layers: tuple[int, ...] = ()
    experts: int | None = None
    heads: int | None = None
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def holders(self) -> tuple[int, ...]:
        """Every layer that has the tensor; a single 0 for a tensor outside the layers."""
        return self.only_layers or tuple(range(self.layers or 1))

    def by_layer(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(layer, shape) of every layer that has the tensor."""
        shapes = self.shapes or (self.shape,) * len(self.holders)
        return tuple(zip(self.holders, shapes, strict=True))

    def names(self, layers: Iterable[int] = (), count: int | None = None) -> list[str]:
        """Every stored name: of `layers` and of so many experts or heads, all by default."""
        mark = next((mark for mark in ("{e}", "{j}") if mark in self.name), "")
        parts = range(count or self.experts or self.heads or 1) if mark else (0,)
        return [
            self.name.replace("{i}", str(layer)).replace(mark or "{e}", str(part))
            for layer in layers or self.holders
            for part in parts
        ]


def read_port(port: Path) -> PortFiles:
    """Find the parts of the port in folder `port`.

    Raises:
        InputError: If it is not a port, or one of its data files cannot be read.
    """
    root = port.resolve()
    if not root.is_dir():
        raise InputError(f"no folder {str(port)!r}", hint=_HINT)
    package = _package(root)
    return PortFiles(
        root=root,
        package=package,
        name=_name(package),
        answers=MappingProxyType(_answers(root / ".copier-answers.yml")),
        config=MappingProxyType(_object(root / "config.json")),
        tensors=read_tensors(root / "checkpoint.json"),
    )


def find_package(root: Path) -> tuple[Path, str]:
    """The port's importable folder, and the `<name>` of its modules.

    Raises:
        InputError: There is not exactly one of each.
    """
    package = _package(root)
    return package, _name(package)


def _package(root: Path) -> Path:
    found = sorted(path.parent for path in root.glob("*/_trtllm.py"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"a port has one package with a _trtllm.py, found {names}", where=str(root), hint=_HINT
        )
    return found[0]


def _name(package: Path) -> str:
    found = sorted(path.stem.removeprefix("modeling_") for path in package.glob("modeling_*.py"))
    if len(found) != 1:
        raise InputError(
            f"a port's package has one modeling_<name>.py, found {', '.join(found) or 'none'}",
            where=str(package),
            hint=_HINT,
        )
    return found[0]


def read_text(path: Path) -> str:
    """Read a text file of bounded size.

    Raises:
        InputError: If it is missing, too large or not UTF-8.
    """
    try:
        return read_bytes(path, MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=str(path)) from error


def _object(path: Path) -> dict[str, Any]:
    return parse_object(read_bytes(path, MAX_BYTES), str(path))


def recorded_answers(root: Path) -> dict[str, Any]:
    """The copier answers of the port in the folder `root`; none where it records none."""
    path = root / ".copier-answers.yml"
    return _answers(path) if path.is_file() else {}


def _answers(path: Path) -> dict[str, Any]:
    import yaml

    text = read_text(path)
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        line = str(error).splitlines()[0] if str(error) else "?"
        raise InputError(f"not YAML: {line}", where=str(path)) from error
    if not isinstance(value, dict):
        raise InputError(f"expected a mapping, found a {type(value).__name__}", where=str(path))
    return {str(key): item for key, item in value.items()}


def read_tensors(path: Path) -> tuple[StoredTensor, ...]:
    """What a port's ``checkpoint.json`` says is stored.

    Raises:
        InputError: If it is malformed.
    """
    entries = _object(path).get("tensors")
    if not isinstance(entries, list) or not entries:
        raise InputError("no list 'tensors'", where=str(path))
    return tuple(_tensor(entry, path) for entry in entries)


def _tensor(entry: Any, path: Path) -> StoredTensor:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise InputError(f"a tensor without a name: {shown(entry)}", where=str(path))
    name, shape, layers = entry["name"], entry.get("shape"), entry.get("layers")
    if not isinstance(shape, list) or not _is_shape(shape):
        raise InputError(f"shape of {shown(name)} is {shown(shape)}", where=str(path))
    if layers is not None and not (_is_size(layers) and layers <= MAX_LAYERS):
        raise InputError(f"layers of {shown(name)} is {shown(layers)}", where=str(path))
    if (layers is not None) != ("{i}" in name):
        raise InputError(
            f"{shown(name)} has layers {layers!r}: a name with {{i}} needs a number of layers",
            where=str(path),
        )
    counts = {kind: _count(entry, kind, mark, path) for kind, mark in _MARKS.items()}
    only = _only_layers(entry, layers, path)
    shapes = _shapes(entry, len(only) or layers or 1, path)
    return StoredTensor(name, tuple(shape), layers, only, **counts, shapes=shapes)


def _shapes(entry: dict[str, Any], count: int, path: Path) -> tuple[tuple[int, ...], ...]:
    """The shape in each of `count` layers; empty where there is one shape for all."""
    found = entry.get("shapes") or []
    good = isinstance(found, list) and (
        not found
        or (len(found) == count and all(isinstance(s, list) and _is_shape(s) for s in found))
    )
    if not good:
        raise InputError(
            f"shapes of {shown(entry['name'])} is {shown(found)}, not one for each layer",
            where=str(path),
        )
    return tuple(map(tuple, found))


#: What a name may be repeated over, and what stands for its number there.
_MARKS = {"experts": "{e}", "heads": "{j}"}


def _count(entry: dict[str, Any], kind: str, mark: str, path: Path) -> int | None:
    """How many experts or heads have such a tensor each; None where the name has no mark."""
    name, count = entry["name"], entry.get(kind)
    if (count is not None) != (mark in name):
        raise InputError(
            f"{shown(name)} has {kind} {count!r}: a name with {mark} needs a number of {kind}",
            where=str(path),
        )
    if count is not None and not (_is_size(count) and count <= MAX_EXPERTS):
        raise InputError(f"{kind} of {shown(name)} is {shown(count)}", where=str(path))
    return count


def _only_layers(entry: dict[str, Any], layers: int | None, path: Path) -> tuple[int, ...]:
    only = entry.get("only_layers") or []
    known = range(layers or 0)
    if not isinstance(only, list) or not all(type(item) is int and item in known for item in only):
        raise InputError(f"only_layers of {shown(entry['name'])} is {shown(only)}", where=str(path))
    return tuple(only)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_shape(sizes: list[Any]) -> bool:
    return len(sizes) <= 8 and all(map(_is_size, sizes)) and math.prod(sizes) < 2**60
