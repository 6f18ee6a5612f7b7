"""Finds the module of experts that a layer calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, strip
from trtllm_scaffold.infer.graph import Call, Graph, Node, Value

_CHOICES = frozenset({"topk", "max", "argmax", "sort"})


@dataclass(frozen=True, eq=False, repr=False)
class Routed:
    """A call of a module of experts.

    Attributes:
        name, module: The module.
        input, output: Hidden states [batch, sequence, hidden_size] or [tokens, hidden_size].
        first_node, last_node: Its operations in the graph.
        linear: The whole call in the form of a linear layer, for those who read the layer's
            equation. It has no weight of its own.
    """

    name: str
    module: nn.Module
    input: Value
    output: Value
    first_node: int
    last_node: int
    linear: Linear


def is_choice(node: Node) -> bool:
    """Whether an operation chooses the largest of several numbers for each token."""
    return node.name in _CHOICES and any(
        not out.data.is_floating_point() and out.data.dim() > 1 for out in node.outputs
    )


def find_routed(
    graph: Graph, layer: str, start: Value, nodes: Sequence[Node], softmax: Node
) -> Routed | None:
    """The outermost module, outside the attention, that chooses for each token, or None.

    Args:
        graph: The forward.
        layer: Module name of the layer.
        start: The layer's input.
        nodes: The layer's operations.
        softmax: The attention's softmax.

    Raises:
        Refused: Several modules of the layer choose.
    """
    names: dict[str, Node] = {}
    for node in nodes:
        if is_choice(node):
            inside = node.modules[node.modules.index(layer) + 1 :]
            own = next((name for name in inside if name not in softmax.modules), None)
            if own is not None:
                names.setdefault(own, node)
    found = [
        call
        for call in graph.calls
        if call.name in names
        and call.first_node <= names[call.name].index < call.last_node
        and _keeps_width(call, start)
    ]
    if not found:
        return None
    if len(found) > 1:
        shown = ", ".join(call.name for call in found)
        raise Refused(
            "moe",
            f"several modules of the layer choose for each token: {shown}",
            where=layer,
            hint="layers with one choice among experts are expressed",
        )
    call = found[0]
    assert call.input is not None and call.output is not None
    output = strip(call.output)
    linear = Linear(
        weight=output,
        names=(call.name,),
        bias=None,
        input=call.input,
        output=output,
        rows=start.shape[-1],
        transposed=False,
    )
    span = call.first_node, call.last_node
    return Routed(call.name, call.module, call.input, call.output, *span, linear)


def _keeps_width(call: Call, start: Value) -> bool:
    ends = call.input, call.output
    return all(v is not None and v.data.numel() == start.data.numel() for v in ends)
