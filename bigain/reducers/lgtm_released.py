"""L-GTM as the authors' released code computes it."""

from typing import Self

from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context
from bigain.reducers.lgtm import LGTM

__all__ = ["LGTMReleased"]


class LGTMReleased(LGTM):
    """L-GTM with the destinations of the authors' released code, which are not the paper's.

    It is here so that figures made with that code, the published ones, can be
    compared with; for all else take `LGTM`. The released code reshapes each strip of
    s_y rows of scores into cells without transposing. The minimum is thus taken over
    s_y * s_x scores that follow each other in a row of the strip, and its position
    among them is used as a position in the cell. Destinations agree with the paper's
    about as often as by chance, and about 70 % of the restored tokens differ.

    Only images (grids of 2 axes) that cells divide, as in the released code.

    Args:
        ratio: Share of the tokens removed.
        scorer: Measures detail.
        cell: Tokens of a cell along each axis.
        mode: `mean`, `prune` or `mlerp`.
        window: As in `LGTM`.

    References:
        BiGain's released code, `tomesd/merge.py`; the paper's own rule is in section 3.2.1.
    """

    def picks(self, tokens: Tensor, grid: Grid, cells: Tensor, context: Context) -> Tensor:
        detail = self.scorer(tokens, grid)
        return detail.reshape(len(detail), *cells.shape).argmin(dim=-1)

    def cell_on(self, grid: Grid) -> tuple[int, ...]:
        cell = super().cell_on(grid)
        if grid.axes != 2 or any(length % side for length, side in zip(grid.shape, cell, strict=True)):
            raise SettingError(
                f"{type(self).__name__} reproduces released code that knows only grids of 2 axes which cells "
                f"divide; got cells of {cell} on a grid of {grid.shape}. Use LGTM, which takes any grid."
            )
        return cell

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0.5), cls(0.3, mode="mlerp")]
