"""A number of the model: its value for the given configuration, and where a port reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_KEY = re.compile(r"\bconfig\.(\w+)")


@dataclass(frozen=True)
class Quantity:
    """A number of the model and the expression over the HF configuration that yields it.

    Attributes:
        value: The number for the given (real-size) configuration.
        expr: A Python expression over `config`, the HF configuration object, built by us
            from checked attribute names, such as ``config.rms_norm_eps``,
            ``config.hidden_size ** 0.5`` or ``1e-05``; a key of a nested configuration is
            ``config.ffn_config.moe_top_k``. It yields `value` for the given
            configuration and the right number for every configuration of the family.
    """

    value: int | float
    expr: str

    @property
    def keys(self) -> frozenset[str]:
        """The configuration keys that set the number."""
        return frozenset(_KEY.findall(self.expr))

    @property
    def is_constant(self) -> bool:
        """True where no configuration key sets the number."""
        return "config" not in self.expr
