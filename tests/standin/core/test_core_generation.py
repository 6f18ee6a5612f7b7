from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from trtllm_scaffold import standin
from trtllm_scaffold.errors import UsageError
from trtllm_scaffold.standin import functional, interface, paths
from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules import embedding, linear, mlp, norms, rotary  # noqa: F401
from trtllm_scaffold.targets.contract import load_contract

from ..statements import states

T = "tensorrt_llm._torch"


@pytest.fixture
def clean() -> Iterator[None]:
    standin.uninstall()
    yield
    standin.uninstall()


@states("W0-3")
def test_a_keyword_of_the_other_generation_is_a_type_error():
    generations.set_active("1.2")
    with pytest.raises(TypeError, match=r"rope_append.*1\.2"):
        interface.MLAParams(rope_append=True)
    generations.set_active("1.4")
    assert interface.MLAParams(rope_append=False).rope_append is False


def test_an_unknown_keyword_is_a_type_error(generation):
    with pytest.raises(TypeError, match="skip_create_weights"):
        linear.Linear(4, 4, skip_create_weights=True)
    with pytest.raises(TypeError, match="activation_fn"):
        mlp.GatedMLP(hidden_size=4, intermediate_size=4, bias=False, activation_fn=F.silu)
    with pytest.raises(TypeError, match="positional"):
        norms.RMSNorm(4, 1e-5)


@states("W2.8-5")
def test_positional_arguments_follow_the_order_of_the_generation():
    generations.set_active("1.4")
    head = embedding.LMHead(8, 4, torch.float32, None, None, False, False)
    assert head.reduce_output is False
    generations.set_active("1.2")
    head = embedding.LMHead(8, 4, torch.float32, None, None, False, True)
    assert head.use_custom_cublas_mm is True and head.reduce_output is True


@states("A9-13", "A9-14")
def test_a_default_that_differs_between_generations_follows_the_generation():
    generations.set_active("1.2")
    assert interface.RopeParams().duplicate_data is True
    generations.set_active("1.4")
    assert interface.RopeParams().duplicate_data is False


def test_the_signature_shown_is_that_of_the_active_generation(generation):
    shown = inspect.signature(linear.Linear).parameters
    manifest = load_contract(generation).find(f"{T}.modules.linear", "Linear")
    assert list(shown) == [parameter.name for parameter in manifest.parameters]


def test_a_subclass_that_forwards_keywords_is_held_to_the_contract(generation):
    class Scaled(embedding.Embedding):
        def __init__(self, **kwargs):
            super().__init__(7, 4, **kwargs)

    assert Scaled(dtype=torch.float32).num_embeddings == 7
    with pytest.raises(TypeError, match="padding_idx"):
        Scaled(padding_idx=0)


@states("0-1", "W0-1")
def test_names_are_at_the_paths_of_the_generation_only(clean):
    assert standin.install("1.2", force=True)
    module = importlib.import_module(f"{T}.modules.rotary_embedding")
    assert module.RotaryEmbedding is rotary.RotaryEmbedding
    with pytest.raises(ModuleNotFoundError, match=r"1\.2 has no module .*path of 1\.4"):
        importlib.import_module(f"{T}.attention.rotary_embedding")
    assert standin.install("1.4", force=True)
    module = importlib.import_module(f"{T}.attention.rotary_embedding")
    assert module.RotaryEmbedding is rotary.RotaryEmbedding
    with pytest.raises(ModuleNotFoundError, match=r"1\.4 has no module .*path of 1\.2"):
        importlib.import_module(f"{T}.modules.rotary_embedding")


def test_a_name_that_a_module_lacks_is_an_import_error_that_says_where_it_is(clean):
    standin.install("1.2", force=True)
    with pytest.raises(ImportError, match=r"no Linear in .*embedding; it is in .*modules\.linear"):
        exec(f"from {T}.modules.embedding import Linear")
    with pytest.raises(ImportError, match="no relu2 in tensorrt_llm._torch.utils"):
        exec(f"from {T}.utils import relu2")
    module = importlib.import_module(f"{T}.utils")
    assert not hasattr(module, "relu2")


def test_version_names_the_release_and_the_standin(clean):
    standin.install("1.2", force=True)
    assert importlib.import_module("tensorrt_llm").__version__ == "1.2.1+standin"
    standin.install("1.4", force=True)
    assert importlib.import_module("tensorrt_llm").__version__ == "1.4.0rc1+standin"


def test_submodules_are_reachable_as_attributes_of_the_root(clean):
    standin.install("1.4", force=True)
    root = importlib.import_module("tensorrt_llm")
    assert root.mapping.Mapping is Mapping and root.Mapping is Mapping


def test_star_import_gives_the_names_of_the_module(clean):
    standin.install("1.2", force=True)
    found: dict[str, object] = {}
    exec("from tensorrt_llm.functional import *", found)
    assert found["PositionEmbeddingType"] is functional.PositionEmbeddingType


def test_uninstall_leaves_nothing_behind(clean):
    standin.install("1.2", force=True)
    importlib.import_module("tensorrt_llm.functional")
    standin.uninstall()
    assert not [name for name in sys.modules if name.split(".")[0] == "tensorrt_llm"]
    assert not standin.installed()


def test_a_real_installation_is_shadowed_only_when_asked(clean, tmp_path, monkeypatch):
    package = tmp_path / "tensorrt_llm"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = 'real'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TRTLLM_SCAFFOLD_RUNTIME", raising=False)
    assert standin.install("1.2") is False
    assert importlib.import_module("tensorrt_llm").__version__ == "real"
    del sys.modules["tensorrt_llm"]
    monkeypatch.setenv("TRTLLM_SCAFFOLD_RUNTIME", "standin")
    assert standin.install("1.2") is True
    assert importlib.import_module("tensorrt_llm").__version__ == "1.2.1+standin"


def test_an_unknown_generation_is_refused_and_changes_nothing(clean):
    with pytest.raises(UsageError):
        standin.install("3.0", force=True)
    assert not standin.installed() and generations.active() in generations.GENERATIONS


def test_importing_the_package_needs_no_torch():
    code = (
        "import sys; from trtllm_scaffold import standin; standin.install('1.2', force=True);"
        "import tensorrt_llm; assert tensorrt_llm.__version__ == '1.2.1+standin';"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_name_of_the_table_can_be_imported(generation):
    for names in paths.table(generation).values():
        for target in names.values():
            module, _, attribute = target.partition(":")
            assert hasattr(importlib.import_module(module), attribute), target
