"""Grid: arithmetic, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError

shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
counts = st.integers(0, 3)


@given(shapes, counts, counts)
def test_counts_and_body_agree_with_plain_slicing(shape, prefix, suffix):
    grid = bigain.Grid(shape, prefix, suffix)
    numbers = list(range(prefix + math.prod(shape) + suffix))
    tokens = torch.tensor(numbers, dtype=torch.float32)[None, :, None]

    assert (grid.axes, grid.size, grid.tokens) == (len(shape), math.prod(shape), len(numbers))
    assert grid.body(tokens).flatten().tolist() == numbers[prefix : len(numbers) - suffix]


def test_a_list_makes_the_same_grid_as_a_tuple():
    assert bigain.Grid([2, 3]) == bigain.Grid((2, 3))
    assert len({bigain.Grid([2, 3]), bigain.Grid((2, 3))}) == 1


def test_body_shares_memory_with_the_tokens():
    tokens = torch.zeros(1, 5, 1)
    bigain.Grid((4,), prefix=1).body(tokens).fill_(7)
    assert tokens.flatten().tolist() == [0, 7, 7, 7, 7]


@pytest.mark.parametrize(
    "settings",
    [
        {"shape": ()},
        {"shape": 7},
        {"shape": "88"},
        {"shape": (True, True)},
        {"shape": (4,), "prefix": True},
        {"shape": (2.5, 2)},
        {"shape": (4,), "prefix": 0.5},
        {"shape": (4, 0)},
        {"shape": (-1,)},
        {"shape": (4,), "prefix": -1},
        {"shape": (4,), "suffix": -1},
    ],
)
def test_impossible_grid_is_refused_with_what_was_given(settings):
    with pytest.raises(SettingError, match="accepted are") as caught:
        bigain.Grid(**settings)
    for value in settings.values():
        assert str(value) in str(caught.value)


@pytest.mark.parametrize("count", [1, 15, 17, 19])
def test_wrong_number_of_tokens_is_refused_with_the_sum_in_words(count):
    with pytest.raises(SettingError, match=rf"Got {count} tokens for a grid of 18.*16.* plus 1 before and 1 after"):
        bigain.Grid((4, 4), prefix=1, suffix=1).check(torch.zeros(2, count, 3))


@pytest.mark.parametrize("shape", [(16,), (16, 3), (2, 4, 4, 3)])
def test_tokens_need_three_axes(shape):
    with pytest.raises(SettingError, match=r"\[B, N, C\]"):
        bigain.Grid((4, 4)).check(torch.zeros(shape))
