"""Reads JSON that may be hostile: bounded in size and depth, strict, one clear error."""

from __future__ import annotations

import json
import math
import re
import stat
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError

MAX_DIGITS = 40
"""Longest integer accepted: int() is quadratic in the digits, and no size needs more than 20."""

MAX_DEPTH = 32
"""Deepest nesting accepted: published config.json files stay below 8."""

_LONG_NUMBER = re.compile(rb"[0-9]{%d}" % MAX_DIGITS)
_SURROGATE = re.compile("[\ud800-\udfff]")
_KIND = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}


def shown(value: object, limit: int = 80) -> str:
    """Return `value` as a message quotes it: its repr, printable and at most `limit` long.

    Containers are cut before their repr is made, so that a huge one costs nothing.
    """
    if isinstance(value, str):
        value = value[: limit + 1]
    elif isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    elif isinstance(value, dict | list | tuple):
        return f"{_KIND.get(type(value), 'an object')} of {len(value)}"
    text = ascii(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a regular file of at most `limit` bytes.

    Raises:
        InputError: The file is missing, unreadable, not a regular file, or too large.
    """
    where = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError("not a regular file", where=where, hint="give a config.json file")
        if status.st_size > limit:
            raise InputError(
                f"the file has {status.st_size} bytes, more than the {limit} accepted here",
                where=where,
            )
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        raise InputError("no such file", where=where, hint="check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {reason}", where=where) from None
    if len(data) > limit:
        raise InputError(f"the file has more than the {limit} bytes accepted here", where=where)
    return data


def parse_object(data: bytes, where: str, *, shallow: bool = False) -> dict[str, Any]:
    """Parse UTF-8 JSON whose top level is an object.

    Args:
        data: The bytes of the document, already bounded by the caller.
        where: What error messages name as the place.
        shallow: Skip the walk that bounds the depth and refuses text that is not Unicode; for
            large flat documents whose every entry the caller checks itself.

    Raises:
        InputError: Not UTF-8, not JSON, a duplicate key, NaN or Infinity, a number too long,
            nested too deep, or not an object.
    """
    try:
        document = json.loads(data.decode("utf-8"), **_strict(data, where))
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text (byte {error.start})", where=where) from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InputError(f"not JSON: {error.msg}, {place}", where=where) from None
    except RecursionError:
        raise InputError(f"nested deeper than {MAX_DEPTH} levels", where=where) from None
    if not isinstance(document, dict):
        kind = _KIND.get(type(document), "null")
        raise InputError(f"expected a JSON object, found {kind}", where=where)
    if not shallow:
        _walk(document, where)
    return document


def _strict(data: bytes, where: str) -> dict[str, Any]:
    """Return the hooks that make json.loads refuse what it would let through.

    A hook costs one call for every number, so integers are watched only where the document has
    a run of digits that could be too long.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = _first_repeated([name for name, _ in pairs])
            raise InputError(f"the key {shown(twice)} occurs twice in one object", where=where)
        return found

    def integer(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise InputError(f"a number of {len(text)} digits", where=where)
        return int(text)

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise InputError(f"{shown(text)} does not fit in a float", where=where)
        return value

    def constant(text: str) -> float:
        raise InputError(f"{text} is not a number that JSON allows", where=where)

    return {
        "object_pairs_hook": unique,
        "parse_int": integer if _LONG_NUMBER.search(data) else None,
        "parse_float": real,
        "parse_constant": constant,
    }


def _first_repeated(names: list[str]) -> str:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise ValueError("no name is repeated")


def _walk(document: dict[str, Any], where: str) -> None:
    """Refuse nesting below MAX_DEPTH and text that UTF-8 cannot encode (lone surrogates)."""
    pending: list[tuple[Any, int]] = [(document, 1)]
    while pending:
        value, depth = pending.pop()
        if isinstance(value, str):
            if _SURROGATE.search(value):
                raise InputError(f"{shown(value)} is not Unicode text", where=where)
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise InputError(f"nested deeper than {MAX_DEPTH} levels", where=where)
            if isinstance(value, dict):
                pending.extend((key, depth + 1) for key in value)
                pending.extend((item, depth + 1) for item in value.values())
            else:
                pending.extend((item, depth + 1) for item in value)
