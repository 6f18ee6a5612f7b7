"""What today's inference says of an existing port's own config.json, under the port's own names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.lifecycle.record import ANSWERS, Record
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.names import PortNames

if TYPE_CHECKING:
    from trtllm_scaffold.sources import CheckpointHeader, Sources
    from trtllm_scaffold.sources.hf_class import HFClasses
    from trtllm_scaffold.spec import ModelSpec


@dataclass(frozen=True)
class Derived:
    """What a port is rendered from.

    Attributes:
        answers: Copier answers.
        owned_files: The JSON documents that the CLI owns, by path inside the port.
    """

    answers: Answers
    owned_files: Mapping[str, Any]


Deriver = Callable[[Record, str], Derived]
"""Port and generation -> what it is rendered from."""


def deriver(
    checkpoint: Path | None = None,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Deriver:
    """The derivation by inference, which each port needs once, whatever the generation.

    It raises InputError where config.json is malformed or of another architecture than the port,
    and Refused where today's inference or plan cannot express the model.

    Args:
        checkpoint: A folder whose headers, and whose own code, are read too.
        trust_remote_code: Run that code.
        progress: Is told what is being done.
    """
    models: dict[Path, _Model] = {}

    def run(record: Record, trtllm: str) -> Derived:
        if record.root not in models:
            progress("reading the architecture off a tiny instance")
            models[record.root] = _infer(record, checkpoint, trust_remote_code)
        return _derive(record, trtllm, models[record.root])

    return run


@dataclass(frozen=True)
class _Model:
    sources: Sources
    spec: ModelSpec
    owned_files: Mapping[str, Any]


def _infer(record: Record, checkpoint: Path | None, trust_remote_code: bool) -> _Model:
    from trtllm_scaffold.pipeline import owned_files, read_model
    from trtllm_scaffold.sources import load_path, read_header

    sources = load_path(record.root / "config.json")
    if checkpoint is not None:
        header = read_header(checkpoint)
        sources = replace(sources, folder=checkpoint.resolve(), header=header)
    _same_architecture(sources.raw["architectures"][0], record.architecture)
    classes = _classes(sources, record, trust_remote_code)
    seen = sources
    recorded = (record.root / "checkpoint.json").is_file()
    if classes.wrapper is not None and checkpoint is None and recorded:
        seen = replace(sources, header=_recorded_names(record))
    spec, read, classes = read_model(seen, classes)
    owned = {**owned_files(read, spec, classes), "config.json": sources.raw}
    return _Model(sources, spec, owned)


def _classes(sources: Sources, record: Record, trust_remote_code: bool) -> HFClasses:
    """The classes of the port's model: a port of a whole model is one of its text decoder."""
    from trtllm_scaffold.pipeline import hf_classes

    if not record.answers.get("wrapper_config"):
        try:
            return hf_classes(sources, trust_remote_code)
        except Refused as refusal:
            if record.answers or refusal.axis != "modality":
                raise
    return hf_classes(replace(sources, text_only=True), trust_remote_code)


def _recorded_names(record: Record) -> CheckpointHeader:
    """The names that a port of a text decoder was made for: a whole model may have several."""
    from trtllm_scaffold.sources import CheckpointHeader, TensorInfo
    from trtllm_scaffold.verify.port_files import read_tensors

    stored = read_tensors(record.root / "checkpoint.json")
    names = [name for item in stored for name in item.names()]
    return CheckpointHeader(dict.fromkeys(names, TensorInfo(None, None, "checkpoint.json")))


def _derive(record: Record, trtllm: str, model: _Model) -> Derived:
    from trtllm_scaffold.plan import plan_port

    names = PortNames(record.name, record.package, record.class_prefix)
    answers = plan_port(model.spec, names, trtllm).answers
    if model.sources.header is None:
        answers = with_recorded_drops(answers, record.answers)
    return Derived(answers, model.owned_files)


def _same_architecture(found: str, recorded: str) -> None:
    if found != recorded:
        raise InputError(
            f"config.json is of {found}, and the port is of {recorded}: an update keeps the "
            "names of classes",
            where=f"config.json: architectures, {ANSWERS}: architecture",
            hint="make a new port for the other model",
        )


def with_recorded_drops(answers: Answers, recorded: Mapping[str, Any]) -> Answers:
    """Answers that keep the unused tensors which only the real checkpoint's header told of.

    A port holds no weights, so that today's inference may know fewer stored names than it did.
    """
    names, reasons = answers.get("dropped_names"), answers.get("dropped_reasons")
    weights = answers.get("weight_names")
    if not (isinstance(names, list) and isinstance(reasons, list) and isinstance(weights, list)):
        return answers
    before = dict(
        zip(
            recorded.get("dropped_names") or (),
            recorded.get("dropped_reasons") or (),
            strict=False,
        )
    )
    known = {*names, *weights}
    more = {str(name): str(why) for name, why in before.items() if name not in known}
    return {
        **answers,
        "dropped_names": [*map(str, names), *more],
        "dropped_reasons": [*map(str, reasons), *more.values()],
    }
