"""`prove`: run every check on a port and hand back one report."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import CheckFailed, EnvironmentProblem, InputError
from trtllm_scaffold.targets.contract import GENERATIONS
from trtllm_scaffold.threads import one_thread
from trtllm_scaffold.verify.check import check_port
from trtllm_scaffold.verify.contract import generations_to_check
from trtllm_scaffold.verify.pool import WorkerPool, warm_pool
from trtllm_scaffold.verify.port_files import PortFiles, read_port
from trtllm_scaffold.verify.report import Check, LayerErrors, ProofReport, skipped, verdict
from trtllm_scaffold.verify.split import Split

Progress = Callable[[str], Any]

_NO_RANKS = "the ranks of the real runtime need a GPU each: prove it with --runtime standin"
_NO_FP32 = "the kernels of the real runtime know 16-bit types only: prove it on the stand-in"
_NO_CAPTURE = "this port's own attention reads lengths on the host, which no CUDA graph can hold"
#: Rotary scalings that latent attention has in both generations.
_BOTH = ("", "yarn")
_DTYPES = ("float32", "bfloat16", "both")


def prove_port(
    port: Path,
    *,
    checkpoint: Path | None = None,
    tp: Sequence[int] = (1, 2),
    device: str = "cpu",
    dtype: str = "both",
    runtime: str = "auto",
    trtllm: str | None = None,
    progress: Progress | None = None,
    pool: WorkerPool | None = None,
) -> ProofReport:
    """Prove the port in folder `port` against its HF model.

    Args:
        port: What ``trtllm-scaffold new`` wrote.
        checkpoint: A folder with a real checkpoint: its headers replace the recorded shapes in
            the load proof. Its weights are not read.
        tp: Tensor-parallel sizes to compare with one process; PP 2 is always tried.
        device: ``cpu`` or ``cuda``.
        dtype: ``float32`` or ``bfloat16`` leaves the parity checks of the other out.
        runtime: ``auto``, ``standin`` or ``tensorrt_llm``.
        trtllm: The generation to prove for; the port's own where it is None.
        progress: Told what is being checked.
        pool: Worker processes to use, left open; without one the
            `warm_up` ones serve, or new ones that are ended here.

    Returns:
        The report. What a port does wrong is a failed check, never an exception.

    Raises:
        InputError: If `port` is not a port.
        UsageError: If an option makes no sense.
        EnvironmentProblem: If the runtime or HF is missing.
    """
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", hint=f"one of {', '.join(_DTYPES)}")
    tell = progress or (lambda _text: None)
    files = read_port(port)
    generation = generations_to_check(files, trtllm)[0]
    with _workers(pool, tp, runtime) as workers:  # first: they start while we read and import
        tell("contract and load proof")
        checks = check_port(port, checkpoint=checkpoint, trtllm=generation)
        proof = _Proof(files, generation, runtime, device, tuple(tp), dtype, tell)
        checks += proof.run(workers)
    return ProofReport(
        port=str(port),
        runtime=proof.runtime,
        device=_device_name(device),
        reference=_reference(),
        checks=tuple(checks),
        layers=tuple(proof.layers),
    )


@contextlib.contextmanager
def _workers(
    given: WorkerPool | None, tp: Sequence[int], runtime: str
) -> Iterator[WorkerPool | None]:
    """The pool to use. None for the real runtime, whose ranks need a GPU each.

    The ranks of the stand-in run on the CPU, whatever the device of the other checks.
    """
    # One more than the ranks of the largest job: a worker that has never seen the port.
    size = max(2, *tp) + 1
    if given is not None or runtime == "tensorrt_llm":
        yield given
    elif (warm := warm_pool(size)) is not None:
        yield warm
    else:
        with WorkerPool(size) as pool:
            yield pool


class _Proof:
    """The checks that run a port, in order, and what they leave behind for the report."""

    def __init__(
        self,
        files: PortFiles,
        generation: str,
        runtime: str,
        device: str,
        tp: tuple[int, ...],
        dtype: str,
        tell: Progress,
    ) -> None:
        self.files, self.generation, self.choice = files, generation, runtime
        self.device, self.tp, self.dtype, self.tell = device, tp, dtype, tell
        self.runtime: dict[str, str] = {}
        self.layers: list[LayerErrors] = []

    def run(self, workers: WorkerPool | None) -> list[Check]:
        """Every check that needs the runtime."""
        import torch

        from trtllm_scaffold.verify.parity import make_case
        from trtllm_scaffold.verify.port_module import forget_port, import_port
        from trtllm_scaffold.verify.runtime import start_runtime

        if self.device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentProblem("no CUDA device", hint="use --device cpu")
        runtime = start_runtime(self.choice, self.generation, self.device)
        self.runtime = runtime.to_json()
        self.tell("import")
        try:
            import_port(self.files.package)
        except CheckFailed as error:
            return [verdict("import", [str(error)])]
        configs = self.files.tiny_configs
        if not configs:
            return [verdict("parity fp32", ["tests/configs holds no tiny configuration"])]
        checks: list[Check] = []
        with contextlib.ExitStack() as stack:
            stack.enter_context(one_thread())
            dtype = torch.float32 if runtime.name == "standin" else torch.bfloat16
            try:
                cases = [
                    stack.enter_context(
                        make_case(path, self.files.package, device=self.device, dtype=dtype)
                    )
                    for path in configs
                ]
            except (InputError, CheckFailed) as error:
                return [verdict("reference", [str(error)])]
            if self._needs_trtllm():
                for case in cases:
                    case.backends = ("TRTLLM",)
            checks += self._registration(workers, runtime.name)
            checks += self._parity(cases, runtime.name)
            self._compare_layers(cases)
            checks += self._rules(cases[0])
            checks += self._parallel(workers, cases, runtime.name)
        forget_port(self.files.package)
        return checks

    def _needs_trtllm(self) -> bool:
        """The library has sinks on its TRTLLM backend alone, and in 1.2 latent attention too."""
        latent = self.files.answers.get("attention_base") == "MLA" and self.generation == "1.2"
        return bool(self.files.answers.get("attention_sinks")) or latent

    def _registration(self, workers: WorkerPool | None, runtime: str) -> list[Check]:
        from trtllm_scaffold.verify.rules import check_registration

        if workers is None or runtime != "standin":
            return [skipped("registration", _NO_RANKS)]
        self.tell("registration in a fresh process")
        config = self.files.tiny_configs[0]
        package, known = self.files.package, self._generations()
        return [check_registration(workers, package, config, runtime, known)]

    def _generations(self) -> tuple[str, ...]:
        """Those whose runtime builds the port: it imports on both."""
        answers = self.files.answers
        if answers.get("attention_base") == "MLA" and answers.get("rope_scaling") not in _BOTH:
            return (self.generation,)
        return GENERATIONS

    def _parity(self, cases: Sequence[Any], runtime: str) -> list[Check]:
        from trtllm_scaffold.verify.parity import check_scenario
        from trtllm_scaffold.verify.parity_bf16 import check_bf16
        from trtllm_scaffold.verify.port_module import quiet
        from trtllm_scaffold.verify.scenarios import SCENARIOS

        checks: list[Check] = []
        if runtime == "standin":
            with quiet(), contextlib.suppress(Exception):  # the checks meet it again, and say so
                for case in cases:
                    case.avoid_close_calls()
        for name in SCENARIOS:
            if self.dtype == "bfloat16" or runtime != "standin":
                why = "--dtype bfloat16 leaves it out" if runtime == "standin" else _NO_FP32
                checks.append(skipped(f"parity fp32 {name}", why))
                continue
            self.tell(f"parity fp32, {name}")
            checks.append(check_scenario(cases, name))
        if self.dtype == "float32":
            checks.append(skipped("parity bf16", "--dtype float32 leaves it out"))
        else:
            self.tell("parity bf16")
            checks.append(check_bf16(cases))
        return checks

    def _compare_layers(self, cases: Sequence[Any]) -> None:
        """What the report's plots show; a port that cannot run has failed its checks already."""
        from trtllm_scaffold.verify.parity import BACKENDS, layer_errors
        from trtllm_scaffold.verify.port_module import finding

        for case in cases:
            for inputs in case.inputs:
                try:
                    self.layers.append(layer_errors(case, inputs, BACKENDS[0]))
                except Exception as error:  # whatever the port raises is a finding about it
                    reason = finding(error, self.files.package)
                    self.tell(f"{case.path.name}: no layers to compare: {reason}")

    def _rules(self, case: Any) -> list[Check]:
        from trtllm_scaffold.verify.cuda_graph import check_cuda_graph, is_capturable
        from trtllm_scaffold.verify.rules import check_lora, check_meta_init

        self.tell("runtime rules")
        checks = [check_meta_init(case), check_lora(case)]
        if self.files.answers.get("wrapper_config"):
            from trtllm_scaffold.verify.whole_model import check_whole_model

            checks.append(check_whole_model(case, self.files))
        if self.device == "cpu":
            return [*checks, skipped("CUDA graph", "needs a CUDA device")]
        if not is_capturable(self.files):
            return [*checks, skipped("CUDA graph", _NO_CAPTURE)]
        return [*checks, check_cuda_graph(case)]

    def _parallel(
        self, workers: WorkerPool | None, cases: Sequence[Any], runtime: str
    ) -> list[Check]:
        splits = self._splits()
        names = [split.name for split in splits]
        if workers is None or runtime != "standin":
            return [skipped(name, _NO_RANKS) for name in names]
        from trtllm_scaffold.verify.parallel import check_parallel, jobs_for
        from trtllm_scaffold.verify.port_module import finding

        try:
            jobs = jobs_for(cases, runtime, self.generation)
        except Exception as error:  # whatever the port raises is a finding about the port
            text = f"one process fails already: {finding(error, self.files.package)}"
            return [verdict(name, [text]) for name in names]
        checks = []
        for split in splits:
            self.tell(split.name)
            checks.append(check_parallel(workers, jobs, split))
        return checks

    def _splits(self) -> list[Split]:
        """Tensor parallelism, experts shared out and attention data parallelism, pipelines."""
        sizes = sorted({size for size in self.tp if size > 1})
        splits = [Split(tp_size=size) for size in sizes]
        if self.files.answers.get("moe"):
            splits += [Split(tp_size=size, ep_size=size) for size in sizes]
            splits += [Split(tp_size=size, ep_size=size, attention_dp=True) for size in sizes[:1]]
        return [*splits, Split(pp_size=2)]


def _device_name(device: str) -> str:
    if device == "cpu":
        return "cpu"
    import torch

    return f"{device} ({torch.cuda.get_device_name()})"


def _reference() -> dict[str, str]:
    import torch
    import transformers

    return {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
