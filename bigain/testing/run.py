"""Run the checks over a subject, and name every one that fails."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from bigain import registry
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.scorers.base import TokenScorer
from bigain.testing import compilation, reducers, scorers, settings, shared, synchronisation
from bigain.testing.adapters.run import CHECKS as ADAPTER_CHECKS
from bigain.testing.adapters.run import AdapterCheck
from bigain.testing.cases import CASES, Case
from bigain.testing.comparing import Subject, outcome
from bigain.testing.failures import ContractError, Failure, in_words

__all__ = ["Check", "check_reducer", "check_scorer", "checks_of"]

_Any = TypeVar("_Any")


@dataclass(frozen=True)
class Check:
    """A named behaviour that can be checked on its own.

    Args:
        function: Takes a subject and a case, and raises if the behaviour is missing.
        once: One case is enough, since the check is slow or not about tokens.
        everywhere: Also runs on the cases that the subject refuses.
    """

    function: Callable[[Any, Case], None]
    once: bool = False
    everywhere: bool = False

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def why(self) -> str:
        """The first line of its documentation."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def __call__(self, subject: Subject, cases: Sequence[Case] = CASES) -> None:
        """Check a subject.

        Raises:
            ContractError: The behaviour is missing.
        """
        failure = _nowhere(subject, cases) or self.failure(subject, cases)
        if failure:
            raise ContractError(repr(subject), [failure]) from failure.cause

    def failure(self, subject: Subject, cases: Sequence[Case]) -> Failure | None:
        """Return the first failure; every case gets its own copy of the subject, which a check may change."""
        for case in cases if self.everywhere else self._chosen(_accepted(subject, cases)):
            try:
                self.function(_copied(subject), case)
            except Exception as error:  # whatever a subject raises is a failure of the check
                return Failure(self.name, self.why, f"{in_words(error)}\non {case}", error)
        return None

    def _chosen(self, accepted: list[Case]) -> list[Case]:
        """Choose one case, with fixed tokens if possible, for checks that run once."""
        accepted = sorted(accepted, key=lambda case: not case.grid.prefix) if self.once else accepted
        return accepted[:1] if self.once else accepted


_SHARED = (
    Check(settings.check_settings_are_attributes, once=True),
    Check(settings.check_impossible_settings_are_refused, once=True),
    Check(shared.check_tokens_off_the_grid_are_refused),
    Check(shared.check_repeats_itself),
    Check(shared.check_no_state_between_calls),
    Check(shared.check_pickles),
    Check(shared.check_inputs_are_not_written_to),
    Check(shared.check_batch_size_invariance),
    Check(shared.check_batch_order_invariance),
    Check(shared.check_neighbour_invariance),
    Check(shared.check_half_precision),
    Check(shared.check_autocast_changes_nothing),
    Check(shared.check_finite_on_flat_tokens),
    Check(shared.check_finite_on_huge_tokens),
    Check(shared.check_finite_on_smallest_inputs),
    Check(synchronisation.check_runs_on_meta_device),
    Check(synchronisation.check_no_host_synchronisation),
    Check(compilation.check_compiles_to_one_graph, once=True),
)

_SCORERS = (
    Check(scorers.check_scores_have_shape_and_type),
    Check(scorers.check_large_means_detail),
    Check(scorers.check_fixed_tokens_are_not_scored),
    *_SHARED,
)

_REDUCERS = (
    Check(reducers.check_refusals_agree, everywhere=True),
    Check(reducers.check_length_is_announced),
    Check(reducers.check_shapes_and_types),
    Check(reducers.check_kind_is_announced),
    Check(reducers.check_plan_is_frozen),
    Check(reducers.check_tokens_have_one_place),
    Check(reducers.check_sizes_count_tokens),
    Check(reducers.check_reducing_undoes_restoring),
    Check(reducers.check_unmerged_tokens_come_back),
    Check(reducers.check_reduced_groups_are_means),
    Check(reducers.check_plan_serves_any_channels),
    Check(reducers.check_repeated_plan_serves_consecutive_rows),
    Check(reducers.check_fixed_tokens_are_untouched),
    Check(reducers.check_one_timestep_serves_all_rows),
    Check(reducers.check_no_context_is_an_empty_one),
    Check(reducers.check_blocks_may_share_a_cache),
    Check(reducers.check_settled_reducer_does_the_same),
    Check(reducers.check_gradients_flow),
    *_SHARED,
)


def checks_of(kind: str) -> tuple[Check | AdapterCheck, ...]:
    """List the checks of `scorers`, `reducers` or `adapters`, in the order in which they run."""
    known: dict[str, tuple[Check | AdapterCheck, ...]] = {
        "scorers": _SCORERS,
        "reducers": _REDUCERS,
        "adapters": ADAPTER_CHECKS,
    }
    return known[kind]


def check_scorer(scorer: TokenScorer | type[TokenScorer] | str, cases: Sequence[Case] = CASES) -> None:
    """Run every check of scorers.

    Args:
        scorer: A scorer, checked with its settings; or a class or a registered name, all of
            whose `examples()` are checked.
        cases: The cases; those that it refuses with a `SettingError` are left out.

    Raises:
        ContractError: Some checks fail; it says which, why they matter, and what was seen.
        SettingError: Not a scorer.
    """
    for subject in _objects(scorer, "scorers"):
        _check(subject, _SCORERS, cases)


def check_reducer(reducer: TokenReducer | type[TokenReducer] | str, cases: Sequence[Case] = CASES) -> None:
    """Run every check of reducers.

    Args:
        reducer: A reducer, checked with its settings; or a class or a registered name, all of
            whose `examples()` are checked.
        cases: The cases; those that it refuses with a `SettingError` are left out.

    Raises:
        ContractError: Some checks fail; it says which, why they matter, and what was seen.
        SettingError: Not a reducer.
    """
    for subject in _objects(reducer, "reducers"):
        _check(subject, _REDUCERS, cases)


def _objects(given: Any, kind: str) -> list[Any]:
    """Return the objects to check.

    Raises:
        SettingError: No examples, or something of another kind.
    """
    base: Any = registry.base_of(kind)
    found = registry.get(kind, given) if isinstance(given, str) else given
    if isinstance(found, type) and issubclass(found, base):
        if examples := [*cast("Any", found).examples()]:
            return examples
        raise SettingError(f"{found.__name__}.examples() is empty: give an object, or say which are worth checking.")
    if not isinstance(found, base):
        raise SettingError(
            f"This checks {kind}: give an object, a class or a registered name of one; got {type(given).__name__}."
        )
    return [found]


def _check(subject: Subject, checks: Sequence[Check], cases: Sequence[Case]) -> None:
    nowhere = _nowhere(subject, cases)
    failures = [nowhere] if nowhere else [failure for check in checks if (failure := check.failure(subject, cases))]
    if failures:
        raise ContractError(repr(subject), failures) from failures[0].cause


def _nowhere(subject: Subject, cases: Sequence[Case]) -> Failure | None:
    """Return a failure if every case is refused: nothing would be checked, and every check would pass."""
    if _accepted(subject, cases):
        return None
    grids = ", ".join(str(case.grid.shape) for case in cases)
    why = "A method that works nowhere cannot be checked."
    return Failure("check_accepts_a_case", why, f"every grid is refused with a SettingError: {grids}")


def _accepted(subject: Subject, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if not _refused(subject, case)]


def _refused(subject: Subject, case: Case) -> bool:
    try:
        outcome(_copied(subject), case.tokens(), case.grid, case.context())
    except SettingError:
        return True
    except Exception:  # the checks themselves will report it
        return False
    return False


def _copied(subject: _Any) -> _Any:
    """Copy a subject's attributes, without its own copying methods, which are checked too."""
    try:
        copied = object.__new__(type(subject))
        copied.__dict__.update(copy.deepcopy(vars(subject)))
    except Exception:  # what cannot be copied is reported by check_pickles
        return subject
    return copied
