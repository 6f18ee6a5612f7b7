"""Reads the attention scores: from the softmax input back to the product of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import scaled, strip
from trtllm_scaffold.infer.block_indexer import find_choice
from trtllm_scaffold.infer.graph import Node, Value
from trtllm_scaffold.infer.indexer import Choice, check_visible
from trtllm_scaffold.infer.layers import Layer

#: A value that is added to the scores, and the factor on it.
Bias = tuple[Value, float]

_MASKED = -1e4  # additive masks hold -inf or the smallest float, never a finite bias


@dataclass(repr=False)
class Scores:
    """What stands between the product of queries and keys and the softmax.

    Attributes:
        query, key: Operands of the product, [n, sequence, head_dim], [n, head_dim, sequence].
        factor: Constant factor on the product.
        softcap: c of ``c * tanh(scores / c)``.
        sinks: The parameter whose entries join the softmax as one more column.
        biases: Values added that are no masks, with their factors.
        choice: The mask that leaves the keys chosen by the tokens, if there is one.
    """

    query: Value
    key: Value
    factor: float
    softcap: float | None = None
    sinks: Value | None = None
    biases: list[Bias] = field(default_factory=list)
    choice: Choice | None = None


def read_scores(layer: Layer) -> Scores:
    """Walk from the softmax input to the product.

    Raises:
        Refused: Something on the way has no label.
    """
    walk = _Walk(layer)
    walk.step(layer.softmax.args[0])
    product = walk.product
    assert product is not None and product.node is not None
    query, key = product.node.args[-2], product.node.args[-1]
    factor = walk.factor if walk.softcap is None else walk.factor * walk.softcap
    return Scores(query, key, factor, walk.softcap, walk.sinks, walk.biases, walk.choice)


class _Walk:
    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.graph = layer.graph
        self.factor = 1.0
        self.softcap: float | None = None
        self.sinks: Value | None = None
        self.biases: list[Bias] = []
        self.product: Value | None = None
        self.choice: Choice | None = None

    def step(self, value: Value | None) -> None:
        while value is not None:
            value = self._back(strip(value))

    def _back(self, value: Value) -> Value | None:
        """One operation back; None at the product."""
        node = value.node
        name = "" if node is None else node.name
        if node is None or name == "bmm":
            self.product = value
            if node is None:
                raise self._unknown("an input")
            return None
        if name == "baddbmm":
            self._extra(node.args[0], node.kwargs.get("beta", 1.0))
            self.factor *= float(node.kwargs.get("alpha", 1.0))
            self.product = value
            return None
        if (inner := scaled(value, self.graph)) is not None:
            self.factor *= inner[1]
            return inner[0]
        if name == "mul" and (kept := self._zeroed(node)) is not None:
            return kept
        if name == "tanh" and self.softcap is None:
            self.softcap, self.factor = self.factor, 1.0
            return node.args[0]
        if name in ("add", "sub", "where", "maximum", "masked_fill"):
            return self._main(value, [a for a in node.args if isinstance(a, Value)])
        if name in ("clamp", "clamp_min"):
            return node.args[0]
        if name == "cat":
            return self._main(value, list(node.args[0]), joined=True)
        raise self._unknown(name)

    def _main(self, value: Value, operands: list[Value], joined: bool = False) -> Value:
        """The operand that holds the product; the others are masks, biases or sinks."""
        main = [v for v in operands if self._holds_product(v) and v.shape[-1] != 1]
        if len(main) > 1 and value.node is not None and value.node.name == "add":
            main = [v for v in main if find_choice(self.layer, v) is None]
        if len(main) != 1:
            raise self._unknown("a sum of products, of which one may choose keys by the tokens")
        assert value.node is not None
        for other in operands:
            if other is main[0]:
                continue
            if joined:
                self._sink(other)
            elif value.node.name == "add":
                self._extra(other, float(value.node.kwargs.get("alpha", 1.0)))
            elif value.node.name == "sub" and not self._is_maximum(other):
                if other is operands[0]:
                    raise self._unknown("scores that are subtracted")
                self._extra(other, -float(value.node.kwargs.get("alpha", 1.0)))
            elif self._holds_product(other) and not self._is_maximum(other):
                raise self._unknown(value.node.name)
        return main[0]

    def _holds_product(self, value: Value) -> bool:
        stop = [self.layer.input]
        return any(
            v.node is not None and v.node.name in ("bmm", "baddbmm") and self._of_layer(v)
            for v in self.graph.ancestors(value, stop)
        )

    def _of_layer(self, value: Value) -> bool:
        """Whether `value` was computed from the layer's input."""
        return any(v is self.layer.input for v in self.graph.ancestors(value, [self.layer.input]))

    def _zeroed(self, node: Node) -> Value | None:
        """The scores, where a mask of zeros and ones multiplies them."""
        for main, mask in (node.args[:2], node.args[1::-1]):
            if isinstance(mask, Value) and not self._of_layer(mask):
                if bool(((mask.data == 0) | (mask.data == 1)).all()):
                    return main
        return None

    @staticmethod
    def _is_maximum(value: Value) -> bool:
        return value.node is not None and value.node.name in ("max", "amax")

    def _sink(self, value: Value) -> None:
        found = [v for v in self.graph.ancestors(value) if v in self.graph.parameters]
        if len(found) != 1 or self._of_layer(value):
            raise self._unknown("a softmax column that is no stored vector")
        self.sinks = found[0]

    def _extra(self, value: Value, weight: float) -> None:
        choice = find_choice(self.layer, value)
        if choice is not None:
            if self.choice is not None or self.softcap is not None or weight <= 0:
                raise self._unknown("several choices of keys, or one inside the softcap")
            self.choice = choice
            return
        if self._of_layer(value):
            raise Refused(
                "attention",
                "a bias on the scores depends on the tokens",
                where=self.layer.name,
                hint="masks, ALiBi and windows are seen; content-dependent masks are not expressed",
            )
        data = value.data * weight
        if bool((data[data > _MASKED] != 0).any()):
            if self.softcap is not None:
                raise self._unknown("a bias inside the softcap")
            self.biases.append((value, weight * self.factor))

    def _unknown(self, what: str) -> Refused:
        return Refused(
            "attention",
            f"the softmax input holds an operation without a label: {what or 'a hidden change'}",
            where=self.layer.name,
            hint="scaled dot products with masks, ALiBi, softcap and sinks are understood",
        )


def read_window(layer: Layer, choice: Choice | None = None) -> tuple[int | None, bool]:
    """The most keys that a token sees, itself included, and whether they are those of a chunk.

    None stands for all, or for those of a choice. A token of a chunk sees the keys since the
    chunk's first.

    Raises:
        Refused: The mask is neither causal nor a causal window or chunk.
    """
    if choice is not None:
        check_visible(layer, choice)
        return None, False
    weights = layer.softmax.outputs[0].data
    size = weights.shape[-2]
    seen = weights[..., :size] > 0
    first = seen.reshape(-1, size, size)[0]
    if bool((seen.reshape(-1, size, size) != first).any()):
        raise _bad_mask(layer, "differs between heads or sequences")
    row, column = torch.arange(size)[:, None], torch.arange(size)[None, :]
    window = int(first[-1].sum())
    if bool((first == (column <= row)).all()):
        return None, False
    if bool((first == ((column <= row) & (column > row - window))).all()):
        return window, False
    chunk = 1 + int(first.diagonal(-1).long().argmin())
    if bool((first == ((column <= row) & (column // chunk == row // chunk))).all()):
        return chunk, True
    causal = not bool((first & (column > row)).any())
    raise _bad_mask(
        layer, "is causal but no sliding window and no chunk" if causal else "is not causal"
    )


def _bad_mask(layer: Layer, what: str) -> Refused:
    return Refused(
        "attention",
        f"the mask {what}",
        where=layer.name,
        hint="full causal attention, sliding windows and chunks are expressed",
    )
