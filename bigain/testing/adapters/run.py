"""Run the checks of adapters over a tiny model."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from bigain.adapters.find import AdapterSpec
from bigain.testing.adapters import arguments, compiling, finding, grids, passes, traces, training, weighting
from bigain.testing.adapters.bench import Bench, Specimen
from bigain.testing.failures import ContractError, Failure, NotApplicable, in_words

__all__ = ["CHECKS", "AdapterCheck", "check_adapter", "specimen_of"]


@dataclass(frozen=True)
class AdapterCheck:
    """A named behaviour of an adapter that can be checked on its own.

    Args:
        function: Takes a bench with a fresh model, and raises if the behaviour is missing.
    """

    function: Callable[[Bench], None]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def why(self) -> str:
        """The first line of its documentation."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def __call__(self, subject: Specimen) -> None:
        """Check the adapter of a tiny model.

        Raises:
            ContractError: The behaviour is missing.
            NotApplicable: The check does not apply to the model.
        """
        failure = self.failure(subject)
        if failure:
            raise ContractError(str(subject), [failure]) from failure.cause

    def failure(self, subject: Specimen) -> Failure | None:
        """Return the failure, if the check fails.

        Raises:
            NotApplicable: The check does not apply to the model.
        """
        try:
            self.function(Bench(subject))
        except NotApplicable:
            raise
        except Exception as error:  # whatever an adapter raises is a failure of the check
            return Failure(self.name, self.why, in_words(error), error)
        return None


CHECKS = tuple(
    AdapterCheck(function)
    for function in (
        finding.check_model_is_found,
        finding.check_sites_are_modules,
        finding.check_layers_count_in_order_of_execution,
        finding.check_default_layers_are_layers,
        arguments.check_inputs_run,
        arguments.check_inputs_are_as_asked,
        arguments.check_other_shapes_run,
        arguments.check_moment_is_read,
        grids.check_grids_count_tokens,
        grids.check_grids_lie_as_the_input_does,
        grids.check_work_is_done_on_fewer_tokens,
        passes.check_identity_changes_nothing,
        passes.check_order_of_tokens_does_not_matter,
        passes.check_reducers_change_every_site,
        passes.check_plans_are_made_once_a_block,
        passes.check_rows_are_independent,
        passes.check_half_precision,
        passes.check_worth_is_counted,
        weighting.check_queries_stay_whole,
        weighting.check_padding_is_left_out,
        weighting.check_sizes_weight_keys,
        traces.check_detaching_restores,
        traces.check_exceptions_leave_nothing,
        traces.check_copies_are_independent,
        traces.check_pickles,
        traces.check_saving_and_loading,
        training.check_gradients_flow,
        training.check_gradient_checkpointing,
        compiling.check_compiles_to_one_graph,
    )
)
"""Every check of adapters, in the order in which they run."""


def specimen_of(model: nn.Module | Callable[[], nn.Module] | Specimen, adapter: AdapterSpec | None = None) -> Specimen:
    """Make a specimen of a model, which checks copy, or of a function that makes one."""
    if isinstance(model, Specimen):
        return model
    return Specimen(model, adapter)


def check_adapter(model: nn.Module | Callable[[], nn.Module] | Specimen, adapter: AdapterSpec | None = None) -> None:
    """Run every check of adapters on a tiny model.

    Args:
        model: A model, which is not changed; or a function without arguments that makes one.
        adapter: The adapter, if no registered one knows the model.

    Raises:
        ContractError: Some checks fail; it says which, why they matter, and what was seen.
    """
    subject = specimen_of(model, adapter)
    failures = []
    for check in CHECKS:
        try:
            failure = check.failure(subject)
        except NotApplicable:
            continue
        if failure:
            failures.append(failure)
    if failures:
        raise ContractError(str(subject), failures) from failures[0].cause
