"""Which parameter list a call of a port must fit: constructors, super(), modules held by self."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from trtllm_scaffold.targets.contract import Parameter, Symbol
from trtllm_scaffold.verify.contract_names import Names, Reference, Scope
from trtllm_scaffold.verify.port_ast import LocalClass, LocalFunction, parameters_of


@dataclass(frozen=True)
class Callee:
    """What a call calls.

    Attributes:
        name: As violations name it.
        parameters: None where they were not read.
        positional: How many arguments may go by position, None for any.
        strict: Its ``**kwargs`` swallow what they do not know.
    """

    name: str
    parameters: tuple[Parameter, ...] | None
    positional: int | None = None
    strict: bool = False


#: Constructors of which the leading arguments read better by position.
POSITIONAL_ARGUMENTS = {
    "Linear": 2,
    "LMHead": 2,
    "Embedding": 2,
    "DecoderModelForCausalLM": 1,
    "DecoderModel": 1,
}

_CONTAINERS = {"ModuleList", "Sequential", "list"}


def callee(names: Names, call: ast.Call, scope: Scope) -> Callee | None:
    """Name, parameters and positional limit of what `call` calls, None where nobody knows."""
    function = call.func
    if isinstance(function, ast.Attribute):
        if _is_super(function.value) and scope.owner is not None:
            return _super_call(names, function.attr, scope.owner)
        held = _held_by_self(names, function, scope)
        if held is not None:
            return _forward(names, held)
        owner = names.reference(function.value, scope)
        if isinstance(owner, Symbol) and not _is_variable(function.value, scope):
            return _static_call(names, owner, function.attr)
    if isinstance(function, ast.Name) and function.id in scope.variables:
        return _forward(names, scope.variables[function.id])
    target = names.reference(function, scope)
    if isinstance(function, ast.Subscript) and isinstance(target, LocalFunction):
        return None  # kernel[grid](...): the launch takes options of Triton's beside parameters
    return None if target is None else _construct(names, target)


def _construct(names: Names, target: Reference) -> Callee | None:
    if isinstance(target, LocalFunction):
        return Callee(target.node.name, parameters_of(target.node.args, method=False))
    if isinstance(target, LocalClass):
        own = target.method("__init__")
        if own is not None:
            return Callee(target.node.name, parameters_of(own.args, method=True))
        for base in names.bases(target):
            return _construct(names, base)
        return None
    if target.kind == "enum" or target.kind == "variable":
        return None
    if target.kind == "function":
        return Callee(target.name, target.parameters, _required(target))
    limit = POSITIONAL_ARGUMENTS.get(target.name, 0)
    return Callee(target.name, names.contract.constructor(target), limit)


def _required(symbol: Symbol) -> int:
    return sum(item.required for item in symbol.parameters or ())


def _super_call(names: Names, name: str, owner: LocalClass) -> Callee | None:
    for base in names.bases(owner):
        if isinstance(base, LocalClass):
            own = base.method(name)
            if own is not None:
                what = f"{base.node.name}.{name}"
                return Callee(what, parameters_of(own.args, method=True))
        elif isinstance(base, Symbol):
            if name == "__init__":
                return _construct(names, base)
            return _method(names, base, name)
    return None


def _static_call(names: Names, owner: Symbol, name: str) -> Callee | None:
    method = names.method(owner, name)
    if method is None or method.decorator not in ("staticmethod", "classmethod"):
        return None
    return Callee(f"{owner.name}.{name}", method.parameters)


def _forward(names: Names, held: Reference) -> Callee | None:
    """Calling a module instance calls its ``forward``."""
    if isinstance(held, LocalFunction):
        return None
    if isinstance(held, LocalClass):
        own = held.method("forward")
        if own is not None:
            return Callee(f"{held.node.name}.forward", parameters_of(own.args, method=True))
        for base in names.bases(held):
            return _forward(names, base)
        return None
    return _method(names, held, "forward")


def _method(names: Names, owner: Symbol, name: str) -> Callee | None:
    method = names.method(owner, name)
    if method is None:
        return None
    return Callee(f"{owner.name}.{name}", method.parameters, strict=name == "forward")


def _is_super(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    )


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_variable(node: ast.expr, scope: Scope) -> bool:
    return isinstance(node, ast.Name) and node.id in scope.variables


def _held_by_self(names: Names, node: ast.Attribute, scope: Scope) -> Reference | None:
    """What ``self.<attribute>`` was set to in the class around, or in a base of the port."""
    if not _is_self(node.value) or scope.owner is None:
        return None
    return _attributes(names, scope.owner, container=False).get(node.attr)


def _attributes(names: Names, owner: LocalClass, *, container: bool) -> dict[str, Reference]:
    """Instance attributes that hold a known module (or, with `container`, a list of one)."""
    found: dict[str, Reference] = {}
    family = [owner, *(base for base in names.bases(owner) if isinstance(base, LocalClass))]
    for member in reversed(family):
        for node in ast.walk(member.node):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
                if isinstance(target, ast.Attribute) and _is_self(target.value):
                    built = _built(names, node.value, Scope(member.module), container=container)
                    found.pop(target.attr, None)
                    if built is not None:
                        found[target.attr] = built
    return found


def _built(names: Names, value: ast.expr, scope: Scope, *, container: bool) -> Reference | None:
    """The class that `value` constructs, or whose instances it is a list of."""
    if isinstance(value, ast.IfExp):
        value = value.body if isinstance(value.body, ast.Call) else value.orelse
    if not isinstance(value, ast.Call):
        return None
    if not container:
        found = names.reference(value.func, scope)
        return None if isinstance(found, LocalFunction) else found
    name = value.func.attr if isinstance(value.func, ast.Attribute) else _name(value.func)
    if name not in _CONTAINERS or not value.args:
        return None
    for item in _elements(value.args[0]):
        found = _built(names, item, scope, container=False)
        if found is not None:
            return found
    return None


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _elements(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.ListComp | ast.GeneratorExp):
        yield node.elt
    elif isinstance(node, ast.List | ast.Tuple):
        yield from node.elts


def loop_variables(names: Names, root: ast.AST, scope: Scope) -> dict[str, Reference]:
    """Loop variables below `root` that run over a list of modules held by self."""
    if scope.owner is None:
        return {}
    lists = _attributes(names, scope.owner, container=True)
    found: dict[str, Reference] = {}
    for node in ast.walk(root):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            source = node.iter.value if isinstance(node.iter, ast.Subscript) else node.iter
            if isinstance(source, ast.Attribute) and _is_self(source.value):
                if source.attr in lists:
                    found[node.target.id] = lists[source.attr]
    return found
