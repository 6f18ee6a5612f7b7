"""Infers the model-wide sizes, each from several witnesses that must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.keys import SYNONYMS, is_size
from trtllm_scaffold.infer.quantity import Fitter
from trtllm_scaffold.spec.checkpoint import CheckpointSpec, TensorSpec
from trtllm_scaffold.spec.evidence import Evidence
from trtllm_scaffold.spec.quantity import Quantity

#: What TensorRT-LLM assumes where a configuration says no length.
DEFAULT_LENGTH = 2048


@dataclass(frozen=True)
class ObservedSizes:
    """Sizes seen in the trace of one tiny model.

    Attributes:
        hidden_size: Width of the layers' input.
        num_hidden_layers: Length of the layer list.
        vocab_size: Rows of the head.
        embedding_rows: Rows of the token embedding; 0 where they are the same.
    """

    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    embedding_rows: int = 0


@dataclass(frozen=True)
class Sizes:
    """The model-wide sizes of `ModelSpec`."""

    hidden_size: Quantity
    num_hidden_layers: Quantity
    vocab_size: Quantity
    max_position_embeddings: Quantity


def infer_sizes(
    fitter: Fitter,
    observed: Sequence[ObservedSizes],
    real_config: Any,
    checkpoint: CheckpointSpec,
) -> tuple[Sizes, tuple[Evidence, ...]]:
    """Return the sizes, and every witness of each.

    Args:
        fitter: Over the configurations of the traced models.
        observed: What each of them showed, in the same order.
        real_config: The configuration object of the real size.
        checkpoint: The real shapes, from the class and, where there is one, the header.

    Raises:
        Refused: No key of the configuration explains a size, or the class builds tensors of
            another one. (A header that disagrees is the checkpoint axis's to report.)
    """
    found: dict[str, Quantity] = {}
    evidence: list[Evidence] = []
    names = ["hidden_size", "num_hidden_layers", "vocab_size"]
    own_rows = any(sizes.embedding_rows not in (0, sizes.vocab_size) for sizes in observed)
    names += ["embedding_rows"] * own_rows
    for name in names:
        values = [getattr(sizes, name) for sizes in observed]
        quantity = fitter.fit(name, values, hints=SYNONYMS.get(name, ("vocab_size",)))
        found[name] = quantity
        evidence.append(Evidence(name, "config", quantity.expr, quantity.value))
        evidence.append(Evidence(name, "trace", "the tiny models", str(values)))
    for name, tensor, size in _stored_sizes(checkpoint, own_rows):
        evidence.append(Evidence(name, "checkpoint", tensor.name, size))
        if size != found[name].value:
            raise Refused(
                "checkpoint" if name == "hidden_size" else "embedding",
                f"{name} is {found[name].value} by {found[name].expr}, but {tensor.name} has the "
                f"shape {list(tensor.shape)}, which makes it {size}",
                where="the model at its real size",
                hint="models whose embedding, layers and head share their widths work",
            )
    found.pop("embedding_rows", None)
    length, witness = _length(real_config)
    _check_positions(length, checkpoint)
    return Sizes(max_position_embeddings=length, **found), (*evidence, witness)


def _stored_sizes(checkpoint: CheckpointSpec, own_rows: bool) -> list[tuple[str, TensorSpec, int]]:
    """Return (size, tensor, value) for the tensors whose shape says a model-wide size."""
    sizes = []
    for tensor in checkpoint.tensors:
        shape = tensor.shape[::-1] if tensor.transposed else tensor.shape
        if own_rows and "embedding.weight" in tensor.roles:
            sizes.append(("embedding_rows", tensor, shape[0]))
        elif "embedding.weight" in tensor.roles or "head.weight" in tensor.roles:
            sizes.append(("vocab_size", tensor, shape[0]))
        elif tensor.roles in (("attention.o.weight",), ("mlp.down.weight",)):
            sizes.append(("hidden_size", tensor, shape[0]))
        elif tensor.roles == ("final_norm.weight",):
            sizes.append(("hidden_size", tensor, shape[0]))
    return sizes


def _length(config: Any) -> tuple[Quantity, Evidence]:
    """Return the longest position that the configuration promises."""
    fact = "max_position_embeddings"
    for name in SYNONYMS[fact]:
        value = getattr(config, name, None)
        if is_size(value):
            quantity = Quantity(value, f"config.{name}")
            return quantity, Evidence(fact, "config", name, value)
    quantity = Quantity(DEFAULT_LENGTH, str(DEFAULT_LENGTH))
    return quantity, Evidence(fact, "class default", "TensorRT-LLM's own", DEFAULT_LENGTH)


def _check_positions(length: Quantity, checkpoint: CheckpointSpec) -> None:
    """A table of learned positions must have a row for every position."""
    for tensor in checkpoint.tensors:
        if "position.weight" in tensor.roles and tensor.shape[0] < length.value:
            raise Refused(
                "position",
                f"max_position_embeddings is {length.value}, but {tensor.name} has the shape "
                f"{list(tensor.shape)}",
                where="the model at its real size",
                hint="tables with a row for every position work",
            )
