"""A merge of keys and values alone."""

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from bigain.grid import Grid
from bigain.reducers.base import Context, Kind, Reduction, TokenReducer
from bigain.reducers.wrapping import Wrapping

__all__ = ["KVMerge"]


@dataclass(frozen=True)
class KeyValueReduction(Reduction):
    """Another reduction, applied to keys and values only.

    Args:
        inner: The reduction.
        sizes: float32, `[B, M]`.
        padded: Whether some places stand for no token.
        soft: Whether a token may be restored from several places.
    """

    inner: Reduction
    sizes: Tensor
    padded: bool
    soft: bool
    kind: ClassVar[Kind] = "kv"  # type: ignore[misc]

    def reduce(self, tokens: Tensor) -> Tensor:
        return self.inner.reduce(tokens)

    def restore(self, reduced: Tensor) -> Tensor:
        return self.inner.restore(reduced)

    def place_positions(self, values: Tensor) -> Tensor:
        return self.inner.place_positions(values)


class KVMerge(Wrapping):
    """Merges keys and values, and leaves every query: no output has to be restored.

    Args:
        reducer: Any merging reducer, or its name or mapping.

    Raises:
        SettingError: The reducer shrinks keys and values already, or may.

    References:
        ToDo (Smith et al., 2024): what its authors' code does at the last timesteps.
    """

    kind: ClassVar[Kind] = "kv"

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        inner = self.reducer.plan(tokens, grid, context)
        return KeyValueReduction(inner, inner.sizes, inner.padded, inner.soft)

    def at(self, timestep: float) -> TokenReducer:
        inner = self.reducer.at(timestep)
        return self if inner is self.reducer else KVMerge(inner)

    @classmethod
    def examples(cls) -> list[Self]:
        from bigain.reducers.lgtm import LGTM
        from bigain.reducers.scheduled import Rule, Scheduled
        from bigain.reducers.tome import ToMe

        by_timestep = Scheduled([Rule(ToMe(0.3, cell=2), timesteps=(500, 1000))], LGTM(0.5, cell=2))
        return [cls(ToMe(0.5)), cls(LGTM(0.3, cell=2, mode="prune")), cls(by_timestep)]
