"""Parity: at every position of every scenario a port gives the logits of its HF model."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.verify.close_calls import (
    clear_lengths,
    clear_part,
    too_few,
)
from trtllm_scaffold.verify.harness import Driver, Setup, build_model
from trtllm_scaffold.verify.locate import compare_stages, first_departure
from trtllm_scaffold.verify.port_module import (
    describe,
    finding,
    load_config,
    quiet,
    read_checkpoint,
    reference_model,
    save_checkpoint,
)
from trtllm_scaffold.verify.report import Check, LayerErrors, verdict
from trtllm_scaffold.verify.scenarios import (
    SCENARIOS,
    Regime,
    make_sequences,
    regimes,
)

#: Largest logit error, relative to max(1, max |logit|).
FP32_BOUND = 1e-4

#: Most draws of a sequence that is to have no close call.
DRAWS = 8

#: RoPE fused into attention, and applied by the module: they read different arguments.
BACKENDS = ("TRTLLM", "VANILLA")


@dataclass(frozen=True)
class Inputs:
    """Sequences of one regime and HF's logits [tokens, vocab_size] of each."""

    regime: Regime
    sequences: list[torch.Tensor]
    expected: list[torch.Tensor]


@dataclass
class Case:
    """One tiny configuration with its HF model and stored checkpoint.

    Attributes:
        path: The configuration file.
        package: The port's package folder.
        config: The HF configuration.
        reference: HF's model, fp32, random parameters.
        folder: Where its checkpoint lies.
        weights: The checkpoint as read back.
        inputs: Per regime.
        device: Where the port runs; the reference stays on the CPU.
        dtype: Of the port where a check does not name one.
        backends: Attention backends that have what the port needs.
    """

    path: Path
    package: Path
    config: Any
    reference: nn.Module
    folder: Path
    weights: dict[str, torch.Tensor]
    inputs: list[Inputs]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    backends: tuple[str, ...] = BACKENDS
    models: dict[tuple[str, int, torch.dtype], Any] = field(default_factory=dict)
    clear: dict[str, list[int]] = field(default_factory=dict)

    def setup(self, inputs: Inputs, backend: str, dtype: torch.dtype | None = None) -> Setup:
        """How to build and run the port for `inputs`."""
        room = max(len(tokens) for tokens in inputs.sequences)
        limit = inputs.regime.max_seq_len
        return Setup(limit, backend, dtype or self.dtype, self.device, room=room)

    def model(self, setup: Setup) -> Any:
        """The port, built once for each backend, engine length and dtype."""
        key = (setup.backend, setup.max_seq_len, setup.dtype)
        if key not in self.models:
            self.models[key] = build_model(self.config, self.weights, setup)
        return self.models[key]

    def clear_lengths(self, inputs: Inputs) -> list[int]:
        """How many positions of each sequence come before its first close call of a router."""
        name = inputs.regime.name
        if name not in self.clear:
            setup = self.setup(inputs, self.backends[0])
            self.clear[name] = clear_lengths(self.model(setup), setup, inputs.sequences)
        return self.clear[name]

    def avoid_close_calls(self, seed: int = 0) -> None:
        """Draw sequences again whose choices come close early, and keep the longest clear ones.

        Where the first close call is, is the luck of the draw, and may differ by machine where a
        call is close to being close. The port's errors are not looked at.
        """
        for place in range(len(self.inputs)):
            for draw in range(1, DRAWS):
                if not self._redraw(place, seed + 1000 * draw):
                    break

    def _redraw(self, place: int, seed: int) -> bool:
        """Draw each sequence that has a close call once more; False where none has."""
        inputs = self.inputs[place]
        lengths = self.clear_lengths(inputs)
        poor = [who for who, tokens in enumerate(inputs.sequences) if lengths[who] < len(tokens)]
        if not poor:
            return False
        drawn = make_sequences(inputs.regime, int(self.config.vocab_size), seed + 1)
        setup = self.setup(inputs, self.backends[0])
        found = clear_lengths(self.model(setup), setup, [drawn[who] for who in poor])
        sequences, expected = list(inputs.sequences), list(inputs.expected)
        for who, length in zip(poor, found, strict=True):
            if length > lengths[who]:
                sequences[who], lengths[who] = drawn[who], length
                expected[who] = reference_logits(self.reference, drawn[who])
        self.inputs[place] = Inputs(inputs.regime, sequences, expected)
        return True


@contextlib.contextmanager
def make_case(
    path: Path,
    package: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Iterator[Case]:
    """Build HF's model of the tiny configuration `path`, store it and run it on every input.

    Raises:
        InputError: If the configuration is unreadable or too short for its own windows.
        EnvironmentProblem: If HF cannot build or run it.
    """
    config = load_config(path)
    with quiet(), tempfile.TemporaryDirectory(prefix="trtllm-scaffold-") as folder:
        reference = reference_model(config, seed)
        save_checkpoint(reference, Path(folder), package)
        case = Case(
            path, package, config, reference, Path(folder), read_checkpoint(Path(folder)), []
        )
        case.device, case.dtype = device, dtype
        for regime in regimes(config):
            sequences = make_sequences(regime, int(config.vocab_size), seed + 1)
            expected = [reference_logits(reference, tokens) for tokens in sequences]
            case.inputs.append(Inputs(regime, sequences, expected))
        yield case


def reference_logits(reference: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """HF's logits [n, vocab_size] in fp32 for `tokens` [n], without a cache."""
    with torch.inference_mode():
        logits: torch.Tensor = reference(input_ids=tokens[None]).logits[0]
    return logits.float()


def check_scenario(cases: Sequence[Case], name: str) -> Check:
    """Run one of `SCENARIOS` for every case, regime and backend in fp32."""
    problems: list[str] = []
    errors: dict[str, float] = {}
    positions = longest = kept_out = 0
    for case in cases:
        for inputs in case.inputs:
            longest = max(longest, *(len(tokens) for tokens in inputs.sequences))
            for backend in case.backends:
                title = " ".join(filter(None, (case.path.name, inputs.regime.name, backend)))
                error, count, left_out, problem = _run(case, inputs, backend, name)
                errors[title], positions = error, positions + count
                kept_out += left_out
                if problem:
                    problems.append(f"{title}: {problem}")
    measured = {
        "relative_error": max(errors.values(), default=math.inf),
        "positions": positions,
        "longest_sequence": longest,
        **({"kept_out_as_close_calls": kept_out} if kept_out else {}),
        "by_run": errors,
    }
    return verdict(
        f"parity fp32 {name}",
        list(dict.fromkeys(problems)),
        measured=finite(measured),
        bound={"relative_error": FP32_BOUND},
        shown=2,
    )


def _run(case: Case, inputs: Inputs, backend: str, name: str) -> tuple[float, int, int, str]:
    """Largest relative error, positions compared and kept out, and what went wrong."""
    setup = case.setup(inputs, backend)
    worst, count, kept_out = 0.0, 0, 0
    try:
        with quiet():
            model, clear = case.model(setup), case.clear_lengths(inputs)
            with Driver(model, setup) as driver:
                for who, start, logits in SCENARIOS[name](driver, inputs.sequences):
                    expected = inputs.expected[who][start : start + len(logits)]
                    if logits.shape != expected.shape:
                        shapes = f"{list(logits.shape)}, HF gives {list(expected.shape)}"
                        text = f"the port gives logits {shapes}"
                        return math.inf, count, kept_out, text
                    kept = clear_part(clear[who], start, logits)
                    kept_out += len(logits) - len(kept)
                    count += len(kept)
                    worst = max(worst, _error(kept, expected, inputs.expected[who]))
    except Exception as error:  # whatever the port raises is a finding about the port
        return math.inf, count, kept_out, finding(error, case.package)
    problem = too_few(count, count + kept_out)
    if worst > FP32_BOUND:
        problem = _explain(case, inputs, backend, worst)
    return worst, count, kept_out, problem


def _error(kept: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> float:
    """Largest error of `kept` against the first of `expected`, relative to the largest logit."""
    if not len(kept):
        return 0.0
    error = float((kept - expected[: len(kept)]).abs().max())
    error /= max(1.0, float(scale.abs().max()))
    return error if error == error else math.inf


def _explain(case: Case, inputs: Inputs, backend: str, worst: float) -> str:
    """Say how far the logits are off, and which module leaves HF's first."""
    text = f"logits differ by {worst:.2e} of the largest, allowed {FP32_BOUND:.0e}"
    try:
        departure = first_departure(layer_errors(case, inputs, backend))
    except Exception as error:  # the search must not hide what it searches for
        return f"{text}; no layer could be compared ({describe(error)})"
    if departure:
        return f"{text}; the first to leave HF's is {departure}"
    return f"{text}; a plain prefill agrees, so look at the cache, positions and lengths"


def layer_errors(case: Case, inputs: Inputs, backend: str) -> LayerErrors:
    """Distance from HF after each stage of one prefill."""
    setup = case.setup(inputs, backend)
    title = " ".join(filter(None, (case.path.name, inputs.regime.name, f"{backend} backend")))
    with quiet(), Driver(case.model(setup), setup) as driver:
        return compare_stages(
            driver, case.reference, inputs.sequences[0], title=title, bound=FP32_BOUND
        )


def finite(measured: dict[str, Any]) -> dict[str, Any]:
    """`measured` with infinities as None: JSON has no word for them."""
    found: dict[str, Any] = {}
    for key, value in measured.items():
        if isinstance(value, dict):
            value = finite(value)
        elif isinstance(value, float) and not math.isfinite(value):
            value = None
        found[key] = value
    return found
