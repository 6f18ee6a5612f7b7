"""The patch: a model module, its registration, its unit test and its row of the support matrix."""

from __future__ import annotations

import json
from pathlib import Path

from trtllm_scaffold.intree.literals import literal
from trtllm_scaffold.intree.module import one_module
from trtllm_scaffold.intree.tree import (
    MODELS,
    TESTS,
    Model,
    Tree,
    refuse_taken,
    registration,
    support_matrix,
)
from trtllm_scaffold.lifecycle.diff import diff_text
from trtllm_scaffold.lifecycle.merge import Change, File, Kind
from trtllm_scaffold.verify.port_files import PortFiles, read_port

PATCH = "in-tree.patch"
"""Its name in the port's folder."""

_TINY = "tests/configs/published.json"
_BACKENDS = {
    "1.2": "tensorrt_llm._torch.attention_backend.utils",
    "1.4": "tensorrt_llm._torch.attention.backends.utils",
}


def make_patch(port: Path, tree: Tree, hf_id: str | None) -> str:
    """The port in the folder `port` as a patch that `git apply` takes at the top of `tree`.

    Args:
        port: A port for the tree's generation.
        tree: A checkout of TensorRT-LLM; nothing is written there.
        hf_id: The model's id on the hub, for the support matrix.

    Raises:
        InputError: The tree has such a model already, or is not as TensorRT-LLM's.
    """
    files = read_port(port)
    architecture, title = str(files.answers["architecture"]), str(files.answers["title"])
    model = Model(files.name, architecture, title, hf_id or "")
    refuse_taken(tree, model.name, architecture)
    added = {
        f"{MODELS}/{model.module}.py": one_module(files.package, files.name, tree.generation),
        f"{TESTS}/test_{model.module}.py": unit_test(files, tree.generation),
    }
    changed = {**registration(tree, model), **support_matrix(tree, model)}
    changes = [Change(path, Kind.added, None, _file(text)) for path, text in added.items()]
    for path, text in changed.items():
        before = _file(tree.read(path))
        changes.append(Change(path, Kind.modified, before, _file(text)))
    return diff_text(sorted(changes, key=lambda change: change.path))


def _file(text: str) -> File:
    return File(text.encode())


def unit_test(files: PortFiles, generation: str) -> str:
    """The unit test, on the port's tiny configuration with its published scalars."""
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("test_modeling.py.jinja").read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    config = json.loads((files.root / _TINY).read_text(encoding="utf-8"))
    return environment.from_string(template).render(
        architecture=files.answers["architecture"],
        config_class=files.answers["config_class"],
        name=files.name,
        backend_utils=_BACKENDS[generation],
        config=literal(config),
    )
