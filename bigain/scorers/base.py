"""What a scorer is."""

from abc import ABC, abstractmethod
from typing import Literal, Self

from torch import Tensor

from bigain.errors import BigainError
from bigain.grid import Grid, check_grid

__all__ = ["TokenScorer"]


class TokenScorer(ABC):
    """Says how much detail each token carries.

    A scorer has settings only, each an attribute of the same name, and no state between
    calls. A subclass implements `raw` and says with `detail_is` which way its formula
    points; calling the scorer returns values for which large means detail.
    """

    detail_is: Literal["high", "low"] = "high"

    @abstractmethod
    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Return the formula's own value.

        Args:
            tokens: Grid tokens alone, `[B, N_grid, C]`.
            grid: How they lie.

        Returns:
            float32, `[B, N_grid]`.
        """

    @classmethod
    def examples(cls) -> list[Self]:
        """Return scorers with settings worth checking: what `bigain.testing` runs over.

        A class whose settings have no defaults overrides this.
        """
        return [cls()]

    def __call__(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Score the grid's tokens; large means detail.

        Args:
            tokens: `[B, N, C]`, prefix and suffix included.
            grid: How they lie.

        Returns:
            float32, `[B, N_grid]`.

        Raises:
            SettingError: Not a grid, not tokens, or tokens that do not lie on the grid.
            BigainError: The formula does not give a number for each token.
        """
        check_grid(grid)
        value = self.raw(grid.body(tokens), grid)
        if value.shape != (len(tokens), grid.size):
            raise BigainError(
                f"{type(self).__name__}.raw gives {list(value.shape)} for tokens [{len(tokens)}, {grid.size}, "
                f"{tokens.shape[2]}]; one number for each token is [{len(tokens)}, {grid.size}]."
            )
        return value if self.detail_is == "high" else -value

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({settings})"
