"""How a whole model's checkpoint spells the tensors of its text decoder, told by their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.sources.checkpoint import CheckpointHeader


@dataclass(frozen=True)
class Spelling:
    """Names of the decoder's tensors inside the whole model's checkpoint.

    Attributes:
        prefixes: (of the decoder alone, of the whole model): the longest that fits applies.
        others: Beginnings of the names that are not the decoder's.
    """

    prefixes: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()

    def stored(self, name: str) -> str:
        """The whole model's name of a tensor of the decoder."""
        own, whole = self._longest(name, 0)
        return whole + name.removeprefix(own)

    def own(self, name: str) -> str | None:
        """The decoder's name of a stored tensor; None where it is not the decoder's."""
        for own, whole in sorted(self.prefixes, key=lambda pair: -len(pair[1])):
            rest = own + name.removeprefix(whole)
            if name.startswith(whole) and self.stored(rest) == name:
                return rest
        return None if self.prefixes else name

    def _longest(self, name: str, side: int) -> tuple[str, str]:
        fits = [pair for pair in self.prefixes if name.startswith(pair[side])]
        return max(fits, key=lambda pair: len(pair[side]), default=("", ""))


def find_spelling(
    own: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor], where: str
) -> Spelling:
    """Match two sets of tensors by value, the decoder's and those of the model around it.

    Args:
        own: The decoder's tensors, all random, by its own names.
        whole: The whole model's, which hold the same values somewhere.
        where: What stored them, as messages name it.

    Raises:
        Refused: Some tensor is stored in another form, or names differ by more than a prefix.
    """
    pairs = {name: _twin(name, tensor, whole, where) for name, tensor in own.items()}
    prefixes: dict[str, str] = {}
    for name, stored in pairs.items():
        begin, other = _beginnings(name, stored)
        if prefixes.setdefault(begin, other) != other:
            problem = f"{begin or 'a name'} begins {other!r} in {stored}, but {prefixes[begin]!r}"
            raise Refused("checkpoint", f"{problem} elsewhere", where=where)
    rest = [name for name in whole if name not in pairs.values()]
    tied = [name for name in rest if any(torch.equal(whole[name], own[n]) for n in _same(own))]
    others = _others((name for name in rest if name not in tied), tuple(pairs.values()))
    found = Spelling(tuple(prefixes.items()), others)
    wrong = [name for name, stored in pairs.items() if found.stored(name) != stored]
    if wrong:
        problem = f"{wrong[0]} is stored as {pairs[wrong[0]]}: no prefix explains it"
        raise Refused("checkpoint", problem, where=where)
    return found


def _same(own: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the matrices that a second name may stand for: a tied head's."""
    return [name for name, tensor in own.items() if tensor.dim() == 2]


def _twin(name: str, tensor: torch.Tensor, whole: Mapping[str, torch.Tensor], where: str) -> str:
    """The name of the same values in the whole model, the most alike where several hold them."""
    found = [
        other
        for other, value in whole.items()
        if value.shape == tensor.shape and torch.equal(value, tensor)
    ]
    if not found:
        raise Refused(
            "checkpoint",
            f"the whole model stores no tensor with the values of the decoder's {name}",
            where=where,
            hint="whole models that store the decoder's tensors under other prefixes work",
        )
    return max(found, key=lambda other: len(_common_end(name, other)))


def _common_end(one: str, other: str) -> list[str]:
    """The dotted parts that two names end on."""
    common: list[str] = []
    for left, right in zip(one.split(".")[::-1], other.split(".")[::-1], strict=False):
        if left != right:
            break
        common.insert(0, left)
    return common


def _beginnings(own: str, whole: str) -> tuple[str, str]:
    """What two names have before their common end."""
    end = ".".join(_common_end(own, whole))
    return own.removesuffix(end), whole.removesuffix(end)


def _others(names: Iterable[str], of_decoder: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest dotted beginnings of `names` that no name of the decoder has."""
    found: dict[str, None] = {}
    for name in names:
        parts = name.split(".")
        begins = [".".join(parts[:count]) + "." for count in range(1, len(parts))]
        free = (begin for begin in begins if not any(n.startswith(begin) for n in of_decoder))
        found[next(free, name)] = None
    return tuple(found)


def decoder_header(
    header: CheckpointHeader, spellings: Iterable[Spelling], own: Iterable[str], where: str
) -> tuple[CheckpointHeader, Spelling]:
    """What a real checkpoint stores of the decoder, by the decoder's own names.

    Args:
        header: Of the whole model's checkpoint.
        spellings: Those that the whole model's class is known to write or to read.
        own: Names that every checkpoint of the decoder has.
        where: The header as messages name it.

    Raises:
        InputError: The checkpoint has none of the spellings, or a tensor that nobody explains.
    """
    known, needed = list(dict.fromkeys(spellings)), list(own)
    for spelling in known:
        if all(spelling.stored(name) in header.tensors for name in needed):
            return _decoder_part(header, spelling, where), spelling
    tried = " nor ".join(dict.fromkeys(spelling.stored(needed[0]) for spelling in known))
    raise InputError(
        f"the checkpoint stores neither {tried}",
        where=where,
        hint="config.json and weights must be of the same model",
    )


def _decoder_part(header: CheckpointHeader, spelling: Spelling, where: str) -> CheckpointHeader:
    found = {}
    for name, info in header.tensors.items():
        if name.startswith(spelling.others):
            continue
        own = spelling.own(name)
        if own is None:
            raise InputError(
                f"nothing explains the stored tensor {name}: it is neither the text decoder's "
                f"nor begins with {' or '.join(spelling.others) or 'any other known part'}",
                where=where,
                hint="the checkpoint is of another model, or of one with extra parts",
            )
        found[own] = info
    return replace(header, tensors=found)
