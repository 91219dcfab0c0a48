"""The discrete Fourier transform of a token over its channels.

A token is real, so that |X_{C-k}| = |X_k| for its transform X: the terms up to C/2 are enough.
"""

import torch
from torch import Tensor

__all__ = ["dft_amplitude", "dft_spectral_centroid"]


def dft_amplitude(tokens: Tensor) -> Tensor:
    """Sum the amplitudes of all terms but the constant one: `sum_{k>=1} |X_k|`.

    Args:
        tokens: `[B, N, C]`.

    Returns:
        `[B, N]`, float32.

    References:
        BiGain, Table 13.
    """
    _, others = _amplitudes(tokens)
    return others


def dft_spectral_centroid(tokens: Tensor) -> Tensor:
    """Average the frequency, weighted by amplitude: `sum_k k |X_k| / (sum_k |X_k| + 1e-7)`.

    k runs from 0 to C - 1. As k and C - k have the same amplitude and add up to C, the
    numerator is C/2 times the amplitudes of all terms but the constant one.

    Args:
        tokens: `[B, N, C]`.

    Returns:
        `[B, N]`, float32, in [0, C/2].

    References:
        BiGain, Table 13.
    """
    constant, others = _amplitudes(tokens)
    return others * (tokens.shape[-1] / 2) / (constant + others + 1e-7)


def _amplitudes(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return `|X_0|` and `sum_{k>=1} |X_k|`, both `[B, N]`."""
    channels = tokens.shape[-1]
    # Real and imaginary parts apart: inductor has no kernels for complex numbers.
    real, imaginary = torch.view_as_real(torch.fft.rfft(tokens.float(), dim=-1)).unbind(dim=-1)
    amplitude = torch.hypot(real, imaginary)
    others = 2 * amplitude[..., 1 : (channels + 1) // 2].sum(dim=-1)
    if channels % 2 == 0:
        # k = C/2 is its own mirror image.
        others = others + amplitude[..., channels // 2]
    return amplitude[..., 0], others
