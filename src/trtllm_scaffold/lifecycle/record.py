"""What a port says of itself: its recorded answers, checked before anything is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.plan.names import is_identifier
from trtllm_scaffold.targets.capability import GENERATIONS
from trtllm_scaffold.verify.port_files import PortFiles, read_port

ANSWERS = ".copier-answers.yml"


@dataclass(frozen=True)
class Record:
    """A port and what it was rendered from.

    Attributes:
        root: The port's folder.
        answers: The recorded copier answers, without copier's own.
        version: The version of its template; None where it records none.
        name, package, class_prefix, architecture: Its names, fixed at birth.
        trtllm: The generation it was rendered for.
    """

    root: Path
    answers: Mapping[str, Any]
    version: str | None
    name: str
    package: str
    class_prefix: str
    architecture: str
    trtllm: str


def read_record(port: Path) -> Record:
    """Reads the port in the folder `port`.

    Raises:
        InputError: It is no port, it has no answers file, or the file was tampered with.
    """
    if port.is_dir() and not (port / ANSWERS).is_file():
        raise InputError(
            f"the port has no {ANSWERS}, which an update starts from",
            where=str(port),
            hint="`trtllm-scaffold adopt PORT` writes one for a port made by hand",
        )
    files = read_port(port)
    answers = {key: item for key, item in files.answers.items() if not key.startswith("_")}
    names = {key: _identifier(answers, key) for key in _NAMES}
    _check_folder(files, names)
    trtllm = str(answers.get("trtllm"))
    if trtllm not in GENERATIONS:
        known = " and ".join(GENERATIONS)
        raise InputError(
            f"trtllm is {trtllm!r}; known are {known}", where=f"{ANSWERS}: trtllm", hint=_RESTORE
        )
    version = files.answers.get("_commit")
    version = None if version is None else str(version)
    return Record(files.root, answers, version, **names, trtllm=trtllm)


_NAMES = ("name", "package", "class_prefix", "architecture")
_RESTORE = f"restore {ANSWERS} from the port's history"


def _identifier(answers: Mapping[str, Any], key: str) -> str:
    value = answers.get(key)
    if not isinstance(value, str) or not is_identifier(value):
        raise InputError(
            f"{key} is {value!r}, not an identifier", where=f"{ANSWERS}: {key}", hint=_RESTORE
        )
    return value


def _check_folder(files: PortFiles, names: Mapping[str, str]) -> None:
    found = {"package": files.package.name, "name": files.name}
    for key, value in found.items():
        if names[key] != value:
            raise InputError(
                f"the port's {key} is {value!r} on disk and {names[key]!r} in {ANSWERS}: names "
                "are fixed at birth",
                where=str(files.root),
                hint="rename it back, or restore the answers file",
            )
