"""LLM: load a folder and generate greedily, with the signature of the real class."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trtllm_scaffold.errors import EnvironmentProblem, InputError
from trtllm_scaffold.standin.executor.engine import Engine
from trtllm_scaffold.standin.executor.model_loader import load_model
from trtllm_scaffold.standin.executor.sequence import Sequence
from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.llm_args import EngineArgs, KvCacheConfig, engine_args
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.sampling import SamplingParams


@dataclass
class CompletionOutput:
    """One generated continuation."""

    index: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    generation_logits: torch.Tensor | None = None

    @property
    def length(self) -> int:
        """New tokens."""
        return len(self.token_ids)


@dataclass
class RequestOutput:
    """What ``generate`` returns per prompt."""

    request_id: int
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    context_logits: torch.Tensor | None = None
    finished: bool = True

    def result(self, timeout: float | None = None) -> RequestOutput:
        """The output itself: it is finished when it is made."""
        return self


@contract("tensorrt_llm.llmapi.llm.LLM")
class LLM:
    """Loads a checkpoint in this process and generates greedily.

    Registration of an external model must have happened in this process before.

    Raises:
        EnvironmentProblem: If parallelism is asked for outside a process group.
        ValueError: If the architecture is not registered, or an argument is unknown.
    """

    def __init__(
        self,
        model: str | Path,
        tokenizer: Any = None,
        tokenizer_mode: str = "auto",
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        args = engine_args(kwargs)
        folder = Path(model)
        if not (folder / "config.json").is_file():
            raise InputError(
                f"no config.json in {str(folder)!r}",
                hint="the stand-in loads local folders; download the checkpoint first",
            )
        mapping = _mapping(tensor_parallel_size, args.pipeline_parallel_size)
        self.args = args
        self.tokenizer = (
            None if skip_tokenizer_init else _tokenizer(tokenizer or folder, trust_remote_code)
        )
        loaded: Any = load_model(
            str(folder),
            mapping=mapping,
            checkpoint_loader=args.checkpoint_loader,
            load_format=args.load_format,
            model_kwargs={**_dtype(dtype), **(args.model_kwargs or {})},
            trust_remote_code=trust_remote_code,
            attn_backend=args.attn_backend,
            max_num_tokens=args.max_num_tokens,
            max_seq_len=args.max_seq_len,  # as the ModelLoader of pyexecutor does
        )
        self.model = loaded
        self._engine = _engine(loaded, args)
        self._next_id = 0

    def generate(
        self,
        inputs: Any,
        sampling_params: SamplingParams | list[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **kwargs: Any,
    ) -> RequestOutput | list[RequestOutput]:
        """Generate for one prompt or many.

        Args:
            inputs: A text, a list of token ids, a dict with ``prompt`` or ``prompt_token_ids``,
                or a list of these.
            sampling_params: For all prompts, or one for each.
            use_tqdm: Ignored.
            **kwargs: Ignored.

        Returns:
            One output for a single prompt, else one for each in order.

        Raises:
            InputError: If a text is given and there is no tokenizer.
            NotImplementedError: If the model cannot be captured in a CUDA graph, on a GPU and
                without ``cuda_graph_config=None``.
        """
        single = not _is_batch(inputs)
        prompts = [inputs] if single else list(inputs)
        each = sampling_params or SamplingParams()
        params = each if isinstance(each, list) else [each] * len(prompts)
        if len(params) != len(prompts):
            raise ValueError(f"{len(params)} sampling_params for {len(prompts)} prompts")
        pairs = [self._request(*pair) for pair in zip(prompts, params, strict=True)]
        self._engine.run([sequence for _, sequence in pairs])
        outputs = [self._output(text, sequence) for text, sequence in pairs]
        return outputs[0] if single else outputs

    def generate_async(
        self, inputs: Any, sampling_params: SamplingParams | None = None, **kwargs: Any
    ) -> RequestOutput:
        """As :meth:`generate` for one prompt; the result is there at once."""
        out = self.generate(inputs, sampling_params)
        assert isinstance(out, RequestOutput), "generate_async takes one prompt"
        return out

    def shutdown(self) -> None:
        """Release the cache and what was captured over it."""
        self._engine.shutdown()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()

    def _request(self, prompt: Any, params: SamplingParams) -> tuple[str | None, Sequence]:
        params.check_greedy()
        text, ids = self._tokens(prompt, params)
        ends = set(params.stop_token_ids or ())
        if not params.ignore_eos:
            ends |= self._end_ids(params)
        self._next_id += 1
        return text, Sequence(
            request_id=self._next_id,
            prompt=ids,
            max_tokens=params.max_tokens,
            end_ids=frozenset(ends),
            min_tokens=params.min_tokens or 0,
            keep_context_logits=params.return_context_logits,
            keep_generation_logits=params.return_generation_logits,
        )

    def _tokens(self, prompt: Any, params: SamplingParams) -> tuple[str | None, list[int]]:
        if isinstance(prompt, dict):
            prompt = prompt.get("prompt_token_ids") or prompt["prompt"]
        if not isinstance(prompt, str):
            return None, [int(token) for token in prompt]
        if self.tokenizer is None:
            raise InputError(
                "a text prompt needs a tokenizer, and there is none in the model's folder",
                hint="pass token ids, or a tokenizer",
            )
        ids = self.tokenizer.encode(prompt, add_special_tokens=params.add_special_tokens)
        return prompt, list(ids)

    def _end_ids(self, params: SamplingParams) -> set[int]:
        if params.end_id is not None:
            return set() if params.end_id < 0 else {params.end_id}
        found = getattr(self.model.config, "eos_token_id", None)
        if found is None:
            return set()
        return set(found) if isinstance(found, (list, tuple)) else {found}

    def _output(self, text: str | None, sequence: Sequence) -> RequestOutput:
        ids = list(sequence.output)
        shown = ids[:-1] if sequence.finish_reason == "stop" else ids
        words = "" if self.tokenizer is None else self.tokenizer.decode(shown)
        kept = sequence.generation_logits
        return RequestOutput(
            request_id=sequence.request_id,
            prompt=text,
            prompt_token_ids=sequence.prompt,
            outputs=[
                CompletionOutput(
                    text=words,
                    token_ids=shown,
                    finish_reason=sequence.finish_reason,
                    generation_logits=torch.stack(kept) if kept else None,
                )
            ],
            context_logits=(
                torch.cat(sequence.context_logits) if sequence.context_logits else None
            ),
        )


def _dtype(name: str) -> dict[str, str]:
    return {} if name == "auto" else {"torch_dtype": name}


def _is_batch(inputs: Any) -> bool:
    if isinstance(inputs, (str, dict)):
        return False
    return isinstance(inputs, Many) and not all(isinstance(item, int) for item in inputs)


def _mapping(tensor: int, pipeline: int) -> Mapping:
    world = tensor * pipeline
    running = torch.distributed.is_available() and torch.distributed.is_initialized()
    size = torch.distributed.get_world_size() if running else 1
    if size != world:
        raise EnvironmentProblem(
            f"tensor_parallel_size {tensor} x pipeline_parallel_size {pipeline} needs {world} "
            f"processes of one process group, there are {size}",
            hint="the stand-in starts no workers: launch the script with torchrun "
            "and call torch.distributed.init_process_group first",
        )
    if pipeline > 1:
        raise EnvironmentProblem(
            "the stand-in's LLM does not generate through a pipeline",
            hint="use tensor_parallel_size, or call the model itself on every stage",
        )
    rank = torch.distributed.get_rank() if running else 0
    return Mapping(world_size=world, rank=rank, tp_size=tensor, pp_size=pipeline)


def _tokenizer(source: Any, trust_remote_code: bool) -> Any:
    """The tokenizer given, or the one of a folder; None if the folder has none."""
    if not isinstance(source, (str, Path)):
        return source
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*token*")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(source), trust_remote_code=trust_remote_code)


def _engine(model: Any, args: EngineArgs) -> Engine:
    inferred = model.infer_max_seq_len()
    return Engine(
        model,
        max_batch_size=args.max_batch_size,
        max_num_tokens=args.max_num_tokens,
        max_seq_len=args.max_seq_len or inferred,
        kv_cache_config=args.kv_cache_config or KvCacheConfig(),
        cuda_graphs=args.cuda_graph_config is not None,
    )
