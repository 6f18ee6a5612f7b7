"""Weight mappers: from checkpoint names to what each module loads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.late_methods import since_1_4
from trtllm_scaffold.standin.models.loading import (
    FUSED_PARTS,
    Weights,
    _ties,
    check_model,
    filter_weights,
    rename_weights_with_regex,
    repeat_heads,
)
from trtllm_scaffold.standin.models.registry import MODEL_CLASS_MAPPER_MAPPING, register_mapper


class BaseWeightMapper(ABC):
    """Hooks that the loader calls for each module.

    ``preprocess_weights`` returns None and nobody calls it: a model does, if it wants to.
    """

    def __init__(self) -> None:
        self._callbacks: list[Callable[..., Any]] = []
        self._mapping: dict[str, list[str]] = {}
        self._skip_modules: list[str] = []
        self._model: Any = None
        self._config: Any = None
        self._tp_size = 1

    def init_model_and_config(self, model: Any, config: Any) -> None:
        """Bind the mapper to a model.

        Raises:
            ValueError: If the model has no ``model_config`` or ``config``.
        """
        self._model, self._config = model, config
        check_model(model)
        mapping = model.model_config.mapping
        self._tp_size = 1 if mapping.enable_attention_dp else mapping.tp_size
        if active() == "1.2":
            # A plain attribute there, a read-only property in 1.4.
            self.__dict__["_head_dim"] = _head_dim(model.config)
        self.map_weights()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_head_dim" and active() == "1.4":
            raise AttributeError("property '_head_dim' of a weight mapper has no setter")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "_head_dim" and active() == "1.4":
            return _head_dim(self.model.config)
        raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")

    def cleanup(self) -> None:
        """Forget the model."""
        self._model = self._config = None

    @abstractmethod
    def map_weights(self) -> None:
        """Fill :attr:`mapping` with fused name -> names of its parts."""

    @abstractmethod
    def apply_callbacks(
        self,
        module: nn.Module,
        module_name: str,
        module_names_breakdown: list[str],
        weights: Weights,
    ) -> list[dict[str, Any]]:
        """Dictionaries of the parts of a fused module.

        Args:
            module: The fused module.
            module_name: Last part of its name.
            module_names_breakdown: The parts of its name before the last.
            weights: The whole checkpoint.
        """

    def rename_by_params_map(self, params_map: dict[str, str], weights: Weights) -> Weights:
        """Rename keys by the first pattern that matches at their start."""
        return rename_weights_with_regex(params_map, weights)

    def preprocess_weights(self, weights: Weights) -> Any:
        """For subclasses; the base returns None."""
        return None

    def handle_manual_copy(
        self,
        module_name: str,
        module_weights: Weights,
        n: str,
        p: nn.Parameter,
        allow_partial_loading: bool = False,
    ) -> None:
        """Fill one parameter of a module without a loader of its own.

        Raises:
            AssertionError: If the tensor is missing.
        """
        assert allow_partial_loading or n in module_weights, (
            f"no tensor {module_name}.{n} in the checkpoint"
        )
        if n in module_weights:
            p.data.copy_(module_weights[n][:])

    def does_require_special_handling(self, module_name: str) -> bool:
        """Whether the name is that of a fused module."""
        return module_name in self.mapping

    def is_special_instance_module(self, module: nn.Module) -> bool:
        """Whether :meth:`handle_special_instance_module` takes the module."""
        return False

    def handle_special_instance_module(
        self,
        module: nn.Module,
        module_name: str,
        module_weights: Weights,
        allow_partial_loading: bool = False,
    ) -> None:
        """For subclasses."""
        raise NotImplementedError(f"{type(self).__name__} claims {module_name}, but loads it not")

    def add_skip_modules(self, value: list[str]) -> None:
        """Leave modules whose name contains one of ``value`` as they are."""
        self._skip_modules.extend(value)

    def should_skip_module(self, module_name: str) -> bool:
        """Whether a module is left as it is."""
        return any(skip in module_name for skip in self._skip_modules)

    def filter_weights(self, prefix: str, weights: Weights) -> dict[str, Any]:
        """Entries that start with ``prefix``, which need not end at a dot."""
        return filter_weights(prefix, weights)

    @since_1_4
    def build_weight_load_plan(self, catalog: Any) -> None:
        """No plan: the whole checkpoint is read."""
        return None

    @since_1_4  # noqa: B027
    def begin_update_weights(self) -> None:
        """Start of an incremental update."""

    @since_1_4  # noqa: B027
    def finalize_update_weights(self) -> None:
        """End of an incremental update."""

    @since_1_4  # noqa: B027
    def abort_update_weights(self) -> None:
        """Failure of an incremental update."""

    @property
    def skip_modules(self) -> list[str]:
        """Parts of the names of skipped modules."""
        return self._skip_modules

    @property
    def mapping(self) -> dict[str, list[str]]:
        """Fused name -> names of its parts."""
        return self._mapping

    @property
    def config(self) -> Any:
        """The ModelConfig. Raises RuntimeError before ``init_model_and_config``."""
        if self._config is None:
            raise RuntimeError("Weight mapper is not initialized")
        return self._config

    @property
    def model(self) -> Any:
        """The model. Raises RuntimeError before ``init_model_and_config``."""
        if self._model is None:
            raise RuntimeError("Weight mapper is not initialized")
        return self._model


def _head_dim(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return int(config.hidden_size // config.num_attention_heads if given is None else given)


@register_mapper("MX")
@register_mapper("HF")
class HfWeightMapper(BaseWeightMapper):
    """Default mapper of HuggingFace checkpoints: fused projections, repeated key/value heads."""

    def __init__(self) -> None:
        super().__init__()
        self._callbacks = [self._duplicate_kv_weights]

    def map_weights(self) -> None:
        """``qkv_proj`` and ``gate_up_proj`` are made of their parts."""
        self.mapping.update(FUSED_PARTS)

    def apply_callbacks(
        self,
        module: nn.Module,
        module_name: str,
        module_names_breakdown: list[str],
        weights: Weights,
    ) -> list[dict[str, Any]]:
        """Dictionaries of the parts, each through every callback."""
        found = []
        for part in self.mapping[module_name]:
            entries = self.filter_weights(".".join([*module_names_breakdown, part]), weights)
            for callback in self._callbacks:
                entries = callback(module, part, entries)
            found.append(entries)
        return found

    def should_skip_module(self, module_name: str) -> bool:
        """Skips a tied head and a norm that belongs to the next layer, besides the list."""
        if _ties(self.model.config) and module_name.startswith("lm_head"):
            return True
        if module_name.rpartition(".")[2] == "next_layer_layernorm":
            return True
        return super().should_skip_module(module_name)

    @property
    def _heads_in_config(self) -> int:
        config = self.model.config
        given = getattr(config, "num_key_value_heads", None)
        return int(config.num_attention_heads if given is None else given)

    def _duplicate_kv_weights(
        self, module: nn.Module, new_name: str, weights: dict[str, Any]
    ) -> dict[str, Any]:
        if new_name not in ("k_proj", "v_proj"):
            return weights
        keys = {"weight", "bias"}
        quant = getattr(module, "quant_config", None)
        if active() == "1.4" and quant is not None and quant.quant_mode.has_nvfp4():
            keys.add("weight_scale")
        out = {}
        for key, value in weights.items():
            if key not in keys:
                out[key] = value
                continue
            tensor = value[:]
            # 1.2 infers the heads from the rows, which the next rank's split must agree with.
            heads = self._heads_in_config
            if active() == "1.2":
                heads = tensor.shape[0] // self._head_dim
            out[key] = self._duplicate_kv(tensor, heads, self._tp_size)
        return out

    def _duplicate_kv(
        self, weight: torch.Tensor, num_kv_heads: int, tensor_parallel_size: int
    ) -> torch.Tensor:
        """As ``duplicate_kv_weight``, but a bias is repeated number by number in both."""
        if num_kv_heads >= tensor_parallel_size:
            assert num_kv_heads % tensor_parallel_size == 0, (
                f"{num_kv_heads} key/value heads over {tensor_parallel_size} ranks"
            )
            return weight
        assert tensor_parallel_size % num_kv_heads == 0, (
            f"{num_kv_heads} key/value heads over {tensor_parallel_size} ranks"
        )
        times = tensor_parallel_size // num_kv_heads
        if weight.ndim == 1:
            return weight.repeat_interleave(times)
        return repeat_heads(weight, num_kv_heads, times)

    @since_1_4
    def get_weight_groups(self, keys: Iterable[str]) -> list[list[str]]:
        """Keys that must be loaded together: here each on its own module."""
        groups: dict[str, list[str]] = {}
        for key in keys:
            groups.setdefault(key.rpartition(".")[0], []).append(key)
        return list(groups.values())


class AutoCheckpointMapper:
    """Finds the mapper of an architecture, else that of the format."""

    @staticmethod
    def get(format: str, name: str | None = None) -> Any:
        """A new mapper.

        Raises:
            KeyError: If the format is unknown.
        """
        own = MODEL_CLASS_MAPPER_MAPPING.get(f"{name}_{format}") if name is not None else None
        return (own or MODEL_CLASS_MAPPER_MAPPING[format])()
