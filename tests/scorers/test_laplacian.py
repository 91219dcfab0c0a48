"""Laplacian scorers, against the golden vectors, scipy and closed forms."""

import pickle

import pytest
import scipy.ndimage
import torch

import bigain
from bigain.errors import SettingError
from bigain.scorers.laplacian import LaplacianL1, LaplacianL2

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20), "9x13_c8": (9, 13)}


@pytest.mark.parametrize("name", GRIDS)
def test_equals_the_golden_vectors(golden, name):
    vectors = golden(name)
    score = bigain.build_scorer("laplacian_l1")(vectors["x"], bigain.Grid(GRIDS[name]))
    # Scores are near 100, where float32 itself is no finer than 1e-5.
    torch.testing.assert_close(score, vectors["score.laplacian_l1"], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("replicate", "nearest")])
@pytest.mark.parametrize("shape", [(11,), (5, 7), (3, 4, 5)])
def test_equals_scipy_summed_over_channels(noise, shape, padding, mode):
    tokens = noise(1, torch.Size(shape).numel(), 4)
    fields = tokens[0].T.reshape(4, *shape).numpy()
    expected = sum(abs(scipy.ndimage.laplace(field, mode=mode)) for field in fields).ravel()
    score = LaplacianL1(padding)(tokens, bigain.Grid(shape))[0]
    torch.testing.assert_close(score, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("replicate", "nearest")])
@pytest.mark.parametrize("shape", [(11,), (5, 7), (3, 4, 5)])
def test_euclidean_norm_equals_scipy(noise, shape, padding, mode):
    tokens = noise(1, torch.Size(shape).numel(), 4)
    fields = tokens[0].T.reshape(4, *shape).numpy()
    expected = sum(scipy.ndimage.laplace(field, mode=mode) ** 2 for field in fields).ravel() ** 0.5
    score = LaplacianL2(padding)(tokens, bigain.Grid(shape))[0]
    torch.testing.assert_close(score, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("padding", ["zeros", "replicate"])
def test_both_norms_agree_on_one_channel_and_keep_their_order_on_more(noise, padding):
    grid, single, many = bigain.Grid((6, 6)), noise(1, 36, 1), noise(1, 36, 9)
    torch.testing.assert_close(LaplacianL1(padding)(single, grid), LaplacianL2(padding)(single, grid))
    large, small = LaplacianL1(padding)(many, grid), LaplacianL2(padding)(many, grid)
    assert (small < large).all()
    assert (large < 3 * small).all()


def test_large_means_detail():
    """A single odd token scores highest on a flat field."""
    tokens = torch.zeros(1, 49, 2)
    tokens[0, 24] = 1
    assert LaplacianL1("replicate")(tokens, bigain.Grid((7, 7)))[0].argmax() == 24


def test_prefix_and_suffix_are_neither_scored_nor_neighbours(noise):
    tokens = noise(2, 16, 4)
    alone = LaplacianL1()(tokens, bigain.Grid((4, 4)))
    dressed = torch.cat([noise(2, 3, 4) * 100, tokens, noise(2, 2, 4) * 100], dim=1)
    assert torch.equal(LaplacianL1()(dressed, bigain.Grid((4, 4), prefix=3, suffix=2)), alone)


def test_zero_padding_lifts_the_ring_and_replicating_does_not(noise):
    """As published, the outer ring scores 3 to 6 times higher than the same content inside."""
    smooth = torch.ones(1, 256, 8) + 0.05 * noise(1, 256, 8)
    inner = torch.zeros(16, 16, dtype=torch.bool)
    inner[1:-1, 1:-1] = True
    grid = bigain.Grid((16, 16))
    for padding, least, most in [("zeros", 3, 100), ("replicate", 0.3, 1.1)]:
        score = LaplacianL1(padding)(smooth, grid)[0].reshape(16, 16)
        assert least < score[~inner].mean() / score[inner].mean() < most


def test_a_scorer_is_a_value(noise):
    scorer = LaplacianL1("replicate")
    before = dict(vars(scorer))
    score = scorer(noise(1, 16, 4), bigain.Grid((4, 4)))
    assert vars(scorer) == before == {"padding": "replicate"}
    copy = pickle.loads(pickle.dumps(scorer))
    assert torch.equal(copy(noise(1, 16, 4), bigain.Grid((4, 4))), score)
    assert repr(copy) == repr(scorer) == "LaplacianL1(padding='replicate')"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_scores_in_float32(noise, dtype):
    score = LaplacianL1()((noise(1, 64, 32) * 1000).to(dtype), bigain.Grid((8, 8)))
    assert score.dtype == torch.float32
    assert score.isfinite().all()


def test_low_detail_formula_is_turned_round(noise):
    class Flatness(LaplacianL1):
        detail_is = "low"

    grid = bigain.Grid((4, 4))
    assert torch.equal(Flatness()(noise(1, 16, 4), grid), -LaplacianL1()(noise(1, 16, 4), grid))


@pytest.mark.parametrize("scorer", [LaplacianL1, LaplacianL2])
def test_unknown_padding_is_refused(scorer):
    with pytest.raises(SettingError, match="'zeros' or 'replicate'; got 'reflect'"):
        scorer("reflect")


def test_tokens_off_the_grid_are_refused():
    with pytest.raises(SettingError, match="Got 15 tokens for a grid of 16"):
        LaplacianL1()(torch.zeros(1, 15, 2), bigain.Grid((4, 4)))
