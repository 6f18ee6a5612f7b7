"""The script runner, the import rules of custom modules, and the pytest plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..statements import states
from .checkpoint import save
from .families import llama
from .harness import hf_logits, randomise

MODEL = """
from tensorrt_llm._torch.models.modeling_utils import register_auto_model
from {source} import HandLlamaForCausalLM


@register_auto_model("ExternalLlamaForCausalLM")
class ExternalLlamaForCausalLM(HandLlamaForCausalLM):
    pass
"""
SCRIPT = """
import sys
import tensorrt_llm
from tensorrt_llm import LLM, SamplingParams

llm = LLM(model=sys.argv[1])
output = llm.generate([3, 1, 4, 1, 5], SamplingParams(max_tokens=5))
print(tensorrt_llm.__version__, *output.outputs[0].token_ids)
"""


def python(*arguments, cwd, **environment):
    given = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **environment}
    for name in ("TRTLLM_SCAFFOLD_RUNTIME", "TRTLLM_SCAFFOLD_GENERATION"):
        if name not in environment:
            given.pop(name, None)
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=given,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def external(tmp_path):
    """A checkpoint whose architecture only a custom module knows, and that module's folder."""
    config, hf_class = llama()
    hf = randomise(hf_class(config))
    folder = save(tmp_path / "checkpoint", hf, "ExternalLlamaForCausalLM")
    package = tmp_path / "external_llama_port"
    package.mkdir()
    (package / "__init__.py").write_text("from . import modeling\n")
    source = f"{__package__}.ports.llama"
    (package / "modeling.py").write_text(MODEL.format(source=source))
    script = tmp_path / "generate.py"
    script.write_text(SCRIPT)
    return folder, package, script, hf


@states("E3-1", "E3-2", "W1.4-6")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("gen", "version"), [("1.2", "1.2.1+standin"), ("1.4", "1.4.0rc1+standin")]
)
def test_a_script_with_a_custom_module(tmp_path, external, gen, version):
    folder, package, script, hf = external
    runner = ("-m", "trtllm_scaffold.standin", "--trtllm", gen)
    done = python(*runner, "--custom_module_dirs", package, script, folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    ids = [3, 1, 4, 1, 5]
    for _ in range(5):
        ids.append(int(hf_logits(hf, ids)[-1].argmax()))
    assert done.stdout.split() == [version, *map(str, ids[5:])]


@states("W1.4-6")
def test_script_runner_errors(tmp_path, external):
    folder, package, script, _ = external
    runner = ("-m", "trtllm_scaffold.standin")
    done = python(*runner, tmp_path / "none.py", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1) and "none.py" in done.stderr
    done = python(*runner, "--custom_module_dirs", tmp_path / "no_such_dir", script, cwd=tmp_path)
    assert done.returncode == 3 and "no_such_dir" in done.stderr
    done = python(*runner, "--trtllm", "9.9", script, cwd=tmp_path)
    assert done.returncode == 2
    done = python(*runner, script, folder, cwd=tmp_path)
    assert done.returncode != 0 and "Unknown architecture" in done.stderr


@states("E3-2", "W1.4-1", "W1.4-2")
def test_import_rules(tmp_path, monkeypatch):
    from trtllm_scaffold.standin.custom_modules import (
        import_custom_module,
        import_custom_module_from_dir,
    )

    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "some_port_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inner import VALUE\n")
    (folder / "inner.py").write_text("VALUE = 3\n")
    assert import_custom_module_from_dir(folder).VALUE == 3
    assert sys.path[0] == str(tmp_path) and "some_port_package" in sys.modules
    lone = tmp_path / "lone_file.py"
    lone.write_text("VALUE = 4\n")
    assert import_custom_module(lone).VALUE == 4 and "lone_file" not in sys.modules
    broken = tmp_path / "broken_port"
    broken.mkdir()
    (broken / "__init__.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ImportError, match=f"{broken}.*nothing_of_this_name"):
        import_custom_module_from_dir(broken)


# ---------------------------------------------------------------- plugin

TEST = """
import pytest

def test_version():
    import tensorrt_llm
    assert tensorrt_llm.__version__ == {version!r}

@pytest.mark.skip(reason="needs a CUDA device")
def test_gpu():
    pass

@pytest.mark.skip(reason="needs the real runtime")
def test_real():
    pass
"""


def project(tmp_path, options: str, version: str) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pytest.ini").write_text(f"[pytest]\n{options}")
    (folder / "test_it.py").write_text(TEST.format(version=version))
    return folder


def run_pytest(folder, **environment):
    return python("-m", "pytest", "-p", "no:cacheprovider", folder, cwd=folder, **environment)


def test_plugin_is_inert_without_the_option(tmp_path):
    folder = project(tmp_path, "", "1.2.1+standin")
    done = run_pytest(folder)
    assert done.returncode == 1 and "No module named 'tensorrt_llm'" in done.stdout
    assert "trtllm runtime" not in done.stdout and "for want of" not in done.stdout


def test_plugin_installs_the_stand_in_and_reports(tmp_path):
    folder = project(tmp_path, "trtllm_scaffold_runtime = auto\n", "1.2.1+standin")
    done = run_pytest(folder)
    assert done.returncode == 0, done.stdout
    assert "trtllm runtime: stand-in 1.2.1+standin (not TensorRT-LLM itself)" in done.stdout
    assert "1 test(s) skipped for want of a GPU" in done.stdout
    assert "1 test(s) skipped for want of the real TensorRT-LLM" in done.stdout


def test_plugin_generation_and_environment(tmp_path):
    options = "trtllm_scaffold_runtime = standin\ntrtllm_scaffold_generation = 1.4\n"
    folder = project(tmp_path, options, "1.4.0rc1+standin")
    assert run_pytest(folder).returncode == 0
    done = run_pytest(folder, TRTLLM_SCAFFOLD_GENERATION="1.2")
    assert "stand-in 1.2.1+standin" in done.stdout and done.returncode == 1
    done = run_pytest(folder, TRTLLM_SCAFFOLD_RUNTIME="tensorrt_llm")
    assert done.returncode == 4 and "is not installed" in done.stderr
    done = run_pytest(folder, TRTLLM_SCAFFOLD_RUNTIME="other")
    assert done.returncode == 4 and "'other', not one of auto" in done.stderr
    done = run_pytest(folder, TRTLLM_SCAFFOLD_GENERATION="3")
    assert done.returncode == 4 and "unknown TensorRT-LLM generation '3'" in done.stderr


def test_plugin_import_is_cheap(tmp_path):
    code = "import sys, trtllm_scaffold.standin.pytest_plugin\nprint('torch' in sys.modules)"
    assert python("-c", code, cwd=tmp_path).stdout.strip() == "False"
