"""The checks on random grids, batches and moments, for everything registered."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import TokenReducer
from bigain.testing import CASES, Case, ContractError, checks_of
from bigain.testing.collecting import cases_of, label

# Compilation and settings are not about grids.
LEFT_OUT = {"check_compiles_to_one_graph", "check_can_be_built"}
SUBJECTS = list({id(subject): subject for subject, name, _, _ in cases_of() if name not in LEFT_OUT}.values())


@st.composite
def random_cases(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    grid = Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    return Case(
        grid,
        batch=draw(st.integers(1, 4)),
        channels=draw(st.integers(2, 9)),
        seed=draw(st.integers(0, 2**16)),
        layer=draw(st.integers(0, 27)),
        stage=draw(st.sampled_from([None, "down_blocks.0", "mid_block", "up_blocks.2"])),
    )


def accepted(subject, case):
    try:
        if isinstance(subject, TokenReducer):
            subject.reduced_length(case.grid, case.context())
        else:
            subject(case.tokens(), case.grid)
    except SettingError:
        return False
    return True


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: f"{type(subject).__name__}-{label(subject)}")
@settings(max_examples=3)
@given(case=random_cases())
def test_the_contract_holds_on_random_cases(subject, case):
    kind = "reducers" if isinstance(subject, TokenReducer) else "scorers"
    usable = accepted(subject, case)
    for check in checks_of(kind):
        if check.name not in LEFT_OUT and (usable or check.everywhere):
            failure = check.failure(subject, [case])
            if failure:
                raise ContractError(repr(subject), [failure]) from failure.cause


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.grid.shape))
@pytest.mark.parametrize(
    "kind", [*dict.fromkeys(type(subject) for subject in SUBJECTS)], ids=lambda kind: kind.__name__
)
def test_every_method_takes_every_default_grid_with_some_settings(kind, case):
    """A grid that a subject refuses is left out: a method that refused one always would not be checked on it."""
    # The released rule knows images that cells divide, and no others.
    released = kind.__name__ == "LGTMReleased"
    expected = not released or case.grid.shape == (6, 6)
    assert any(accepted(subject, case) for subject in SUBJECTS if type(subject) is kind) == expected


def test_there_is_something_to_check():
    assert len(SUBJECTS) > 4
