"""The generation that the stand-in plays, and constructors held to its contract."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from trtllm_scaffold.targets.contract import GENERATIONS, Parameter, Symbol, load_contract

T = TypeVar("T", bound=Callable[..., Any])

_KINDS = {
    "positional_or_keyword": inspect.Parameter.POSITIONAL_OR_KEYWORD,
    "keyword_only": inspect.Parameter.KEYWORD_ONLY,
    "var_positional": inspect.Parameter.VAR_POSITIONAL,
    "var_keyword": inspect.Parameter.VAR_KEYWORD,
}

_state = {"active": GENERATIONS[0]}
#: Asked whether a compiler traces the code that asks. Importing this module needs no torch, so
#: what needs it sets the answer.
_tracing: dict[str, Callable[[], bool]] = {"asked": bool}
_held: list[_Held] = []
_followers: list[Callable[[str], None]] = []


def active() -> str:
    """The generation in force: "1.2" (the default) or "1.4"."""
    return _state["active"]


def set_active(name: str) -> None:
    """Make ``name`` the generation in force for every object of the stand-in.

    Raises:
        UsageError: If there is no such generation.
    """
    load_contract(name)
    _state["active"] = name
    for held in _held:
        held.show_signature()
    for show in _followers:
        show(name)


def follow(show: Callable[[str], None]) -> None:
    """Call ``show`` with the generation in force, now and whenever that changes."""
    _followers.append(show)
    show(active())


def trace_when(is_compiling: Callable[[], bool]) -> None:
    """Let contracts be checked in a way that can be traced whenever ``is_compiling()``."""
    _tracing["asked"] = is_compiling


def only_in(generation: str, where: str, **given: object) -> None:
    """Refuse keywords of a method that exist in one generation only.

    Args:
        generation: The generation that has the keywords.
        where: The method, for the message.
        given: Keyword and value; a value of None counts as not given.

    Raises:
        TypeError: If one is given while another generation is active.
    """
    if active() == generation:
        return
    for name, value in given.items():
        if value is not None:
            raise TypeError(
                f"{where}() got an unexpected keyword argument {name!r} "
                f"(it exists in TensorRT-LLM {generation}, the active one is {active()})"
            )


def contract(
    symbol: str,
    *,
    defaults: Mapping[str, Mapping[str, object]] | None = None,
) -> Callable[[T], T]:
    """Hold a class's constructor, or a function, to the active generation's parameter list.

    The decorated implementation takes the union of all generations' parameters. A call is bound
    to the manifest's list of the active generation, in that generation's order, then passed on
    by keyword: a keyword of another generation is a TypeError, as in the real library. A symbol
    without a list in the manifest (``init`` null) or absent there is left as it is.

    Args:
        symbol: Name in the manifest (``Linear``) or its full path where the name is ambiguous.
        defaults: Per generation, defaults that differ from the implementation's own.
    """

    def decorate(target: T) -> T:
        is_class = inspect.isclass(target)
        plain = target.__init__ if is_class else target  # type: ignore[misc]
        held = _Held(symbol, plain, is_class, defaults or {})
        if is_class:
            target.__init__ = held.wrapper  # type: ignore[misc, method-assign]
            return target
        return held.wrapper  # type: ignore[return-value]

    return decorate


class _Held:
    """One callable held to the contract: its implementation and a signature per generation."""

    def __init__(
        self,
        symbol: str,
        plain: Callable[..., Any],
        is_class: bool,
        defaults: Mapping[str, Mapping[str, object]],
    ) -> None:
        self.symbol, self.plain, self.is_class = symbol, plain, is_class
        self.defaults = defaults
        self.signatures: dict[str, inspect.Signature | None] = {}
        self.traceable: dict[str, _Traceable | None] = {}
        self.wrapper = self._wrap()
        _held.append(self)
        self.show_signature()

    def signature(self, generation: str) -> inspect.Signature | None:
        """Parameters without ``self`` in ``generation``, or None where none were read."""
        if generation not in self.signatures:
            self.signatures[generation] = self._build(generation)
        return self.signatures[generation]

    def show_signature(self) -> None:
        """Let ``inspect.signature`` report the active generation's list."""
        signature = self.signature(active())
        self.traceable[active()] = None if signature is None else _traceable(signature)
        if signature is None:
            self.wrapper.__dict__.pop("__signature__", None)
            return
        if self.is_class:
            me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            signature = signature.replace(parameters=[me, *signature.parameters.values()])
        self.wrapper.__signature__ = signature  # type: ignore[attr-defined]

    def _wrap(self) -> Callable[..., Any]:
        # A compiler can trace neither this object nor a signature: plain values and functions.
        plain, traceable, own_count = self.plain, self.traceable, int(self.is_class)

        @functools.wraps(self.plain)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if _tracing["asked"]():
                listed = traceable[active()]
                if listed is None:
                    return plain(*args, **kwargs)
                own, given = args[:own_count], args[own_count:]
                return plain(*own, **_bound_in_trace(listed, given, kwargs))
            signature = self.signature(active())
            if signature is None:
                return self.plain(*args, **kwargs)
            own = args[:1] if self.is_class else ()
            try:
                bound = signature.bind(*args[len(own) :], **kwargs)
            except TypeError as error:
                raise TypeError(f"{self.symbol}() {error} (TensorRT-LLM {active()})") from None
            bound.apply_defaults()
            return self.plain(*own, **_as_keywords(bound))

        return wrapper

    def _build(self, generation: str) -> inspect.Signature | None:
        found = find_symbol(generation, self.symbol)
        if found is None:
            return None
        listed = load_contract(generation).constructor(found)
        if listed is None:
            return None
        own = inspect.signature(self.plain).parameters
        overrides = self.defaults.get(generation, {})
        parameters = [self._parameter(item, own, overrides) for item in listed]
        return inspect.Signature(parameters)

    def _parameter(
        self,
        item: Parameter,
        own: Mapping[str, inspect.Parameter],
        overrides: Mapping[str, object],
    ) -> inspect.Parameter:
        kind = _KINDS[item.kind]
        if item.required or item.kind.startswith("var_"):
            return inspect.Parameter(item.name, kind)
        if item.name not in own:
            raise NotImplementedError(
                f"the stand-in's {self.symbol} lacks the parameter {item.name!r} of its contract"
            )
        default = overrides.get(item.name, own[item.name].default)
        return inspect.Parameter(item.name, kind, default=default)


def find_symbol(generation: str, symbol: str) -> Symbol | None:
    """The manifest entry that defines ``symbol`` (a bare name or a full path), or None."""
    known = load_contract(generation)
    module, _, name = symbol.rpartition(".")
    if module:
        return known.resolve(module, name)
    for home in known.homes(name):
        found = known.find(home, name)
        if found is not None and found.target is None:
            return found
    return None


def held_callables() -> Mapping[str, tuple[Callable[..., Any], inspect.Signature | None]]:
    """Every callable held so far with its active signature, for the tests of fidelity."""
    return {held.symbol: (held.plain, held.signature(active())) for held in _held}


#: A signature as a compiler can trace it: names in order, names that are known (None: any), and
#: name and default of each that has one.
_Traceable = tuple[tuple[str, ...], tuple[str, ...] | None, tuple[tuple[str, Any], ...]]


def _traceable(signature: inspect.Signature) -> _Traceable:
    listed = list(signature.parameters.values())
    named = [item for item in listed if item.kind is not inspect.Parameter.VAR_KEYWORD]
    order = [item.name for item in named if item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    known = tuple(item.name for item in named) if len(named) == len(listed) else None
    empty = inspect.Parameter.empty
    defaults = ((item.name, item.default) for item in named if item.default is not empty)
    return tuple(order), known, tuple(defaults)


def _bound_in_trace(
    listed: _Traceable, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """What ``Signature.bind`` gives, as keywords; a missing argument is left to the callable."""
    order, known, defaults = listed
    if len(args) > len(order):
        raise TypeError(f"{len(args)} positional arguments given, {len(order)} taken")
    bound = dict(zip(order, args, strict=False))
    for name, value in kwargs.items():
        if name in bound or (known is not None and name not in known):
            raise TypeError(f"got an unexpected keyword argument {name!r}")
        bound[name] = value
    for name, default in defaults:
        if name not in bound:
            bound[name] = default
    return bound


def _as_keywords(bound: inspect.BoundArguments) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            keywords.update(value)
        else:
            keywords[name] = value
    return keywords
