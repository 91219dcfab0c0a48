"""Rotary positions that follow tokens through a reduction."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigain.reducers.base import Reduction

__all__ = ["Rotary", "Tables", "rotate", "shorten_table"]

Layout = Literal["heads_first", "tokens_first", "joined", "whole"]
"""Layout of queries and keys: `[B, H, N, D]`, `[B, N, H, D]`, `[B, N, H * D]`, or the last with a table as wide."""


@dataclass(frozen=True)
class Rotary:
    """How a family of attention modules takes and applies rotary positions.

    A library's own rotation has one table for all rows; after merging, each row has its
    own. So the table is taken out of the call, and hooks rotate where the library would
    do it next: behind the norms of queries and keys, or behind the projections where
    there are no norms.

    Args:
        argument: Keyword of the attention module that takes the table: a pair
            (cosines, sines), each `[N, D]`, `[B, N, D]` or `[1, N, 1, D]`, where N
            counts text before the grid if the attention runs over both.
        layout: How the norms' outputs lie.
        halves: Channel i is paired with i + D/2; otherwise with its neighbour.
        norms: Names of the norms of queries and of keys.
        text: Names of the norms of the text's queries and keys, where the text has its own.
    """

    argument: str = "image_rotary_emb"
    layout: Layout = "heads_first"
    halves: bool = False
    norms: tuple[str, str] = ("norm_q", "norm_k")
    text: tuple[str, str] | None = None

    def behind(self, attention: nn.Module, number: int) -> tuple[str, Layout]:
        """Return the module behind which queries (0) or keys (1) are rotated, and their layout there."""
        if getattr(attention, self.norms[number], None) is not None:
            return self.norms[number], self.layout
        return ("to_q", "to_k")[number], "whole" if self.layout == "whole" else "joined"


@dataclass(frozen=True)
class Tables:
    """Cosines and sines for one call, each `[B, N, D]` or `[1, N, D]`.

    Args:
        queries: For the grid's queries, and for text before them if it is one sequence.
        keys: The same for the keys.
        text: For text that has norms of its own.
    """

    queries: tuple[Tensor, Tensor]
    keys: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, given: Any, plan: Reduction, tokens: int, apart: bool) -> "Tables":
        """Make them from a library's table.

        Args:
            given: The library's pair.
            plan: The reduction of the grid's tokens.
            tokens: Number of the grid's tokens.
            apart: Whether text has norms of its own.
        """
        # Some pipelines make the table on the CPU; the library moves it when it rotates.
        whole = tuple(_flat(table).to(plan.sizes.device) for table in given)
        grid = tuple(table[:, table.shape[1] - tokens :] for table in whole)
        text = tuple(table[:, : table.shape[1] - tokens] for table in whole)
        short = shorten_table(grid, plan)
        full = grid if plan.kind == "kv" else short
        if apart or not text[0].shape[1]:
            return cls(_pair(full), _pair(short), _pair(text) if apart else None)
        return cls(_joined(text, full), _joined(text, short))


def shorten_table(table: tuple[Tensor, ...], plan: Reduction) -> tuple[Tensor, ...]:
    """Give each reduced token its position: its destination's, or the mean of its tokens'.

    The mean of angles is the angle of the sum of their unit vectors.

    Args:
        table: Cosines and sines, each `[B, N, D]` or `[1, N, D]`.
        plan: The reduction of those N tokens.

    Returns:
        Cosines and sines, each `[B, M, D]`, float32.
    """
    rows = plan.sizes.shape[0]
    cosines, sines = (plan.place_positions(part.float().expand(rows, -1, -1)) for part in table)
    length = torch.sqrt(cosines * cosines + sines * sines).clamp_min(1e-6)
    return cosines / length, sines / length


def rotate(given: Tensor, table: tuple[Tensor, Tensor], layout: Layout, width: int, halves: bool) -> Tensor:
    """Rotate queries or keys; leading tokens and channels that the table does not cover stay as they are.

    Args:
        given: N or more tokens, in `layout`.
        table: Cosines and sines, each `[B, N, D]` or `[1, N, D]`.
        layout: Layout of `given`.
        width: Channels of a head.
        halves: Channel i is paired with i + D/2; otherwise with its neighbour.
    """
    axis = 2 if layout == "heads_first" else 1
    split = given.reshape(*given.shape[:-1], -1, width) if layout == "joined" else given
    before = split.shape[axis] - table[0].shape[1]
    lead, rest = torch.split(split, [before, table[0].shape[1]], dim=axis)
    if layout != "whole":
        table = table[0].unsqueeze(3 - axis), table[1].unsqueeze(3 - axis)
    turned = _turn(rest, table[0], table[1], halves)
    turned = torch.cat([lead, turned], dim=axis) if before else turned
    return turned.flatten(-2) if layout == "joined" else turned


def _turn(given: Tensor, cosines: Tensor, sines: Tensor, halves: bool) -> Tensor:
    width = cosines.shape[-1]
    part = given[..., :width].float()
    if halves:
        first, second = part.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    else:
        first, second = part.reshape(*part.shape[:-1], -1, 2).unbind(-1)
        across = torch.stack([-second, first], dim=-1).flatten(-2)
    turned = (part * cosines + across * sines).to(given.dtype)
    return torch.cat([turned, given[..., width:]], dim=-1) if given.shape[-1] > width else turned


def _flat(table: Tensor) -> Tensor:
    """Bring a table to `[B, N, D]`."""
    return table.squeeze(2) if table.ndim == 4 else table[None] if table.ndim == 2 else table


def _joined(text: tuple[Tensor, ...], grid: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    first, second = (
        torch.cat([lead.to(rest.dtype).expand(rest.shape[0], -1, -1), rest], dim=1)
        for lead, rest in zip(text, grid, strict=True)
    )
    return first, second


def _pair(tables: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    cosines, sines = tables
    return cosines, sines
