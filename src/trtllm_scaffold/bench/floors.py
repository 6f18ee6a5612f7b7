"""What the machine itself allows: bytes over bandwidth, and operations over the matmul rate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_scaffold.bench.timing import timed

_COPY_BYTES = 1 << 30
_MATMUL = 8192


@dataclass(frozen=True)
class Machine:
    """Measured rates.

    Attributes:
        bandwidth: Bytes per second of a device-to-device copy, reads and writes counted.
        matmul: Operations per second of a large bf16 product of random matrices.
    """

    bandwidth: float
    matmul: float


def measure_machine() -> Machine:
    """Measure both rates on the current device."""
    copied = timed(_copy(), runs=9).median
    product = timed(_product(), runs=9).median
    return Machine(2 * _COPY_BYTES / copied * 1e3, 2 * _MATMUL**3 / product * 1e3)


def _copy() -> Callable[[], object]:
    source = torch.randn(_COPY_BYTES // 2, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _product() -> Callable[[], object]:
    shape = (_MATMUL, _MATMUL)
    left, right = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return lambda: left @ right


@dataclass(frozen=True)
class Weights:
    """Weights of a model that one token reads, in 16-bit numbers.

    Attributes:
        dense: Read by every token (the head included, the embedding's one row left out).
        head: Those of the head alone.
        experts: All routed experts together.
        share: Part of the experts that one token chooses.
    """

    dense: int
    head: int
    experts: int
    share: float

    @property
    def read(self) -> float:
        """Bytes of weights that a decode step must read at least.

        How many experts several tokens touch is chance: at least those of one token.
        """
        return 2.0 * (self.dense + self.experts * self.share)

    def operations(self, tokens: int, logits: int) -> float:
        """Multiplications and additions of a step, attention's own left out.

        Args:
            tokens: New tokens.
            logits: Positions whose logits are computed.
        """
        body = self.dense - self.head + self.experts * self.share
        return 2.0 * (tokens * body + logits * self.head)


def weights_of(model: torch.nn.Module, config: Any) -> Weights:
    """Count the weights of HF's ``model``."""
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    head = model.get_output_embeddings().weight  # type: ignore[operator]
    experts = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if ".experts." in name and "shared" not in name
    )
    total = sum(parameter.numel() for parameter in model.parameters())
    dense = total - experts
    if embedding.data_ptr() != head.data_ptr():
        dense -= embedding.numel()
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    chosen = getattr(config, "num_experts_per_tok", 0)
    return Weights(dense, head.numel(), experts, chosen / count if count else 0.0)
