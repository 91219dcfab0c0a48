"""What a reducer is, and the reduction it plans."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from bigain.grid import Grid

__all__ = ["Context", "Identity", "NoReduction", "Reduction", "TokenReducer"]


@dataclass(frozen=True)
class Context:
    """What a reducer may know of the moment.

    Args:
        timestep: Timestep of each row, `[B]`, or one for all, `[]`; `None` if there is none.
        layer: Index of the attention site, counted from the input.
        stage: Name of the resolution stage, in models that have stages.
        seed: Seeds every random choice. Choices depend on the seed, the layer and
            the row's own timestep alone, never on the batch.
        generator: Draws instead of the seed where given: one draw for all rows.
        cache: Lives for one forward pass, shared by the sites.
    """

    timestep: Tensor | None = None
    layer: int = 0
    stage: str | None = None
    seed: int = 0
    generator: torch.Generator | None = None
    cache: dict[Any, Any] = field(default_factory=dict)


class Reduction(ABC):
    """A plan for one forward pass.

    Attributes:
        kind: `merge`: queries, keys and values shrink and the output is restored.
            `kv`: only keys and values shrink.
        sizes: How many tokens each reduced token stands for, `[B, M]`.
    """

    kind: Literal["merge", "kv"] = "merge"
    sizes: Tensor

    @abstractmethod
    def reduce(self, tokens: Tensor) -> Tensor:
        """Map `[B, N, C]` to `[B, M, C]`."""

    @abstractmethod
    def restore(self, reduced: Tensor) -> Tensor:
        """Map `[B, M, C]` back to `[B, N, C]`."""


class TokenReducer(ABC):
    """Shortens a token sequence, and restores it.

    A reducer holds settings only; whatever belongs to one forward pass is in the
    `Reduction` that `plan` returns. It never sees a model.
    """

    @abstractmethod
    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        """Decide what becomes of each token.

        Args:
            tokens: `[B, N, C]`.
            grid: How they lie.
            context: The moment; none is a moment without timestep at layer 0.

        Raises:
            SettingError: The tokens do not lie on the grid, or the settings ask
                for more than this method can do on it.
        """

    @abstractmethod
    def reduced_length(self, grid: Grid) -> int:
        """Return M, which depends on the grid and the settings alone.

        Raises:
            SettingError: The settings ask for more than this method can do on the grid.
        """

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True)
class NoReduction(Reduction):
    """Leaves every token as it is."""

    sizes: Tensor

    def reduce(self, tokens: Tensor) -> Tensor:
        return tokens

    def restore(self, reduced: Tensor) -> Tensor:
        return reduced


class Identity(TokenReducer):
    """No reduction: what every comparison starts from."""

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        grid.check(tokens)
        return NoReduction(torch.ones(tokens.shape[:2], dtype=torch.float32, device=tokens.device))

    def reduced_length(self, grid: Grid) -> int:
        return grid.tokens
