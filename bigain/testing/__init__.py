"""Checks that every scorer, reducer and adapter passes, third-party ones included.

    from bigain.testing import parametrize_with_checks

    @parametrize_with_checks(["mean_abs"])
    def test_conformance(subject, check):
        check(subject)

`check_scorer`, `check_reducer` and `check_adapter` run them all at once, without pytest.
An adapter is checked on a tiny model, or better on a function that makes one. Two
environment variables: `BIGAIN_CHECK_DEVICE` (default `cpu`) and `BIGAIN_CHECK_BACKEND`, the
compiler's backend (default `aot_eager`; for adapters `eager`).
"""

from bigain.testing.adapters.bench import Specimen
from bigain.testing.adapters.run import check_adapter
from bigain.testing.cases import CASES, Case
from bigain.testing.collecting import parametrize_with_checks
from bigain.testing.failures import ContractError, Failure, NotApplicable
from bigain.testing.run import Check, check_reducer, check_scorer, checks_of

__all__ = [
    "CASES",
    "Case",
    "Check",
    "ContractError",
    "Failure",
    "NotApplicable",
    "Specimen",
    "check_adapter",
    "check_reducer",
    "check_scorer",
    "checks_of",
    "parametrize_with_checks",
]
