"""Whether a call fits a parameter list, and whether an override fits the method it replaces."""

from __future__ import annotations

import ast
from dataclasses import replace

from trtllm_scaffold.targets.contract import Parameter

_POSITIONAL = "positional_or_keyword"


def call_problems(
    what: str, parameters: tuple[Parameter, ...], call: ast.Call, *, strict: bool
) -> list[str]:
    """What is wrong with the arguments of `call` to `what`, one sentence each.

    Args:
        what: What is called, as problems name it.
        parameters: What it takes.
        call: The call.
        strict: Its ``**kwargs`` swallow unknown keywords: a misspelt option would be lost.
    """
    positional = [item.name for item in parameters if item.kind == _POSITIONAL]
    by_name = {item.name for item in parameters if item.kind in (_POSITIONAL, "keyword_only")}
    kinds = {item.kind for item in parameters}
    starred = any(isinstance(item, ast.Starred) for item in call.args)
    unpacked = any(item.arg is None for item in call.keywords)
    given = [item.arg for item in call.keywords if item.arg is not None]

    problems = []
    if strict or "var_keyword" not in kinds:
        problems += [f"{what} has no parameter {name!r}" for name in given if name not in by_name]
    if not starred and "var_positional" not in kinds and len(call.args) > len(positional):
        problems.append(
            f"{what} takes {len(positional)} positional arguments, given {len(call.args)}"
        )
    taken = set(positional[: len(call.args)])
    problems += [f"{what} is given {name!r} twice" for name in given if name in taken]
    if not (starred or unpacked):
        problems += [
            f"{what} needs {item.name!r}"
            for item in parameters
            if item.required and item.name not in taken and item.name not in given
        ]
    return problems


def override_problems(
    what: str,
    base: tuple[Parameter, ...],
    own: tuple[Parameter, ...],
    *,
    optional_may_go: bool,
) -> list[str]:
    """Why the runtime, which calls by the `base` parameter list, cannot call `own`.

    Args:
        what: The method, as problems name it.
        base: Parameters of the method that is replaced.
        own: Parameters of the override.
        optional_may_go: Only the port itself calls the method, so that options of `base` that
            it does not use may be missing.
    """
    base = _by_place(base, own)
    kinds = {item.kind for item in own}
    names = {item.name for item in own}
    problems = []
    for item in base:
        if item.kind == "var_keyword":
            if "var_keyword" not in kinds and not optional_may_go:
                problems.append(f"{what} must accept **{item.name}")
        elif item.kind != "var_positional" and item.name not in names:
            absorbed = "var_keyword" in kinds or (item.kind == _POSITIONAL and _is_open(kinds))
            if not absorbed and (item.required or not optional_may_go):
                problems.append(f"{what} must accept {item.name!r}")
    problems += _order_problems(what, base, own)
    known = {item.name for item in base}
    problems += [
        f"{what} asks for {item.name!r}, which the runtime does not pass"
        for item in own
        if item.required and item.name not in known
    ]
    return problems


def _by_place(base: tuple[Parameter, ...], own: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """`base` with the names of `own` for what it calls ``_name``: those are passed by position."""
    places = [item.name for item in own if item.kind == _POSITIONAL]
    return tuple(
        replace(item, name=places[index])
        if item.name.startswith("_") and item.kind == _POSITIONAL and index < len(places)
        else item
        for index, item in enumerate(base)
    )


def _is_open(kinds: set[str]) -> bool:
    return "var_positional" in kinds


def _order_problems(
    what: str, base: tuple[Parameter, ...], own: tuple[Parameter, ...]
) -> list[str]:
    """Required parameters may be passed by position, so they must keep their place."""
    expected = [item.name for item in base if item.kind == _POSITIONAL and item.required]
    found = [item.name for item in own if item.kind == _POSITIONAL][: len(expected)]
    if found == expected[: len(found)] or set(found) - set(expected):
        return []
    return [f"{what} takes ({', '.join(found)}), the runtime passes ({', '.join(expected)})"]
