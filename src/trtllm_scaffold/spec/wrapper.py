"""The whole model that a text decoder was taken out of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WrapperSpec:
    """What a text-only port must know of the model around its decoder.

    Attributes:
        config_class: Name of the whole model's HF configuration class.
        key: The key that holds the decoder's configuration, such as ``text_config``.
        text_class: HF's class of the decoder alone, which the port is held against.
        stored_prefixes: (as the decoder alone stores it, as the whole model does): how names of
            tensors begin; the longest that fits a name applies.
        others: How the names of tensors begin that are not the decoder's; empty where the
            checkpoint is the decoder's own.
        following: Keys of other parts, as ``vision_config.out_dim``, that the configuration class
            accepts only where they are the decoder's width.
    """

    config_class: str
    key: str
    text_class: str
    stored_prefixes: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    following: tuple[str, ...] = ()
