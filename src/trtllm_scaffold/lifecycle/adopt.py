"""`adopt`: finds the render that a port is nearest to, so that it can be updated from then on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.lifecycle.derive import Derived, Deriver
from trtllm_scaffold.lifecycle.history import History
from trtllm_scaffold.lifecycle.merge import File, Tree, read_files
from trtllm_scaffold.lifecycle.record import ANSWERS, Record
from trtllm_scaffold.lifecycle.releases import parse_version
from trtllm_scaffold.lifecycle.status import recorded_version
from trtllm_scaffold.lifecycle.update import document_file, rendered
from trtllm_scaffold.plan.names import class_prefix_of
from trtllm_scaffold.sources import read_config, validate_config
from trtllm_scaffold.targets.capability import GENERATIONS
from trtllm_scaffold.verify.port_files import find_package

NEAR = 0.75
"""Share of the package's lines that a render must have: below it, a merge is a rewrite."""


@dataclass(frozen=True)
class Difference:
    """One file of a render that the port has otherwise.

    Attributes:
        path: Inside the port.
        lines: How many lines the port lacks or has beside the render's; all where it is missing.
        of: How many lines the render has.
        missing: Whether the port has no such file.
    """

    path: str
    lines: int
    of: int
    missing: bool

    def __str__(self) -> str:
        what = "is missing" if self.missing else f"differs in {self.lines} lines of {self.of}"
        return f"{self.path} {what}"


@dataclass(frozen=True)
class Adoption:
    """The nearest render of a port.

    Attributes:
        port: The port's folder.
        version: The render's template.
        trtllm: The generation it was made for.
        share: The share of the package's lines that agree, from 0 to 1.
        differences: What its owner has otherwise.
        files: What adopting writes.
    """

    port: Path
    version: str
    trtllm: str
    share: float
    differences: tuple[Difference, ...]
    files: Tree

    def to_json(self) -> dict[str, Any]:
        """The document of `adopt --json`."""
        return {
            "port": str(self.port),
            "template": self.version,
            "trtllm": self.trtllm,
            "share": round(self.share, 4),
            "differences": [vars(difference) for difference in self.differences],
            "written": sorted(self.files),
        }


def find_nearest(
    port: Path, history: History, derive: Deriver, trtllm: str | None = None
) -> Adoption:
    """The render, of any known template and generation, that is nearest to the port.

    Args:
        port: A folder with a package like a render's, and the model's config.json.
        history: The templates to try, newest first.
        derive: How answers are found.
        trtllm: The only generation to try.

    Raises:
        InputError: It is no port, or it can be updated as it is.
        Refused: The model cannot be expressed, or no render is near.
    """
    record = _unrecorded(port, history)
    best: Adoption | None = None
    for version, generation, derived in _candidates(record, history, derive, trtllm):
        found = _compare(record, version, generation, derived, history)
        if best is None or _nearness(found) > _nearness(best):
            best = found
    if best is None:
        raise InputError(
            "no template is known that an update could start from",
            where=str(history.root),
            hint="commit the template's changes, or use a released trtllm-scaffold",
        )
    if best.share < NEAR:
        raise Refused("adoption", _too_far(best), where=str(port), hint=_START_ANEW)
    return best


_START_ANEW = "render a new port beside it, and move your code into that"


def _too_far(best: Adoption) -> str:
    listed = "; ".join(map(str, best.differences))
    return (
        f"the code is too far from any render: {best.version} for TensorRT-LLM {best.trtllm} "
        f"is nearest, with {best.share:.0%} of the package's lines, and {NEAR:.0%} are needed: "
        f"{listed}"
    )


def _nearness(adoption: Adoption) -> tuple[float, int]:
    """By the package first, then by all other files."""
    return adoption.share, -sum(difference.lines for difference in adoption.differences)


def _unrecorded(port: Path, history: History) -> Record:
    """The port's names, read off its files."""
    root = port.resolve()
    if not root.is_dir():
        raise InputError(f"no folder {str(port)!r}", hint="give the folder of a port")
    version = recorded_version(root)
    if version is not None:
        try:
            history.find(version)
        except InputError:
            pass
        else:
            raise InputError(
                f"the port's template {version} is known, so that there is nothing to adopt",
                where=f"{port / ANSWERS}: _commit",
                hint="trtllm-scaffold update PORT",
            )
    package, name = find_package(root)
    config = read_config(root)
    validate_config(config.raw, config.where)
    architecture = config.raw["architectures"][0]
    prefix = class_prefix_of(architecture)
    return Record(root, {}, None, name, package.name, prefix, architecture, GENERATIONS[0])


def _candidates(
    record: Record, history: History, derive: Deriver, trtllm: str | None
) -> Iterator[tuple[str, str, Derived]]:
    """Every (version, generation) that can be recorded and expressed, newest version first."""
    refusal: Refused | None = None
    derived: dict[str, Derived] = {}
    for generation in (trtllm,) if trtllm else GENERATIONS:
        try:
            derived[generation] = derive(record, generation)
        except Refused as error:
            refusal = error
    if not derived and refusal is not None:
        raise refusal
    versions = list(reversed(history.commits))
    current = parse_version(history.current or "")
    if current is not None and not current.dirty and current.text not in versions:
        versions.insert(0, current.text)
    for version in versions:
        for generation, found in derived.items():
            yield version, generation, found


def _compare(
    record: Record, version: str, trtllm: str, derived: Derived, history: History
) -> Adoption:
    render = rendered(history, version, derived.answers)
    owned = {path: document_file(item) for path, item in derived.owned_files.items()}
    mine = read_files(record.root, {*render, *owned})
    lines = equal = 0
    differences = []
    for path, file in sorted(render.items()):
        if path == ANSWERS:
            continue
        theirs, ours = _lines(file), _lines(mine.get(path))
        same = sum(block.size for block in _matcher(theirs, ours).get_matching_blocks())
        if path.startswith(f"{record.package}/"):
            lines += len(theirs) + len(ours)
            equal += 2 * same
        changed = max(len(theirs), len(ours)) - same
        if changed or path not in mine:
            differences.append(Difference(path, changed, len(theirs), path not in mine))
    files = {path: file for path, file in owned.items() if path not in mine}
    files[ANSWERS] = render[ANSWERS]
    return Adoption(record.root, version, trtllm, equal / lines, tuple(differences), files)


def _lines(file: File | None) -> list[bytes]:
    return file.content.splitlines() if file else []


def _matcher(first: list[bytes], second: list[bytes]) -> SequenceMatcher[bytes]:
    return SequenceMatcher(None, first, second, autojunk=False)


def write_adoption(adoption: Adoption) -> None:
    """Writes the answers file, and the JSON files of a port that it lacks."""
    for name, file in adoption.files.items():
        path = adoption.port / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
