"""A port under test with HF's model of it, on the device, and what HF computes for its inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.verify.close_calls import clear_lengths, routers
from trtllm_scaffold.verify.harness import Driver, Setup, build_model
from trtllm_scaffold.verify.parity import Case, Inputs, reference_logits
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.port_module import (
    load_config,
    quiet,
    read_checkpoint,
    reference_model,
    rounded_to,
    save_checkpoint,
)
from trtllm_scaffold.verify.scenarios import Regime

from .batches import involved, scenarios
from .errors import Compared
from .sizes import Sizes, regimes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(repr=False)
class Reference:
    """HF's model of one family, shared by the ports of both generations.

    Attributes:
        config: The HF configuration.
        path: Its file.
        model: HF's, fp32, random parameters, on the device.
        folder: Where its checkpoint lies.
        weights: The checkpoint as read back, on the CPU.
        sequences: Token ids of each regime's sequences, on the CPU, the long one first.
    """

    config: Any
    path: Path
    model: nn.Module
    folder: Path
    weights: dict[str, torch.Tensor]
    sequences: dict[str, list[torch.Tensor]]
    regimes: dict[str, Regime]
    twins: dict[str, nn.Module] = field(default_factory=dict)
    logits: dict[tuple[str, str, int], torch.Tensor] = field(default_factory=dict)
    decoded: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    def twin(self, dtype: str) -> nn.Module:
        """HF's model in a dtype, with the same parameters."""
        if dtype == "fp32":
            return self.model
        if dtype not in self.twins:
            with quiet():
                self.twins[dtype] = rounded_to(self.model, DTYPES[dtype])
        return self.twins[dtype]

    def expected(self, dtype: str, regime: str, who: int) -> torch.Tensor:
        """HF's logits [n, vocab_size] of a whole sequence, fp32, on the device."""
        key = (dtype, regime, who)
        if key not in self.logits:
            self.logits[key] = self.forward(dtype, self.sequences[regime][who])
        return self.logits[key]

    def forward(self, dtype: str, tokens: torch.Tensor) -> torch.Tensor:
        """HF's logits [n, vocab_size] of any tokens [n], without a cache."""
        device = next(self.model.parameters()).device
        return reference_logits(self.twin(dtype), tokens.to(device))

    def stepwise(self, tokens: torch.Tensor, start: int) -> torch.Tensor:
        """HF's fp32 logits from position `start` - 1 on, the tokens from `start` on one by one.

        What HF computes with its cache. Both generations mostly generate the same tokens.
        """
        key = (start, *tokens.tolist())
        if key not in self.decoded:
            ids = tokens.to(next(self.model.parameters()).device)[None]
            with torch.inference_mode():
                out = self.model(ids[:, :start], use_cache=True)
                found = [out.logits[0, -1]]
                for place in range(start, len(tokens)):
                    token, cache = ids[:, place : place + 1], out.past_key_values
                    out = self.model(token, past_key_values=cache, use_cache=True)
                    found.append(out.logits[0, -1])
            self.decoded[key] = torch.stack(found).float()
        return self.decoded[key]


@contextmanager
def make_reference(path: Path, sizes: Sizes, seed: int = 0) -> Iterator[Reference]:
    """Build HF's model of a configuration, store its checkpoint and draw its inputs."""
    config = load_config(path)
    with quiet(), tempfile.TemporaryDirectory(prefix="trtllm-scaffold-") as folder:
        model = reference_model(config, seed)
        save_checkpoint(model, Path(folder))
        weights = read_checkpoint(Path(folder))
        found = {regime.name: regime for regime in regimes(config, sizes)}
        generator = torch.Generator().manual_seed(seed + 1)
        sequences = {
            name: [
                torch.randint(0, config.vocab_size, (length,), generator=generator)
                for length in _lengths(regime, sizes)
            ]
            for name, regime in found.items()
        }
        model = model.to(sizes.device)
        yield Reference(config, path, model, Path(folder), weights, sequences, found)


def _lengths(regime: Regime, sizes: Sizes) -> list[int]:
    first, *others = regime.prompts
    return [first + sizes.decode, *(prompt + sizes.steps for prompt in others)]


@dataclass(repr=False)
class Subject:
    """A port, imported for its generation.

    Attributes:
        files: The port.
        family: Its family.
        generation: What the stand-in plays.
        sizes: How much is run.
        reference: HF's side.
    """

    files: PortFiles
    family: str
    generation: str
    sizes: Sizes
    reference: Reference
    models: dict[tuple[str, int], Any] = field(default_factory=dict)
    clear: dict[str, list[int]] = field(default_factory=dict)

    @property
    def own_attention(self) -> bool:
        """Whether the port carries an attention path of its own (support level reference)."""
        return bool(self.files.answers.get("attention_reference"))

    def setup(self, dtype: str, regime: str, room: int | None = None) -> Setup:
        """How the port is built and run."""
        longest = max(len(tokens) for tokens in self.reference.sequences[regime])
        limit = self.reference.regimes[regime].max_seq_len
        return Setup(limit, "TRTLLM", DTYPES[dtype], self.sizes.device, room=room or longest)

    def model(self, dtype: str, regime: str) -> Any:
        """The port's model, built once for each dtype and engine length."""
        setup = self.setup(dtype, regime)
        key = (dtype, setup.max_seq_len)
        if key not in self.models:
            with quiet():
                self.models[key] = build_model(self.reference.config, self.reference.weights, setup)
        return self.models[key]

    @contextmanager
    def driver(self, dtype: str, regime: str, sequences: list[torch.Tensor]) -> Iterator[Driver]:
        """The port with a cache that has room for each of `sequences`."""
        setup = self.setup(dtype, regime, max(len(tokens) for tokens in sequences))
        with Driver(self.model(dtype, regime), setup, max_requests=len(sequences)) as driver:
            yield driver

    def compared(self, dtype: str, scenario: str) -> list[Compared]:
        """Run a scenario in every regime.

        In 16 bits a model with routers is judged by a statistic over sequences: it runs them all.
        """
        found = []
        for regime, sequences in self.reference.sequences.items():
            every = dtype != "fp32" and self.routed(regime)
            given = involved(scenario, sequences, every)
            with quiet(), self.driver(dtype, regime, given) as driver:
                results = list(scenarios(self.sizes, every)[scenario](driver, given))
            found += [self._compare(dtype, regime, *result) for result in results]
        return found

    def _compare(
        self, dtype: str, regime: str, who: int, start: int, logits: torch.Tensor
    ) -> Compared:
        exact = self.reference.expected("fp32", regime, who)
        places = slice(start, start + len(logits))
        noisy = exact if dtype == "fp32" else self.reference.expected(dtype, regime, who)
        clear = len(exact)
        if dtype == "fp32" and self.routed(regime):
            clear = self._clear_lengths(regime)[who]
        return Compared(
            found=logits.to(exact.device),
            exact=exact[places],
            noisy=noisy[places],
            clear=max(0, clear - start),
            sequence=(regime, who),
        )

    def routed(self, regime: str) -> bool:
        """Whether the model chooses experts."""
        return bool(routers(self.model("fp32", regime)))

    def _clear_lengths(self, regime: str) -> list[int]:
        if regime not in self.clear:
            setup = replace(self.setup("fp32", regime))
            sequences = self.reference.sequences[regime]
            with quiet():
                self.clear[regime] = clear_lengths(self.model("fp32", regime), setup, sequences)
        return self.clear[regime]

    def case(self, regime: str, sequences: list[torch.Tensor]) -> Case:
        """The same port for the checks of `verify`, on the first of its regimes."""
        made = Inputs(self.reference.regimes[regime], sequences, [])
        case = Case(
            self.reference.path,
            self.files.package,
            self.reference.config,
            self.reference.model,
            self.reference.folder,
            self.reference.weights,
            [made],
            device=self.sizes.device,
            backends=("TRTLLM",),
        )
        limit = self.reference.regimes[regime].max_seq_len
        case.models[("TRTLLM", limit, torch.float32)] = self.model("fp32", regime)
        return case
