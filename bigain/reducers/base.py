"""What a reducer is, and the reduction it plans."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid, check_grid, check_tokens
from bigain.reducers._checks import put_check_before

__all__ = ["Context", "Identity", "Kind", "NoReduction", "Reduction", "TokenReducer"]

Kind = Literal["merge", "kv"]
"""What shrinks: queries, keys and values, or keys and values only."""


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
        cache: Shared by the sites for one forward pass; every pass needs a new one.
    """

    timestep: Tensor | None = None
    layer: int = 0
    stage: str | None = None
    seed: int = 0
    generator: torch.Generator | None = None
    cache: dict[Any, Any] = field(default_factory=dict)

    @property
    def salt(self) -> int:
        """What separates the random draws of seeds and layers."""
        return self.seed * 4099 + self.layer

    def draw_rows(self, tokens: Tensor) -> Tensor:
        """Return what the random draw of each row of `[B, N, C]` may depend on: its timestep, int64 `[B]`."""
        rows = torch.zeros(tokens.shape[0], dtype=torch.int64, device=tokens.device)
        return rows if self.timestep is None else rows + self.timestep.to(tokens.device, torch.int64)


class Reduction(ABC):
    """A plan for one forward pass: a frozen dataclass of tensors and settings.

    Attributes:
        kind: `merge`: queries, keys and values shrink and the output is restored.
            `kv`: only keys and values shrink.
        sizes: How many tokens each reduced token stands for, float32, `[B, M]`; a row sums to N.
        padded: Whether some places may stand for no token at all. Their size is 0,
            and attention has to leave them out.
        soft: Whether a token may be restored from several places: restoring is then
            y -> R y with rows of R that sum to one, sizes are the sums of its columns,
            and reducing is R's transpose divided by them.
    """

    kind: Kind = "merge"
    sizes: Tensor
    padded: bool = False
    soft: bool = False

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        put_check_before(cls, "reduce", _check_reduce)
        put_check_before(cls, "restore", _check_restore)

    @abstractmethod
    def reduce(self, tokens: Tensor) -> Tensor:
        """Map `[B, N, C]` to `[B, M, C]`, whatever C is.

        Raises:
            SettingError: Not tokens, or not the rows and tokens that were planned for.
        """

    @abstractmethod
    def restore(self, reduced: Tensor) -> Tensor:
        """Map `[B, M, C]` back to `[B, N, C]`: each token takes the value of its place.

        Raises:
            SettingError: Not the rows and tokens that this plan reduces to.
        """

    @staticmethod
    def check_tokens(tokens: Tensor, rows: int, count: int) -> None:
        """Refuse tokens of another shape, which the plan's indices would read without an error.

        Raises:
            SettingError: The tokens are not `[rows, count, C]`.
        """
        check_tokens(tokens)
        if tuple(tokens.shape[:2]) != (rows, count):
            raise SettingError(
                f"This plan takes {rows} rows of {count} tokens here, [{rows}, {count}, C]; got {tuple(tokens.shape)}."
            )

    def places(self) -> Tensor:
        """Return each token's place in the reduced sequence, int64 `[B, N]`; of several, the one of largest weight."""
        if self.soft:
            return self.weights().argmax(dim=-1)
        batch, length = self.sizes.shape
        # Float32 counts to 2^24 without a gap.
        numbers = torch.arange(length, device=self.sizes.device, dtype=torch.float32)
        return self.restore(numbers[None, :, None].expand(batch, -1, -1))[..., 0].long()

    def weights(self) -> Tensor:
        """Return what each token is restored from, float32 `[B, N, M]`: ones and zeros, or shares if it is soft."""
        batch, length = self.sizes.shape
        return self.restore(torch.eye(length, device=self.sizes.device).expand(batch, -1, -1))

    def place_positions(self, values: Tensor) -> Tensor:
        """Reduce what belongs to positions rather than to content, `[B, N, C]` to `[B, M, C]`.

        A merged token has its destination's position; where there is no destination,
        its tokens' positions are reduced as their content is.
        """
        return self.reduce(values)

    def repeat(self, times: int) -> Self:
        """Let each row's plan serve `times` consecutive rows: a plan for `B * times` rows.

        Every tensor among the dataclass's fields has the rows as its first axis.
        """
        changed = {item.name: _repeated(getattr(self, item.name), times) for item in dataclasses.fields(self)}  # type: ignore[arg-type]
        return type(self)(**changed)


def _repeated(value: Any, times: int) -> Any:
    if isinstance(value, Tensor):
        return value.repeat_interleave(times, dim=0)
    if isinstance(value, Reduction):
        return value.repeat(times)
    if isinstance(value, tuple):
        return tuple(_repeated(item, times) for item in value)
    return value


def _check_reduce(reduction: Reduction, tokens: Tensor) -> None:
    check_tokens(tokens)
    if tokens.shape[0] != (rows := reduction.sizes.shape[0]):
        raise SettingError(f"This plan takes {rows} rows of tokens here, [{rows}, N, C]; got {tuple(tokens.shape)}.")


def _check_restore(reduction: Reduction, reduced: Tensor) -> None:
    reduction.check_tokens(reduced, *reduction.sizes.shape)


def _check_plan(_: object, tokens: Tensor, grid: Grid, context: "Context | None" = None) -> None:
    check_grid(grid)
    grid.check(tokens)
    if context is not None and not isinstance(context, Context):
        raise SettingError(f"context is a bigain.Context or left out; got {type(context).__name__}.")


def _check_length(_: object, grid: Grid, context: "Context | None" = None) -> None:
    check_grid(grid)


class TokenReducer(ABC):
    """Shortens a token sequence, and restores it.

    A reducer has settings only, each an attribute of the same name; whatever belongs
    to one forward pass is in the `Reduction` that `plan` returns. It never sees a model.

    Attributes:
        kind: What shrinks: `merge` (queries, keys and values; the output is
            restored) or `kv` (keys and values only).
    """

    kind: ClassVar[Kind] = "merge"

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        put_check_before(cls, "plan", _check_plan)
        put_check_before(cls, "reduced_length", _check_length)

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of reduction that `plan` may return; more than one for composites."""
        return frozenset([self.kind])

    def kinds_at(self, context: Context) -> frozenset[Kind]:
        """Return the kinds that `plan` may return at one block; composites differ by block."""
        return self.kinds

    def check_places(self, contexts: Sequence[Context]) -> None:  # noqa: B027 most have no such settings
        """Refuse settings about blocks that are not among those it is attached to.

        Args:
            contexts: Layer and stage of every block.

        Raises:
            SettingError: A setting would do nothing.
        """

    def differs_within(self, per: Literal["stage", "forward"]) -> bool:
        """Say whether the method itself differs between the blocks of one stage, or of one forward pass."""
        return False

    @property
    def averages(self) -> bool:
        """Whether each reduced token is the equal-weight mean of the tokens it stands for."""
        return False

    @abstractmethod
    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        """Decide what becomes of each token.

        Args:
            tokens: `[B, N, C]`.
            grid: How they lie.
            context: Where and when; by default layer 0, without a timestep.

        Raises:
            SettingError: Not tokens, not a grid, tokens that do not lie on it, or settings
                that ask for more than this method can do on it.
        """

    @abstractmethod
    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        """Return M, which depends on the grid, the layer, the stage and the settings alone.

        Raises:
            SettingError: The settings ask for more than this method can do on the grid.
        """

    def at(self, timestep: float) -> "TokenReducer":
        """Return the reducer to use while all rows are at one timestep that the host knows.

        A composite drops what cannot apply; any other reducer returns itself.
        """
        return self

    @classmethod
    def examples(cls) -> list[Self]:
        """Return reducers with settings worth checking: what `bigain.testing` runs over.

        A class whose settings have no defaults overrides this.
        """
        return [cls()]

    def __repr__(self) -> str:
        settings = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({settings})"


@dataclass(frozen=True)
class NoReduction(Reduction):
    """Leaves every token as it is."""

    sizes: Tensor

    @classmethod
    def of(cls, tokens: Tensor) -> Self:
        """Make one for `tokens`, `[B, N, C]`."""
        return cls(torch.ones(tokens.shape[:2], dtype=torch.float32, device=tokens.device))

    def reduce(self, tokens: Tensor) -> Tensor:
        return tokens

    def restore(self, reduced: Tensor) -> Tensor:
        return reduced

    def place_positions(self, values: Tensor) -> Tensor:
        return values


class Identity(TokenReducer):
    """No reduction: what every comparison starts from."""

    @property
    def averages(self) -> bool:
        return True

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        return NoReduction.of(tokens)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return grid.tokens
