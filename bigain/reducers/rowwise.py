"""Different reductions for the rows of one batch."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from bigain.errors import SettingError
from bigain.reducers.base import Kind, NoReduction, Reduction

__all__ = ["Rowwise"]


@dataclass(frozen=True)
class Rowwise(Reduction):
    """Each row follows one of several reductions.

    Shapes cannot depend on values, so every row is as long as the longest reduction;
    places that a shorter one does not fill stand for no token (size 0).

    Args:
        branches: The reductions, each planned for all rows.
        choice: int64, `[B]`: which one a row follows.
        sizes: float32, `[B, M]`.
        kind: What shrinks.
        padded: Whether the branches differ in length.
        soft: Whether any branch is.
    """

    branches: tuple[Reduction, ...]
    choice: Tensor
    sizes: Tensor
    kind: Kind
    padded: bool
    soft: bool

    @classmethod
    def of(cls, branches: tuple[Reduction, ...], choice: Tensor) -> Self:
        """Put branches together.

        Raises:
            SettingError: Some merge and others shrink keys and values only.
        """
        kinds = {branch.kind for branch in branches if not isinstance(branch, NoReduction)} or {"merge"}
        if len(kinds) > 1:
            raise SettingError(
                "Rows of one batch cannot follow a merging reducer and one of keys and values at the same block: "
                "give rules by timestep reducers of one kind (kv_merge makes any merging reducer a kv one)."
            )
        length = max(branch.sizes.shape[1] for branch in branches)
        padded = any(branch.padded or branch.sizes.shape[1] < length for branch in branches)
        sizes = _choose([_pad(branch.sizes[..., None], length) for branch in branches], choice)[..., 0]
        (kind,) = kinds
        return cls(branches, choice, sizes, kind, padded, any(branch.soft for branch in branches))

    def reduce(self, tokens: Tensor) -> Tensor:
        length = self.sizes.shape[1]
        return _choose([_pad(branch.reduce(tokens), length) for branch in self.branches], self.choice)

    def place_positions(self, values: Tensor) -> Tensor:
        length = self.sizes.shape[1]
        return _choose([_pad(branch.place_positions(values), length) for branch in self.branches], self.choice)

    def restore(self, reduced: Tensor) -> Tensor:
        back = [branch.restore(reduced[:, : branch.sizes.shape[1]]) for branch in self.branches]
        return _choose(back, self.choice)


def _pad(tokens: Tensor, length: int) -> Tensor:
    return F.pad(tokens, (0, 0, 0, length - tokens.shape[1]))


def _choose(options: list[Tensor], choice: Tensor) -> Tensor:
    """Take each row from the option it chose, all `[B, M, C]`."""
    chosen = options[-1]
    for number, option in enumerate(options[:-1]):
        chosen = torch.where((choice == number)[:, None, None], option, chosen)
    return chosen
