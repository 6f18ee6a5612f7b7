"""How far a port's logits are from HF's: the largest error in fp32, the noise ratio in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtllm_scaffold.verify.close_calls import LEAST_SHARE
from trtllm_scaffold.verify.parity import FP32_BOUND
from trtllm_scaffold.verify.parity_bf16 import BF16_BOUND

__all__ = ["BF16_BOUND", "FP32_BOUND", "Choices", "Compared", "largest", "noise_ratio"]

#: Least rounding of fp32 logits, in units in the last place of the largest one. Where both ways of
#: HF's happen to take the same kernels they differ by nothing, yet each rounds, and a third
#: program's sums may round otherwise.
LEAST_ULPS = 8


@dataclass(frozen=True)
class Compared:
    """Logits [n, vocab_size] at some positions of one sequence.

    Attributes:
        found: The port's.
        exact: HF's in fp32.
        noisy: HF's in the dtype of the port.
        clear: How many of the positions come before the routers' first close call.
        sequence: Its regime and its place among the regime's sequences; a scenario may give the
            positions of one sequence in several parts.
    """

    found: torch.Tensor
    exact: torch.Tensor
    noisy: torch.Tensor
    clear: int
    sequence: tuple[str, int]


def largest(parts: list[Compared]) -> tuple[float, float]:
    """Largest error relative to max(1, the largest logit), and the share of positions compared.

    Positions behind a close call of a router are left out only where they would fail: two right
    programs may part there, but need not.
    """
    kept = []
    count = total = 0
    for part in parts:
        errors = (part.found - part.exact).abs().amax(dim=-1)
        errors = errors / max(1.0, float(part.exact.abs().max()))
        if float(errors.max()) > FP32_BOUND or bool(errors.isnan().any()):
            errors = errors[: part.clear]
        kept.append(errors)
        count, total = count + len(errors), total + len(part.found)
    share = count / total
    assert share >= LEAST_SHARE, f"close calls leave {count} of {total} positions to compare"
    return float(torch.cat(kept).max()), share


def noise_ratio(parts: list[Compared], routed: bool) -> float:
    """The port's error over HF's own in that dtype, both against HF in fp32.

    The statistic is the RMS over all logits. With routers (`routed`), whose choices rounding turns
    at some positions, in the port and in HF's model alike, it is a median of medians: where a
    token stands is what the fp32 check is for.
    """
    if routed:
        return _typical_ratio(parts)
    ours = torch.cat([(part.found - part.exact).square().mean(dim=-1) for part in parts]).double()
    theirs = torch.cat([(part.noisy - part.exact).square().mean(dim=-1) for part in parts]).double()
    return float((ours.mean() / theirs.mean()).sqrt())


def _typical_ratio(parts: list[Compared]) -> float:
    """The median over sequences of each one's median over positions of the ratio of errors.

    A choice that turns moves every later position of its sequence, by several times the noise, so
    that the positions of one sequence are few independent observations, however many they are,
    and each sequence counts once. Each position is compared with itself: both sides often turn
    the same choice, or another one nearby, and share what is difficult about a position. The
    medians are of logarithms, in which a side's bad luck weighs as much as the other's.
    `test_errors` simulates how often this errs.
    """
    by_sequence: dict[tuple[str, int], list[torch.Tensor]] = {}
    for part in parts:
        ours = (part.found - part.exact).double().square().mean(dim=-1)
        theirs = (part.noisy - part.exact).double().square().mean(dim=-1)
        by_sequence.setdefault(part.sequence, []).append((ours / theirs).log())
    # Unlike `median`, `quantile` takes the mean of two middle values; of a nan it makes nan too.
    typical = [torch.cat(ratios).quantile(0.5) for ratios in by_sequence.values()]
    return float((torch.stack(typical).quantile(0.5) / 2).exp())


@dataclass(frozen=True)
class Choices:
    """The steps of a greedy generation.

    Attributes:
        chosen: The port's tokens [n].
        exact: HF's logits [n, vocab_size] in fp32, of the whole sequence at once.
        other: HF's in bf16, or in fp32 token by token: what they differ by is rounding.
        calls: At which of the positions up to the last step a router's choice may turn: [m] bool;
            None without routers.
        dtype: Of the port.
    """

    chosen: torch.Tensor
    exact: torch.Tensor
    other: torch.Tensor
    calls: torch.Tensor | None
    dtype: str

    @property
    def equal(self) -> torch.Tensor:
        """Where the port chose as HF does: [n] bool."""
        return self.exact.argmax(dim=-1) == self.chosen

    @property
    def noise(self) -> torch.Tensor:
        """Twice what rounding moves a logit by, since both of two may move: [n]."""
        moved = (self.other - self.exact).abs().amax(dim=-1)
        if self.dtype == "fp32":
            ulp = torch.finfo(torch.float32).eps * self.exact.abs().amax(dim=-1)
            moved = torch.maximum(moved, LEAST_ULPS * ulp)
        elif self.calls is not None and self.steady.any():
            # A choice of experts that turns shows at other tokens too.
            moved = moved[self.steady].max().expand_as(moved)
        return 2 * moved

    @property
    def steady(self) -> torch.Tensor:
        """At which steps no router's choice may turn: [n] bool."""
        if self.calls is None:
            return torch.ones_like(self.equal)
        return ~self.calls[-len(self.chosen) :]

    @property
    def clear(self) -> torch.Tensor:
        """At which steps rounding cannot choose otherwise: [n] bool."""
        first, second = self.exact.topk(2, dim=-1).values.unbind(dim=-1)
        return self.steady & (first - second > self.noise)

    @property
    def compared(self) -> torch.Tensor:
        """The clear steps that count: [n] bool.

        In fp32, as with `largest`, those behind a close call are left out only where they differ:
        two right programs may part there, but need not. In bf16 the noise has HF's own turned
        choices in it.
        """
        if self.dtype != "fp32" or self.calls is None:
            return self.clear
        behind = self.calls.cumsum(dim=0)[-len(self.chosen) :] > 0
        return self.clear & (self.equal | ~behind)

    @property
    def wrong(self) -> torch.Tensor:
        """Compared steps at which the port chose otherwise: [n] bool."""
        return self.compared & ~self.equal

    @property
    def conclusive(self) -> bool:
        """Whether enough steps are compared to show something."""
        count = int(self.compared.sum())
        return count > 0 and count >= LEAST_SHARE * int(self.clear.sum())
