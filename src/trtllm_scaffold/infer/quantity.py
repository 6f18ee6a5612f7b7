"""Finds the configuration key, or the short expression, that yields an observed number."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Container, Iterator, Sequence
from itertools import permutations
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.expressions import COMBINED, ONE, TWO, WITH_INTEGER, Form, Number
from trtllm_scaffold.infer.keys import SYNONYMS, is_inert, is_number, is_token
from trtllm_scaffold.infer.nested import FIRST, names_in, nested_names, read_key, uniform_lists
from trtllm_scaffold.infer.normalize import ROPE_KEYS, is_per_layer_type, rope_parameters
from trtllm_scaffold.spec.quantity import Quantity

_LARGEST = 1 << 62  # beyond, a number is no size and no scalar of a model
_Candidates = Iterator[tuple[str, tuple[Number, ...]]]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class Fitter:
    """Attributes numbers seen in tiny models to keys of their configurations.

    Args:
        tiny_configs: The configuration objects of the traced models, the two odd variants: they
            differ in every size and scalar.
        real_config: The configuration object of the real model.
        held: The keys that the real config.json holds itself.
    """

    def __init__(
        self, tiny_configs: Sequence[Any], real_config: Any, held: Container[str] = ()
    ) -> None:
        self._configs = (*tiny_configs, real_config)
        self.real_config = real_config
        self.held = held
        self._tiny_count = len(tiny_configs)
        self._columns = {name: self._column(name) for name in _attributes(self._configs, held)}
        self._columns = {
            name: column
            for name, column in self._columns.items()
            if all(is_number(value) and abs(value) < _LARGEST for value in column)
        }

    def _column(self, name: str) -> tuple[Any, ...]:
        return tuple(read_key(config, name) for config in self._configs)

    def fit(
        self,
        fact: str,
        values: Sequence[Number],
        *,
        hints: Sequence[str] = (),
        rtol: float = 1e-5,
    ) -> Quantity:
        """Return the simplest expression that yields `values` on the tiny configurations.

        The order, and so the choice where several fit: a hinted attribute, its inverse, root or
        inverse root; a constant; any attribute and the same forms of it; quotients of two; a
        small integer with one; products and ratios of two. Among attributes: hints, then the
        sizes in the order of `keys.SYNONYMS` by their canonical names, then those the class
        declares, then extra keys of the file. An attribute that the file does not hold, and that
        the class computes from others, gives way to an attribute or quotient of those others:
        not every generation of transformers computes it.

        The expression works on the configuration objects of both transformers generations. Rope
        settings move between them, so ``position.rope.theta`` and a rotated width that is not a
        plain attribute come back with an empty expression: the port's own reader gives them.

        Args:
            fact: Dotted name; its first part is the axis of a refusal.
            values: One observed number per tiny configuration. Integers must match exactly.
            hints: Attribute names, or expressions of the forms above, to try first.
            rtol: Relative tolerance for observed floats.

        Raises:
            Refused: Nothing fits.
        """
        observed = tuple(values)
        if len(observed) != self._tiny_count:
            raise ValueError(f"{len(observed)} values for {self._tiny_count} tiny configurations")
        if fact.startswith("position.rope."):
            rope = self._rope(fact, observed, hints, rtol)
            if rope is not None:
                return rope
        found = next(self._fitting(self._candidates(observed, hints, rtol), observed, rtol), None)
        if found is not None and self._computed(found.expr):
            plain = self._fitting(self._simple(observed, hints, rtol), observed, rtol)
            # Not to one of a nested configuration (an audio encoder's): equal by chance.
            outer = (item for item in plain if "." not in "".join(names_in(item.expr)))
            found = next((other for other in outer if not self._computed(other.expr)), found)
        if found is not None:
            if not set(names_in(found.expr)) & set(self._hinted(hints)):
                self._refuse_rivals(fact, found, observed, rtol)
            return found
        shown = " and ".join(f"{value:g}" for value in observed)
        raise Refused(
            fact.split(".")[0],
            f"no configuration key explains {fact}, which is {shown} in two tiny models",
            where="trace",
        )

    def _refuse_rivals(
        self, fact: str, found: Quantity, observed: tuple[Number, ...], rtol: float
    ) -> None:
        """Refuse a key that another explains as well, with another value in the real model.

        Tiny models give keys values of their own, so two that look alike there were not told
        apart, be it as they are, inverted or under a root: choosing one would be a guess. A key
        that a hint names was not chosen so, and a key of a nested configuration (an audio
        encoder's) is no rival of one at the top.
        """
        names = names_in(found.expr)
        if len(names) != 1 or names[0] not in self._columns:
            return
        exact = all(isinstance(value, int) for value in observed)
        rivals = [name for name in self._columns if "." in names[0] or "." not in name]
        plain = self._single(ONE, rivals, exact)
        for rival in self._fitting(plain, observed, rtol):
            if not _same(rival.value, found.value, rtol):
                raise Refused(
                    fact.split(".")[0],
                    f"{found.expr} and {rival.expr} explain {fact} alike in two tiny models, and "
                    f"are {found.value:g} and {rival.value:g} in the real one",
                    where="trace",
                )

    def _fitting(
        self, candidates: _Candidates, observed: tuple[Number, ...], rtol: float
    ) -> Iterator[Quantity]:
        for expr, column in candidates:
            if all(_same(c, v, rtol) for c, v in zip(column, observed, strict=False)):
                yield Quantity(value=column[-1], expr=expr)

    def _computed(self, expr: str) -> bool:
        """Whether the class computes an attribute of `expr` where the file does not hold it."""
        return any(map(self._is_computed, names_in(expr)))

    def _is_computed(self, name: str) -> bool:
        # read-only ones could not be set by a port anyway
        if name in _computed(self._configs[-1]) or "." in name:
            return False
        key = (getattr(self._configs[-1], "attribute_map", None) or {}).get(name, name)
        if name in self.held or key in self.held:
            return False
        for config in self._configs[: self._tiny_count]:
            values = {k: v for k, v in config.to_dict().items() if k not in (name, key)}
            try:
                rebuilt = type(config).from_dict(values)
            except Exception:  # the class needs the key, and says so in its own way
                return False
            if getattr(rebuilt, name, None) != getattr(config, name):
                return False
        return True

    def _simple(
        self, observed: tuple[Number, ...], hints: Sequence[str], rtol: float
    ) -> _Candidates:
        """Yield hints, constants, attributes and quotients."""
        names = list(self._columns)
        hinted = self._hinted(hints)
        exact = all(isinstance(value, int) for value in observed)
        constant = all(_same(value, observed[0], rtol) for value in observed)
        yield from self._single(ONE, hinted, exact)
        yield from self._written(hints, exact)
        if constant and self._tiny_count > 1:
            yield _constant(observed[0], rtol, len(self._configs))
        names = [*hinted, *(name for name in names if name not in hinted)]
        yield from self._single(ONE, names, exact)
        yield from self._pairs(TWO, names, exact)

    def _hinted(self, hints: Sequence[str]) -> list[str]:
        """The attributes that hints name, at the top or in a nested configuration."""
        names = list(self._columns)
        ends = {name: f".{name.removesuffix(FIRST)}" for name in names}
        return [name for hint in hints for name in names if ends[name].endswith(f".{hint}")]

    def _candidates(
        self, observed: tuple[Number, ...], hints: Sequence[str], rtol: float
    ) -> _Candidates:
        names = list(self._columns)
        exact = all(isinstance(value, int) for value in observed)
        yield from self._simple(observed, hints, rtol)
        yield from self._single(WITH_INTEGER, names, exact)
        yield from self._pairs(COMBINED, names, exact)
        if self._tiny_count == 1:
            yield _constant(observed[0], rtol, len(self._configs))

    def _single(self, forms: Sequence[Form], names: Sequence[str], exact: bool) -> _Candidates:
        for form in forms:
            for name in names:
                yield from self._evaluated(form, (name,), exact)

    def _pairs(self, forms: Sequence[Form], names: Sequence[str], exact: bool) -> _Candidates:
        for form in forms:
            for pair in permutations(names, 2):
                yield from self._evaluated(form, pair, exact)

    def _written(self, hints: Sequence[str], exact: bool) -> _Candidates:
        """Yield the expressions among the hints, where they are of a known form."""
        for hint in hints:
            names = names_in(hint)
            if not names or any(name not in self._columns for name in names):
                continue
            for form in (*ONE, *TWO, *WITH_INTEGER, *COMBINED):
                if form.text.count("{") == len(names) and form.text.format(*names) == hint:
                    yield from self._evaluated(form, names, exact)

    def _evaluated(self, form: Form, names: tuple[str, ...], exact: bool) -> _Candidates:
        if exact and not form.exact:
            return
        column: list[Number] = []
        for operands in zip(*(self._columns[name] for name in names), strict=True):
            try:
                value = form.value(*operands)
            except (OverflowError, ZeroDivisionError):
                return
            if value is None or not math.isfinite(value):
                return
            column.append(value)
        yield form.text.format(*names), tuple(column)

    def _rope(
        self, fact: str, observed: tuple[Number, ...], hints: Sequence[str], rtol: float
    ) -> Quantity | None:
        """Return a rope number that the settings themselves give, or None."""
        settings = [rope_parameters(config) for config in self._configs]
        kinds = list(settings[-1]) if is_per_layer_type(settings[-1]) else [""]
        for kind in sorted(kinds, key=lambda name: name not in hints):
            entries = [s.get(kind, {}) if kind else s for s in settings]
            if fact.endswith(".theta"):
                column = [entry.get("rope_theta") for entry in entries]
            else:
                column = [
                    _rotated(config, entry)
                    for config, entry in zip(self._configs, entries, strict=True)
                ]
            numbers = [value for value in column if is_number(value)]
            if len(numbers) == len(column) and all(
                _same(n, v, rtol) for n, v in zip(numbers, observed, strict=False)
            ):
                return Quantity(value=numbers[-1], expr="")
        return None


def _rotated(config: Any, entry: dict[str, Any]) -> int | None:
    """Return the rotated width where only a part of the head is rotated, else None."""
    fraction = entry.get("partial_rotary_factor", 1.0)
    head_dim = getattr(config, "head_dim", None)
    if not is_number(head_dim):
        head_dim = config.hidden_size // config.num_attention_heads
    return None if fraction == 1.0 else int(head_dim * fraction)


def _constant(value: Number, rtol: float, count: int) -> tuple[str, tuple[Number, ...]]:
    nice = nice_number(value, rtol)
    return repr(nice), (nice,) * count


def nice_number(value: Number, rtol: float) -> Number:
    """Return the float with the fewest digits within `rtol` of an observed one; ints as is."""
    if isinstance(value, int):
        return value
    for digits in range(1, 17):
        candidate = float(f"{value:.{digits}g}")
        if _same(candidate, value, rtol):
            return candidate
    return value


def _same(left: Number, right: Number, rtol: float) -> bool:
    if isinstance(left, int) and isinstance(right, int):
        return left == right
    return math.isclose(left, right, rel_tol=rtol, abs_tol=0.0)


def _attributes(configs: Sequence[Any], held: Container[str]) -> list[str]:
    """Return the attribute names that an expression may use, preferred ones first.

    A key that the file holds under another name than the canonical one comes last: only a hint
    asks for it.
    """
    real = configs[-1]
    canonical = {key: name for name, key in (getattr(real, "attribute_map", None) or {}).items()}
    listed = [set(config.to_dict()) for config in configs]
    keys = [key for key in real.to_dict() if all(key in names for names in listed)]
    names = [*_computed(real), *(canonical.get(key, key) for key in keys)]
    names += [key for key in keys if key in canonical and key in held]
    declared = _declared(real)
    order = {name: index for index, name in enumerate(SYNONYMS)}
    safe = [
        name
        for name in dict.fromkeys([*names, *nested_names(configs), *uniform_lists(configs)])
        if all(map(_is_safe, name.removesuffix(FIRST).split(".")))
        and name.rpartition(".")[2] not in ROPE_KEYS
        and not is_token(name)
        and not is_inert(name)
    ]
    return sorted(safe, key=lambda name: (order.get(name, len(order)), name not in declared))


def _is_safe(part: str) -> bool:
    return bool(_NAME.fullmatch(part)) and not keyword.iskeyword(part)


def _computed(config: Any) -> list[str]:
    """Return the sizes that the class computes as read-only properties (falcon's head_dim)."""
    return [name for name in SYNONYMS if isinstance(getattr(type(config), name, None), property)]


def _declared(config: Any) -> set[str]:
    """Return the names that the class itself knows, as opposed to extra keys of the file."""
    try:
        keys = set(type(config)().to_dict())
    except (TypeError, ValueError, AttributeError, KeyError):  # a class without defaults
        return set(config.to_dict())
    return keys | set(getattr(config, "attribute_map", None) or {})
