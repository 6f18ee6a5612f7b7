"""Finds the layer list: the members of a module list that each hold one softmax attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, linear_at, moved_from, strip
from trtllm_scaffold.infer.graph import Call, Graph, Node, Value
from trtllm_scaffold.infer.norm import NormReader
from trtllm_scaffold.infer.routed import Routed, find_routed

_HINT = "decoders with one softmax attention in every layer work"


@dataclass(frozen=True, eq=False, repr=False)
class Layer:
    """One decoder layer of the traced forward.

    Attributes:
        index: Its place in the list.
        name: Its module name.
        graph, norms: The forward it is part of.
        input, output: Values [batch, sequence, hidden_size].
        softmax: The attention's softmax.
        context: The product of the attention weights and the values.
        linears: Its linear layers by output value.
        nodes: Its operations.
        routed: Its call of a module of experts, or None. That call's result is in `linears`.
    """

    index: int
    name: str
    graph: Graph
    norms: NormReader
    input: Value
    output: Value
    softmax: Node
    context: Node
    linears: dict[Value, Linear]
    nodes: tuple[Node, ...] = ()
    routed: Routed | None = None

    def is_atom(self, value: Value) -> bool:
        """Whether a walk back stops here: the input, a linear layer's or a norm's output."""
        return value is self.input or value in self.linears or self.norms.at(value) is not None

    def made_from(
        self, target: Value, ends: Callable[[Value], bool] | None = None
    ) -> tuple[list[Value], list[Value]]:
        """The atoms that `target` is computed from, and the other values without an operation.

        Args:
            target: The value.
            ends: Where the walk back stops besides.
        """
        atoms: dict[Value, None] = {}
        leaves: list[Value] = []
        stack, seen = [target], set()
        while stack:
            value = stack.pop()
            if value in seen:
                continue
            seen.add(value)
            if self.is_atom(value) or (ends is not None and ends(value)):
                atoms[value] = None
            elif value.node is not None:
                stack.extend(value.node.inputs)
            else:
                leaves.append(value)
        return list(atoms), leaves


def find_layers(graph: Graph, norms: NormReader) -> tuple[str, list[Layer]]:
    """Find the layer list and its layers, in order.

    Raises:
        Refused: There is none, or a member has no softmax attention or more than one.
    """
    by_list: dict[str, dict[str, list[tuple[Node, Node]]]] = {}
    for softmax, context in _attentions(graph):
        place = _list_member(graph.model, softmax.modules)
        if place is None:
            raise Refused(
                "attention", "a softmax attention runs outside any list of layers", hint=_HINT
            )
        by_list.setdefault(place[0], {}).setdefault(place[1], []).append((softmax, context))
    if not by_list:
        raise Refused("attention", "no softmax attention was seen in the forward", hint=_HINT)
    if len(by_list) > 1:
        raise Refused("block", f"several lists of layers: {', '.join(sorted(by_list))}", hint=_HINT)
    name, members = next(iter(by_list.items()))
    keys = [key for key, _ in graph.model.get_submodule(name).named_children()]
    missing = [key for key in keys if key not in members]
    if missing:
        raise Refused(
            "attention",
            f"{len(missing)} of {len(keys)} layers have no softmax attention",
            where=f"{name}.{missing[0]}",
            hint=_HINT,
        )
    calls = {call.name: [] for call in graph.calls}  # type: dict[str, list[Call]]
    for call in graph.calls:
        calls[call.name].append(call)
    layers = [
        _layer(graph, norms, i, f"{name}.{key}", members[key], calls) for i, key in enumerate(keys)
    ]
    for before, after in zip(layers, layers[1:], strict=False):
        if strip(after.input) is not strip(before.output):
            raise Refused(
                "block",
                "the layer's input is not the output of the layer before",
                where=after.name,
                hint="plain chains of layers work",
            )
    return name, layers


def _layer(
    graph: Graph,
    norms: NormReader,
    index: int,
    name: str,
    attentions: list[tuple[Node, Node]],
    calls: dict[str, list[Call]],
) -> Layer:
    if len(attentions) != 1 or len(calls[name]) != 1:
        times = max(len(attentions), len(calls[name]))
        raise Refused(
            "attention", f"a layer runs softmax attention {times} times", where=name, hint=_HINT
        )
    call = calls[name][0]
    if call.input is None or call.output is None:
        raise Refused("block", "the layer's input or output is no tensor", where=name, hint=_HINT)
    if call.input.shape != call.output.shape or call.input.shape[:-1] != graph.tokens.shape:
        raise Refused(
            "block",
            f"the layer maps {list(call.input.shape)} to {list(call.output.shape)}, "
            f"not [batch, sequence, hidden_size]",
            where=name,
            hint="decoders with one residual stream work",
        )
    linears: dict[Value, Linear] = {}
    nodes = tuple(graph.nodes[call.first_node : call.last_node])
    softmax, context = attentions[0]
    routed = find_routed(graph, name, call.input, nodes, softmax)
    for node in nodes:
        if routed is not None and routed.first_node <= node.index < routed.last_node:
            continue
        for value in node.outputs:
            found = linear_at(value, graph)
            if found is not None and found.output is value:
                for operand in node.inputs:  # a bias added later belongs to the product
                    linears.pop(strip(operand), None) if node.name == "add" else None
                linears[value] = found
    if routed is not None:
        linears[routed.linear.output] = routed.linear
    ends = call.input, call.output
    return Layer(index, name, graph, norms, *ends, softmax, context, linears, nodes, routed)


def _attentions(graph: Graph) -> list[tuple[Node, Node]]:
    """Every softmax between two products of activations, with the second product."""
    softmaxes = {
        node.outputs[0]: node for node in graph.nodes if node.name in ("_softmax", "_safe_softmax")
    }
    found = []
    for node in graph.nodes:
        if node.name not in ("bmm", "baddbmm"):
            continue
        left = node.args[-2]
        while left not in softmaxes:
            parent = moved_from(left)
            if parent is None and left.node is not None and left.node.name == "slice":
                parent = left.node.args[0]  # a sink column is cut off
            if parent is None:
                break
            left = parent
        if left in softmaxes:
            found.append((softmaxes[left], node))
    return found


def _list_member(model: nn.Module, modules: tuple[str, ...]) -> tuple[str, str] | None:
    """The outermost module list that `modules` run in, and the member's key."""
    for name in modules:
        parent, _, key = name.rpartition(".")
        if parent and isinstance(model.get_submodule(parent), (nn.ModuleList, nn.Sequential)):
            return parent, key
    return None
