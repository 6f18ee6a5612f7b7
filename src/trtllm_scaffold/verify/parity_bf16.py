"""Parity in bf16: a port rounds no worse than its HF model does."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from trtllm_scaffold.errors import CheckFailed, EnvironmentProblem
from trtllm_scaffold.verify.close_calls import BF16_MARGIN, first_call, noted, short_sequences
from trtllm_scaffold.verify.harness import Driver, build_model
from trtllm_scaffold.verify.parity import BACKENDS, Case, finite, reference_logits
from trtllm_scaffold.verify.port_module import (
    describe,
    finding,
    quiet,
    read_checkpoint,
    reference_model,
    rounded_to,
    save_checkpoint,
)
from trtllm_scaffold.verify.report import Check, skipped, verdict
from trtllm_scaffold.verify.scenarios import prefill

#: RMS error of the port in bf16, relative to that of HF in bf16, both against HF in fp32.
BF16_BOUND = 1.25

_BF16_SEEDS = (11, 12, 13)


def check_bf16(cases: Sequence[Case]) -> Check:
    """Compare the port's bf16 error with HF's own, both against HF in fp32.

    The statistic is the RMS error over every logit of every sequence, pooled over seeds that
    draw new weights: a maximum would compare two single unlucky roundings.
    """
    problems: list[str] = []
    ratios: dict[str, float] = {}
    for case in cases:
        try:
            with quiet():
                ours, theirs = _bf16_errors(case)
        except EnvironmentProblem as problem:
            return skipped("parity bf16", str(problem))
        except Exception as error:  # whatever the port raises is a finding about the port
            problems.append(f"{case.path.name}: {finding(error, case.package)}")
            continue
        ratio = ours / theirs if theirs else math.inf
        ratios[case.path.name] = ratio if ratio == ratio else math.inf
        if not ratio <= BF16_BOUND:
            problems.append(
                f"{case.path.name}: RMS error {ours:.3e} in bf16, HF's own is {theirs:.3e}"
            )
    measured = {
        "error_ratio": max(ratios.values(), default=math.inf),
        "statistic": f"RMS over all logits, {len(_BF16_SEEDS)} seeds",
        "by_config": ratios,
    }
    return verdict(
        "parity bf16", problems, measured=finite(measured), bound={"error_ratio": BF16_BOUND}
    )


def _bf16_errors(case: Case) -> tuple[float, float]:
    """RMS error of the port and of HF, in bf16, against HF in fp32."""
    ours = theirs = 0.0
    count = 0
    for seed in _BF16_SEEDS:
        reference = reference_model(case.config, seed)
        rounded = rounded_to(reference, torch.bfloat16)
        weights = _stored(reference, case.package)
        for inputs in case.inputs:
            setup = case.setup(inputs, BACKENDS[0], torch.bfloat16)
            model = build_model(case.config, weights, setup)
            for tokens in short_sequences(model, inputs.sequences):
                with noted(model, BF16_MARGIN) as calls, Driver(model, setup) as driver:
                    ((_, _, found),) = prefill(driver, [tokens])
                clear = first_call(calls, len(tokens))
                exact = reference_logits(reference, tokens)
                noisy = _rounded_logits(rounded, tokens)
                ours += float((found - exact)[:clear].square().sum())
                theirs += float((noisy - exact)[:clear].square().sum())
                count += exact[:clear].numel()
    if not count:
        raise CheckFailed("close calls leave nothing to compare")
    return math.sqrt(ours / count), math.sqrt(theirs / count)


def _rounded_logits(rounded: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """HF's logits in bf16, the noise that the port is measured by.

    Raises:
        EnvironmentProblem: HF's own code does not run in bf16.
    """
    try:
        return reference_logits(rounded, tokens)
    except Exception as error:  # the model's own code raises whatever it likes
        raise EnvironmentProblem(f"HF's own model fails in bf16: {describe(error)}") from error


def _stored(reference: nn.Module, package: Path) -> dict[str, torch.Tensor]:
    with quiet(), tempfile.TemporaryDirectory(prefix="trtllm-scaffold-") as folder:
        save_checkpoint(reference, Path(folder), package)
        return read_checkpoint(Path(folder))
