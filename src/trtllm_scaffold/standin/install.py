"""Makes the stand-in importable as ``tensorrt_llm``, at one generation's import paths only."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType

from trtllm_scaffold.standin import generation as _generation
from trtllm_scaffold.standin import paths
from trtllm_scaffold.targets.contract import GENERATIONS, ROOT, load_contract

RUNTIME_VARIABLE = "TRTLLM_SCAFFOLD_RUNTIME"
VERSION_SUFFIX = "+standin"


def install(generation: str = "1.2", force: bool = False) -> bool:
    """Make ``import tensorrt_llm`` give the stand-in, playing ``generation``.

    A real installation is never shadowed, unless ``force`` is set or the environment variable
    ``TRTLLM_SCAFFOLD_RUNTIME`` is ``standin``. Calling it again switches the generation; modules
    that imported names before keep them.

    Args:
        generation: "1.2" or "1.4".
        force: Shadow a real installation.

    Returns:
        Whether the stand-in is in place (False: a real installation was left alone).

    Raises:
        UsageError: If there is no such generation.
    """
    load_contract(generation)
    wanted = force or os.environ.get(RUNTIME_VARIABLE) == "standin"
    if not installed() and not wanted and _real_installation():
        return False
    uninstall()
    _generation.set_active(generation)
    sys.meta_path.insert(0, _Finder(generation))
    importlib.invalidate_caches()
    return True


def uninstall() -> None:
    """Take the stand-in away and forget every ``tensorrt_llm`` module of it or placed in it."""
    was_installed = installed()
    sys.meta_path[:] = [item for item in sys.meta_path if not isinstance(item, _Finder)]
    for name, module in list(sys.modules.items()):
        placed = was_installed and name.startswith(ROOT + ".")
        if placed or isinstance(module, _StandInModule):
            del sys.modules[name]


def installed() -> bool:
    """Whether ``import tensorrt_llm`` gives the stand-in now."""
    return any(isinstance(item, _Finder) for item in sys.meta_path)


def _real_installation() -> bool:
    if ROOT in sys.modules:
        return True
    return importlib.util.find_spec(ROOT) is not None


class _StandInModule(ModuleType):
    """A module whose names are looked up in the table when they are first asked for."""

    _names: Mapping[str, str]
    _generation: str

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        target = self._names.get(name)
        if target is None:
            return self._submodule(name)
        module, _, attribute = target.partition(":")
        value = getattr(importlib.import_module(module), attribute)
        setattr(self, name, value)
        return value

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._names})

    def _submodule(self, name: str) -> object:
        path = f"{self.__name__}.{name}"
        if path in _modules(self._generation):
            return importlib.import_module(path)
        raise AttributeError(_absent_name(self.__name__, name, self._generation))


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads the modules of one generation; any other path below the root is an error."""

    def __init__(self, generation: str) -> None:
        self.generation = generation

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Spec of a module of the stand-in; None outside ``tensorrt_llm``.

        Raises:
            ModuleNotFoundError: If the generation has no such module, or the stand-in lacks it.
        """
        if fullname != ROOT and not fullname.startswith(ROOT + "."):
            return None
        if fullname not in _modules(self.generation):
            # No name: the import system hides errors that carry the name of a fromlist entry.
            raise ModuleNotFoundError(_absent_module(fullname, self.generation))
        origin = f"<stand-in for TensorRT-LLM {self.generation}>"
        return importlib.machinery.ModuleSpec(fullname, self, origin=origin, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """An empty module that knows its names."""
        module = _StandInModule(spec.name)
        names = paths.table(self.generation).get(spec.name, {})
        module.__dict__.update(_names=names, _generation=self.generation, __file__=spec.origin)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the root its version, define operators, and list the names for ``import *``."""
        if module.__name__ == ROOT:
            module.__dict__["__version__"] = version(self.generation)
        if module.__name__ == paths.T:
            importlib.import_module(f"{paths.HERE}.ops").define()
        module.__dict__["__all__"] = list(paths.table(self.generation).get(module.__name__, {}))


def version(generation: str) -> str:
    """What ``tensorrt_llm.__version__`` says: the release played, and that it is played."""
    return load_contract(generation).release + VERSION_SUFFIX


def _modules(generation: str) -> set[str]:
    """Every module path of the table and the packages above them."""
    found = {ROOT}
    for path in paths.table(generation):
        parts = path.split(".")
        found.update(".".join(parts[: count + 1]) for count in range(len(parts)))
    return found


def _absent_module(fullname: str, generation: str) -> str:
    known = load_contract(generation)
    if known.has_module(fullname):
        return f"{fullname} exists in TensorRT-LLM {generation} but not in its stand-in"
    others = [
        other
        for other in GENERATIONS
        if other != generation and load_contract(other).has_module(fullname)
    ]
    if others:
        where = ", ".join(others)
        return f"TensorRT-LLM {generation} has no module {fullname} (it is a path of {where})"
    parent, _, name = fullname.rpartition(".")
    if parent in paths.table(generation):
        return _absent_name(parent, name, generation)
    return f"TensorRT-LLM {generation} has no module {fullname}"


def _absent_name(module: str, name: str, generation: str) -> str:
    known = load_contract(generation)
    if known.find(module, name) is not None:
        return f"{module}.{name} exists in TensorRT-LLM {generation} but not in its stand-in"
    homes = [path for path, names in paths.table(generation).items() if name in names]
    where = f"; it is in {', '.join(homes)}" if homes else ""
    return f"TensorRT-LLM {generation} has no {name} in {module}{where}"
