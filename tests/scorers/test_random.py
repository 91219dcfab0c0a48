"""The control: uniform, fixed, and blind to the tokens."""

import pytest
import scipy.stats
import torch

import bigain
from bigain.errors import SettingError
from bigain.functional.cells import cell_tokens
from bigain.scorers.random import Random

GRID = bigain.Grid((64, 64))
FROZEN = [0.3313, 0.4227, 0.8590, 0.8400]


def scores(seed, grid=GRID):
    return Random(seed)(torch.zeros(1, grid.size, 1), grid)[0]


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_uniform(seed):
    """Mean 1/2 and variance 1/12 within 4 standard errors, and the Kolmogorov-Smirnov test."""
    value = scores(seed)
    assert value.min() >= 0
    assert value.max() < 1
    assert abs(value.mean() - 1 / 2) < 4 * (1 / 12 / 4096) ** 0.5
    assert abs(value.var() - 1 / 12) < 4 * (1 / 180 / 4096) ** 0.5
    assert scipy.stats.kstest(value.numpy(), "uniform").pvalue > 1e-3


def test_seeds_and_neighbouring_tokens_are_uncorrelated():
    """The correlation of independent scores has a standard deviation of 1/64 here."""
    value = torch.stack([scores(seed) for seed in (0, 1, 2, 3, 2**32 - 1)])
    between = value.corrcoef()
    assert (between - between.diag().diag()).abs().max() < 4 / 64
    image = value[0].reshape(64, 64)
    for one, other in [(image[1:], image[:-1]), (image[:, 1:], image[:, :-1])]:
        assert torch.stack([one.flatten(), other.flatten()]).corrcoef()[0, 1].abs() < 4 / 64


def test_every_token_of_a_cell_is_as_likely_to_be_the_lowest():
    """Chi-square over 4 places; 16.3 is the 99.9 % point of 3 degrees of freedom."""
    cells, _ = cell_tokens((64, 64), (2, 2), torch.device("cpu"))
    for seed in range(5):
        counts = scores(seed)[cells].argmin(dim=1).bincount(minlength=4)
        assert ((counts - 256) ** 2 / 256).sum() < 16.3


def test_what_the_tokens_hold_makes_no_difference(noise):
    grid = bigain.Grid((4, 5))
    value = Random(3)(noise(3, 20, 8), grid)
    assert torch.equal(value, scores(3, grid).expand(3, 20))
    assert torch.equal(Random(3)(noise(1, 20, 2, seed=1).half(), grid), value[:1])


def test_no_generator_is_touched():
    before = torch.get_rng_state()
    first = scores(0)
    torch.manual_seed(123)
    assert torch.equal(scores(0), first)
    torch.set_rng_state(before)
    scores(0)
    assert torch.equal(torch.get_rng_state(), before)


def test_scores_never_change():
    """Published controls depend on these numbers."""
    torch.testing.assert_close(scores(0)[:4], torch.tensor(FROZEN), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "a", None])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(SettingError, match="seed is a whole number from 0 to"):
        Random(seed)
