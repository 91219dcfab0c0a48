"""The transform over channels, against numpy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigain.functional.spectral import dft_amplitude, dft_spectral_centroid


def by_numpy(tokens):
    """The formulas with the full complex transform, in double precision."""
    amplitudes = np.abs(np.fft.fft(tokens.double().numpy(), axis=-1))
    frequencies = np.arange(tokens.shape[-1])
    centroid = (frequencies * amplitudes).sum(-1) / (amplitudes.sum(-1) + 1e-7)
    return torch.from_numpy(amplitudes[..., 1:].sum(-1)).float(), torch.from_numpy(centroid).float()


@given(channels=st.integers(1, 33), seed=st.integers(0, 99), scale=st.sampled_from([1e-8, 1e-7, 1.0, 1e4]))
def test_equals_the_full_transform_of_numpy(channels, seed, scale):
    tokens = scale * torch.randn(2, 5, channels, generator=torch.Generator().manual_seed(seed))
    amplitude, centroid = by_numpy(tokens)
    torch.testing.assert_close(dft_amplitude(tokens), amplitude, rtol=1e-5, atol=1e-5 * scale)
    torch.testing.assert_close(dft_spectral_centroid(tokens), centroid, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 9, 320])
@pytest.mark.parametrize("frequency", [1, 3])
def test_a_pure_cosine_over_channels_has_its_centroid_in_the_middle(channels, frequency):
    """Its two terms are frequency and C - frequency, C/2 high each."""
    angle = 2 * math.pi * frequency * torch.arange(channels, dtype=torch.float64) / channels
    token = angle.cos().float().reshape(1, 1, channels)
    assert dft_amplitude(token).item() == pytest.approx(channels, rel=1e-4)
    assert dft_spectral_centroid(token).item() == pytest.approx(channels / 2, rel=1e-5)


def test_the_highest_frequency_counts_once():
    token = torch.tensor([1.0, -1.0]).repeat(4).reshape(1, 1, 8)
    assert dft_amplitude(token).item() == pytest.approx(8)
    assert dft_spectral_centroid(token).item() == pytest.approx(4)


@pytest.mark.parametrize("channels", [1, 2, 7, 8])
def test_an_impulse_has_all_frequencies_alike(channels):
    impulse = torch.zeros(1, 1, channels)
    impulse[..., channels // 2] = 1
    assert dft_amplitude(impulse).item() == pytest.approx(channels - 1, rel=1e-6)
    assert dft_spectral_centroid(impulse).item() == pytest.approx((channels - 1) / 2, rel=1e-6)


def test_the_term_against_division_by_zero_is_that_of_the_paper():
    """An impulse of 1e-7 with C channels: C (C - 1) / 2 over C + 1."""
    impulse = torch.zeros(1, 1, 8)
    impulse[..., 0] = 1e-7
    assert dft_spectral_centroid(impulse).item() == pytest.approx(28 / 9, rel=1e-5)


def test_a_token_of_equal_channels_has_no_amplitude():
    tokens = torch.full((1, 3, 10), 7.0)
    torch.testing.assert_close(dft_amplitude(tokens), torch.zeros(1, 3), atol=1e-4, rtol=0)
    torch.testing.assert_close(dft_spectral_centroid(tokens), torch.zeros(1, 3), atol=1e-4, rtol=0)
    assert not dft_spectral_centroid(torch.zeros(1, 3, 10)).any()
