"""Everything registered keeps to the contract; a package of one's own is tested with the same three lines."""

import pytest

from bigain.testing import parametrize_with_checks
from bigain.testing.collecting import cases_of

WHOLE = {type(subject): name for subject, check, _, name in cases_of() if check == "check_compiles_to_one_graph"}
"""One setting of each class. The others are traced alone, which finds what breaks a graph."""


@pytest.fixture
def compiler(request, monkeypatch):
    """Choose how much of the compiler runs."""
    if request.node.callspec.id not in WHOLE.values():
        monkeypatch.setenv("BIGAIN_CHECK_BACKEND", "eager")


@parametrize_with_checks()
@pytest.mark.usefixtures("compiler")
def test_conformance(subject, check):
    check(subject)


def test_one_setting_of_each_class_goes_through_the_whole_compiler():
    assert len(WHOLE) > 20
    assert len({*WHOLE.values()}) == len(WHOLE)
