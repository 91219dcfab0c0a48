"""Scorers that look at a token's Fourier transform over its channels."""

from torch import Tensor

from bigain.functional.spectral import dft_amplitude, dft_spectral_centroid
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer

__all__ = ["DFTAmplitude", "DFTSpectralCentroid"]


class DFTAmplitude(TokenScorer):
    """Sum of the amplitudes of a token's Fourier transform, the constant term left out.

    `sum_{k=1}^{C-1} |X_k|`, X being the C-point transform of x_i over its channels.
    Detail is high; 0 and up. One channel alone has only the constant term and scores 0.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return dft_amplitude(tokens)


class DFTSpectralCentroid(TokenScorer):
    """Mean frequency of a token's Fourier transform, weighted by amplitude.

    `sum_k k |X_k| / (sum_k |X_k| + 1e-7)`, k = 0..C-1, X being the C-point transform of
    x_i over its channels. Detail is high; in [0, C/2].

    The spectrum of a real token is symmetric. The formula therefore equals C/2 times the
    share of the amplitude outside the constant term: it measures how far a token's channels
    are from one common value, not how high the frequencies are. Every token whose channels
    have mean 0 scores C/2.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return dft_spectral_centroid(tokens)
