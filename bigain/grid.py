"""How tokens lie in space."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.errors import SettingError

__all__ = ["Grid", "check_grid", "check_tokens", "checked_shape"]


@dataclass(frozen=True)
class Grid:
    """A row-major grid of tokens, with tokens before and after it that are never reduced.

    Args:
        shape: Tokens along each axis: `(N,)` audio or text, `(H, W)` image,
            `(T, H, W)` video.
        prefix: Tokens before the grid (class, register, text).
        suffix: Tokens after the grid.

    Raises:
        SettingError: An axis without tokens, or a negative count.
    """

    shape: tuple[int, ...]
    prefix: int = 0
    suffix: int = 0

    def __post_init__(self) -> None:
        shape = tuple(self.shape) if isinstance(self.shape, Iterable) else ()
        numbers = (*shape, self.prefix, self.suffix)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if not shape or not whole or min(shape) < 1 or min(self.prefix, self.suffix) < 0:
            raise SettingError(
                f"Grid got shape={self.shape}, prefix={self.prefix}, suffix={self.suffix}; accepted are "
                "one or more axes of at least one token each, such as (32, 32), and counts of 0 or more."
            )
        object.__setattr__(self, "shape", shape)

    @property
    def axes(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Tokens on the grid itself."""
        return math.prod(self.shape)

    @property
    def tokens(self) -> int:
        """Tokens in all, prefix and suffix included."""
        return self.prefix + self.size + self.suffix

    def check(self, tokens: Tensor) -> None:
        """Refuse tokens that do not lie on this grid.

        Args:
            tokens: `[B, N, C]`.

        Raises:
            SettingError: Not tokens (see `check_tokens`), or N differs from `self.tokens`.
        """
        check_tokens(tokens)
        if tokens.shape[1] != self.tokens:
            raise SettingError(
                f"Got {tokens.shape[1]} tokens for a grid of {self.tokens}: shape {self.shape} "
                f"({self.size}) plus {self.prefix} before and {self.suffix} after."
            )

    def body(self, tokens: Tensor) -> Tensor:
        """Return the tokens on the grid, `[B, size, C]`, without prefix and suffix."""
        self.check(tokens)
        return tokens[:, self.prefix : self.prefix + self.size]

    def with_body(self, tokens: Tensor, body: Tensor) -> Tensor:
        """Put other tokens in the place of those on the grid, between prefix and suffix.

        Args:
            tokens: `[B, N, C]` on this grid.
            body: `[B, K, C]`, for any K.

        Returns:
            `[B, prefix + K + suffix, C]`.
        """
        if not self.prefix and not self.suffix:
            return body
        return torch.cat([tokens[:, : self.prefix], body, tokens[:, self.prefix + self.size :]], dim=1)


def check_tokens(tokens: object) -> None:
    """Refuse anything but tokens. Only type and shape are looked at, so nothing waits for a GPU.

    Raises:
        SettingError: Not a floating-point tensor of three axes, or one without rows, tokens or channels.
    """
    if not isinstance(tokens, Tensor):
        raise SettingError(f"Tokens must be a torch tensor [B, N, C]; got {type(tokens).__name__}.")
    if tokens.ndim != 3:
        raise SettingError(f"Tokens must have shape [B, N, C]; got {list(tokens.shape)}.")
    if not tokens.dtype.is_floating_point:
        raise SettingError(f"Tokens must be floating-point numbers, such as torch.float32; got {tokens.dtype}.")
    if 0 in tokens.shape:
        raise SettingError(f"Tokens [B, N, C] must have 1 or more along each axis; got {list(tokens.shape)}.")


def check_grid(grid: object) -> None:
    """Refuse anything but a `Grid`.

    Raises:
        SettingError: Anything else, a bare shape for instance.
    """
    if not isinstance(grid, Grid):
        raise SettingError(f"grid is a bigain.Grid, such as Grid((32, 32), prefix=1); got {grid!r}.")


def checked_shape(shape: object, axes: Sequence[str] = ()) -> tuple[int, ...]:
    """Return a user's shape as a tuple.

    Args:
        shape: Tokens along each axis.
        axes: Names of the axes; without names, any number of axes is accepted.

    Raises:
        SettingError: Not a sequence of whole numbers of at least 1, one for each name.
    """
    given = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str | bytes) else ()
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length >= 1 for length in given)
    if not given or not whole or (axes and len(axes) != len(given)):
        along = " and ".join(filter(None, [", ".join(axes[:-1]), *axes[-1:]])) or "each axis"
        raise SettingError(
            f"shape is the tokens along {along} of the model's input grid, each at least 1; got {shape!r}."
        )
    return given
