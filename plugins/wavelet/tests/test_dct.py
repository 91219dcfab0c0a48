"""The cosine high pass: scipy's transform with a mask, and fields whose bands are known."""

import math

import numpy as np
import pytest
import torch
from bigain_wavelet import DCTHighBand, dct_high_pass
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.fft import dctn, idctn

import bigain
from bigain.errors import SettingError


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow(image, shape, cutoff):
    """Filter one image `[N, C]`: transform, set the low bands to zero, transform back."""
    axes = tuple(range(len(shape)))
    bands = dctn(image.double().numpy().reshape(*shape, -1), axes=axes, norm="ortho")
    for band in np.ndindex(shape):
        if all(k == 0 or k < math.floor(cutoff * n) for k, n in zip(band, shape, strict=True)):
            bands[band] = 0
    return idctn(bands, axes=axes, norm="ortho").reshape(len(image), -1)


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple))
    grid = bigain.Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    return DCTHighBand(draw(st.floats(0, 0.99)), draw(st.sampled_from(["l1", "l2"]))), grid, randn(2, grid.tokens, 3)


@settings(deadline=None)
@given(cases())
def test_equals_scipy_with_the_low_bands_set_to_zero_on_any_grid(case):
    scorer, grid, tokens = case
    body = tokens[:, grid.prefix : grid.prefix + grid.size]
    high = np.stack([slow(image, grid.shape, scorer.cutoff) for image in body])
    expected = np.abs(high).sum(-1) if scorer.norm == "l1" else np.sqrt((high**2).sum(-1))
    torch.testing.assert_close(scorer(tokens, grid).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(64,), (48, 33), (4, 24, 24)])
def test_equals_scipy_on_grids_as_large_as_models_have(shape):
    tokens = randn(1, math.prod(shape), 2) + 100
    found = dct_high_pass(tokens, shape, 0.4)[0].double().numpy()
    np.testing.assert_allclose(found, slow(tokens[0], shape, 0.4), atol=5e-5)


@pytest.mark.parametrize("shape", [(8,), (6, 6), (7, 5), (4, 6, 2), (3, 5, 7)])
def test_a_checkerboard_is_detail_and_a_constant_field_is_not(shape):
    sign = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0) % 2 * 2.0 - 1
    board = sign.reshape(1, -1, 1).expand(-1, -1, 4)
    scorer, grid = DCTHighBand(), bigain.Grid(shape)
    assert scorer(board, grid).min() > 1
    assert scorer(torch.full_like(board, 7), grid).max() < 1e-4


@pytest.mark.parametrize("band", [0, 1, 3, 4, 7])
def test_a_cosine_of_one_band_passes_whole_or_not_at_all(band):
    wave = torch.cos(math.pi * (2 * torch.arange(8) + 1) * band / 16).reshape(1, 8, 1)
    field = wave.expand(-1, -1, 3).reshape(1, 24, 1)  # 8 x 3, constant along the second axis
    passed = DCTHighBand(cutoff=0.5)(field, bigain.Grid((8, 3)))
    expected = field[..., 0].abs() if band >= 4 else torch.zeros(1, 24)
    torch.testing.assert_close(passed, expected, rtol=0, atol=1e-5)


def test_a_cutoff_of_zero_leaves_the_distance_from_the_mean():
    tokens, grid = randn(2, 30, 4), bigain.Grid((5, 6))
    expected = bigain.build_scorer("global_mean_deviation")(tokens, grid)
    torch.testing.assert_close(DCTHighBand(0, "l2")(tokens, grid), expected)


def test_one_token_has_no_detail():
    assert DCTHighBand()(randn(2, 1, 4), bigain.Grid((1, 1))).tolist() == [[0], [0]]


def test_a_gain_of_one_and_no_offset_whatever_the_tokens_have_in_common():
    """Adding 10,000 to all tokens costs no more digits than float32 itself has lost."""
    tokens, grid = randn(1, 64, 4).mul(16).round().div(16), bigain.Grid((8, 8))
    near, far = DCTHighBand()(tokens, grid), DCTHighBand()(tokens + 10_000, grid)
    torch.testing.assert_close(far, near, rtol=0, atol=0.02)


def test_lgtm_and_the_registry_take_it():
    scorer = bigain.build_scorer("dct_high_band", cutoff=0.25, norm="l2")
    assert repr(scorer) == "DCTHighBand(cutoff=0.25, norm='l2')"
    reducer = bigain.build_reducer("lgtm", ratio=0.5, scorer="dct_high_band", cell=2)
    tokens = randn(1, 32, 4)
    assert reducer.plan(tokens, bigain.Grid((32,))).reduce(tokens).shape == (1, 16, 4)


@pytest.mark.parametrize("cutoff", [-0.1, 1, 1.5, math.nan, True, "0.5", None])
def test_an_impossible_cutoff_is_refused(cutoff):
    with pytest.raises(SettingError, match=r"cutoff is the share of frequencies that are low, in \[0, 1\); got"):
        DCTHighBand(cutoff)


@pytest.mark.parametrize("norm", ["L1", 2, None])
def test_an_unknown_norm_is_refused(norm):
    with pytest.raises(SettingError, match="norm is 'l1' or 'l2'; got"):
        DCTHighBand(norm=norm)
