"""Finds where names count experts, from the names of all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.layer_names import fold_number
from trtllm_scaffold.infer.roles import RoleLayout

MARK = "{e}"


def expert_templates(names: Iterable[tuple[Hashable, int, str]]) -> dict[str, str]:
    """Return the template of each expert's name, with ``{e}`` for its number.

    Args:
        names: (what it names, the expert, the name); all experts' names of one thing must be
            equal but for one part, the expert's number. Other parts may be numbers too.

    Raises:
        Refused: They are not.
    """
    groups: dict[Hashable, dict[int, str]] = {}
    for thing, expert, name in names:
        groups.setdefault(thing, {})[expert] = name
    found: dict[str, str] = {}
    for group in groups.values():
        template = _template(group)
        found.update(dict.fromkeys(group.values(), template))
    return found


def own_templates(roles: Mapping[str, RoleLayout]) -> dict[str, str]:
    """Return the template of each parameter that one head or one expert has for itself."""
    heads = {
        name: fold_number(name, role.head, "{j}")
        for name, role in roles.items()
        if role.head is not None
    }
    experts = [(r.roles, r.expert, name) for name, r in roles.items() if r.expert is not None]
    return {**heads, **expert_templates(experts)}


def with_more_experts(
    shapes: Mapping[str, tuple[int, ...]], roles: Mapping[str, RoleLayout]
) -> dict[str, tuple[int, ...]]:
    """Return the real shapes, and those of experts that the tiny model has beyond the real one."""
    first = {
        name: template.replace(MARK, "0")
        for name, template in own_templates(roles).items()
        if MARK in template
    }
    return {**{name: shapes[one] for name, one in first.items() if one in shapes}, **shapes}


def _template(names: Mapping[int, str]) -> str:
    parts = {expert: name.split(".") for expert, name in names.items()}
    for place in reversed(range(min(map(len, parts.values())))):
        folded = {
            ".".join([*part[:place], MARK, *part[place + 1 :]])
            for expert, part in parts.items()
            if part[place] == str(expert)
        }
        counted = all(part[place] == str(expert) for expert, part in parts.items())
        if counted and len(folded) == 1:
            return folded.pop()
    first = next(iter(names.values()))
    raise Refused(
        "checkpoint",
        f"{first} and the names of {len(names) - 1} other experts differ in more than a number",
        where="the model's parameters",
        hint="names that count experts by one number are expressed",
    )
