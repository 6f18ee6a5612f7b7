"""The contract check: every TensorRT-LLM name, path and keyword of a port exists, by reading it."""

from __future__ import annotations

import ast

from trtllm_scaffold.errors import InputError, UsageError
from trtllm_scaffold.targets.contract import GENERATIONS, Contract, load_contract
from trtllm_scaffold.verify.contract_rules import Rules
from trtllm_scaffold.verify.port_ast import (
    COMPATIBILITY_MODULE,
    Alternative,
    PortModule,
    parse_package,
)
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.report import Check, verdict


def generations_to_check(port: PortFiles, trtllm: str | None) -> tuple[str, ...]:
    """The generations that `trtllm` names: one of them, "all", or None for the port's own.

    Raises:
        UsageError: If there is no such generation.
        InputError: If the port records none and none was given.
    """
    if trtllm == "all":
        return GENERATIONS
    chosen = trtllm if trtllm is not None else port.generation
    if chosen in GENERATIONS:
        return (chosen,)
    known = ", ".join(GENERATIONS)
    if trtllm is not None:
        raise UsageError(f"unknown TensorRT-LLM generation {trtllm!r}", hint=f"{known} or all")
    raise InputError(
        f"the port records the TensorRT-LLM generation {chosen!r}, known are {known}",
        where=str(port.root / ".copier-answers.yml"),
        hint="say which one with --trtllm",
    )


def check_contract(port: PortFiles, generation: str) -> Check:
    """Hold every file of the port's package against the manifest of `generation`.

    The port is parsed, never imported. Violations are named as file:line.

    Raises:
        InputError: If a file of the package is not Python.
    """
    contract = load_contract(generation)
    modules = parse_package(port.package)
    rules = Rules(modules, contract)
    imports = 0
    for module in modules.values():
        imports += _check_imports(rules, module, contract)
        _check_siblings(rules, module)
        try:
            rules.check_module(module)
        except RecursionError as error:
            raise InputError("nested too deep to be read", where=module.file) from error
    violations = sorted(rules.violations, key=lambda item: (item.file, item.line, item.text))
    texts = list(dict.fromkeys(str(item) for item in violations))
    measured = {
        "imports": imports,
        "calls": rules.calls,
        "overrides": rules.overrides,
        "violations": texts,
    }
    if not texts and not imports:
        texts = [f"{port.package.name} imports nothing from tensorrt_llm"]
    return verdict(f"contract {generation}", texts, measured=measured, bound={"violations": 0})


def _check_imports(rules: Rules, module: PortModule, contract: Contract) -> int:
    """Check the import chains of `module`; returns how many names they bind."""
    for binding in module.bindings.values():
        for item in binding.alternatives:
            node = _At(item.line)
            if module.stem != COMPATIBILITY_MODULE:
                text = f"{item.path}: import it in {COMPATIBILITY_MODULE}.py"
                rules.report(module, node, text)
            if not any(_exists(load_contract(known), item) for known in GENERATIONS):
                rules.report(module, node, f"{item.path} exists in no known generation")
        found = any(_exists(contract, item) for item in binding.alternatives)
        if not found and not binding.optional:
            _report_missing(rules, module, binding.alternatives, contract)
    return len(module.bindings)


class _At(ast.AST):
    """A place in a file."""

    def __init__(self, lineno: int) -> None:
        super().__init__()
        self.lineno = lineno


def _exists(contract: Contract, item: Alternative) -> bool:
    if not item.name:
        return contract.has_module(item.module)
    return contract.find(item.module, item.name) is not None or contract.has_module(item.path)


def _report_missing(
    rules: Rules, module: PortModule, alternatives: list[Alternative], contract: Contract
) -> None:
    tried = " or ".join(item.path for item in alternatives)
    homes = contract.homes(alternatives[0].name)
    where = f"; it is in {', '.join(homes)}" if homes else ""
    rules.report(module, _At(alternatives[0].line), f"no {tried}{where}")


def _check_siblings(rules: Rules, module: PortModule) -> None:
    """A name imported from a sibling must be defined there, or importing the port fails."""
    for alias, (stem, name, line) in module.siblings.items():
        sibling = rules.names.modules.get(stem)
        if sibling is None:
            rules.report(module, _At(line), f"{alias} comes from .{stem}, there is no {stem}.py")
        elif name and name != "*" and name not in _defined(sibling):
            rules.report(module, _At(line), f"{sibling.file} defines no {name!r}")


def _defined(module: PortModule) -> set[str]:
    names = {*module.bindings, *module.siblings, *module.classes, *module.functions}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(item.asname or item.name.split(".")[0] for item in node.names)
    return names
