"""`update`, `diff` and `check` as commands: errors that say what to do, and a wheel offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from small_llama import LLAMA
from template_releases import (
    ROOT,
    change_template,
    commit,
    edit,
    files,
    make_port,
    make_repository,
    release,
)

ANSWERS = ".copier-answers.yml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A port of v0.1.0."""
    folder = tmp_path_factory.mktemp("releases")
    return make_port(make_repository(folder / "root"), "v0.1.0", "llama", "1.2", folder / "port")


def version(text: str) -> Callable[[Path], None]:
    def change(port: Path) -> None:
        recorded = f"_commit: {text}\n" if text else ""
        edit(port / ANSWERS, lambda old: old.replace("_commit: v0.1.0\n", recorded))

    return change


def answer(old: str, new: str) -> Callable[[Path], None]:
    return lambda port: edit(port / ANSWERS, lambda text: text.replace(old, new))


BROKEN = {
    "newer": (version("v9.0.0"), 3, "made by a newer trtllm-scaffold: v9.0.0", "--upgrade"),
    "lost": (version("v0.0.0-1-g0123456789ab"), 3, "is a development version", "adopt"),
    "dirty template": (version("v0.0.0-1-g0123456789ab-dirty"), 3, "uncommitted changes", "adopt"),
    "hostile": (version("--upload-pack=x"), 3, "no version of this template", "adopt"),
    "no version": (version(""), 3, "records no version", "adopt"),
    "no answers": (lambda port: (port / ANSWERS).unlink(), 3, f"has no {ANSWERS}", "adopt"),
    "renamed": (
        lambda port: (port / "llama_trtllm").rename(port / "mine"),
        3,
        "package is 'mine' on disk and 'llama_trtllm'",
        "rename it back",
    ),
    "hostile name": (answer("name: llama\n", "name: ../x\n"), 3, "not an identifier", "restore"),
    "generation": (answer("trtllm: '1.2'", "trtllm: '0.9'"), 3, "known are 1.2 and 1.4", "restore"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_port_that_cannot_be_updated(
    made: Path, call_cli: Callable, tmp_path: Path, case: str
) -> None:
    change, code, problem, hint = BROKEN[case]
    port = shutil.copytree(made, tmp_path / "port")
    change(port)
    commit(port)
    before = files(port)
    done = call_cli("update", port)
    assert done.returncode == code and problem in done.stderr and hint in done.stderr
    assert done.stderr.strip().count("error:") == 1 and not done.stdout
    document = json.loads(call_cli("diff", port, "--json").stdout)
    assert problem in document["error"]["message"]
    assert files(port) == before


def test_a_port_that_git_does_not_hold_safely(
    made: Path, call_cli: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = shutil.copytree(made, tmp_path / "port")
    before = files(port)

    def fails(code: int, problem: str) -> None:
        done = call_cli("update", port)
        assert done.returncode == code and problem in done.stderr
        assert {name: file for name, file in files(port).items() if name in before} == before

    fails(3, "not in a git repository")
    (port / "new.py").write_text("")
    subprocess.run(["git", "init", "-q", port], check=True)
    fails(3, "not committed: ")
    commit(port)
    (port / "README.md").unlink()
    before.pop("README.md")
    fails(3, "not committed: README.md")
    monkeypatch.setenv("PATH", str(tmp_path))
    fails(5, "git is not installed")


SCRIPT = """
import json, sys
from trtllm_scaffold.cli import run
for line in json.loads(sys.argv[1]):
    code = run(line)
    print(end=f"\\0{code}\\0")
"""


def python(venv: Path) -> Path:
    return venv / "bin" / "python"


def wheel(repository: Path, dest: Path, *, by_sdist: bool) -> Path:
    """Builds a wheel from the checkout, or from an unpacked sdist, which has no git."""
    build = [sys.executable, "-m", "hatchling", "build", "-d", dest, "-t"]
    source = repository
    if by_sdist:
        run([*build, "sdist"], repository)
        (archive,) = dest.glob("*.tar.gz")
        with tarfile.open(archive) as members:
            members.extractall(dest)
        source = dest / archive.name.removesuffix(".tar.gz")
    run([*build, "wheel"], source)
    (built,) = dest.glob("*.whl")
    return built


def run(command: list, folder: Path, expect: int = 0, **env: str) -> str:
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=kept | env, capture_output=True, text=True
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable, Path, Callable]:
    """A clean environment with the wheel of v0.1.0: its command, its folder, and its upgrade."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    repository = make_repository(folder / "repository", source=True)
    venv = folder / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", venv], folder)
    (site,) = venv.glob("lib/python*/site-packages")
    # The dependencies are those of this environment; this package is not among them.
    (site / "dependencies.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "ALL_PROXY"), "http://127.0.0.1:9")

    def command(*lines: list[object]) -> tuple[list[str], list[int]]:
        """Runs command lines in one process: what each printed, and its exit code."""
        script = [python(venv), "-c", SCRIPT, json.dumps([[*map(str, line)] for line in lines])]
        parts = run(script, folder, HF_HUB_OFFLINE="1", **nowhere).split("\0")
        return parts[0:-1:2], [int(code) for code in parts[1::2]]

    def install(name: str) -> None:
        (folder / name).mkdir()
        pip = [sys.executable, "-m", "pip", "--python", python(venv), "install", "--quiet"]
        built = wheel(repository, folder / name, by_sdist=name == "first")
        run([*pip, "--no-deps", "--no-index", "--force-reinstall", built], folder)

    def upgrade() -> None:
        change_template(repository)
        edit(repository / "pyproject.toml", lambda text: text.replace('"0.1.0"', '"0.2.0"'))
        release(repository, "0.2.0")
        install("second")

    install("first")
    return command, folder, upgrade


@pytest.mark.slow
def test_from_wheel_to_wheel_without_a_network(installed: tuple) -> None:
    command, folder, upgrade = installed
    where = run([python(folder / "venv"), "-c", "import trtllm_scaffold as t; print(t)"], folder)
    assert str(folder) in where and str(ROOT) not in where
    (folder / "config.json").write_text(json.dumps(LLAMA))
    port = folder / "port"
    _, codes = command(["new", port, "--config", folder / "config.json", "--no-prove"])
    assert codes == [0]
    assert "\n_commit: v0.1.0\n" in (port / ANSWERS).read_text()
    (port / "mine.py").write_text("MINE = 1\n")
    edit(port / "README.md", lambda text: text.replace("## Test\n", "## Test it\n"))
    edit(port / "README.md", lambda text: text.replace("# llama_trtllm", "# My port"))
    commit(port)

    upgrade()
    printed, codes = command(
        ["check", port],
        ["update", port, "--trtllm", "1.4", "--json"],
        ["check", port, "--json"],
        ["prove", port, "--tp", "1", "--dtype", "float32", "--json"],
    )
    assert codes == [0, 6, 0, 0], printed
    before, update, after, proof = printed
    assert "v0.1.0; v0.2.0 is here: trtllm-scaffold update" in before
    document = json.loads(update)
    assert document["template"] == {"before": "v0.1.0", "after": "v0.2.0"}
    assert document["trtllm"] == {"before": "1.2", "after": "1.4"}
    assert document["conflicts"] == ["README.md"]
    readme = (port / "README.md").read_text()
    assert readme.startswith("<<<<<<< yours\n# My port\n=======\n# The port llama_trtllm\n")
    assert "## Test it\n" in readme and "A new end." in readme and "TensorRT-LLM 1.4" in readme
    assert (port / "mine.py").is_file() and (port / "docs/notes.md").is_file()
    status = {"version": "v0.2.0", "current": "v0.2.0", "outdated": False}
    assert json.loads(after)["template"] == status and json.loads(after)["passed"]
    assert json.loads(proof)["passed"]
