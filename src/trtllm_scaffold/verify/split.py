"""How several processes divide a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Split:
    """Attributes:
    tp_size: Ranks that share each layer.
    pp_size: Ranks that share the layers out.
    ep_size: Ranks among the tp_size that share the experts out instead of their width.
    attention_dp: Each rank has sequences of its own, whole attention and dense layers; experts
        are divided all the same.
    """

    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    attention_dp: bool = False

    @property
    def ranks(self) -> int:
        """How many processes there are."""
        return self.tp_size * self.pp_size

    @property
    def name(self) -> str:
        """The name of the check of this split."""
        if self.attention_dp:
            return f"parallel attention DP {self.tp_size}"
        if self.ep_size > 1:
            return f"parallel EP {self.ep_size}"
        return f"parallel TP {self.tp_size}" if self.pp_size == 1 else f"parallel PP {self.pp_size}"

    def mapping(self, rank: int) -> dict[str, Any]:
        """Arguments of the runtime's ``Mapping`` for the process `rank`."""
        found: dict[str, Any] = {
            "world_size": self.ranks,
            "rank": rank,
            "tp_size": self.tp_size,
            "pp_size": self.pp_size,
        }
        if self.ep_size > 1:
            found |= {"moe_ep_size": self.ep_size, "moe_tp_size": self.tp_size // self.ep_size}
        if self.attention_dp:
            found["enable_attention_dp"] = True
        return found

    def obstacle(self, config: Any) -> str:
        """Why the runtime itself cannot split a model of `config` so, empty where it can."""
        heads = int(config.num_attention_heads)
        if heads % self.tp_size and not self.attention_dp:
            return f"{heads} heads cannot be split {self.tp_size} ways"
        width, experts = (
            getattr(config, name, None) for name in ("moe_intermediate_size", "num_experts")
        )
        share = self.tp_size // self.ep_size
        if isinstance(width, int) and width % share:
            return f"experts of width {width} cannot be split {share} ways"
        if isinstance(experts, int) and experts % self.ep_size:
            return f"{experts} experts cannot be shared out {self.ep_size} ways"
        if int(config.num_hidden_layers) < self.pp_size:
            return f"{config.num_hidden_layers} layers cannot be split {self.pp_size} ways"
        return ""
