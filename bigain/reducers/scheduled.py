"""Different reducers for different stages, blocks and timesteps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, Identity, Kind, NoReduction, Reduction, TokenReducer
from bigain.reducers.rowwise import Rowwise

__all__ = ["Rule", "Scheduled"]


@dataclass(frozen=True)
class Rule:
    """Where and when a reducer is used; what is left out holds everywhere and always.

    Args:
        reducer: A reducer, or its name or mapping.
        stages: Stage names; a name that ends in `*` stands for all that begin so
            (`down*`: the encoder of a U-Net).
        layers: Indices of blocks, counted from the input.
        timesteps: `[low, high)`; 999 is pure noise in a model of 1,000 steps.

    Raises:
        SettingError: Timesteps that hold nothing, or an empty list.
    """

    reducer: TokenReducer
    stages: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    timesteps: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        from bigain.registry import build_reducer

        object.__setattr__(self, "reducer", build_reducer(self.reducer))
        object.__setattr__(self, "timesteps", _bounds(self.timesteps))
        for name, kind in (("stages", str), ("layers", int)):
            given = getattr(self, name)
            if given is None:
                continue
            given = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
            if not given or not all(isinstance(item, kind) for item in given):
                raise SettingError(f"{name} of a rule is a list of {kind.__name__}, or left out; got {given!r}.")
            object.__setattr__(self, name, given)

    def holds_at(self, context: Context) -> bool:
        """Say whether the rule is about this block, whatever the timestep."""
        named = self.stages is None or any(_names(pattern, context.stage) for pattern in self.stages)
        return named and (self.layers is None or context.layer in self.layers)


class Scheduled(TokenReducer):
    """Follows the first rule that holds.

    Stages and blocks are decided before anything runs and cost nothing. Timesteps
    are decided for each row on the device, without asking the host: where the
    reducers of several timesteps could apply, all are planned and each row follows
    its own; every row then is as long as the longest of them, the places that a row
    does not need are masked. Where all rows are at one timestep that the host knows,
    `at` (or `report.at(timestep)` after `bigain.attach`) settles the rules beforehand,
    and only what is needed runs.

    Args:
        rules: `Rule`s, or mappings of their fields.
        otherwise: Where no rule holds.

    Raises:
        SettingError: No rule, or a rule that is none.

    References:
        BiGain, Table 17 (hybrids); ToDo (Smith et al., 2024) and SDTM (2025) switch by timestep.
    """

    def __init__(self, rules: Sequence[Rule], otherwise: TokenReducer = Identity()) -> None:
        from bigain.registry import build_reducer

        self.rules = tuple(_rule(rule) for rule in rules)
        if not self.rules:
            raise SettingError("scheduled needs one rule or more.")
        self.otherwise = build_reducer(otherwise)

    @property
    def kinds(self) -> frozenset[Kind]:
        reducers = [*(rule.reducer for rule in self.rules), self.otherwise]
        found = [reducer.kinds for reducer in reducers if not isinstance(reducer, Identity)]
        return frozenset[Kind]().union(*found) or frozenset[Kind](["merge"])

    def kinds_at(self, context: Context) -> frozenset[Kind]:
        found = [reducer.kinds for reducer, _ in self._candidates(context) if not isinstance(reducer, Identity)]
        return frozenset[Kind]().union(*found) or frozenset[Kind](["merge"])

    def check_places(self, contexts: Sequence[Context]) -> None:
        for rule in self.rules:
            if not any(rule.holds_at(context) for context in contexts):
                stages = ", ".join(dict.fromkeys(str(context.stage) for context in contexts))
                layers = ", ".join(str(context.layer) for context in contexts)
                raise SettingError(
                    f"{rule} holds at none of the blocks it is attached to: their stages are {stages}, "
                    f"their layers {layers}."
                )

    @property
    def averages(self) -> bool:
        return self.otherwise.averages and all(rule.reducer.averages for rule in self.rules)

    def differs_within(self, per: str) -> bool:
        """Say whether rules tell apart the blocks of one stage, or of one forward pass."""
        return any(rule.layers is not None or (per == "forward" and rule.stages is not None) for rule in self.rules)

    def at(self, timestep: float) -> TokenReducer:
        rules = [rule for rule in self.rules if _within(timestep, rule.timesteps)]
        settled = [Rule(rule.reducer.at(timestep), rule.stages, rule.layers) for rule in rules]
        otherwise = self.otherwise.at(timestep)
        return Scheduled(settled, otherwise) if settled else otherwise

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
        grid.check(tokens)
        context = context or Context()
        candidates = self._candidates(context)
        branches = tuple(reducer.plan(tokens, grid, context) for reducer, _ in candidates)
        if len(branches) == 1 or all(isinstance(branch, NoReduction) for branch in branches):
            return branches[0]
        if context.timestep is None:
            raise SettingError("scheduled has rules by timestep, but there is no timestep: the model has none.")
        bounds = [bound for _, bound in candidates[:-1]]
        return Rowwise.of(branches, _first_that_holds(bounds, context.timestep, tokens))

    def reduced_length(self, grid: Grid, context: Context | None = None) -> int:
        return max(reducer.reduced_length(grid, context) for reducer, _ in self._candidates(context or Context()))

    def _candidates(self, context: Context) -> list[tuple[TokenReducer, tuple[float, float] | None]]:
        """List what may apply at this block, each with its timesteps, up to the first that always does."""
        found: list[tuple[TokenReducer, tuple[float, float] | None]] = []
        for rule in self.rules:
            if rule.holds_at(context):
                found.append((rule.reducer, rule.timesteps))
                if rule.timesteps is None:
                    return found
        return [*found, (self.otherwise, None)]

    @classmethod
    def examples(cls) -> list[Self]:
        from bigain.reducers.lgtm import LGTM
        from bigain.reducers.tome import ToMe

        warm_up = Rule(Identity(), timesteps=(600, 1000))
        return [cls([Rule(LGTM(0.5), layers=[0, 1, 2, 3])]), cls([warm_up, Rule(LGTM(0.5))]), cls([warm_up], ToMe(0.3))]


def _bounds(given: Any) -> tuple[float, float] | None:
    """Return the timesteps of a rule, refusing what holds none."""
    if given is None:
        return None
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    numbers = len(pair) == 2 and all(isinstance(item, int | float) for item in pair)
    if not numbers or not pair[0] < pair[1]:
        raise SettingError(f"timesteps of a rule are two numbers, [low, high) with low < high; got {given!r}.")
    return pair[0], pair[1]


def _rule(given: Any) -> Rule:
    if isinstance(given, Rule):
        return given
    if not isinstance(given, Mapping):
        raise SettingError(f"A rule of scheduled is a Rule or a mapping of its fields; got {type(given).__name__}.")
    try:
        return Rule(**given)
    except TypeError as error:
        raise SettingError(f"A rule of scheduled has reducer, stages, layers and timesteps: {error}") from error


def _names(pattern: str, stage: str | None) -> bool:
    if stage is None:
        return False
    return stage.startswith(pattern[:-1]) if pattern.endswith("*") else stage == pattern


def _within(timestep: float, bounds: tuple[float, float] | None) -> bool:
    return bounds is None or bounds[0] <= timestep < bounds[1]


def _first_that_holds(bounds: list[tuple[float, float] | None], timestep: Tensor, tokens: Tensor) -> Tensor:
    """Number the first bounds that hold for each row, int64 `[B]`; where none do, how many there are."""
    now = timestep.to(tokens.device).expand(tokens.shape[0])
    choice = torch.full(now.shape, len(bounds), dtype=torch.int64, device=tokens.device)
    for number in reversed(range(len(bounds))):
        low, high = bounds[number] or (-math.inf, math.inf)
        choice = torch.where((now >= low) & (now < high), number, choice)
    return choice
