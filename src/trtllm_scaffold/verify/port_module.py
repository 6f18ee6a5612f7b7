"""Import a port as the runtime does, and make the HF model that it must reproduce."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from trtllm_scaffold.errors import CheckFailed, EnvironmentProblem, InputError, ScaffoldError
from trtllm_scaffold.sources.json_file import parse_object, read_bytes
from trtllm_scaffold.verify.decoder_names import store_as_whole
from trtllm_scaffold.verify.own_code import own_config_class, own_model_class
from trtllm_scaffold.verify.port_files import recorded_answers

_MAX_CONFIG_BYTES = 4 * 1024 * 1024


def import_port(package: Path) -> ModuleType:
    """Import the folder `package` by the rule of ``--custom_module_dirs``.

    Its parent goes to the front of ``sys.path`` and its name is imported. An earlier import of
    a port of that name is forgotten first, so that it is read again for the active generation.

    Raises:
        CheckFailed: If the import fails; names the place in the port.
    """
    forget_port(package)
    _forget_registrations()
    sys.path.insert(0, str(package.parent))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(package.name)
    except Exception as error:
        raise CheckFailed(
            f"importing {package.name} fails: {describe(error)}", where=place(error, package)
        ) from error
    finally:
        sys.path.remove(str(package.parent))


def forget_port(package: Path) -> None:
    """Drop the modules of `package` from ``sys.modules``."""
    prefix = package.name + "."
    for name in [name for name in sys.modules if name == package.name or name.startswith(prefix)]:
        del sys.modules[name]


def _forget_registrations() -> None:
    """Drop the architectures of ports imported before: none of them may stand in for this one."""
    registry = importlib.import_module("tensorrt_llm._torch.models.modeling_utils")
    classes = registry.MODEL_CLASS_MAPPING
    for name in list(classes):
        if not classes[name].__module__.startswith(("tensorrt_llm.", "trtllm_scaffold.standin.")):
            del classes[name]


def describe(error: BaseException) -> str:
    """One line that says what `error` is."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: BaseException, package: Path) -> str:
    """The innermost ``file:line`` inside the port that `error` passed through, or empty."""
    found = ""
    step = error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if name.startswith(str(package)):
            found = f"{Path(name).name}:{step.tb_lineno}"
        step = step.tb_next
    return found


def finding(error: Exception, package: Path) -> str:
    """What `error`, raised while the port ran, says about it: one line, with the place."""
    if isinstance(error, ScaffoldError):
        return str(error)
    where = place(error, package)
    return describe(error) + (f" at {where}" if where else "")


def load_config(path: Path) -> Any:
    """The HF configuration in the file `path`, of the port's own class or of its model_type's.

    Raises:
        InputError: If it is not a configuration.
        EnvironmentProblem: If the installed transformers lacks its class.
    """
    from transformers import CONFIG_MAPPING

    data = parse_object(read_bytes(path, _MAX_CONFIG_BYTES), str(path))
    model_type = data.get("model_type")
    config_class = own_config_class(path, data)
    if config_class is None and isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        config_class = CONFIG_MAPPING[model_type]
    if config_class is None:
        raise EnvironmentProblem(
            f"transformers has no configuration class for model_type {model_type!r}",
            where=str(path),
            hint="install a transformers release that knows it",
        )
    try:
        config = config_class.from_dict(data)  # type: ignore[attr-defined]
    except Exception as error:  # configuration classes validate in their own ways
        raise InputError(f"transformers rejects it: {describe(error)}", where=str(path)) from error
    config.architectures = data.get("architectures")
    return config


def reference_model(config: Any, seed: int) -> torch.nn.Module:
    """HF's model of `config` in fp32 and eval mode, every parameter random.

    Its attention is the one that `config` names, else the eager one.

    Raises:
        EnvironmentProblem: If transformers cannot build the model.
    """
    model = _hf_model(config, torch.float32)
    randomise(model, seed)
    return model


def rounded_to(reference: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """HF's model in a 16-bit `dtype` with the parameters of `reference`, rounded, where they are.

    It is built anew: what HF computes in a constructor (an embedding's factor, say) has the
    dtype of the model, and what it keeps in fp32 (rotary frequencies) stays so.
    """
    twin = _hf_model(reference.config, dtype).to(next(reference.parameters()).device)
    with torch.no_grad():
        for parameter, exact in zip(twin.parameters(), reference.parameters(), strict=True):
            parameter.copy_(exact)
        for buffer, exact in zip(_biases(twin), _biases(reference), strict=True):
            buffer.copy_(exact)
    return twin


def _hf_model(config: Any, dtype: torch.dtype) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.use_cache = False
    config._experts_implementation = "eager"  # expert by expert; of no meaning to dense models
    config.torch_dtype = dtype  # the spelling that transformers 4 and 5 both know
    try:
        own = own_model_class(config)
        build = own._from_config if own else AutoModelForCausalLM.from_config
        wanted = getattr(config, "_attn_implementation", None) or "eager"
        model = build(config, attn_implementation=wanted)
    except Exception as error:  # model constructors fail in their own ways
        raise EnvironmentProblem(f"HF cannot build the model: {describe(error)}") from error
    found: torch.nn.Module = model.eval()
    return found


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and progress bars of transformers within: a proof speaks through its report."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter, norms and biases too, a random value that no mistake survives.

    Matrices are large enough that attention is far from uniform and logits spread; vectors
    move away from the 0 or 1 that they start at.
    """
    generator = torch.Generator().manual_seed(seed)
    tables = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in tables:
                parameter.copy_(noise)
            elif parameter.dim() >= 2:
                parameter.copy_(noise * (1.3 / parameter.shape[-1] ** 0.5))
            else:
                parameter.add_(noise * 0.3)
        for buffer in _biases(model):
            buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)


def _biases(model: torch.nn.Module) -> list[torch.Tensor]:
    """Stored buffers that start at zero, the biases of routers' choices: training sets them."""
    stored = model.state_dict()
    return [
        buffer
        for name, buffer in model.named_buffers()
        if name in stored
        and buffer.is_floating_point()
        and name.rpartition(".")[2].endswith("bias")
    ]


def save_checkpoint(model: torch.nn.Module, folder: Path, package: Path | None = None) -> None:
    """Store `model` as HF does, so that names and layouts are those of real checkpoints.

    Those of the text decoder in a whole model, where the port in `package` is one.
    Its generation settings are not: some are refused beside the cache that a proof turns off.
    """
    if getattr(model, "generation_config", None) is not None:
        model.generation_config = type(model.generation_config)()
    model.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
    if package is not None:
        store_as_whole(folder, recorded_answers(package.parent))


def as_checkpoint(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of `model` under the names and in the layouts that HF would store them in.

    For models too large to go by way of the disk; transformers 4 stores them as they are.
    """
    tensors = dict(model.state_dict())
    config: Any = model.config
    if getattr(config, "tie_word_embeddings", False):
        tensors.pop("lm_head.weight", None)
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:
        return tensors
    return dict(revert_weight_conversion(model, tensors))  # type: ignore[arg-type]


def read_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the safetensors files in `folder`, by stored name."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors
