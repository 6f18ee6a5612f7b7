"""MoEAllReduce: constructed by model files, used with kernels that the stand-in lacks."""

from __future__ import annotations

from typing import Any

from torch import nn

from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.mapping import Mapping


@contract("MoEAllReduce")
class MoEAllReduce(nn.Module):
    """Finalizing all-reduce of quantized experts; models make one and rarely call it."""

    def __init__(self, mapping: Mapping) -> None:
        super().__init__()
        self.mapping = mapping
        self.max_token = 128

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Not modelled.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("the stand-in's experts finalize themselves")
