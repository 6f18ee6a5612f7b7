"""Which parameters layers of experts must fill, and how experts are divided over ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import shown
from trtllm_scaffold.verify.parameter import Parameter, linear
from trtllm_scaffold.verify.port_files import MAX_EXPERTS

#: Expert-parallel sizes that a load proof tries.
EP_SIZES = (1, 2, 4, 8)

_MLP = "model.layers.{i}.mlp"
_FILE = ".copier-answers.yml"
_SIZES = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")


def read_moe_sizes(answers: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of experts among recorded answers; none for a dense model.

    Raises:
        InputError: If one is missing or is not a positive number.
    """
    if not answers.get("moe"):
        return {}
    shared = ("shared_expert_intermediate_size",) if answers.get("moe_shared") else ()
    sizes = {}
    for name in (*_SIZES, *shared):
        value = answers.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise InputError(f"the answer {name} is {shown(value)}, not a size", where=_FILE)
        sizes[name] = value
    if sizes["num_experts"] > MAX_EXPERTS:
        raise InputError(f"{sizes['num_experts']} experts, at most {MAX_EXPERTS} are accepted")
    return sizes


def sparse_layers(answers: Mapping[str, Any]) -> list[int] | None:
    """The layers that have experts where not all have, else None.

    Raises:
        InputError: If they are not a list of layers.
    """
    if not answers.get("moe_condition"):
        return None
    found = answers.get("moe_layers")
    if not isinstance(found, list) or not all(type(item) is int for item in found):
        raise InputError(f"the answer moe_layers is {shown(found)}, not layers", where=_FILE)
    return found


def expert_parameters(
    answers: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Parameter]]:
    """Every canonical parameter of a layer of experts; ``{e}`` stands for the expert."""
    if not answers.get("moe"):
        return
    hidden, experts = sizes["hidden_size"], sizes["num_experts"]
    bias, width = answers.get("moe_bias"), sizes["moe_intermediate_size"]
    yield from linear(f"{_MLP}.gate", (experts, hidden), bias=answers.get("moe_logit_bias"))
    if answers.get("moe_selection_bias"):
        yield f"{_MLP}.e_score_correction_bias", Parameter((experts,))
    expert = f"{_MLP}.experts.{{e}}"
    for name in ("w1", "w3"):
        yield from linear(f"{expert}.{name}", (width, hidden), bias=bias, split=0)
    yield from linear(f"{expert}.w2", (hidden, width), bias=bias, split=1)
    yield from _shared(answers, sizes)


def _shared(
    answers: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Parameter]]:
    if not answers.get("moe_shared"):
        return
    hidden, width = sizes["hidden_size"], sizes["shared_expert_intermediate_size"]
    name = f"{_MLP}.shared_expert"
    bias = answers.get("moe_shared_bias")
    for part in ("gate_proj", "up_proj"):
        yield from linear(f"{name}.{part}", (width, hidden), bias=bias, split=0)
    yield from linear(f"{name}.down_proj", (hidden, width), bias=bias, split=1)
    if answers.get("moe_shared") == "sigmoid_gate":
        yield f"{name}_gate.weight", Parameter((1, hidden))


def small_moe_sizes(sizes: Mapping[str, int], small: Mapping[str, int]) -> dict[str, int]:
    """Sizes of few small experts: square matrices stay square, others do not become so."""
    if "num_experts" not in sizes:
        return {}
    real, hidden = sizes["hidden_size"], small["hidden_size"]
    width = sizes["moe_intermediate_size"]
    inner = {real: hidden, real / 2: hidden // 2}.get(width, hidden + 5)
    found = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": inner}
    shared = sizes.get("shared_expert_intermediate_size")
    if shared is not None:
        own = {real: hidden, real / 2: hidden // 2}.get(shared, hidden + 3)
        found["shared_expert_intermediate_size"] = own
    return found


def small_stored_shape(
    held: tuple[int, ...],
    real: list[tuple[int, ...]],
    small: list[tuple[int, ...]],
    counts: tuple[int, int],
) -> tuple[int, ...] | None:
    """The small shape of a tensor that holds every expert, laid out as `held`; None if unknown.

    Args:
        held: The real stored shape.
        real: Real shapes of one expert's parameters in it.
        small: Their small shapes.
        counts: Experts of the real and of the small model.
    """
    before, after = (_joined(shapes) for shapes in (real, small))
    many, few = counts
    if held == (1, *before):  # a vector that is stored as a matrix with one row
        return (1, *after)
    for turn in (1, -1):
        if held == (many, *before[::turn]):
            return (few, *after[::turn])
        if held == (many * before[::turn][0], *before[::turn][1:]):
            return (few * after[::turn][0], *after[::turn][1:])
    return None


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Parts one after another along the first dimension."""
    return (sum(shape[0] for shape in shapes), *shapes[0][1:])


def expert_division(sizes: Mapping[str, int]) -> dict[str, Any]:
    """What the load proof says of expert parallelism: the largest size, and what does not fit.

    Each rank of expert parallelism holds as many experts as any other, in order.
    """
    experts = sizes.get("num_experts")
    if experts is None:
        return {}
    fits = [size for size in EP_SIZES if experts % size == 0]
    rest = {str(size): f"{experts} experts" for size in EP_SIZES if size not in fits}
    return {"largest_ep": max(fits), **({"cannot_divide_experts": rest} if rest else {})}


def expert_slices(experts: int, ep_size: int) -> list[range]:
    """The experts of each rank of `ep_size` (reference: the library's MoE interface)."""
    share = experts // ep_size
    return [range(rank * share, (rank + 1) * share) for rank in range(ep_size)]


def division_problems(sizes: Mapping[str, int]) -> list[str]:
    """Experts that no rank holds, or several do, at any size that divides them."""
    experts = sizes.get("num_experts")
    problems = []
    for size in EP_SIZES if experts else ():
        assert experts is not None
        if experts % size == 0:
            held = [expert for part in expert_slices(experts, size) for expert in part]
            if sorted(held) != list(range(experts)):
                problems.append(f"EP {size} covers {len(set(held))} of {experts} experts")
    return problems
