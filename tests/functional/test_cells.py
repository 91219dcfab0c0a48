"""Cells of a grid, one pick in each, and numbers drawn by a hash."""

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigain.functional import cells as module
from bigain.functional.cells import cell_tokens, hashed_normal, hashed_picks, hashed_uniform, split_by_pick

CPU = torch.device("cpu")


def cells_by_loop(shape, cell):
    """Every whole cell, as the list of its tokens."""
    corners = itertools.product(*(range(0, n - s + 1, s) for n, s in zip(shape, cell, strict=True)))
    offsets = list(itertools.product(*map(range, cell)))
    return [[int(np.ravel_multi_index(np.add(corner, offset), shape)) for offset in offsets] for corner in corners]


@st.composite
def grids_with_cells(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    return shape, tuple(draw(st.integers(1, n)) for n in shape)


@given(grids_with_cells())
def test_cells_and_leftover_equal_the_loop(case):
    shape, cell = case
    cells, leftover = cell_tokens(shape, cell, CPU)
    expected = cells_by_loop(shape, cell)
    assert cells.tolist() == expected
    covered = set(itertools.chain.from_iterable(expected))
    assert sorted(leftover.tolist()) == [i for i in range(int(np.prod(shape))) if i not in covered]


@given(grids_with_cells(), st.integers(0, 99))
def test_split_gives_the_pick_and_every_other_token_once(case, seed):
    shape, cell = case
    cells, leftover = cell_tokens(shape, cell, CPU)
    pick = torch.randint(cells.shape[1], (3, len(cells)), generator=torch.Generator().manual_seed(seed))
    picked, others = split_by_pick(cells, leftover, pick)
    for row in range(3):
        expected = [tokens[choice] for tokens, choice in zip(cells.tolist(), pick[row].tolist(), strict=True)]
        assert picked[row].tolist() == expected
        assert sorted(picked[row].tolist() + others[row].tolist()) == list(range(int(np.prod(shape))))


def test_hashed_picks_are_uniform():
    """Chi-square over 4 choices; 16.3 is the 99.9 % point of 3 degrees of freedom."""
    for salt in range(5):
        counts = hashed_picks(torch.arange(20), 1000, 4, salt).flatten().bincount(minlength=4)
        assert ((counts - 5000) ** 2 / 5000).sum() < 16.3


def test_hashed_picks_of_neighbouring_cells_rows_and_salts_are_independent():
    """Two independent draws of four agree on a quarter of the cells."""
    picks = torch.stack([hashed_picks(torch.arange(8), 4000, 4, salt) for salt in range(3)])
    pairs = [
        (picks[..., 1:], picks[..., :-1]),
        (picks[:, 1:], picks[:, :-1]),
        (picks[1:], picks[:-1]),
    ]
    for one, other in pairs:
        assert abs((one == other).float().mean() - 0.25) < 0.01


def test_hashed_picks_depend_on_the_row_value_alone():
    together = hashed_picks(torch.tensor([7, 3, 7, 999]), 50, 4, salt=1)
    assert torch.equal(together[0], together[2])
    assert torch.equal(hashed_picks(torch.tensor([999]), 50, 4, salt=1)[0], together[3])
    assert not torch.equal(together[0], together[1])


def test_hashed_picks_take_any_salt_and_choice():
    for salt in (-1, 0, 2**40):
        picks = hashed_picks(torch.tensor([-5, 2**40]), 200, 6, salt)
        assert picks.dtype == torch.int64
        assert set(picks.flatten().tolist()) == set(range(6))


def test_hashed_picks_never_change():
    """Published results depend on these draws: a new hash would be another method."""
    assert hashed_picks(torch.tensor([500]), 12, 4, salt=4099).tolist() == FROZEN


FROZEN = [[0, 0, 2, 2, 1, 3, 3, 1, 2, 2, 0, 1]]


DRAWS = {hashed_uniform: "uniform", hashed_normal: "norm"}
every_draw = pytest.mark.parametrize("draw", DRAWS)


@every_draw
def test_hashed_numbers_have_their_distribution(draw):
    """The Kolmogorov-Smirnov test, within and across rows and salts."""
    rows = torch.arange(40)
    for salt in (0, 1, 4099):
        numbers = draw(rows, 500, salt).numpy()
        for sample in (numbers[0], numbers[:, 0], numbers.ravel()):
            assert scipy.stats.kstest(sample, DRAWS[draw]).pvalue > 1e-3


@every_draw
def test_hashed_numbers_of_neighbours_rows_and_salts_are_uncorrelated(draw):
    numbers = torch.stack([draw(torch.arange(8), 4000, salt) for salt in range(3)]).double()
    for one, other in [
        (numbers[..., 1:], numbers[..., :-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        (numbers[1:], numbers[:-1]),
    ]:
        pair = torch.stack([one.flatten(), other.flatten()])
        for moment in (pair, (pair - pair.mean(dim=1, keepdim=True)) ** 2):
            assert abs(moment.corrcoef()[0, 1]) < 4 / one.numel() ** 0.5


@every_draw
def test_hashed_numbers_depend_on_row_value_salt_and_place_alone(draw):
    together = draw(torch.tensor([7, 3, 7, 999]), 50, 1)
    assert (together.dtype, together.shape) == (torch.float32, (4, 50))
    assert torch.equal(together[0], together[2])
    assert not torch.equal(together[0], together[1])
    torch.testing.assert_close(draw(torch.tensor([999]), 20, 1)[0], together[3, :20])
    assert not torch.equal(draw(torch.tensor([999]), 50, 2)[0], together[3])
    assert draw(torch.tensor([1]), 0, 1).shape == (1, 0)


@pytest.mark.parametrize("bits", [0, 2**31, 2**32 - 1])
def test_hashed_numbers_are_in_range_for_extreme_hashes(monkeypatch, bits):
    monkeypatch.setattr(module, "_mix", lambda value: torch.full_like(value, bits))
    uniform, normal = hashed_uniform(torch.arange(1), 3, 0), hashed_normal(torch.arange(1), 3, 0)
    assert uniform.tolist() == [[(bits >> 8) / 2**24] * 3]
    assert (uniform < 1).all()
    assert normal.abs().max() < 5.78


def test_hashed_numbers_never_change():
    row = torch.tensor([500])
    torch.testing.assert_close(hashed_uniform(row, 4, salt=4099), torch.tensor([FROZEN_UNIFORM]), atol=1e-4, rtol=0)
    torch.testing.assert_close(hashed_normal(row, 4, salt=4099), torch.tensor([FROZEN_NORMAL]), atol=1e-4, rtol=0)


FROZEN_UNIFORM = [0.8885, 0.1909, 0.1948, 0.7186]
FROZEN_NORMAL = [0.7606, -0.1289, 0.7093, 0.6314]
