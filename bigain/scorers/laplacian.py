"""Scorers that look at a token's neighbours through the Laplacian."""

from typing import Self

from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.filters import Padding, laplacian_norm
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer

__all__ = ["LaplacianL1", "LaplacianL2"]


class _Laplacian(TokenScorer):
    """A norm of the Laplacian over the channels.

    Args:
        padding: What lies beyond the border. `zeros` is as published and makes
            the outer ring score 3 to 6 times higher; `replicate` does not.
    """

    def __init__(self, padding: Padding = "zeros") -> None:
        if padding not in ("zeros", "replicate"):
            raise SettingError(f"padding is 'zeros' or 'replicate'; got {padding!r}.")
        self.padding: Padding = padding

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls("zeros"), cls("replicate")]


class LaplacianL1(_Laplacian):
    """Sum over channels of the absolute Laplacian: the paper's default.

    `sum_c |(K * x)_{i,c}|`, K being `[[0, 1, 0], [1, -4, 1], [0, 1, 0]]` on an image and
    its like, 2d neighbours less 2d times the token, on a grid of d axes. Detail is high;
    0 and up.

    Args:
        padding: What lies beyond the border. `zeros` is as published and makes
            the outer ring score 3 to 6 times higher; `replicate` does not.

    References:
        BiGain, section 3.2.1 and Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return laplacian_norm(tokens, grid.shape, self.padding)


class LaplacianL2(_Laplacian):
    """Euclidean norm of the Laplacian over the channels.

    `sqrt(sum_c (K * x)_{i,c}^2)`, with the kernel of `LaplacianL1`. Detail is high;
    0 and up.

    Args:
        padding: What lies beyond the border. `zeros` is as published and makes
            the outer ring score 3 to 6 times higher; `replicate` does not.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return laplacian_norm(tokens, grid.shape, self.padding, order=2)
