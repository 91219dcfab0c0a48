"""Scorers that measure the high bands of a transform over the grid, for any number of axes."""

from bigain_wavelet.dct import DCTHighBand, dct_high_pass
from bigain_wavelet.haar import HaarHighBand, haar_bands

__all__ = ["DCTHighBand", "HaarHighBand", "dct_high_pass", "haar_bands"]
