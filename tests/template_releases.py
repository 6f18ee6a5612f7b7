"""A repository with made-up releases of this template, and ports made by them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sample_specs import SPECS

from trtllm_scaffold.lifecycle.bundle import make_tags
from trtllm_scaffold.lifecycle.derive import Derived, Deriver
from trtllm_scaffold.lifecycle.history import current_version, open_history
from trtllm_scaffold.lifecycle.merge import File, read_tree
from trtllm_scaffold.lifecycle.record import Record
from trtllm_scaffold.lifecycle.releases import Release, read_releases, write_releases
from trtllm_scaffold.lifecycle.update import UpdatePlan, plan_update
from trtllm_scaffold.plan import plan_port
from trtllm_scaffold.plan.names import PortNames
from trtllm_scaffold.render import render_from

ROOT = Path(__file__).parents[1]
PARTS = ("copier.yml", "includes", "template", "pyproject.toml", "hatch_build.py")
PROSE = ("README.md", "LICENSE", "CHANGELOG.md")
README = "template/README.md.jinja"
MODELING = "template/{{ package }}/modeling_{{ name }}.py.jinja"


def git(*arguments: object, cwd: Path) -> str:
    people = {
        f"GIT_{who}_{key}": "t@e" for who in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")
    }
    env = {**os.environ, **people, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *map(str, arguments)], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def commit(folder: Path, message: str = "Work") -> str:
    if not (folder / ".git").exists() and not (folder.parent / ".git").exists():
        git("init", "--quiet", "--initial-branch=main", cwd=folder)
    git("add", "--all", "--force", ".", cwd=folder)
    git("commit", "--quiet", "--allow-empty", "-m", message, cwd=folder)
    return git("rev-parse", "HEAD", cwd=folder)


def release(repository: Path, version: str) -> None:
    """Commits what is there as a release, then the row that names it, and makes its tag."""
    named = commit(repository, f"Release {version}")
    write_releases(repository, (*read_releases(repository), Release(version, named)))
    commit(repository, "Name the release")
    make_tags(repository)
    current_version.cache_clear()


def make_repository(dest: Path, *, source: bool = False, releases: bool = True) -> Path:
    """A repository with v0.1.0, today's template; with the sources too where they are needed.

    Without `releases` everything is committed, and nothing released.
    """
    dest.mkdir()
    for name in (*PARTS, *PROSE, *(("src", "tools") if source else ())):
        path = ROOT / name
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        extra = {"ignore": shutil.ignore_patterns("__pycache__")} if path.is_dir() else {}
        copy(path, dest / name, **extra)
    write_releases(dest, ())
    if releases:
        release(dest, "0.1.0")
    else:
        commit(dest)
    return dest


def change_template(repository: Path) -> None:
    """What a next release may do: change lines, ask more, add a file, drop a file."""
    edit(repository / README, lambda text: "# The port " + text[2:] + "\n## More\n\nA new end.\n")
    edit(repository / MODELING, lambda text: text + "\n# The end of {{ name }}.\n")
    edit(
        repository / "copier.yml",
        lambda text: text + 'greeting: {type: str, ask: false, default: "hello"}\n',
    )
    notes = repository / "template/docs/notes.md.jinja"
    notes.parent.mkdir(exist_ok=True)
    notes.write_text("{{ greeting }} from {{ package }}\n")
    (repository / "template/examples/bench.sh.jinja").unlink()


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def sample_documents(name: str) -> dict[str, Any]:
    """The JSON files of a sample port."""
    spec = SPECS[name]
    tensors = [
        {
            "name": tensor.name,
            "shape": list(tensor.shape),
            "layers": spec.num_hidden_layers.value if tensor.per_layer else None,
        }
        for tensor in spec.checkpoint.tensors
    ]
    config = {"architectures": [spec.architecture], "model_type": spec.model_type}
    return {"config.json": config, "checkpoint.json": {"tensors": tensors}}


def sample_deriver(name: str) -> Deriver:
    """Derives a port's answers from a hand-written spec instead of a traced model."""

    def derive(record: Record, trtllm: str) -> Derived:
        names = PortNames(record.name, record.package, record.class_prefix)
        answers = plan_port(SPECS[name], names, trtllm).answers
        return Derived(answers, sample_documents(name))

    return derive


def make_port(root: Path, version: str | None, name: str, trtllm: str, dest: Path) -> Path:
    """A sample port as the template of `version` makes it; None is the newest."""
    answers = plan_port(SPECS[name], PortNames("llama", "llama_trtllm", "Llama"), trtllm).answers
    dest.mkdir(parents=True)
    with open_history(root) as history, history.template(version) as template:
        render_from(template, answers, dest, version or history.current)
    for path, document in sample_documents(name).items():
        (dest / path).write_text(json.dumps(document, indent=2) + "\n")
    return dest


def plan(root: Path, port: Path, name: str, trtllm: str | None = None) -> UpdatePlan:
    with open_history(root) as history:
        return plan_update(port, history, sample_deriver(name), trtllm)


def files(port: Path) -> dict[str, File]:
    """Every file of a port, git's own left out."""
    return {path: file for path, file in read_tree(port).items() if not path.startswith(".git/")}
