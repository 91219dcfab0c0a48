"""Different reducers for different stages, blocks and timesteps."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, Identity, Kind, NoReduction, Reduction, TokenReducer
from bigain.reducers.build import build_reducer
from bigain.reducers.rowwise import Rowwise

__all__ = ["Rule", "Scheduled"]


@dataclass(frozen=True)
class Rule:
    """Where and when a reducer is used; without stages, layers and timesteps, everywhere and always.

    Args:
        reducer: A reducer, or its name or mapping.
        stages: Stage names; a name that ends in `*` stands for all that begin so
            (`down*`: the encoder of a U-Net).
        layers: Indices of blocks, counted from the input.
        timesteps: `[low, high)`; 999 is pure noise in a model of 1,000 steps, but samplers of flows
            begin at 1000 itself, which `[500, 1000)` leaves out and `[500, 1001)` holds.

    Raises:
        SettingError: An empty range of timesteps, an empty list, or items of another type.
    """

    reducer: TokenReducer
    stages: Sequence[str] | str | None = None
    layers: Sequence[int] | None = None
    timesteps: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reducer", build_reducer(self.reducer))
        object.__setattr__(self, "timesteps", _bounds(self.timesteps))
        for name, wanted in (("stages", str), ("layers", int)):
            given = getattr(self, name)
            if given is None:
                continue
            # A single stage may be its bare name; a bare number could mean one layer or the first so many.
            items = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else ()
            items = (given,) if name == "stages" and isinstance(given, str) else items
            if not items or not all(isinstance(item, wanted) and not isinstance(item, bool) for item in items):
                raise SettingError(f"{name} of a rule is a list of {wanted.__name__}, or left out; got {given!r}.")
            object.__setattr__(self, name, items)
        for pattern in self.stages or ():
            if set("*?[") & set(pattern[:-1]) or pattern.endswith(("?", "[")):
                raise SettingError(f"A stage of a rule is a name, or ends in one '*' (down*); got {pattern!r}.")

    def holds_at(self, context: Context) -> bool:
        """Say whether the rule is about this block, whatever the timestep."""
        named = self.stages is None or any(_names(pattern, context.stage) for pattern in self.stages)
        return named and (self.layers is None or context.layer in self.layers)


class Scheduled(TokenReducer):
    """Follows the first rule that holds.

    Stages and blocks are decided before anything runs and cost nothing. Timesteps
    are decided for each row on the device, without a host synchronisation: where the
    reducers of several timesteps could apply, all are planned and each row follows
    its own; every row is then as long as the longest plan, and the places that a row
    does not need are masked. Where all rows are at one timestep that the host knows,
    `at` (or `report.at(timestep)` after `bigain.attach`) settles the rules beforehand,
    and only what is needed runs.

    Args:
        rules: `Rule`s, or mappings of their fields.
        otherwise: Where no rule holds.

    Raises:
        SettingError: No rules, or an item that is not a rule.

    References:
        BiGain, Table 17 (hybrids); ToDo (Smith et al., 2024) switches by timestep. SDTM (2025)
        changes the parts of a block besides, which rules do not.
    """

    def __init__(
        self,
        rules: Sequence[Rule | Mapping[str, Any]],
        otherwise: TokenReducer | str | Mapping[str, Any] = Identity(),
    ) -> None:
        if isinstance(rules, str | Mapping) or not isinstance(rules, Iterable):
            raise SettingError(f"rules of scheduled is a list of them; got {type(rules).__name__}.")
        self.rules = tuple(_rule(rule) for rule in rules)
        if not self.rules:
            raise SettingError("scheduled needs one rule or more.")
        self.otherwise = build_reducer(otherwise)

    @property
    def kinds(self) -> frozenset[Kind]:
        found = [reducer.kinds for reducer in self._reducers() if _reduces(reducer)]
        return frozenset[Kind]().union(*found) or frozenset[Kind](["merge"])

    def kinds_at(self, context: Context) -> frozenset[Kind]:
        found = [reducer.kinds_at(context) for reducer, _ in self._candidates(context) if _reduces(reducer)]
        return frozenset[Kind]().union(*found) or frozenset[Kind](["merge"])

    def check_places(self, contexts: Sequence[Context]) -> None:
        remaining = list(contexts)
        for rule in self.rules:
            here = [context for context in remaining if rule.holds_at(context)]
            if not here:
                stages = ", ".join(dict.fromkeys(str(context.stage) for context in contexts))
                layers = ", ".join(str(context.layer) for context in contexts)
                raise SettingError(
                    f"{rule} holds at none of the blocks it is attached to, or others always hold before it: "
                    f"the blocks' stages are {stages}, their layers {layers}."
                )
            rule.reducer.check_places(here)
            if rule.timesteps is None:
                remaining = [context for context in remaining if context not in here]
        if remaining:
            self.otherwise.check_places(remaining)

    def differs_within(self, per: Literal["stage", "forward"]) -> bool:
        rules_differ = any(rule.layers is not None or (per == "forward" and rule.stages) for rule in self.rules)
        return rules_differ or any(reducer.differs_within(per) for reducer in self._reducers())

    @property
    def averages(self) -> bool:
        return all(reducer.averages for reducer in self._reducers())

    def _reducers(self) -> list[TokenReducer]:
        return [*(rule.reducer for rule in self.rules), self.otherwise]

    def at(self, timestep: float) -> TokenReducer:
        settled: dict[Any, Rule] = {}
        for rule in self.rules:
            if _within(timestep, rule.timesteps):
                # Of rules for the same blocks, the first is followed.
                found = Rule(rule.reducer.at(timestep), rule.stages, rule.layers)
                settled.setdefault((found.stages, found.layers), found)
                if found.stages is None and found.layers is None:
                    break
        otherwise = self.otherwise.at(timestep)
        first = next(iter(settled.values()), Rule(otherwise))
        everywhere = first.stages is None and first.layers is None
        return first.reducer if everywhere else Scheduled(list(settled.values()), otherwise)

    def plan(self, tokens: Tensor, grid: Grid, context: Context | None = None) -> Reduction:
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

        warm_up, lgtm = Rule(Identity(), timesteps=(600, 1000)), LGTM(0.5, cell=2)
        return [cls([Rule(lgtm, layers=[0, 1, 2, 3])]), cls([warm_up, Rule(lgtm)]), cls([warm_up], ToMe(0.3))]


def _bounds(given: Any) -> tuple[float, float] | None:
    """Return the timesteps of a rule, refusing an empty range."""
    if given is None:
        return None
    pair = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else ()
    numbers = len(pair) == 2 and all(isinstance(item, int | float) for item in pair)
    if not numbers or not pair[0] < pair[1]:
        raise SettingError(f"timesteps of a rule are two numbers, [low, high) with low < high; got {given!r}.")
    return pair[0], pair[1]


def _reduces(reducer: TokenReducer) -> bool:
    """Say whether a reducer changes anything: one that does not goes with merge and kv alike."""
    if isinstance(reducer, Scheduled):
        return any(_reduces(inner) for inner in reducer._reducers())  # noqa: SLF001
    return not isinstance(reducer, Identity)


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
    """Return the index of the first bounds that hold for each row, int64 `[B]`; `len(bounds)` where none do."""
    now = timestep.to(tokens.device).expand(tokens.shape[0])
    choice = torch.full(now.shape, len(bounds), dtype=torch.int64, device=tokens.device)
    for number in reversed(range(len(bounds))):
        low, high = bounds[number] or (-math.inf, math.inf)
        choice = torch.where((now >= low) & (now < high), number, choice)
    return choice
