"""The shapes of expression over configuration attributes that may yield a number of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Number = int | float


@dataclass(frozen=True)
class Form:
    """A shape of expression over one or two attributes.

    Attributes:
        text: The expression, with ``{0}`` and ``{1}`` for attribute names.
        value: The same as a function of the attributes' values; None where it makes no sense.
        exact: Whether integers give an integer, so that it may stand for a size.
    """

    text: str
    value: Callable[..., Number | None]
    exact: bool


def _power(base: Number, exponent: float) -> float | None:
    return base**exponent if base > 0 else None


def _ratio(a: Number, b: Number) -> float | None:
    return a / b if b else None


def _whole(a: Number, b: Number) -> int | None:
    """Return a / b where both are integers and b divides a."""
    if isinstance(a, int) and isinstance(b, int) and b > 0 and a % b == 0:
        return a // b
    return None


def _whole_power(a: Number, b: Number) -> float | None:
    ratio = _whole(a, b)
    return _power(ratio, -0.5) if ratio else None


def _small(n: int) -> tuple[Form, ...]:
    return (
        Form(f"{n} * config.{{0}}", lambda a: n * a, True),
        Form(f"config.{{0}} // {n}", lambda a: _whole(a, n), True),
        Form(f"config.{{0}} + {n}", lambda a: a + n, True),
    )


ONE = (
    Form("config.{0}", lambda a: a, True),
    Form("1 / config.{0}", lambda a: _ratio(1, a), False),
    Form("config.{0} ** 0.5", lambda a: _power(a, 0.5), False),
    Form("config.{0} ** -0.5", lambda a: _power(a, -0.5), False),
)
TWO = (
    Form("config.{0} // config.{1}", _whole, True),
    Form("(config.{0} // config.{1}) ** -0.5", _whole_power, False),
)
#: Small integers: times and divided by; a sum comes last, since any two sizes may happen to
#: differ by a little.
WITH_INTEGER = (
    *(form for kind in zip(*map(_small, range(2, 9)), strict=True) for form in kind),
    Form("config.{0} + 1", lambda a: a + 1, True),
)
COMBINED = (
    Form("config.{0} * config.{1}", lambda a, b: a * b, True),
    Form("config.{0} / config.{1}", _ratio, False),
    Form("(config.{0} / config.{1}) ** 0.5", lambda a, b: _power(_ratio(a, b) or 0, 0.5), False),
    Form("config.{0} / config.{1} ** 0.5", lambda a, b: _ratio(a, abs(b) ** 0.5), False),
)
