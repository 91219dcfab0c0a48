"""CAM: one assignment for several blocks of a forward pass."""

from collections.abc import Mapping
from typing import Any, Literal, Self

from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer
from bigain.reducers.wrapping import Wrapping

__all__ = ["Cached"]

_PER = ("stage", "forward")


class Cached(Wrapping):
    """Cached assignment merge: the first block plans, the others reuse its plan.

    The plan lives in the context's cache, which `bigain.attach` makes anew for every
    forward pass: nothing is carried from one timestep to the next. Blocks share a
    plan only where they see the same grid.

    Args:
        reducer: Any merging reducer, or its name or mapping.
        per: `stage`: one plan for each resolution stage, as published; a model
            without stages is one stage. `forward`: one plan for the whole pass.

    Raises:
        SettingError: The reducer shrinks keys and values, or has rules that differ between
            blocks that would share a plan, or `per` is unknown.

    References:
        BiGain, section 4.5, "Further Speedup".
    """

    def __init__(
        self, reducer: TokenReducer | str | Mapping[str, Any], per: Literal["stage", "forward"] = "stage"
    ) -> None:
        if per not in _PER:
            raise SettingError(f"per is one of {', '.join(_PER)}; got {per!r}.")
        super().__init__(reducer)
        self.per = per
        if self.reducer.differs_within(self.per):
            raise SettingError(
                f"Cached keeps one plan a {'stage' if per == 'stage' else 'forward pass'}, and the rules of "
                f"{self.reducer!r} differ within one: put cached into the rules instead."
            )

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        context = context or Context()
        stage = context.stage if self.per == "stage" else None
        # Two reducers in one model must not use each other's plans.
        key = (id(self), stage, grid.shape, grid.prefix, grid.suffix, tokens.shape[0])
        if key not in context.cache:
            context.cache[key] = self.reducer.plan(tokens, grid, context)
        plan: Reduction = context.cache[key]
        return plan

    def at(self, timestep: float) -> TokenReducer:
        inner = self.reducer.at(timestep)
        return self if inner is self.reducer else Cached(inner, self.per)

    @classmethod
    def examples(cls) -> list[Self]:
        from bigain.reducers.lgtm import LGTM
        from bigain.reducers.tome import ToMe

        return [cls(LGTM(0.5, cell=2)), cls(ToMe(0.3, cell=2), per="forward")]
