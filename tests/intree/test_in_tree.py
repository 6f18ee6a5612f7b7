"""`new --in-tree`: the patch applies, reads well, and its module and test pass on the stand-in."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_specs import SPECS
from small_llama import LLAMA
from template_releases import git, sample_documents

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.intree.literals import literal
from trtllm_scaffold.intree.module import one_module
from trtllm_scaffold.intree.patch import make_patch
from trtllm_scaffold.intree.tree import INDEX, MATRIX, MODELS, PACKAGE, TESTS, open_tree
from trtllm_scaffold.plan import plan_port
from trtllm_scaffold.plan.names import PortNames
from trtllm_scaffold.render import render

INDEX_TEXT = """ZOO = "tensorrt_llm._torch.models"

MODEL_ARCH_TO_MODULE = {
    "Gemma3ForCausalLM": "modeling_gemma3",
    "Qwen3ForCausalLM": "modeling_qwen3",
}

# Public class name -> module.
MODEL_CLASS_TO_MODULE = {
    "Gemma3ForCausalLM": "modeling_gemma3",
}
"""
PACKAGE_TEXT = """from .modeling_auto import AutoModelForCausalLM
from .modeling_gemma3 import Gemma3ForCausalLM
from .modeling_qwen import (Qwen2ForCausalLM,
                            Qwen2ForRewardModel)

__all__ = [
    "AutoModelForCausalLM",
    "Gemma3ForCausalLM",
    "Qwen2ForCausalLM",
]
"""
MATRIX_TEXT = """# Supported Models

| Architecture             | Model   | HuggingFace Example    |
| ------------------------ | ------- | ---------------------- |
| `Gemma3ForCausalLM`      | Gemma 3 | `google/gemma-3-1b-it` |
| `LlamaForCausalLM` [^5]  | Llama   | `meta-llama/Llama-3`   |

[^5]: By another backend.
"""
ROW = "| `LlamaForCausalLM`       | Llama   | `meta-llama/Llama-3`   |"


def make_tree(root: Path, generation: str) -> Path:
    """The few files of TensorRT-LLM's tree that a patch touches or looks for."""
    files = {MATRIX: MATRIX_TEXT, f"{MODELS}/modeling_gemma3.py": "", f"{TESTS}/README": ""}
    if generation == "1.4":
        files |= {INDEX: INDEX_TEXT, PACKAGE: "", "tensorrt_llm/_torch/attention/attention.py": ""}
    else:
        files |= {PACKAGE: PACKAGE_TEXT}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git("init", "--quiet", cwd=root)
    return root


def make_port(name: str, generation: str, dest: Path) -> Path:
    dest.mkdir(parents=True)
    names = PortNames("llama", "llama_trtllm", "Llama")
    render(plan_port(SPECS[name], names, generation).answers, dest)
    documents = sample_documents(name) | {"tests/configs/published.json": LLAMA}
    for path, document in documents.items():
        (dest / path).parent.mkdir(parents=True, exist_ok=True)
        (dest / path).write_text(json.dumps(document))
    return dest


def ruff(folder: Path) -> None:
    """Formatter and linter have nothing to say, with the settings of TensorRT-LLM's tree."""
    first_party = 'lint.isort.known-first-party=["tensorrt_llm"]'
    for command in (["format", "--check"], ["check", "--select=E,F,I", "--config", first_party]):
        tool = [sys.executable, "-m", "ruff", *command, "--isolated", "--line-length=100", folder]
        done = subprocess.run([*map(str, tool)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


#: Puts each tree's module in its place on the stand-in, and runs its test there.
RUN = """
import sys
import pytest
from trtllm_scaffold import standin
from trtllm_scaffold.standin.placing import place
for generation in ("1.2", "1.4"):
    standin.install(generation, force=True)
    place(f"{generation}/MODULE", "tensorrt_llm._torch.models.modeling_llama")
    options = ["-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-k", "eager"]
    assert pytest.main([*options, f"{generation}/TEST"]) == 0
"""
MODULE, TEST = f"{MODELS}/modeling_llama.py", f"{TESTS}/test_modeling_llama.py"


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each generation a tree to which the patch of its port was applied; ports beside them."""
    folder = tmp_path_factory.mktemp("trees")
    for generation in ("1.2", "1.4"):
        tree = make_tree(folder / generation, generation)
        port = make_port("llama", generation, folder / f"port-{generation}")
        patch = make_patch(port, open_tree(tree, generation), "meta-llama/Llama-3")
        (folder / "in-tree.patch").write_text(patch)
        git("apply", folder / "in-tree.patch", cwd=tree)
    return folder


def test_the_patch_has_every_row(patched: Path) -> None:
    for generation in ("1.2", "1.4"):
        ruff(patched / generation / MODULE)
        ruff(patched / generation / TEST)
        assert f"\n{ROW}\n" in (patched / generation / MATRIX).read_text()
    first, second = (patched / "1.4" / INDEX).read_text().split("MODEL_CLASS_TO_MODULE")
    row = '    "LlamaForCausalLM": "modeling_llama",\n'
    assert f'"modeling_gemma3",\n{row}    "Qwen3' in first
    assert second.endswith(f'"modeling_gemma3",\n{row}}}\n')
    text = (patched / "1.2" / PACKAGE).read_text()
    assert "import Gemma3ForCausalLM\nfrom .modeling_llama import LlamaForCausalLM\n" in text
    assert '    "Gemma3ForCausalLM",\n    "LlamaForCausalLM",\n    "Qwen2' in text


def test_what_the_tree_has_already_is_refused(patched: Path, tmp_path: Path) -> None:
    tree = open_tree(shutil.copytree(patched / "1.4", tmp_path / "tree"), "1.4")
    with pytest.raises(InputError, match="has a .*modeling_llama.py already"):
        make_patch(patched / "port-1.4", tree, None)
    module = tree.root / MODULE
    module.rename(module.with_name("modeling_other.py"))
    with pytest.raises(InputError, match="serves LlamaForCausalLM already, in modeling_other.py"):
        make_patch(patched / "port-1.4", tree, None)


@pytest.mark.slow
def test_its_unit_test_passes_on_the_stand_in(patched: Path) -> None:
    for generation in ("1.2", "1.4"):
        test = patched / generation / TEST
        text = test.read_text().replace('DEVICE = "cuda"', 'DEVICE = "cpu"')
        text = text.replace("DTYPE = torch.bfloat16", "DTYPE = torch.float32")
        test.write_text(text.replace("DataType.BF16", "DataType.FLOAT"))
    script = RUN.replace("MODULE", MODULE).replace("TEST", TEST)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=patched,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.count("1 passed") == 2, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["gemma2", "olmo2"])
def test_one_module_of_ports_with_more_files_and_names(name: str, tmp_path: Path) -> None:
    """gemma2 has a reference attention of its own; the other uses two things called Mapping."""
    port = make_port(name, "1.2", tmp_path / "port")
    for generation in ("1.2", "1.4"):
        text = one_module(port / "llama_trtllm", "llama", generation)
        assert ("abc.Mapping" in text) == (name != "gemma2")
        (tmp_path / f"modeling_{generation[-1]}.py").write_text(text)
    ruff(tmp_path / "modeling_2.py")
    ruff(tmp_path / "modeling_4.py")


def test_a_tree_of_the_other_generation_or_none(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree", "1.4")
    with pytest.raises(InputError, match="as 1.4 does, and the port is for 1.2"):
        open_tree(tree, "1.2")
    with pytest.raises(InputError, match="no checkout of TensorRT-LLM"):
        open_tree(tmp_path, "1.2")
    (tree / INDEX).write_text("TABLE = {}\n")
    port = make_port("llama", "1.4", tmp_path / "port")
    with pytest.raises(InputError, match="no table MODEL_ARCH_TO_MODULE"):
        make_patch(port, open_tree(tree, "1.4"), None)


def test_literals_mean_what_json_means() -> None:
    value = {"a": [1, 2.5, None, True], "b": {"c": 'é"\n', "d": list(range(60))}, "e": {}, "f": []}
    text = literal(value)
    assert eval(text) == value
    assert max(map(len, text.splitlines())) <= 100


IMPORT_THING = "typing import Any\n\nfrom ._trtllm import Thing\n"


def test_a_name_that_one_generation_lacks(tmp_path: Path) -> None:
    """A port may set to None what the older layout has not."""
    package = make_port("llama", "1.2", tmp_path / "port") / "llama_trtllm"
    place = "tensorrt_llm._torch.utils"
    more = f"try:\n    from {place} import Thing\nexcept ImportError:\n    Thing = None\n"
    runtime, weights = package / "_trtllm.py", package / "weights_llama.py"
    runtime.write_text(runtime.read_text() + more)
    weights.write_text(weights.read_text().replace("typing import Any\n", IMPORT_THING, 1))
    older, newer = (one_module(package, "llama", each) for each in ("1.2", "1.4"))
    assert "\nThing = None\n\n\ndef canonicalize" in older and "import Thing" not in older
    assert "\nfrom ..utils import Thing\n" in newer and "Thing = None" not in newer
    (tmp_path / "modeling_llama.py").write_text(older)
    ruff(tmp_path / "modeling_llama.py")
    runtime.write_text(runtime.read_text().replace(more, ""))
    with pytest.raises(InputError, match="does not import Thing"):
        one_module(package, "llama", "1.4")
