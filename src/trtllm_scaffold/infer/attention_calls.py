"""Reads how a model's layers call their attention, on the meta device: shapes and numbers alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from trtllm_scaffold.infer.effective import build_meta_model, one_line
from trtllm_scaffold.sources.hf_class import HFClasses

_NAME = "trtllm_scaffold_probe"
_TOKENS = 4


class NotTold(Exception):
    """The class does not say it through transformers' attention interface; the text says why."""


@dataclass(frozen=True)
class AttentionCall:
    """What one layer hands to the attention function.

    Attributes:
        heads, kv_heads: Heads of the queries and of the keys and values.
        head_dim, value_width: Width of a head of queries and keys, and of values.
        scale: The factor on q.k.
        softcap: c of ``c * tanh(scores / c)``, or None.
        mask: Which keys a query sees, or None where it is not told.
        products: (width, number) of each product with a number since the last layer's call.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_width: int
    scale: float
    softcap: float | None
    mask: Mask | None
    products: tuple[tuple[int, float], ...] = ()

    def first_key(self, position: int) -> int:
        """The first key that the query at `position` sees, all behind it being seen too.

        Raises:
            NotTold: The mask is not a rule of positions alone.
        """
        if self.mask is None:
            raise NotTold("the mask is not made by transformers' mask functions")
        return self.mask.first_key(position)


class Mask:
    """A mask of transformers, which layers share: asked once for each position.

    Args:
        rule: (batch, head, query, key) -> whether the query sees the key.
    """

    def __init__(self, rule: Callable[..., Any]) -> None:
        self._rule = rule
        self._known: dict[int, int] = {}

    def first_key(self, position: int) -> int:
        """See `AttentionCall.first_key`."""
        if position not in self._known:
            low, high = 0, position
            while low < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._sees(position, middle) else (middle + 1, high)
            self._known[position] = low
        return self._known[position]

    def _sees(self, position: int, key: int) -> bool:
        at = [torch.tensor(index, device="cpu") for index in (0, 0, position, key)]
        try:
            with _Zeros():
                return bool(self._rule(*at))
        except Exception as error:  # it may ask a tensor for a value at this position
            raise NotTold(f"the mask depends on more than positions: {one_line(error)}") from error


def attention_calls(config: Any, classes: HFClasses, layers_name: str) -> tuple[AttentionCall, ...]:
    """Return one call for each layer of the configuration's model, none of it in memory.

    Args:
        config: The configuration object; it is not changed.
        classes: The model's HF classes.
        layers_name: Module name of the layer list.

    Raises:
        NotTold: The class has attention code of its own, or does not run without values.
    """
    found: dict[str, list[AttentionCall]] = {}
    try:
        config = copy.deepcopy(config)
        config._experts_implementation = "eager"
        config.dtype = torch.float32  # a config whose model was saved has a name there
        model = build_meta_model(config, classes).eval()
        names = {module: name for name, module in model.named_modules()}
        without_values = _WithoutValues()

        def seen(module: Any, call: AttentionCall) -> None:
            products = tuple(without_values.taken_products())
            found.setdefault(names[module], []).append(replace(call, products=products))

        with _registered(seen):
            model.config._attn_implementation = _NAME
            _run(model, without_values)
    except Exception as error:  # the class's own code raises whatever it likes
        raise NotTold(f"the class does not run without values: {one_line(error)}") from error
    layers = len(model.get_submodule(layers_name))
    return tuple(_only_call(found, f"{layers_name}.{index}.") for index in range(layers))


def _only_call(found: dict[str, list[AttentionCall]], layer: str) -> AttentionCall:
    calls = [call for name in found if name.startswith(layer) for call in found[name]]
    if not calls:
        raise NotTold("the class's attention is code of its own")
    if len(calls) > 1:
        raise NotTold(f"{layer.rstrip('.')} calls its attention {len(calls)} times")
    return calls[0]


def _run(model: Any, without_values: TorchDispatchMode) -> None:
    with torch.device("meta"), torch.no_grad(), _without_autocast(), without_values:
        tokens = torch.zeros((1, _TOKENS), dtype=torch.long)
        # a mask of padding tells the class not to look into the positions for packed sequences
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Let ``torch.autocast`` do nothing: it knows no meta device, and transformers 4 asks it."""
    kept = torch.autocast
    torch.autocast = lambda *_, **__: nullcontext()  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        torch.autocast = kept  # type: ignore[misc]


class _WithoutValues(TorchDispatchMode):
    """Answers what a tensor without values is asked for: zero, and no place that is not zero.

    So a test of the sequence's length takes its branch for short ones, and a loop over the
    experts that were chosen has none to run. Products with a number are noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._products: list[tuple[int, float]] = []

    def taken_products(self) -> list[tuple[int, float]]:
        """(width, number) of each product since the last time."""
        taken, self._products = self._products, []
        return taken

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return torch.zeros((), dtype=args[0].dtype, device="cpu").item()
        if name == "aten::nonzero" and args[0].is_meta:
            return torch.empty((0, args[0].dim()), dtype=torch.long, device="meta")
        if name == "aten::mul" and isinstance(args[1], float) and args[0].dim():
            self._products.append((args[0].shape[-1], args[1]))
        return func(*args, **(kwargs or {}))


class _Zeros(TorchDispatchMode):
    """Takes tensors without values for zeros, as the padding on the left of a sequence is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types

        def valued(item: Any) -> Any:
            known = not isinstance(item, torch.Tensor) or not item.is_meta
            return item if known else torch.zeros(item.shape, dtype=item.dtype, device="cpu")

        args, kwargs = tree_map(valued, (args, kwargs or {}))
        return func(*args, **kwargs)


@contextmanager
def _registered(seen: Callable[[Any, AttentionCall], None]) -> Iterator[None]:
    """Have transformers know an attention function, and its masks, that only tell of the calls."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    rules: dict[int, tuple[torch.Tensor, Mask]] = {}  # by storage: a class may cut a mask

    def mask(*_: Any, mask_function: Callable[..., Any], **__: Any) -> torch.Tensor:
        made = torch.empty((1, 1, _TOKENS, _TOKENS), device="meta")
        rules[made.untyped_storage()._cdata] = made, Mask(mask_function)
        return made

    def rule_of(made: torch.Tensor | None) -> Mask | None:
        known = None if made is None else rules.get(made.untyped_storage()._cdata)
        return known and known[1]

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        softcap: float | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        batch, heads, tokens, head_dim = query.shape
        call = AttentionCall(
            heads=heads,
            kv_heads=key.shape[1],
            head_dim=head_dim,
            value_width=value.shape[-1],
            scale=head_dim**-0.5 if scaling is None else float(scaling),
            softcap=softcap,
            mask=rule_of(attention_mask),
        )
        seen(module, call)
        return query.new_empty((batch, tokens, heads, value.shape[-1])), None

    interfaces = ((ALL_ATTENTION_FUNCTIONS, attention), (ALL_MASK_ATTENTION_FUNCTIONS, mask))
    for interface, function in interfaces:
        interface.register(_NAME, function)
    try:
        yield
    finally:
        for interface, _function in interfaces:
            interface._global_mapping.pop(_NAME, None)
