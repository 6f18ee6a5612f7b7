"""The stand-in against both manifests, in both directions: names, kinds, order and defaults."""

from __future__ import annotations

import importlib
import inspect
import re

from trtllm_scaffold.standin import functional, interface, lora, paths, weight_shards
from trtllm_scaffold.standin.executor.bindings import DataType
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.moe import activation
from trtllm_scaffold.standin.moe import interface as moe_interface
from trtllm_scaffold.standin.quantization import QuantConfig
from trtllm_scaffold.targets.contract import GENERATIONS, load_contract

from ..statements import states
from .contract_gaps import (
    ABSENT_METHODS,
    ABSENT_MODULES,
    ABSENT_NAMES,
    LOOSE_MEMBERS,
    LOOSE_PARAMETERS,
)

#: Annotations of defaults that only the real package has.
UNREADABLE = re.compile(
    r"field\(|LookaheadDecodingConfig|SparseRuntimeParams|SpeculativeDecodingMode|lambda"
)


def provided(generation: str):
    """Every name of the table with its object and its manifest entry."""
    known = load_contract(generation)
    for module, names in sorted(paths.table(generation).items()):
        for name, target in sorted(names.items()):
            home, _, attribute = target.partition(":")
            yield (
                name,
                getattr(importlib.import_module(home), attribute),
                known.resolve(module, name),
            )


def shown(target) -> dict[str, inspect.Parameter]:
    """Parameters of a function, or of a class's constructor."""
    if inspect.isclass(target):
        if target.__init__ is object.__init__:
            return {}
        target = target.__init__
    found = dict(inspect.signature(target).parameters)
    found.pop("self", None)
    return found


def value_of(text: str) -> object:
    names = {
        "Mapping": Mapping,
        "QuantConfig": QuantConfig,
        "DataType": DataType,
        "ModelConfig": ModelConfig,
        **{name: value for module in ("torch", "pathlib") for name, value in _module(module)},
    }
    for module in (functional, interface, lora, weight_shards, activation, moe_interface):
        names.update(vars(module))
    names["F"] = names["torch"].nn.functional
    return eval(text, names)  # texts of our own manifests


def _module(name: str):
    yield name, importlib.import_module(name)


@states("W0-1")
def test_nothing_of_the_manifest_is_missing_without_a_reason(generation):
    table = paths.table(generation)
    missing = [
        f"{module}.{name}"
        for module, names in load_contract(generation).symbols.items()
        for name in names
        if name not in table.get(module, {})
    ]
    unexplained = [
        path
        for path in missing
        if path not in ABSENT_NAMES and not any(path.startswith(m + ".") for m in ABSENT_MODULES)
    ]
    assert unexplained == []


def test_no_reason_outlives_its_gap():
    missing = {
        f"{module}.{name}"
        for generation in GENERATIONS
        for module, names in load_contract(generation).symbols.items()
        for name in names
        if name not in paths.table(generation).get(module, {})
    }
    assert set(ABSENT_NAMES) <= missing


@states("0-1", "W0-1")
def test_nothing_is_provided_beyond_the_manifest(generation):
    known = load_contract(generation)
    extra = [
        f"{module}.{name}"
        for module, names in paths.table(generation).items()
        for name in names
        if known.find(module, name) is None
    ]
    assert extra == []


def test_kinds_equal_the_manifest(generation):
    for name, target, entry in provided(generation):
        if entry.kind == "enum":
            assert hasattr(target, "__members__"), name
        elif entry.kind in ("class", "dataclass", "pydantic_model"):
            assert inspect.isclass(target), name
        elif entry.kind == "function":
            assert callable(target) and not inspect.isclass(target), name


def test_members_of_enumerations_equal_the_manifest(generation):
    for name, target, entry in provided(generation):
        if entry.kind != "enum" or not entry.members:
            continue
        mine = {member.name: str(member.value) for member in target}
        if name in LOOSE_MEMBERS:
            assert set(mine) & set(entry.members), name
            continue
        assert mine == {key: str(value) for key, value in entry.members.items()}, name


@states("W0-3", "W1.6-2")
def test_parameters_equal_the_manifest_in_name_kind_order_and_default(generation):
    compared, problems = 0, []
    for name, target, entry in provided(generation):
        listed = (
            load_contract(generation).constructor(entry)
            if entry.kind != "function"
            else entry.parameters
        )
        if listed is None or entry.kind in ("enum", "variable") or name in LOOSE_PARAMETERS:
            continue
        mine = shown(target)
        if not listed and set(mine) == {"args", "kwargs"}:
            continue  # nn.Module's own constructor
        if list(mine) != [item.name for item in listed]:
            problems.append(f"{name}: {list(mine)} for {[item.name for item in listed]}")
            continue
        problems += [text for item in listed for text in _differs(name, item, mine[item.name])]
        compared += 1
    assert problems == []
    assert compared > 60


def _differs(owner, item, mine) -> list[str]:
    where = f"{owner}({item.name})"
    if mine.kind.name.lower() != item.kind:
        return [f"{where} is {mine.kind.name.lower()}, not {item.kind}"]
    optional = mine.default is not inspect.Parameter.empty
    if item.required or item.kind.startswith("var_"):
        return [f"{where} has a default"] if optional else []
    if not optional:
        return [f"{where} has no default"]
    if item.default is None or UNREADABLE.search(item.default) or repr(mine.default) == "<factory>":
        return []
    same = mine.default == value_of(item.default)
    return [] if same else [f"{where} is {mine.default!r}, not {item.default}"]


@states("W6.7-1")
def test_methods_take_what_the_manifest_lists(generation):
    other = next(item for item in GENERATIONS if item != generation)
    problems = []
    for name, target, entry in provided(generation):
        for method, listed in entry.methods.items():
            found = getattr(target, method, None)
            where = f"{name}.{method}"
            if found is None:
                problems += [] if (name, method) in ABSENT_METHODS else [f"{where} is missing"]
            elif listed.parameters is not None and where not in LOOSE_PARAMETERS:
                elsewhere = _parameters_elsewhere(name, method, other)
                problems += _method_differs(where, listed.parameters, found, elsewhere)
    assert problems == []


def _method_differs(where, listed, found, elsewhere) -> list[str]:
    mine = dict(inspect.signature(found).parameters)
    mine.pop("self", None)
    theirs = [item.name for item in listed]
    if [key for key in mine if key in theirs] != theirs:
        return [f"{where}: {list(mine)} for {theirs}"]
    problems = []
    for item in listed:
        required = mine[item.name].default is inspect.Parameter.empty
        if mine[item.name].kind.name.lower() != item.kind:
            problems.append(f"{where}({item.name}) is not {item.kind}")
        elif not item.kind.startswith("var_") and required != item.required:
            problems.append(f"{where}({item.name}): required here is {required}")
    for key in set(mine) - set(theirs):
        optional = mine[key].default is not inspect.Parameter.empty
        swallows = mine[key].kind.name == "VAR_KEYWORD"
        if not (swallows or (optional and key in elsewhere)):
            problems.append(f"{where} has {key} of its own")
    return problems


def _parameters_elsewhere(name, method, other) -> set[str]:
    """Parameters of the same method in the other generation."""
    known = load_contract(other)
    for home in known.homes(name):
        entry = known.resolve(home, name)
        if entry is not None and method in entry.methods:
            return {item.name for item in entry.methods[method].parameters or ()}
    return set()


@states("W0-3")
def test_a_keyword_that_no_list_holds_is_refused_everywhere(generation):
    swallowed = []
    for name, target, entry in provided(generation):
        kinds = {item.kind.name for item in shown(target).values()} if callable(target) else set()
        held = entry.kind in ("class", "dataclass", "pydantic_model") and entry.parameters
        if not held or "VAR_KEYWORD" in kinds or name in LOOSE_PARAMETERS:
            continue
        try:
            target(no_such_keyword_anywhere=1)
        except TypeError as error:
            if "no_such_keyword_anywhere" in str(error) or "missing" in str(error):
                continue
        swallowed.append(name)
    assert swallowed == []
