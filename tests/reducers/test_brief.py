"""Reducers in few words."""

import pytest

import bigain
from bigain.reducers.brief import brief
from bigain.reducers.iekvd import LinearAlpha
from bigain.reducers.scheduled import Rule
from bigain.registry import get


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"name": "identity"}, "Identity()"),
        ({"name": "lgtm", "ratio": 0.5}, "LGTM(ratio=0.5)"),
        ({"name": "lgtm", "ratio": 0.5, "cell": [2, 2], "scorer": "laplacian_l1"}, "LGTM(ratio=0.5)"),
        ({"name": "lgtm", "ratio": 0.5, "mode": "prune"}, "LGTM(ratio=0.5, mode='prune')"),
        ({"name": "abm", "ratio": 0.3, "scorer": "l1_norm"}, "ABM(ratio=0.3, scorer=L1Norm())"),
        ({"name": "cached", "reducer": {"name": "tome", "ratio": 0.5}}, "Cached(reducer=ToMe(ratio=0.5))"),
    ],
)
def test_settings_with_their_default_are_left_out(settings, expected):
    assert brief(bigain.build_reducer(settings)) == expected


@pytest.mark.parametrize("name", bigain.available("reducers"))
def test_what_is_left_makes_the_same_reducer(name):
    kinds = [get(kind, one) for kind in ("reducers", "scorers") for one in bigain.available(kind)]
    known = {kind.__name__: kind for kind in (*kinds, LinearAlpha, Rule)}
    for one in get("reducers", name).examples():
        assert repr(eval(brief(one), known)) == repr(one)


def test_a_class_that_keeps_its_settings_otherwise_is_written_whole():
    class Odd(bigain.reducers.base.Identity):
        def __init__(self, given):
            self.kept = given.upper()

    assert brief(Odd("a")) == "Odd(kept='A')"
