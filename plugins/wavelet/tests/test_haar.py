"""Haar: a loop over cells with the orthonormal matrix, and what is known without it."""

import itertools
import math

import numpy as np
import pytest
import torch
from bigain_wavelet import HaarHighBand
from hypothesis import given, settings
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow(image, shape, levels, norm):
    """Score one image `[N, C]` cell by cell, by the Kronecker product of orthonormal 2 x 2 matrices."""
    axes, power = len(shape), {"l1": 1, "l2": 2}[norm]
    transform = np.ones((1, 1))
    for _ in range(axes):
        transform = np.kron(transform, np.array([[1, 1], [1, -1]]) / math.sqrt(2))
    field = image.double().numpy().reshape(*shape, -1)
    total = np.zeros(shape)
    for level in range(levels):
        coarse = np.zeros((*(-(-n // 2) for n in field.shape[:-1]), field.shape[-1]))
        parts = np.zeros(coarse.shape[:-1])
        for cell in np.ndindex(parts.shape):
            corners = itertools.product(
                *[(2 * c, min(2 * c + 1, n - 1)) for c, n in zip(cell, field.shape, strict=False)]
            )
            coefficients = transform @ np.stack([field[corner] for corner in corners])
            coarse[cell] = coefficients[0] / math.sqrt(2**axes)
            parts[cell] = (np.abs(coefficients[1:] / math.sqrt(2**axes)) ** power).sum()
        for token in np.ndindex(shape):
            total[token] += parts[tuple(i >> (level + 1) for i in token)]
        field = coarse
    return (total ** (1 / power)).ravel()


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple))
    levels = draw(st.integers(1, max(1, math.ceil(math.log2(max(shape))))))
    grid = bigain.Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    return HaarHighBand(levels, draw(st.sampled_from(["l1", "l2"]))), grid, randn(2, grid.tokens, 3)


@settings(deadline=None)
@given(cases())
def test_equals_the_loop_over_cells_on_any_grid(case):
    scorer, grid, tokens = case
    score = scorer(tokens, grid)
    body = tokens[:, grid.prefix : grid.prefix + grid.size]
    expected = np.stack([slow(image, grid.shape, scorer.levels, scorer.norm) for image in body])
    torch.testing.assert_close(score.double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(8,), (4, 6), (2, 4, 6)])
def test_one_level_is_the_distance_of_a_cell_from_its_mean(shape):
    """Root mean square over the tokens of the cell, by reshaping alone."""
    tokens, axes = randn(1, math.prod(shape), 5), len(shape)
    folded = tokens.reshape([n for length in shape for n in (length // 2, 2)] + [5])
    within = [2 * axis + 1 for axis in range(axes)]
    distance = (folded - folded.mean(within, keepdim=True)).square().sum(-1, keepdim=True).mean(within, keepdim=True)
    expected = distance.sqrt().expand(*folded.shape[:-1], 1).reshape(1, -1)
    torch.testing.assert_close(HaarHighBand(norm="l2")(tokens, bigain.Grid(shape)), expected)


@pytest.mark.parametrize("shape", [(8,), (8, 8), (4, 8, 8)])
def test_squared_scores_add_up_to_the_energy_that_the_coarsest_means_leave(shape):
    tokens, levels = randn(1, math.prod(shape), 4), 2
    coarse = tokens.reshape([n for length in shape for n in (length // 4, 4)] + [4])
    coarse = coarse.mean([2 * axis + 1 for axis in range(len(shape))])
    energy = tokens.square().sum() - 4 ** len(shape) * coarse.square().sum()
    score = HaarHighBand(levels, norm="l2")(tokens, bigain.Grid(shape))
    torch.testing.assert_close(score.square().sum(), energy, rtol=1e-4, atol=1e-4)


def test_a_pair_by_hand():
    tokens = torch.tensor([[[1.0, 0], [5, -2], [3, 3]]])
    assert HaarHighBand()(tokens, bigain.Grid((3,))).tolist() == [[3, 3, 0]]
    torch.testing.assert_close(HaarHighBand(norm="l2")(tokens, bigain.Grid((3,)))[0, 0], torch.tensor(5.0).sqrt())


@pytest.mark.parametrize("shape", [(8,), (6, 6), (7, 5), (4, 6, 2), (3, 5, 7)])
def test_a_checkerboard_is_all_detail_and_a_constant_field_none(shape):
    """The last of an odd axis is paired with itself: along that border the checkerboard has less detail."""
    sign = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0) % 2 * 2.0 - 1
    board = sign.reshape(1, -1, 1).expand(-1, -1, 4)
    score = HaarHighBand()(board, bigain.Grid(shape)).reshape(shape)
    whole = score[tuple(slice(n // 2 * 2) for n in shape)]
    assert torch.equal(whole, torch.full_like(whole, 4))
    assert (score <= 4).all()
    assert not HaarHighBand()(torch.full_like(board, 7), bigain.Grid(shape)).any()


def test_all_tokens_of_a_cell_score_the_same_and_others_do_not():
    score = HaarHighBand()(randn(1, 36, 4), bigain.Grid((6, 6))).reshape(3, 2, 3, 2)
    assert torch.equal(score, score[:, :1, :, :1].expand_as(score))
    assert len(score.unique()) == 9


def test_lgtm_and_the_registry_take_it():
    scorer = bigain.build_scorer("haar_high_band", levels=2, norm="l2")
    assert repr(scorer) == "HaarHighBand(levels=2, norm='l2')"
    reducer = bigain.build_reducer("lgtm", ratio=0.5, scorer="haar_high_band", cell=(1, 2, 2))
    tokens = randn(1, 32, 4)
    assert reducer.plan(tokens, bigain.Grid((2, 4, 4))).reduce(tokens).shape == (1, 16, 4)


@pytest.mark.parametrize("levels", [0, -1, 1.0, True, "2", None])
def test_impossible_levels_are_refused(levels):
    with pytest.raises(SettingError, match="levels is a whole number of at least 1; got"):
        HaarHighBand(levels)


@pytest.mark.parametrize(("shape", "most"), [((4, 4), 2), ((5, 2), 3), ((1,), 1), ((1, 8, 3), 3)])
def test_levels_beyond_one_cell_are_refused(shape, most):
    grid, tokens = bigain.Grid(shape), randn(1, math.prod(shape), 2)
    HaarHighBand(most)(tokens, grid)
    with pytest.raises(SettingError, match=rf"levels={most + 1} got a grid of .* one cell after {most}"):
        HaarHighBand(most + 1)(tokens, grid)


@pytest.mark.parametrize("norm", ["L1", 2, None])
def test_an_unknown_norm_is_refused(norm):
    with pytest.raises(SettingError, match="norm is 'l1' or 'l2'; got"):
        HaarHighBand(norm=norm)
