"""Rotary embedding applied outside of the attention kernel."""

from __future__ import annotations

import torch
from torch import nn

from trtllm_scaffold.standin.generation import contract, only_in
from trtllm_scaffold.standin.interface import RopeParams
from trtllm_scaffold.standin.kernels.choice import fits


@contract("RotaryEmbedding")
class RotaryEmbedding(nn.Module):
    """Rotates the first ``rope_params.dim`` of each head (arXiv:2104.09864).

    ``is_neox`` pairs dimension i with i + dim / 2, otherwise 2i with 2i + 1. ``rotary_cos_sin``
    is ``[max_positions, 2, dim / 2]`` float32, a plain attribute as in the library.
    """

    rotary_cos_sin: torch.Tensor

    def __init__(
        self,
        rope_params: RopeParams,
        *,
        head_dim: int,
        is_neox: bool = True,
        inverse: bool = False,
    ) -> None:
        super().__init__()
        self.rope_params = rope_params
        self.head_dim = head_dim
        self.is_neox = is_neox
        self.inverse = inverse
        self.max_positions = rope_params.max_positions
        table = rope_params.create_rope_const_params(interleave=False)[1]
        assert table is not None, "RopeParams.dim is 0"
        self.rotary_cos_sin = table.reshape(self.max_positions, 2, -1)

    def forward(
        self, position_ids: torch.Tensor, targets: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """Rotate every target by the same positions.

        Args:
            position_ids: ``[1, tokens]`` (any shape with one element per token).
            targets: Each ``[tokens, heads * head_dim]`` or ``[batch, tokens, heads * head_dim]``.

        Returns:
            The targets in their shapes and dtypes, rotated.
        """
        if all(self._is_simple(target, position_ids) for target in targets):
            from trtllm_scaffold.standin.kernels.rotary import rotated

            table = self.table_on(position_ids.device)
            given = self.head_dim, table, position_ids.reshape(-1), self.is_neox
            return [rotated(target, *given) for target in targets]
        cos, sin = self._cos_sin(position_ids)
        return [self._rotate(target, cos, sin) for target in targets]

    def _is_simple(self, target: torch.Tensor, position_ids: torch.Tensor) -> bool:
        """Whether the kernel takes it: rows of heads, and one position for each of them."""
        rows = target.ndim == 2 and target.stride(1) == 1 and len(target) == position_ids.numel()
        return rows and not self.inverse and fits(target)

    def _cos_sin(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.table_on(position_ids.device)[position_ids.reshape(-1)]
        return rows[:, 0], rows[:, 1]

    def table_on(self, device: torch.device) -> torch.Tensor:
        """The table on ``device``: it may have been made before the model moved."""
        if self.rotary_cos_sin.device != device:
            self.rotary_cos_sin = self.rotary_cos_sin.to(device)
        return self.rotary_cos_sin

    def _rotate(self, target: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        heads = target.reshape(-1, cos.shape[0], target.shape[-1] // self.head_dim, self.head_dim)
        wide = heads.to(torch.promote_types(target.dtype, torch.float32))
        turned = _turn(wide, cos[None, :, None], sin[None, :, None], self.is_neox, self.inverse)
        return turned.to(target.dtype).reshape(target.shape)

    @staticmethod
    def apply_rotary_pos_emb(
        q_or_k: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        unsqueeze_dim: int = 1,
        is_neox: bool = True,
        inverse: bool = False,
    ) -> torch.Tensor:
        """Rotate ``[batch, heads, tokens, head_dim]`` by given cos and sin.

        Args:
            q_or_k: The heads; dimensions beyond the rotary width pass unchanged.
            cos: ``[batch, tokens, dim / 2]``.
            sin: ``[batch, tokens, dim / 2]``.
            unsqueeze_dim: Where cos and sin get the axis of heads (1, or 2 for heads last).
            is_neox: Whether halves are paired, or neighbours.
            inverse: Whether to turn back (1.4).
        """
        only_in("1.4", "RotaryEmbedding.apply_rotary_pos_emb", inverse=inverse or None)
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return _turn(q_or_k, cos, sin, is_neox, inverse)


@contract("MRotaryEmbedding")
class MRotaryEmbedding(RotaryEmbedding):
    """Rotary embedding whose frequencies take their position from one of three axes.

    ``mrope_section`` counts the frequencies of each axis, in blocks or (``mrope_interleaved``)
    alternating.
    """

    def __init__(
        self,
        rope_params: RopeParams,
        *,
        head_dim: int,
        mrope_section: list[int],
        is_neox: bool = True,
        mrope_interleaved: bool = False,
    ) -> None:
        super().__init__(rope_params, head_dim=head_dim, is_neox=is_neox)
        self.mrope_section = mrope_section
        self.mrope_interleaved = mrope_interleaved

    def get_cos_sin(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin ``[1, tokens, dim / 2]`` for ids ``[3, 1, tokens]`` or ``[1, tokens]``."""
        cos, sin = self._cos_sin(position_ids)
        return cos.unsqueeze(0), sin.unsqueeze(0)

    def apply_interleaved_rope(self, x: torch.Tensor) -> torch.Tensor:
        """Take every third frequency of ``[3, tokens, dim / 2]`` from the second and third axis."""
        mixed = x[0].clone()
        for axis in (1, 2):
            taken = slice(axis, self.mrope_section[axis] * 3, 3)
            mixed[..., taken] = x[axis, ..., taken]
        return mixed

    def _cos_sin(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if position_ids.ndim != 3:
            return super()._cos_sin(position_ids)
        rows = self.table_on(position_ids.device)[position_ids.reshape(3, -1)]
        return self._mixed(rows[:, :, 0]), self._mixed(rows[:, :, 1])

    def _mixed(self, values: torch.Tensor) -> torch.Tensor:
        if self.mrope_interleaved:
            return self.apply_interleaved_rope(values)
        blocks = values.split(self.mrope_section, dim=-1)
        return torch.cat([block[axis % 3] for axis, block in enumerate(blocks)], dim=-1)


def _turn(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, is_neox: bool, inverse: bool
) -> torch.Tensor:
    dim = 2 * cos.shape[-1]
    turned, passed = x[..., :dim], x[..., dim:]
    if is_neox:
        first, second = turned.chunk(2, dim=-1)
    else:
        first, second = turned[..., ::2], turned[..., 1::2]
    if inverse:
        sin = -sin
    pair = (first * cos - second * sin, second * cos + first * sin)
    turned = torch.cat(pair, dim=-1) if is_neox else torch.stack(pair, dim=-1).flatten(-2)
    return torch.cat((turned, passed), dim=-1)
