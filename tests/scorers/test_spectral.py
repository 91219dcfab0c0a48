"""Spectral scorers: what they say of a token."""

import torch

import bigain
from bigain.scorers.spectral import DFTAmplitude, DFTSpectralCentroid

GRID = bigain.Grid((4, 5))


def test_the_constant_term_is_left_out_of_the_amplitude(noise):
    tokens = noise(1, 20, 8)
    shifted = tokens + 10 * noise(1, 20, 1, seed=1)
    torch.testing.assert_close(DFTAmplitude()(shifted, GRID), DFTAmplitude()(tokens, GRID), atol=1e-3, rtol=1e-5)
    assert not torch.allclose(DFTSpectralCentroid()(shifted, GRID), DFTSpectralCentroid()(tokens, GRID), rtol=0.01)


def test_the_centroid_ignores_contrast_and_the_amplitude_grows_with_it(noise):
    tokens = noise(2, 20, 7)
    torch.testing.assert_close(DFTSpectralCentroid()(-50 * tokens, GRID), DFTSpectralCentroid()(tokens, GRID))
    torch.testing.assert_close(DFTAmplitude()(-50 * tokens, GRID), 50 * DFTAmplitude()(tokens, GRID))


def test_every_token_of_mean_zero_has_its_centroid_in_the_middle(noise):
    """Whatever its frequencies: the spectrum of a real token is symmetric."""
    tokens = noise(2, 20, 9)
    centred = tokens - tokens.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(DFTSpectralCentroid()(centred, GRID), torch.full((2, 20), 4.5), atol=1e-5, rtol=0)


def test_tokens_are_scored_one_by_one(noise):
    tokens, order = noise(1, 20, 8), torch.randperm(20, generator=torch.Generator().manual_seed(0))
    for scorer in (DFTAmplitude(), DFTSpectralCentroid()):
        torch.testing.assert_close(scorer(tokens[:, order], GRID), scorer(tokens, GRID)[:, order])


def test_one_channel_has_only_the_constant_term(noise):
    assert not DFTAmplitude()(noise(1, 20, 1), GRID).any()
    assert not DFTSpectralCentroid()(noise(1, 20, 1), GRID).any()
