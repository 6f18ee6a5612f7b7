"""What a configuration says of single layers: sizes that some have to themselves."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.keys import is_size
from trtllm_scaffold.spec.quantity import Quantity

#: What transformers 5 calls the mapping, and the switch that lets the model's own number be read.
_VIEW = "per_layer_config"
_OPEN = "allow_global_per_layer_attribute_access"
_WARNS = "transformers.integrations.heterogeneity"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_READ = re.compile(r"\bconfig\.(\w+)")


def opened(config: Any) -> Any:
    """`config`, which then tells the model's own numbers even where layers have others."""
    if hasattr(type(config), _OPEN) and getattr(config, "is_heterogeneous", False):
        setattr(config, _OPEN, True)
        logging.getLogger(_WARNS).setLevel(logging.ERROR)  # of every number that is read so
    return config


def is_by_layer(value: Any, layers: int) -> bool:
    """Whether a value maps layers' places, written as numbers, to what is special there."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(str(k).isdecimal() and len(str(k)) < 6 and int(k) < layers for k in value)
        and any(isinstance(entry, Mapping) for entry in value.values())
    )


@dataclass(frozen=True)
class OwnSizes:
    """The key of a configuration under which layers have numbers of their own.

    Attributes:
        key: The key; its value maps a layer's place to numbers by their usual names.
        names: Those of them that differ from the model's anywhere.
        view: Whether the configuration object gives each layer's configuration under `key`.
        keys: Canonical name -> what the configuration calls it (`attribute_map`).
    """

    key: str
    names: frozenset[str]
    view: bool
    keys: Mapping[str, str]

    def config(self, config: Any, index: int) -> Any:
        """The configuration of one layer: the model's, with the layer's own numbers."""
        if self.view:
            return getattr(config, self.key)[index]
        found = copy.copy(config)
        held = getattr(config, self.key) or {}
        for name, value in held.get(str(index), {}).items():
            setattr(found, name, value)
        return found

    def written(self, quantity: Quantity) -> Quantity:
        """A number of a layer's configuration, by an expression over the model's."""

        def read(match: re.Match[str]) -> str:
            name = self.keys.get(match.group(1), match.group(1))
            if name not in self.names:
                return match.group()
            if self.view:
                return f"config.{self.key}[layer_idx].{name}"
            own = f"config.{self.key}.get(str(layer_idx), {{}})"
            return f'{own}.get("{name}", config.{name})'

        return Quantity(quantity.value, _READ.sub(read, quantity.expr))

    def check_alike(self, config: Any, layers: Sequence[int]) -> None:
        """Refuse layers that look alike in tiny models and have other numbers in the real one.

        Raises:
            Refused: Names two layers, the number and both values.
        """
        first = self.config(config, layers[0])
        for index in layers[1:]:
            other = self.config(config, index)
            for name in sorted(self.names):
                one, two = getattr(first, name, None), getattr(other, name, None)
                if one != two:
                    raise Refused(
                        "attention",
                        f"layers {layers[0]} and {index} are alike in tiny models, and their "
                        f"{name} is {one} and {two} in {self.key}",
                        where="config.json",
                    )


def own_sizes_of(config: Any) -> OwnSizes | None:
    """Where a configuration object holds sizes of single layers; None where it holds none.

    Raises:
        Refused: Several keys hold some, or places and names are not written plainly.
    """
    layers = getattr(config, "num_hidden_layers", None)
    keys = dict(getattr(config, "attribute_map", None) or {})
    if getattr(config, "is_heterogeneous", False):
        names = {keys.get(name, name) for name in config.per_layer_attributes or ()}
        return OwnSizes(_VIEW, frozenset(names), True, keys)
    if not is_size(layers):
        return None
    found = {k: v for k, v in config.to_dict().items() if is_by_layer(v, layers)}
    if not found:
        return None
    (key, held), *rest = found.items()
    names = {name for entry in held.values() for name in entry if isinstance(entry, Mapping)}
    plain = all(str(place) == str(int(place)) for place in held)
    if rest or not plain or not all(map(_NAME.fullmatch, (key, *names))):
        raise Refused(
            "attention",
            f"layers have numbers of their own under {', '.join(found)}, which is not read",
            where="config.json",
            hint="one key with layers' places as plain numbers is",
        )
    sized = {name for name in names if is_size(getattr(config, name, None))}
    return OwnSizes(key, frozenset(sized), False, keys) if sized else None
