"""A pool of gloo processes that build and run one rank of a hand-written model."""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
from pathlib import Path


class Pool:
    """``size`` processes of one process group, kept alive between jobs."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = str(Path(self._folder.name) / "meeting")
        self._pipes, self._processes = [], []
        for rank in range(size):
            mine, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, rank, size, meeting))
            process.start()
            self._pipes.append(mine)
            self._processes.append(process)

    def run(self, job, *args):
        """``job(rank, *args)`` in every process; the results in rank order."""
        for pipe in self._pipes:
            pipe.send((job, args))
        answers = []
        for pipe in self._pipes:
            if not pipe.poll(120):
                raise TimeoutError("a worker did not answer in two minutes")
            answers.append(pipe.recv())
        for failed, answer in answers:
            if failed:
                raise AssertionError(answer)
        return [answer for _, answer in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


def _serve(pipe, rank: int, size: int, meeting: str) -> None:
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size
    )
    while (message := pipe.recv()) is not None:
        job, args = message
        try:
            pipe.send((False, job(rank, *args)))
        except Exception:
            pipe.send((True, f"rank {rank}: {traceback.format_exc()}"))
    torch.distributed.destroy_process_group()


def generate(rank: int, gen: str, case: str, backend: str, layout: dict, plan: dict):
    """Prefill, decode and a mixed batch on one rank; the logits of each step."""
    import copy

    import torch

    from .families import CASES
    from .harness import Driver, ports, randomise

    file, name, family = CASES[case]
    cls = getattr(ports(gen, file), name)
    from tensorrt_llm._torch.model_config import ModelConfig
    from tensorrt_llm.mapping import Mapping

    config, hf_class = family(**plan.get("changes", {}))
    hf = randomise(hf_class(config))
    config = copy.deepcopy(config)
    config.torch_dtype = torch.float32
    mapping = Mapping(rank=rank, **layout)
    model_config = ModelConfig(pretrained_config=config, attn_backend=backend, mapping=mapping)
    model = cls(model_config).eval()
    if plan.get("mapper"):
        from tensorrt_llm._torch.models.checkpoints.auto_mapper import AutoCheckpointMapper

        mapper = AutoCheckpointMapper.get("HF", name)
        mapper.init_model_and_config(model, model_config)
        model.load_weights(hf.state_dict(), mapper)
    else:
        model.load_weights(hf.state_dict())
    driver = Driver(model, backend)
    driver.add(*[(request, 40) for request in plan["requests"]])
    return [
        driver.step(contexts, generations, all_logits=True).numpy()
        for contexts, generations in plan["steps"]
    ]
