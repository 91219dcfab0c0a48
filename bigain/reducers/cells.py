"""Settings that reducers with cells share, and their values on a grid."""

import math
from collections.abc import Sequence

from bigain.errors import SettingError
from bigain.grid import Grid

__all__ = ["checked_cell", "checked_ratio", "checked_removal", "checked_window", "count_cells", "sides_on"]


def checked_ratio(ratio: float) -> float:
    """Return `ratio`, refusing anything but a share in [0, 1)."""
    if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
        raise SettingError(f"ratio is the share of tokens removed, in [0, 1); got {ratio!r}.")
    return float(ratio)


def checked_cell(cell: Sequence[int] | int) -> tuple[int, ...]:
    """Return the sides of a cell, refusing one of fewer than two tokens."""
    sides = tuple(cell) if isinstance(cell, Sequence) else (cell,)
    if not _whole(sides) or max(sides) < 2:
        raise SettingError(f"A cell is one or more whole numbers >= 1, one of them >= 2; got {cell!r}.")
    return sides


def checked_window(window: Sequence[int] | int | None) -> tuple[int, ...] | None:
    """Return the cells of a tile along each axis, refusing anything but whole numbers."""
    if window is None:
        return None
    sides = tuple(window) if isinstance(window, Sequence) else (window,)
    if not _whole(sides):
        raise SettingError(f"window is cells along each axis, one or more whole numbers >= 1, or none; got {window!r}.")
    return sides


def _whole(sides: Sequence[int]) -> bool:
    return bool(sides) and all(isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in sides)


def sides_on(owner: object, setting: str, sides: Sequence[int], grid: Grid) -> tuple[int, ...]:
    """Return one side for every axis of a grid; a single side serves all axes.

    Args:
        owner: Whose setting it is, for errors.
        setting: Its name.
        sides: One side, or one an axis.
        grid: The grid.

    Raises:
        SettingError: Neither one side nor one for each axis.
    """
    if len(sides) == 1:
        return (*sides,) * grid.axes
    if len(sides) != grid.axes:
        raise SettingError(
            f"{type(owner).__name__} got a {setting} of {len(sides)} axes {tuple(sides)} for a grid of "
            f"{grid.axes} axes {grid.shape}; give one number for all axes, or one an axis."
        )
    return tuple(sides)


def count_cells(grid: Grid, cell: tuple[int, ...]) -> int:
    """Count the whole cells that fit on a grid."""
    # A list, since dynamo does not trace a generator into math.prod.
    return math.prod([length // side for length, side in zip(grid.shape, cell, strict=True)])


def checked_removal(owner: object, ratio: float, grid: Grid, cell: tuple[int, ...], most: int) -> int:
    """Return how many tokens `ratio` removes, floor(N * ratio).

    Raises:
        SettingError: That is more than `most`.
    """
    removed = math.floor(grid.size * ratio)
    if removed and not count_cells(grid, cell):
        raise SettingError(
            f"{type(owner).__name__} with ratio={ratio} would remove {removed} of {grid.size} tokens, but no cell of "
            f"{cell} fits on a grid of {grid.shape}. Give a smaller cell."
        )
    if removed > most:
        raise SettingError(
            f"{type(owner).__name__} with ratio={ratio} would remove {removed} of {grid.size} tokens; "
            f"with cells of {cell} on a grid of {grid.shape} it can remove at most {most} "
            f"(ratio {math.floor(1000 * most / grid.size) / 1000:g}). Lower the ratio or enlarge the cell."
        )
    return removed
