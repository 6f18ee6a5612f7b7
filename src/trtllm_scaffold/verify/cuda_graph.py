"""CUDA graphs: a captured decode step, replayed on new tokens, gives the eager step's logits."""

from __future__ import annotations

from typing import Any

import torch

from trtllm_scaffold.verify.expected_mla import reads_latents_itself
from trtllm_scaffold.verify.harness import Driver, Piece
from trtllm_scaffold.verify.locate import relative_error
from trtllm_scaffold.verify.parity import BACKENDS, FP32_BOUND, Case, Inputs
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.port_module import finding, quiet
from trtllm_scaffold.verify.report import Check, verdict
from trtllm_scaffold.verify.scenarios import STEPS

#: Forward passes before the capture, so that lazy allocations are not captured.
_WARM_UPS = 2


def is_capturable(files: PortFiles) -> bool:
    """Whether a port's decode step can be captured: not where its own attention asks the host.

    An attention of its own does not where there is a kernel for it beside the plain formula.
    """
    own = bool(files.answers.get("attention_reference"))
    has_kernel = (files.package / "attention_kernel.py").is_file()
    return not reads_latents_itself(files.answers) and (has_kernel or not own)


def check_cuda_graph(case: Case) -> Check:
    """Capture the decode step of two sequences and replay it for `STEPS` tokens each."""
    inputs = case.inputs[0]
    problems: list[str] = []
    measured: dict[str, Any] = {"replays": 0}
    try:
        with quiet(), torch.inference_mode():
            errors = _replayed_errors(case, inputs)
        measured = {"replays": len(errors), "relative_error": max(errors)}
        if not max(errors) <= FP32_BOUND:
            problems.append(
                f"replayed logits differ by {max(errors):.2e}, allowed {FP32_BOUND:.0e}: "
                "something that changes from step to step was captured as a constant"
            )
    except Exception as error:  # whatever the port raises is a finding about the port
        problems.append(f"the decode step cannot be captured: {finding(error, case.package)}")
    return verdict("CUDA graph", problems, measured=measured, bound={"relative_error": FP32_BOUND})


def _replayed_errors(case: Case, inputs: Inputs) -> list[float]:
    """Error of each replay against the same step run eagerly."""
    setup = case.setup(inputs, BACKENDS[0])
    sequences = inputs.sequences[:2]
    prompts = [len(tokens) - STEPS for tokens in sequences]
    errors = []
    with Driver(case.model(setup), setup) as driver:
        driver.reserve({who: len(tokens) for who, tokens in enumerate(sequences)})
        driver.forward(
            [Piece(who, tokens[: prompts[who]], 0, True) for who, tokens in enumerate(sequences)]
        )
        step = CapturedStep(driver, _pieces(sequences, prompts, 0))
        for count in range(STEPS):
            pieces = _pieces(sequences, prompts, count)
            logits = step.replay(pieces)
            for found, expected in zip(logits, driver.forward(pieces), strict=True):
                errors.append(relative_error(found, expected[0]))
    return errors


def _pieces(sequences: list[torch.Tensor], prompts: list[int], count: int) -> list[Piece]:
    """The decode step `count` of every sequence."""
    return [
        Piece(who, tokens[start + count : start + count + 1], start + count, False)
        for who, (tokens, start) in enumerate(zip(sequences, prompts, strict=True))
    ]


class CapturedStep:
    """A decode step in a CUDA graph, with the tensors it reads and the logits it writes.

    Make and replay it in inference mode, while the cache holds what comes before the step.
    """

    def __init__(self, driver: Driver, pieces: list[Piece]) -> None:
        self.driver = driver
        self.metadata = driver.metadata(pieces).create_cuda_graph_metadata(len(pieces))
        self.tokens, self.positions = driver.packed(pieces)
        self._write(pieces)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._forward()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self._forward()

    def _forward(self) -> torch.Tensor:
        logits: torch.Tensor = self.driver.model.forward(
            attn_metadata=self.metadata, input_ids=self.tokens, position_ids=self.positions
        )
        return logits

    def _write(self, pieces: list[Piece]) -> None:
        """Put a step's tokens, positions and cached lengths where the graph reads them."""
        tokens, positions = self.driver.packed(pieces)
        self.tokens.copy_(tokens)
        self.positions.copy_(positions)
        fresh = self.driver.metadata(pieces)
        for name in ("kv_cache_params", "request_ids", "prompt_lens"):
            setattr(self.metadata, name, getattr(fresh, name))
        self.metadata.prepare()

    def replay(self, pieces: list[Piece]) -> torch.Tensor:
        """Logits [sequences, vocab_size] of another step, on the CPU."""
        self._write(pieces)
        self.graph.replay()
        torch.cuda.synchronize()
        return self.logits.float().cpu()
