"""The weight map of layers with experts: parameters by role, and how stored experts lie."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.spec import TensorSpec

_MLP = "model.layers.{i}.mlp"
#: The names under which `create_moe` takes an expert's gate, up and down projection.
_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
_HALVES = {("gate", "up"), ("up", "gate")}


def moe_parameter(role: str) -> str | None:
    """The canonical parameter of a role of the moe axis; ``{e}`` stands for the expert.

    None where the role is not known.
    """
    if role == "moe.router.selection_bias":
        return f"{_MLP}.e_score_correction_bias"
    stem, _, kind = role.removeprefix("moe.").rpartition(".")
    if stem == "router":
        return f"{_MLP}.gate.{kind}"
    if stem == "shared_gate":
        return f"{_MLP}.shared_expert_gate.{kind}"
    if stem in _EXPERT:
        return f"{_MLP}.experts.{{e}}.{_EXPERT[stem]}.{kind}"
    part = stem.removeprefix("shared.")
    if stem.startswith("shared.") and part in _EXPERT:
        return f"{_MLP}.shared_expert.{part}_proj.{kind}"
    return None


def is_moe(tensor: TensorSpec) -> bool:
    """Whether the tensor belongs to a layer of experts alone."""
    return tensor.roles[0].startswith("moe.")


def _stem(role: str) -> str:
    return role.removeprefix("moe.").rpartition(".")[0]


def moe_transform(tensor: TensorSpec) -> str:
    """The function of the port's weights file that takes `tensor` apart; empty for none.

    Its name is made of what it does: ``flat_`` (experts one after another), ``transposed_``,
    then ``experts``, ``halves`` or ``alternating`` for the parts of each.

    Raises:
        Refused: The layout has no transform.
    """
    stems = tuple(_stem(role) for role in tensor.roles)
    if len(stems) == 1:
        if stems == ("router",) and tensor.roles[0].endswith("selection_bias"):
            return "flattened" if len(tensor.shape) > 1 else ""
        if tensor.experts == "one":
            return "transposed" if tensor.transposed else ""
        return _words(tensor, "experts" if tensor.experts == "flat" or tensor.transposed else "")
    halves = {tuple(stem.removeprefix("shared.") for stem in stems)} <= _HALVES
    if not halves or tensor.layout not in ("rows", "alternating"):
        raise Refused(
            "checkpoint",
            f"{tensor.name} holds {tensor.roles} in layout {tensor.layout!r}, which has no "
            "transform",
        )
    return _words(tensor, "halves" if tensor.layout == "rows" else "alternating")


def _words(tensor: TensorSpec, last: str) -> str:
    first = {"one": "", "stacked": "stacked_", "flat": "flat_"}[tensor.experts]
    middle = "transposed_" if tensor.transposed and tensor.roles[0].endswith(".weight") else ""
    if not last or (tensor.experts == "stacked" and last == "experts" and not middle):
        return ""
    return f"{first}{middle}{last}"
