"""Reads rope settings and the dtype of a configuration across transformers 4 and 5 spellings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError

#: Keys that only say how rope works. transformers 5 moves them into `rope_parameters`, so no
#: expression over a configuration object may name one: a port reads them by its own reader.
ROPE_KEYS = frozenset(
    {
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "rotary_emb_base",
        "rotary_pct",
        "partial_rotary_factor",
    }
)

#: Other names of the same parameter, by the name that transformers 5 gives it.
SPELLINGS = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
}

#: Older names of scaling types.
TYPE_ALIASES = {"su": "longrope"}

#: Types whose frequencies depend on the length before the scaling. transformers falls back to
#: max_position_embeddings where a file does not say it.
TYPES_WITH_ORIGINAL = ("llama3", "yarn", "longrope")

#: The scaling types of transformers 4.
_OLD_TYPES = ("linear", "dynamic", "yarn", "longrope", "llama3")

ORIGINAL = "original_max_position_embeddings"
DTYPES = ("bfloat16", "float16", "float32")


def rope_parameters(source: Any) -> dict[str, Any]:
    """Return the rope settings of a configuration under the names of transformers 5.

    Args:
        source: A parsed config.json, or a configuration object of either transformers
            generation. The object also knows its class's defaults, such as theta.

    Returns:
        ``rope_type`` (``default`` for none), ``rope_theta`` and ``partial_rotary_factor`` where
        known, and the parameters of the type. Where layer types differ, a dict of such dicts by
        layer type (see `is_per_layer_type`). Empty where nothing speaks of rope.

    Raises:
        InputError: A setting has the wrong type, or two spellings hold different values.
    """
    get = _getter(source)
    scaling = _scaling(get)
    nested = {k: v for k, v in scaling.items() if isinstance(v, Mapping)}
    if nested:
        return {
            kind: _flat({**entry, "rope_theta": entry.get("rope_theta", get("rope_theta"))}, get)
            for kind, entry in nested.items()
        }
    if not scaling and all(get(key) is None for names in SPELLINGS.values() for key in names):
        return {}
    merged = dict(scaling)
    for name, spellings in SPELLINGS.items():
        value = _agreed(
            {**{key: get(key) for key in spellings}, f"rope dict's {name}": merged.get(name)}
        )
        if value is not None:
            merged[name] = value
    local = get("rope_local_base_freq")
    if local is not None:
        sliding = {**merged, "rope_type": "default", "rope_theta": local}
        sliding = {k: v for k, v in sliding.items() if k in ("rope_type", *SPELLINGS)}
        return {"full_attention": _flat(merged, get), "sliding_attention": _flat(sliding, get)}
    return _flat(merged, get)


def both_spellings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with its ``rope_parameters`` told in the keys of transformers 4 as well.

    transformers 4 does not read a file that 5 has saved: it keeps the dict as an attribute and
    takes its defaults. 5 accepts both spellings side by side.
    """
    told = raw.get("rope_parameters")
    if not isinstance(told, Mapping):
        return dict(raw)
    nested = {key: value for key, value in told.items() if isinstance(value, Mapping)}
    flat = nested.get("full_attention", {}) if nested else told
    older = {key: flat[key] for key in SPELLINGS if key in flat}
    if "rope_theta" in nested.get("sliding_attention", {}):
        older["rope_local_base_freq"] = nested["sliding_attention"]["rope_theta"]
    scaling = {key: value for key, value in flat.items() if key not in SPELLINGS}
    kind = scaling.get("rope_type", "default")
    if kind in _OLD_TYPES:
        older["rope_scaling"] = scaling
    elif kind != "default":
        return dict(raw)  # transformers 4 has no such type, in any spelling
    return {**raw, **{key: value for key, value in older.items() if raw.get(key) is None}}


def is_per_layer_type(parameters: Mapping[str, Any]) -> bool:
    """Whether `rope_parameters` returned one dict per layer type."""
    return bool(parameters) and all(isinstance(value, Mapping) for value in parameters.values())


def dtype(source: Any, default: str = "float32") -> str:
    """Return the dtype that a configuration declares, without the ``torch.`` prefix.

    Args:
        source: A parsed config.json or a configuration object.
        default: The answer where it declares none; transformers then loads float32.

    Raises:
        InputError: Two spellings hold different values, or the dtype is not one a port can run.
    """
    get = _getter(source)
    names = {key: get(key) for key in ("dtype", "torch_dtype")}
    value = _agreed(
        {k: None if v is None else str(v).removeprefix("torch.") for k, v in names.items()}
    )
    if value is None or value == "auto":
        return default
    if value not in DTYPES:
        raise InputError(
            f"dtype is {value!r}; it must be one of {', '.join(DTYPES)}",
            where="config.json: dtype",
        )
    return str(value)


def _getter(source: Any) -> Callable[[str], Any]:
    if isinstance(source, Mapping):
        return source.get
    return lambda key: getattr(source, key, None)


def _scaling(get: Callable[[str], Any]) -> dict[str, Any]:
    """Return the one dict that `rope_parameters` or `rope_scaling` holds."""
    found: dict[str, dict[str, Any]] = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = get(key)
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise InputError(
                f"{key} is {value!r}; it must be an object", where=f"config.json: {key}"
            )
        found[key] = {str(k): v for k, v in value.items() if v is not None}
    if len(found) == 2:
        new, old = found["rope_parameters"], found["rope_scaling"]
        for name in sorted(set(new) & set(old)):
            _agreed({f"rope_parameters.{name}": new[name], f"rope_scaling.{name}": old[name]})
    return {**found.get("rope_scaling", {}), **found.get("rope_parameters", {})}


def _flat(scaling: Mapping[str, Any], get: Callable[[str], Any]) -> dict[str, Any]:
    """Return one layer type's settings with the type resolved and the original length added."""
    result = {k: v for k, v in scaling.items() if v is not None and k not in ("type", "rope_type")}
    kind = _agreed({key: _type(scaling.get(key)) for key in ("rope_type", "type")}) or "default"
    if kind in TYPES_WITH_ORIGINAL:
        named = {ORIGINAL: get(ORIGINAL), f"rope dict's {ORIGINAL}": result.get(ORIGINAL)}
        original = _agreed(named) or get("max_position_embeddings")
        if original is not None:
            result[ORIGINAL] = original
    for name, value in result.items():
        _check_value(name, value)
    return {"rope_type": kind, **result}


def _type(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InputError(
            f"the rope type is {value!r}; it must be a name", where="config.json: rope"
        )
    return None if value is None else TYPE_ALIASES.get(value, value)


def _check_value(name: str, value: Any) -> None:
    items = value if isinstance(value, list | tuple) else (value,)
    plain = all(isinstance(item, int | float | bool) for item in items)
    if not plain and not isinstance(value, str):
        raise InputError(
            f"the rope setting {name} is {value!r}; it must be numbers or a word",
            where=f"config.json: {name}",
        )


def _agreed(named: Mapping[str, Any]) -> Any:
    """Return the value that every spelling which is present holds, or None."""
    present = [(name, value) for name, value in named.items() if value is not None]
    for name, value in present[1:]:
        first, expected = present[0]
        if value != expected:
            raise InputError(
                f"{first} is {expected!r} but {name} is {value!r}",
                where="config.json",
                hint="keep one of the two",
            )
    return present[0][1] if present else None
