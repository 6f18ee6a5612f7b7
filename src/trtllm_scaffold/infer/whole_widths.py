"""Widths of a whole model's other parts that its configuration class wants to be the decoder's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer.effective import effective
from trtllm_scaffold.sources.wrapper import Wrapper, whole_config, with_widths

_WIDTH = "hidden_size"


def following_widths(
    raw: Mapping[str, Any], tiny: Mapping[str, Any], wrapper: Wrapper
) -> tuple[str, ...]:
    """The keys, as ``vision_config.out_dim``, without which the class rejects a tiny decoder.

    Empty where it takes one as it is, and where no widths of other parts are the reason.

    Args:
        raw: The parsed config.json of the whole model.
        tiny: The configuration of a tiny decoder.
        wrapper: The whole model's classes.
    """
    full = effective(whole_config(raw, wrapper.config_class))
    width, small = full[wrapper.key].get(_WIDTH), tiny.get(_WIDTH)
    parts = [key for key in getattr(wrapper.config_class, "sub_configs", {}) if key != wrapper.key]
    found = [
        f"{part}.{key}"
        for part in parts
        if isinstance(full.get(part), Mapping)
        for key, value in full[part].items()
        if width is not None and type(value) is type(width) and value == width
    ]

    def accepts(keys: Iterable[str]) -> bool:
        around = with_widths({**raw, wrapper.key: dict(tiny)}, keys, small)
        try:
            whole_config(around, wrapper.config_class)
        except InputError:
            return False
        return True

    if accepts(()) or not accepts(found):
        return ()
    for key in tuple(found):
        fewer = [other for other in found if other != key]
        if accepts(fewer):
            found = fewer
    return tuple(found)
