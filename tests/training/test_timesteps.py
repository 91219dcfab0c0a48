"""Densities of timesteps, against their closed forms."""

import pytest
import torch

from bigain.errors import SettingError
from bigain.training.timesteps import LogitNormal, Uniform


def drawn(density, rows=40_000, steps=1000):
    return density.draw(rows, steps, torch.Generator().manual_seed(0))


def test_uniform_timesteps_reach_both_ends_alike():
    counts = drawn(Uniform()).bincount(minlength=1000).reshape(10, 100).sum(1)
    assert len(counts) == 10
    assert (counts - 4000).abs().max() < 5 * 60  # five standard deviations


@pytest.mark.parametrize("mean", [0.0, -1.0])
def test_the_logit_is_normal(mean):
    found = drawn(LogitNormal(mean, 0.8, uniform_share=0))
    normal = torch.distributions.Normal(mean, 0.8)
    for bound in (100, 300, 500, 800):
        expected = normal.cdf(torch.tensor(bound / 1000).logit())
        assert (found < bound).float().mean() == pytest.approx(float(expected), abs=0.013)


def test_a_share_of_rows_is_uniform():
    never = drawn(LogitNormal(0.0, 0.1, uniform_share=0))
    assert not ((never < 100) | (never >= 900)).any()
    mixed = drawn(LogitNormal(0.0, 0.1, uniform_share=0.5))
    assert ((mixed < 100) | (mixed >= 900)).float().mean() == pytest.approx(0.5 * 0.2, abs=0.01)
    assert 0 <= mixed.min() <= mixed.max() < 1000


@pytest.mark.parametrize("settings", [{"std": 0}, {"uniform_share": 1.5}])
def test_impossible_densities_are_refused(settings):
    with pytest.raises(SettingError, match="LogitNormal takes"):
        LogitNormal(**settings)
