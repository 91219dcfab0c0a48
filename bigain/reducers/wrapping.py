"""What reducers that wrap another one share."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, TokenReducer
from bigain.reducers.build import build_reducer

__all__ = ["Wrapping"]


class Wrapping(TokenReducer):
    """Wraps a merging reducer and answers for it at every block.

    Args:
        reducer: Any merging reducer, or its name or mapping.

    Raises:
        SettingError: The reducer shrinks keys and values, or may.
    """

    def __init__(self, reducer: TokenReducer | str | Mapping[str, Any]) -> None:
        self.reducer = build_reducer(reducer)
        if self.reducer.kinds != {"merge"}:
            raise SettingError(
                f"{type(self).__name__} wraps a merging reducer; {self.reducer!r} shrinks keys and values already."
            )

    @property
    def averages(self) -> bool:
        return self.reducer.averages

    def check_places(self, contexts: Sequence[Context]) -> None:
        self.reducer.check_places(contexts)

    def differs_within(self, per: Literal["stage", "forward"]) -> bool:
        return self.reducer.differs_within(per)

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return self.reducer.reduced_length(grid, context)
