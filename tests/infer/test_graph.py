"""The value graph: identity, in-place operations, replay, sums of terms."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trtllm_scaffold.infer.algebra import linear_at, terms
from trtllm_scaffold.infer.graph import ReplayError
from trtllm_scaffold.infer.record import record


class Model(nn.Module):
    """Calls `body(self, x)` on embedded tokens."""

    def __init__(self, body):
        super().__init__()
        self.table = nn.Embedding(32, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.late = nn.Parameter(torch.randn(6))
        self.stored = nn.Parameter(torch.randn(6, 6))
        self.body = body

    def forward(self, input_ids, **kwargs):
        return SimpleNamespace(logits=self.body(self, self.table(input_ids)))


def graph_of(body):
    torch.manual_seed(0)
    return record(Model(body), torch.arange(10).reshape(2, 5))


def linears(graph):
    found = [(v, linear_at(v, graph)) for v in graph.values]
    return {lin.names[0]: lin for v, lin in found if lin is not None and lin.output is v}


def equation(graph):
    known = {lin.output: name for name, lin in linears(graph).items()}
    table = next(node.outputs[0] for node in graph.nodes if node.name == "embedding")
    known[table] = "x"
    return {known[v]: f for v, f in terms(graph.result, graph, known.__contains__)}


def test_sum_of_scaled_branches():
    graph = graph_of(lambda m, x: 2 * x + m.first(x) / 4 - 0.5 * m.second(x))
    assert equation(graph) == {"x": 2.0, "first.weight": 0.25, "second.weight": -0.5}


def test_alpha_and_repeats():
    graph = graph_of(lambda m, x: torch.add(x, m.second(x), alpha=3) + x)
    assert equation(graph) == {"x": 2.0, "second.weight": 3.0}


def test_in_place_sum_keeps_the_old_value():
    def body(m, x):
        y = m.first(x)
        y += x
        y *= 0.5
        return y

    graph = graph_of(body)
    assert equation(graph) == {"x": 0.5, "first.weight": 0.5}
    recorded = linears(graph)["first.weight"].output.data
    model = graph.model
    again = model.first(model.table(torch.arange(10).reshape(2, 5)))
    assert torch.allclose(recorded.reshape(2, 5, 6), again)


def test_view_changed_in_place_is_no_sum():
    def body(m, x):
        y = m.second(x)
        y[:, :, :3] += 1.0
        return y

    graph = graph_of(body)
    found = terms(graph.result, graph, lambda v: False)
    assert len(found) == 1 and found[0][0].node.name == ""


def test_bias_added_later_belongs_to_the_product():
    graph = graph_of(lambda m, x: m.second(x) + m.late)
    (found,) = [lin for lin in linears(graph).values() if lin.bias]
    assert (found.names, found.bias, found.transposed) == (("second.weight",), "late", False)


def test_weight_stored_transposed():
    graph = graph_of(lambda m, x: torch.addmm(m.late, x.reshape(-1, 6), m.stored).view(x.shape))
    found = linears(graph)["stored"]
    assert (found.transposed, found.bias, found.rows) == (True, "late", 6)


def test_a_square_slice_of_a_weight_is_no_linear():
    graph = graph_of(
        lambda m, x: nn.functional.linear(x, m.second.weight[:, torch.arange(5, -1, -1)])
    )
    assert "second.weight" not in linears(graph)


def test_replay_runs_the_same_operations_on_other_numbers():
    graph = graph_of(lambda m, x: torch.cat([m.second(x) * 2, x], -1).transpose(1, 2))
    source = linears(graph)["second.weight"].output
    path = graph.path([source], graph.result)
    ones = torch.ones(source.shape)
    result = graph.replay(path, {source: ones}, graph.result)
    assert torch.equal(result[:, :6], torch.full((2, 6, 5), 2.0))
    assert torch.equal(result[:, 6:], graph.result.data[:, 6:])
    assert torch.equal(ones, torch.ones(source.shape))


def test_replay_of_an_in_place_operation_leaves_the_record_alone():
    def body(m, x):
        y = m.second(x)
        y.mul_(3.0)
        return y + 1

    graph = graph_of(body)
    source = linears(graph)["second.weight"].output
    before = source.data.clone()
    result = graph.replay(
        graph.path([source], graph.result), {source: torch.ones(source.shape)}, graph.result
    )
    assert torch.equal(result, torch.full((2, 5, 6), 4.0))
    assert torch.equal(source.data, before)


def test_replay_follows_what_is_written_into_a_part():
    def body(m, x):
        y = m.second(x)
        joined = y.new_empty(2, 5, 10)
        joined[..., :6].copy_(y)
        joined[..., 6:].copy_(x[..., :4])
        joined[:, 0].zero_()
        return joined * 2

    graph = graph_of(body)
    source = linears(graph)["second.weight"].output
    path = graph.path([source], graph.result)
    result = graph.replay(path, {source: torch.ones(source.shape)}, graph.result)
    assert torch.equal(result[:, 1:, :6], torch.full((2, 4, 6), 2.0))
    assert torch.equal(result[..., 6:], graph.result.data[..., 6:])
    assert not result[:, 0].any()


def test_replay_refuses_hidden_changes():
    def body(m, x):
        y = m.second(x)
        some = y[:, ::2]
        y.mul_(3.0)
        return some * 2

    graph = graph_of(body)
    source = linears(graph)["second.weight"].output
    with pytest.raises(ReplayError):
        graph.replay(
            graph.path([source], graph.result), {source: torch.ones(source.shape)}, graph.result
        )


def test_modules_and_shared_parameters():
    def body(m, x):
        return nn.functional.linear(m.second(x), m.second.weight)

    model = Model(body)
    model.alias = model.second
    graph = record(model, torch.arange(10).reshape(2, 5))
    names = [n for v, n in graph.names.items() if "second.weight" in n]
    assert names == [("second.weight", "alias.weight")]
    assert any(call.name == "second" and call.output is not None for call in graph.calls)
    assert not model.second._forward_hooks and not model.second._forward_pre_hooks


def test_many_in_place_operations_stay_linear():
    def body(m, x):
        y = m.second(x)
        flat = y.view(10, 6)
        for _ in range(60):
            flat.index_add_(0, torch.tensor([1]), torch.ones(1, 6))
        return y + 0

    graph = graph_of(body)
    assert len(graph.values) < 1000
