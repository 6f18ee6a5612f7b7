from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trtllm_scaffold.standin.interface import RopeParams
from trtllm_scaffold.standin.modules.embedding import Embedding
from trtllm_scaffold.standin.modules.mlp import GatedMLP
from trtllm_scaffold.standin.modules.norms import RMSNorm
from trtllm_scaffold.standin.modules.rotary import RotaryEmbedding

from ..statements import states

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Block(torch.nn.Module):
    """Every core layer once, as a decoder layer uses them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.embed = Embedding(50, 64, dtype=dtype)
        self.norm = RMSNorm(hidden_size=64, eps=1e-5, dtype=dtype)
        self.rope = RotaryEmbedding(RopeParams(dim=16, max_positions=32), head_dim=16)
        self.mlp = GatedMLP(
            hidden_size=64, intermediate_size=96, bias=True, activation=F.silu, dtype=dtype
        )

    def forward(self, ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(ids)
        (turned,) = self.rope(position_ids, [hidden])
        normed, residual = self.norm(turned, hidden.clone())
        return self.mlp(normed) + residual


def build(dtype: torch.dtype) -> Block:
    block = Block(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    return block


@torch.inference_mode()
def test_the_layers_agree_on_cpu_and_cuda():
    block = build(torch.float32)
    ids, positions = torch.randint(0, 50, (9,)), torch.arange(9)[None]
    block.rope.rotary_cos_sin = block.rope.rotary_cos_sin.cpu()
    on_cpu = block(ids, positions)
    on_cuda = block.cuda()(ids.cuda(), positions.cuda())
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=1e-4, atol=1e-4)


@states("W6.5-2")
@torch.inference_mode()
def test_the_layers_can_be_captured_in_a_graph_and_replayed():
    block = build(torch.bfloat16).cuda()
    ids = torch.randint(0, 50, (4,), device="cuda")
    positions = torch.arange(4, device="cuda")[None]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        block(ids, positions)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = block(ids, positions)
    ids.copy_(torch.tensor([7, 1, 49, 3]))
    positions.copy_(torch.tensor([[5, 31, 0, 2]]))
    graph.replay()
    torch.testing.assert_close(captured, block(ids, positions), rtol=0, atol=0)
