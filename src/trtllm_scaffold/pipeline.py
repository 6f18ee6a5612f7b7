"""The road: sources -> spec -> plan -> port -> proof. What the commands `inspect` and `new` run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.intree.patch import PATCH, make_patch
from trtllm_scaffold.intree.tree import open_tree, refuse_taken
from trtllm_scaffold.plan import plan_port, port_names, support
from trtllm_scaffold.render import check_destination, publish, rendered_aside
from trtllm_scaffold.spec.describe import describe
from trtllm_scaffold.targets.capability import GENERATIONS

if TYPE_CHECKING:
    from trtllm_scaffold.infer.tiny_sizes import Style
    from trtllm_scaffold.plan import Support
    from trtllm_scaffold.sources import Sources
    from trtllm_scaffold.sources.hf_class import HFClasses
    from trtllm_scaffold.spec import ModelSpec, TensorSpec
    from trtllm_scaffold.verify.report import Check

Progress = Callable[[str], None]

#: The tiny configurations of a port, see `shrink`.
_STYLES: tuple[Style, ...] = ("published", "odd")


@dataclass(frozen=True)
class Inspection:
    """What a model is and how well each generation supports it."""

    spec: ModelSpec
    model_id: str | None

    def to_json(self) -> dict[str, Any]:
        """The document of `inspect --json`."""
        spec = self.spec
        evidence: dict[str, list[dict[str, Any]]] = {}
        for entry in spec.evidence:
            evidence.setdefault(entry.fact, []).append(entry.to_json())
        return {
            "model": {
                "id": self.model_id,
                "source": spec.source,
                "model_type": spec.model_type,
                "architecture": spec.architecture,
            },
            "spec": describe(spec),
            "evidence": evidence,
            "proven": spec.proven,
            "support": {name: support(spec, name).to_json() for name in GENERATIONS},
            **({"text_only": text_only_note(spec)} if spec.wrapper else {}),
        }


@dataclass(frozen=True)
class NewResult:
    """What `new` made (or would make, in a dry run).

    Attributes:
        port: Where the port stands.
        package: Its import name.
        support: Its support level in the chosen generation.
        checks: Every check that ran.
        files: Every file of the port, relative to it.
        patch: Its patch against TensorRT-LLM's tree, where one was asked for.
        proven: Whether an HF class of the model was run to read it.
        text_only: What was left out, where only the text decoder was ported.
    """

    port: Path
    package: str
    support: Support
    checks: tuple[Check, ...] = ()
    files: tuple[str, ...] = ()
    patch: Path | None = None
    proven: bool = True
    text_only: str = ""

    @property
    def passed(self) -> bool:
        """Whether something was checked, nothing failed, and the model itself was run."""
        good = bool(self.checks) and all(check.status != "failed" for check in self.checks)
        return good and self.proven

    def to_json(self) -> dict[str, Any]:
        """The document of `new --json`."""
        return {
            "port": str(self.port),
            "package": self.package,
            "support": self.support.to_json(),
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
            "proven": self.proven,
            **({} if self.patch is None else {"patch": str(self.patch)}),
            **({"text_only": self.text_only} if self.text_only else {}),
        }


def _find_classes(sources: Sources, trust_remote_code: bool) -> HFClasses | None:
    from trtllm_scaffold.sources.hf_class import resolve_classes

    return resolve_classes(
        sources.raw,
        sources.folder,
        trust_remote_code,
        hf_id=sources.hf_id,
        commit=sources.commit,
        where=sources.where,
        text_only=sources.text_only,
    )


def hf_classes(sources: Sources, trust_remote_code: bool) -> HFClasses:
    """The classes of `sources`; Refused where nothing can be run."""
    classes = _find_classes(sources, trust_remote_code)
    if classes is None:
        raise Refused(
            "model_type",
            f"transformers has no class for {sources.raw.get('model_type')!r}, so nothing can be "
            "observed or proven",
            where=sources.where,
            hint="upgrade transformers, give --trust-remote-code where the model brings its own "
            "class, or --allow-unproven to have its configuration read alone",
        )
    return classes


def read_model(sources: Sources, classes: HFClasses | None) -> tuple[ModelSpec, Sources, HFClasses]:
    """The spec, with the sources and classes that it was read from; without any, assumed ones."""
    if classes is None:
        from trtllm_scaffold.infer.unproven import infer_unproven

        return infer_unproven(sources)
    if classes.wrapper is not None:
        from trtllm_scaffold.infer.text_only import infer_text

        return (*infer_text(sources, classes), replace(classes, wrapper=None))
    from trtllm_scaffold.infer import infer

    return infer(sources, classes), sources, classes


def inspect_model(sources: Sources, trust_remote_code: bool = False) -> Inspection:
    """Infers what the model of `sources` is; nothing is written."""
    spec, _, _ = read_model(sources, _find_classes(sources, trust_remote_code))
    return Inspection(spec, sources.hf_id)


def text_only_note(spec: ModelSpec) -> str:
    """What a port of a text decoder leaves out; empty where it is the whole model."""
    if spec.wrapper is None:
        return ""
    parts = ", ".join(prefix.rstrip(".") for prefix in spec.wrapper.others)
    ignored = f"; ignored by name: {parts}" if parts else ""
    return f"the text decoder of {spec.architecture} ({spec.wrapper.text_class}) alone{ignored}"


def _experts(spec: ModelSpec) -> int | float:
    """How many experts a layer chooses from."""
    return next(kind.moe.router.num_experts.value for kind in spec.layer_kinds if kind.moe)


def _heads(spec: ModelSpec, tensor: TensorSpec) -> int | float:
    """How many heads have such a tensor each: those of queries, or of keys."""
    attention = spec.layer.attention
    of_queries = tensor.roles[0].startswith("attention.q_norm")
    return (attention.num_attention_heads if of_queries else attention.num_key_value_heads).value


def owned_files(sources: Sources, spec: ModelSpec, classes: HFClasses) -> dict[str, Any]:
    """The JSON documents and texts of a port that the CLI owns, by path."""
    from trtllm_scaffold.infer.shrink import shrink
    from trtllm_scaffold.sources.own_code import own_code

    layers = spec.num_hidden_layers.value
    attention: dict[str, Any] = {}
    if spec.reference_attention != "eager":
        attention = {"attn_implementation": spec.reference_attention}
    named = {"architectures": [spec.architecture]} if spec.wrapper else {}
    tensors = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "layers": layers if tensor.per_layer else None,
            **({"only_layers": list(tensor.only_layers)} if tensor.only_layers else {}),
            **({"shapes": [list(shape) for shape in tensor.shapes]} if tensor.shapes else {}),
            **({"experts": _experts(spec)} if "{e}" in tensor.name else {}),
            **({"heads": _heads(spec, tensor)} if tensor.per_head else {}),
        }
        for tensor in spec.checkpoint.tensors
    ]
    return {
        "config.json": sources.raw,
        "checkpoint.json": {"tensors": tensors},
        **{
            f"tests/configs/{style}.json": {
                **shrink(sources.raw, classes, style=style),
                **attention,
                **named,
            }
            for style in _STYLES
        },
        **own_code(classes),
    }


def new_port(
    sources: Sources,
    dest: Path,
    *,
    name: str | None = None,
    package: str | None = None,
    trtllm: str = "1.2",
    prove: bool = True,
    allow_unproven: bool = False,
    trust_remote_code: bool = False,
    dry_run: bool = False,
    force: bool = False,
    in_tree: Path | None = None,
    progress: Progress = lambda _: None,
) -> NewResult:
    """Infers, plans, renders and proves a port; it appears at `dest` whole, or not at all.

    A port that fails a check is not written: its checks say why.

    With `in_tree`, a checkout of TensorRT-LLM, the port comes with a patch against it.

    Raises:
        Refused: The model cannot be expressed.
        InputError: `dest` is not free, or the sources disagree.
    """
    check_destination(dest, force=force)
    tree = None if in_tree is None else open_tree(in_tree, trtllm)
    find = _find_classes if allow_unproven else hf_classes
    classes = find(sources, trust_remote_code)
    if prove and not dry_run:
        from trtllm_scaffold.verify.pool import warm_up

        warm_up()
    progress("reading the architecture off a tiny instance")
    spec, read, classes = read_model(sources, classes)
    names = port_names(spec, name, package)
    if tree is not None:
        refuse_taken(tree, names.name, spec.architecture)
    plan = plan_port(spec, names, trtllm)
    progress(f"rendering {names.package}")
    owned = {**owned_files(read, spec, classes), "config.json": sources.raw}
    with rendered_aside(plan.answers, owned, dest) as port:
        result = NewResult(
            dest, names.package, plan.support, files=_files(port), proven=spec.proven
        )
        result = replace(result, text_only=text_only_note(spec))
        if dry_run:
            return result
        if prove:
            checks = _prove(port, trtllm, progress) if spec.proven else _static(port, trtllm)
            result = replace(result, checks=checks)
        if any(check.status == "failed" for check in result.checks):
            progress("nothing was written; --no-prove writes the port unproven, to look at it")
            return result
        for cache in port.rglob("__pycache__"):
            shutil.rmtree(cache)
        if tree is not None:
            (port / PATCH).write_text(make_patch(port, tree, sources.hf_id), encoding="utf-8")
            result = replace(result, patch=dest / PATCH)
        publish(port, dest)
    return result


def _prove(port: Path, trtllm: str, progress: Progress) -> tuple[Check, ...]:
    from trtllm_scaffold.verify.prove import prove_port

    return tuple(prove_port(port, tp=(1, 2), trtllm=trtllm, progress=progress).checks)


def _static(port: Path, trtllm: str) -> tuple[Check, ...]:
    """What can be said of a port without any class to hold it against."""
    from trtllm_scaffold.verify.check import check_port
    from trtllm_scaffold.verify.report import skipped

    checks = check_port(port, checkpoint=None, trtllm=trtllm)
    reason = "no HF class of the model can be run: this port is unproven"
    return (*checks, skipped("parity", reason))


def _files(port: Path) -> tuple[str, ...]:
    found = (path for path in port.rglob("*") if path.is_file())
    return tuple(sorted(str(path.relative_to(port)) for path in found))
