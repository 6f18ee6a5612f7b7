"""Hold each call, member and override of a port against one generation's contract."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from trtllm_scaffold.targets.contract import GENERATIONS, Contract, Symbol, load_contract
from trtllm_scaffold.verify.contract_names import Names, Scope
from trtllm_scaffold.verify.contract_types import callee, loop_variables
from trtllm_scaffold.verify.port_ast import LocalClass, PortModule, parameters_of
from trtllm_scaffold.verify.signatures import call_problems, override_problems

#: Modules that only the port itself calls.
LEAVES = {"RMSNorm", "LayerNorm", "MLP", "GatedMLP", "Linear", "Embedding", "LMHead"}


@dataclass(frozen=True)
class Violation:
    """One place where the port leaves the contract."""

    file: str
    line: int
    text: str
    generation: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text} (TensorRT-LLM {self.generation})"


class Rules:
    """The contract of one generation, applied to one package.

    Attributes:
        violations: What was found.
        calls: How many calls were held against a parameter list.
        overrides: How many overrides were.
    """

    def __init__(self, modules: dict[str, PortModule], contract: Contract) -> None:
        self.names = Names(modules, contract)
        self.violations: list[Violation] = []
        self.calls = 0
        self.overrides = 0

    def check_module(self, module: PortModule) -> None:
        """Collect the violations of `module`."""
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef):
                owner = LocalClass(module, node)
                self._check_overrides(owner)
                for decorator in node.decorator_list:
                    self._check_body(decorator, Scope(module))
                for item in node.body:
                    self._check_body(item, Scope(module, owner))
            else:
                self._check_body(node, Scope(module))

    def report(self, module: PortModule, node: ast.AST, text: str) -> None:
        """Note a violation at `node`."""
        line = getattr(node, "lineno", 1)
        self.violations.append(Violation(module.file, line, text, self.names.contract.generation))

    # -- calls --------------------------------------------------------------------------------

    def _check_body(self, root: ast.AST, scope: Scope) -> None:
        scope.variables.update(loop_variables(self.names, root, scope))
        for node in ast.walk(root):
            if isinstance(node, ast.Call):
                self._check_call(node, scope)
            elif isinstance(node, ast.Attribute):
                self._check_member(node, scope)

    def _check_call(self, call: ast.Call, scope: Scope) -> None:
        target = callee(self.names, call, scope)
        if target is None or target.parameters is None:
            return
        self.calls += 1
        for text in call_problems(target.name, target.parameters, call, strict=target.strict):
            self.report(scope.module, call, text)
        limit = target.positional
        if limit is not None and len(call.args) > limit:
            extra = [item.name for item in target.parameters[limit : len(call.args)]]
            named = ", ".join(extra) or "these arguments"
            self.report(scope.module, call, f"{target.name}: pass {named} by keyword")

    def _check_member(self, node: ast.Attribute, scope: Scope) -> None:
        symbol = self.names.reference(node.value, scope)
        if not isinstance(symbol, Symbol) or symbol.kind != "enum" or not symbol.members:
            return
        name = node.attr
        if name in symbol.members or name in symbol.methods or name.startswith("_"):
            return
        known = ", ".join(symbol.members)
        self.report(scope.module, node, f"{symbol.name} has no member {name!r} (known: {known})")

    # -- overrides ----------------------------------------------------------------------------

    def _check_overrides(self, owner: LocalClass) -> None:
        symbols = [base for base in self.names.bases(owner) if isinstance(base, Symbol)]
        for item in owner.node.body:
            if not isinstance(item, ast.FunctionDef) or item.name == "__init__":
                continue
            for symbol in symbols:
                if item.name in symbol.methods:
                    self._check_override(owner, item, symbol)
                    break
            else:
                self._check_lost_override(owner, item, symbols)

    def _check_override(self, owner: LocalClass, node: ast.FunctionDef, symbol: Symbol) -> None:
        what = f"{owner.node.name}.{node.name}"
        base = symbol.methods[node.name].parameters
        if base is None:
            return
        if node.name == "load_weights":  # the loader passes only what the override declares
            base = tuple(item for item in base if item.required)
        self.overrides += 1
        static = symbol.methods[node.name].decorator == "staticmethod"
        own = parameters_of(node.args, method=not static)
        leaf = symbol.name in LEAVES
        for text in override_problems(what, base, own, optional_may_go=leaf):
            self.report(owner.module, node, f"{text}, as {symbol.name}.{node.name} does")
        if node.name == "post_load_weights" and not _calls_super(node, node.name):
            self.report(owner.module, node, f"{what} must call super().{node.name}()")

    def _check_lost_override(
        self, owner: LocalClass, node: ast.FunctionDef, symbols: list[Symbol]
    ) -> None:
        """A hook that only another generation calls would silently do nothing."""
        if node.decorator_list or len(node.args.args) < 2:
            return
        for generation in GENERATIONS:
            if generation == self.names.contract.generation:
                continue
            other = load_contract(generation)
            for symbol in symbols:
                if any(
                    node.name in twin.methods
                    for home in other.homes(symbol.name)
                    if (twin := other.resolve(home, symbol.name)) is not None
                ):
                    text = f"{symbol.name}.{node.name} is a hook of {generation} only"
                    self.report(owner.module, node, f"{text}: nothing calls this override")
                    return


def _calls_super(node: ast.FunctionDef, name: str) -> bool:
    return any(
        isinstance(item, ast.Attribute)
        and item.attr == name
        and isinstance(item.value, ast.Call)
        and isinstance(item.value.func, ast.Name)
        and item.value.func.id == "super"
        for item in ast.walk(node)
    )
