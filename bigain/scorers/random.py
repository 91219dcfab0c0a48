"""The control: scores that know nothing of the tokens."""

from typing import Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.functional.cells import hashed_uniform
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer

__all__ = ["Random"]


class Random(TokenScorer):
    """A fixed uniform number for each token of the grid, whatever its values.

    The control for every other scorer: what a method loses with it is the worth of the
    scorer's information. A hash of seed and token index, in [0, 1): the same for every
    image, channel, layer, timestep, batch and device, and no generator is touched. Which
    way detail points is arbitrary.

    Args:
        seed: Which numbers; a whole number from 0 to 2^32 - 1.
    """

    def __init__(self, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise SettingError(f"seed is a whole number from 0 to 2^32 - 1; got {seed!r}.")
        self.seed = seed

    @classmethod
    def examples(cls) -> list[Self]:
        return [cls(0), cls(1)]

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        batch, count, _ = tokens.shape
        row = torch.zeros(1, dtype=torch.int64, device=tokens.device)
        return hashed_uniform(row, count, salt=self.seed).expand(batch, count)
