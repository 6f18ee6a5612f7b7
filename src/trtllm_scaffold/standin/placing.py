"""Running a model file as if it were a module of ``tensorrt_llm``, on the stand-in."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from trtllm_scaffold.errors import UsageError
from trtllm_scaffold.standin.install import installed
from trtllm_scaffold.targets.contract import ROOT


def place(path: str | Path, name: str) -> ModuleType:
    """Run a source file as the module ``name``, say ``tensorrt_llm._torch.models.modeling_x``.

    Its relative and absolute imports reach the stand-in, and other files that were placed
    before. Switching or removing the stand-in forgets it.

    Raises:
        UsageError: If the stand-in is not installed, or ``name`` is not below ``tensorrt_llm``.
        ImportError: If the file imports what the active generation, or the stand-in, lacks.
    """
    if not installed():
        raise UsageError("the stand-in is not installed: call trtllm_scaffold.standin.install()")
    if not name.startswith(ROOT + "."):
        raise UsageError(f"cannot place {name!r}: the name must start with {ROOT}.")
    source = Path(path)
    parent = name.rpartition(".")[0]
    importlib.import_module(parent)
    module = ModuleType(name)
    module.__dict__.update(__file__=str(source), __package__=parent)
    code = compile(source.read_text(encoding="utf-8"), str(source), "exec")
    sys.modules[name] = module
    try:
        exec(code, module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module
