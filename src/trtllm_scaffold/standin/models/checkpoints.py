"""Checkpoint, weight and config loaders of HuggingFace folders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.models.consumable import ConsumableWeightsDict
from trtllm_scaffold.standin.models.mappers import AutoCheckpointMapper
from trtllm_scaffold.standin.models.registry import (
    CHECKPOINT_LOADER_FORMAT_DEFAULT_MAPPING,
    get_checkpoint_weight_loader,
    get_config_loader,
    register_checkpoint_loader,
    register_checkpoint_weight_loader,
    register_config_loader,
)


class BaseWeightLoader(ABC):
    """Reads the tensors of a folder."""

    @abstractmethod
    def load_weights(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> Any:
        """Checkpoint name -> tensor."""

    def cleanup(self) -> None:  # noqa: B027  (a hook)
        """Release what reading needed."""


class BaseConfigLoader(ABC):
    """Reads the configuration of a folder."""

    @abstractmethod
    def load(self, checkpoint_dir: str, **kwargs: Any) -> ModelConfig:
        """The ModelConfig."""

    def cleanup(self) -> None:  # noqa: B027  (a hook)
        """Release what reading needed."""


class BaseCheckpointLoader(ABC):
    """Weights, configuration and mapper of one checkpoint format."""

    @abstractmethod
    def get_default_weight_loader(self) -> BaseWeightLoader:
        """Weight loader used if none was given."""

    @abstractmethod
    def get_default_config_loader(self) -> BaseConfigLoader:
        """Config loader used if none was given."""

    @abstractmethod
    def cleanup(self) -> None:
        """Release the loaders."""

    @property
    @abstractmethod
    def weight_loader(self) -> BaseWeightLoader:
        """Weight loader in use."""

    @property
    @abstractmethod
    def weight_mapper(self) -> Any:
        """Mapper in use, None before one was made."""

    @property
    @abstractmethod
    def config_loader(self) -> BaseConfigLoader:
        """Config loader in use."""

    @property
    @abstractmethod
    def checkpoint_format(self) -> str:
        """Name of the format."""

    def load_config(self, checkpoint_dir: str, **kwargs: Any) -> ModelConfig:
        """The ModelConfig of a folder."""
        return self.config_loader.load(checkpoint_dir, **kwargs)

    def load_weights(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> Any:
        """Checkpoint name -> tensor."""
        return self.weight_loader.load_weights(checkpoint_dir, mapping, **kwargs)

    def get_initialized_weight_mapper(self, model: Any, config: ModelConfig) -> Any:
        """The given mapper, else the one registered for the architecture, bound to the model."""
        mapper = self.weight_mapper
        if mapper is None:
            names = getattr(config.pretrained_config, "architectures", None) or [None]
            mapper = AutoCheckpointMapper.get(self.checkpoint_format, names[0])
        mapper.init_model_and_config(model, config)
        return mapper

    @classmethod
    def get(cls, checkpoint_format: str, **kwargs: Any) -> BaseCheckpointLoader:
        """A loader of the format.

        Raises:
            ValueError: If the format is unknown.
        """
        known = CHECKPOINT_LOADER_FORMAT_DEFAULT_MAPPING
        if checkpoint_format not in known:
            raise ValueError(f"unknown checkpoint format {checkpoint_format!r}, not in {[*known]}")
        made: BaseCheckpointLoader = known[checkpoint_format](**kwargs)
        return made


@register_checkpoint_weight_loader("HF")
class HfWeightLoader(BaseWeightLoader):
    """Reads ``*.safetensors``, else ``*.bin``, else ``*.pth``, with the names of the files."""

    def load_weights(self, checkpoint_dir: str, mapping: Any, **kwargs: Any) -> Any:
        """Checkpoint name -> tensor on the CPU; consumable in 1.4.

        Raises:
            InputError: If the folder holds no weights.
        """
        folder = Path(checkpoint_dir)
        found = sorted(folder.glob("*.safetensors"))
        found = [path for path in found if "consolidated" not in path.name] or found
        weights: dict[str, Any] = {}
        if found:
            from safetensors.torch import load_file

            for path in found:
                weights.update(load_file(path))
        else:
            weights = self._load_pickled(folder)
        return ConsumableWeightsDict(weights) if active() == "1.4" else weights

    def _load_pickled(self, folder: Path) -> dict[str, Any]:
        import torch

        found = sorted(folder.glob("*.bin")) or sorted(folder.glob("*.pth"))
        if not found:
            raise InputError("no *.safetensors, *.bin or *.pth file", where=str(folder))
        weights: dict[str, Any] = {}
        for path in found:
            weights.update(torch.load(path, map_location="cpu", weights_only=True))
        return weights


@register_config_loader("HF")
class HfConfigLoader(BaseConfigLoader):
    """Reads ``config.json`` through ``ModelConfig.from_pretrained``."""

    def load(self, checkpoint_dir: str, **kwargs: Any) -> ModelConfig:
        """The ModelConfig of a folder."""
        return ModelConfig.from_pretrained(checkpoint_dir, **kwargs)


@register_checkpoint_loader("HF")
class HfCheckpointLoader(BaseCheckpointLoader):
    """Loader of HuggingFace folders."""

    def __init__(
        self,
        *,
        weight_loader: BaseWeightLoader | None = None,
        weight_mapper: Any = None,
        config_loader: BaseConfigLoader | None = None,
    ) -> None:
        self._weight_loader = weight_loader or self.get_default_weight_loader()
        self._weight_mapper = weight_mapper
        self._config_loader = config_loader or self.get_default_config_loader()

    def get_default_weight_loader(self) -> BaseWeightLoader:
        """The registered weight loader of the format."""
        made: BaseWeightLoader = get_checkpoint_weight_loader(self.checkpoint_format)()
        return made

    def get_default_config_loader(self) -> BaseConfigLoader:
        """The registered config loader of the format."""
        made: BaseConfigLoader = get_config_loader(self.checkpoint_format)()
        return made

    def cleanup(self) -> None:
        """Release the loaders and the mapper."""
        self._weight_loader.cleanup()
        self._config_loader.cleanup()
        if self._weight_mapper is not None:
            self._weight_mapper.cleanup()

    @property
    def weight_loader(self) -> BaseWeightLoader:
        """Weight loader in use."""
        return self._weight_loader

    @property
    def weight_mapper(self) -> Any:
        """Mapper given to the constructor, or None."""
        return self._weight_mapper

    @property
    def config_loader(self) -> BaseConfigLoader:
        """Config loader in use."""
        return self._config_loader

    @property
    def checkpoint_format(self) -> str:
        """``HF``."""
        return "HF"
