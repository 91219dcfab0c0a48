"""Checks that every scorer and reducer passes, third-party ones included.

    from bigain.testing import parametrize_with_checks

    @parametrize_with_checks(["mean_abs"])
    def test_conformance(subject, check):
        check(subject)

`check_scorer` and `check_reducer` run them all at once, without pytest. Two
environment variables choose where: `BIGAIN_CHECK_DEVICE` (`cpu`) and
`BIGAIN_CHECK_BACKEND`, the compiler's backend (`aot_eager`).
"""

from bigain.testing.cases import CASES, Case
from bigain.testing.collecting import parametrize_with_checks
from bigain.testing.run import Check, ContractError, Failure, check_reducer, check_scorer, checks_of

__all__ = [
    "CASES",
    "Case",
    "Check",
    "ContractError",
    "Failure",
    "check_reducer",
    "check_scorer",
    "checks_of",
    "parametrize_with_checks",
]
