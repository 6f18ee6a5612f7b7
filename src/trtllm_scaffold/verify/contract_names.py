"""What each name in a port's package stands for, in the terms of one generation's contract."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field

from trtllm_scaffold.targets.contract import Contract, Method, Symbol
from trtllm_scaffold.verify.port_ast import LocalClass, LocalFunction, PortModule

Reference = Symbol | LocalClass | LocalFunction


@dataclass
class Scope:
    """Where a call stands: the module, the class around it, and what its loop variables hold."""

    module: PortModule
    owner: LocalClass | None = None
    variables: dict[str, Reference] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """The modules of a package and the contract that their TensorRT-LLM names belong to."""

    modules: dict[str, PortModule]
    contract: Contract

    def resolve(self, module: PortModule, name: str) -> Reference | None:
        """What the top-level `name` of `module` stands for, None if it is not ours to judge."""
        if name in module.classes:
            return LocalClass(module, module.classes[name])
        if name in module.functions:
            return LocalFunction(module, module.functions[name])
        if name in module.bindings:
            for item in module.bindings[name].alternatives:
                if item.name and self.contract.find(item.module, item.name) is not None:
                    return self.contract.resolve(item.module, item.name)
            return None
        stem, original, _ = module.siblings.get(name, ("", "", 0))
        sibling = self.modules.get(stem)
        return self.resolve(sibling, original) if sibling is not None and original else None

    def reference(self, node: ast.expr, scope: Scope) -> Reference | None:
        """What the expression `node` names, without its instance attributes."""
        if isinstance(node, ast.Subscript):  # DecoderModelForCausalLM[Model, Config]
            return self.reference(node.value, scope)
        if isinstance(node, ast.Name):
            return scope.variables.get(node.id) or self.resolve(scope.module, node.id)
        if isinstance(node, ast.Attribute):
            return self._dotted(node, scope)
        return None

    def _dotted(self, node: ast.Attribute, scope: Scope) -> Reference | None:
        path = ast.unparse(node)
        first, _, rest = path.partition(".")
        if first in scope.module.siblings and "." not in rest:  # from . import _trtllm
            stem, original, _ = scope.module.siblings[first]
            sibling = self.modules.get(stem)
            if sibling is not None and not original:
                return self.resolve(sibling, rest)
        binding = scope.module.bindings.get(first)
        if binding is None or any(item.name for item in binding.alternatives):
            return None
        for item in binding.alternatives:
            module, _, name = f"{item.module}.{rest}".rpartition(".")
            if self.contract.find(module, name) is not None:
                return self.contract.resolve(module, name)
        return None

    def bases(self, owner: LocalClass) -> Iterator[Reference]:
        """The known bases of a class of the port, nearest first, in order."""
        for base in owner.node.bases:
            found = self.reference(base, Scope(owner.module))
            if found is None or found == owner:
                continue
            yield found
            if isinstance(found, LocalClass):
                yield from self.bases(found)
            elif isinstance(found, Symbol):
                yield from self.parents(found)

    def parents(self, symbol: Symbol) -> Iterator[Symbol]:
        """The bases of a TensorRT-LLM class that the manifest knows, nearest first."""
        for base in symbol.bases:
            found = self.contract.resolve(*base.rpartition(".")[::2])
            if found is not None and found != symbol:
                yield found
                yield from self.parents(found)

    def method(self, symbol: Symbol, name: str) -> Method | None:
        """Method `name` of a TensorRT-LLM class or of its bases."""
        for owner in (symbol, *self.parents(symbol)):
            if name in owner.methods:
                return owner.methods[name]
        return None
