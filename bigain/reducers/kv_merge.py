"""A merge of keys and values alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, Kind, Reduction, TokenReducer
from bigain.registry import build_reducer

__all__ = ["KVMerge"]


@dataclass(frozen=True)
class KeyValueReduction(Reduction):
    """Another reduction, applied to keys and values only.

    Args:
        inner: The reduction.
        sizes: float32, `[B, M]`.
        padded: Whether some places stand for no token.
    """

    inner: Reduction
    sizes: Tensor
    padded: bool
    kind: ClassVar[Kind] = "kv"  # type: ignore[misc]

    def reduce(self, tokens: Tensor) -> Tensor:
        return self.inner.reduce(tokens)

    def restore(self, reduced: Tensor) -> Tensor:
        return self.inner.restore(reduced)


class KVMerge(TokenReducer):
    """Merges keys and values, and leaves every query: no output has to be restored.

    Args:
        reducer: Any merging reducer, or its name or mapping.

    Raises:
        SettingError: The reducer shrinks keys and values already, or may.

    References:
        ToDo (Smith et al., 2024): what its authors' code does at the last timesteps.
    """

    kind: ClassVar[Kind] = "kv"

    def __init__(self, reducer: TokenReducer | str | Mapping[str, Any]) -> None:
        self.reducer = build_reducer(reducer)
        if self.reducer.kinds != {"merge"}:
            raise SettingError(f"KVMerge wraps a merging reducer; {self.reducer!r} shrinks keys and values already.")

    def kinds_at(self, context: Context) -> frozenset[Kind]:
        return self.kinds

    def check_places(self, contexts: Sequence[Context]) -> None:
        self.reducer.check_places(contexts)

    def differs_within(self, per: Literal["stage", "forward"]) -> bool:
        return self.reducer.differs_within(per)

    @property
    def averages(self) -> bool:
        return self.reducer.averages

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        inner = self.reducer.plan(tokens, grid, context)
        return KeyValueReduction(inner, inner.sizes, inner.padded)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return self.reducer.reduced_length(grid, context)

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
