"""Scorers that look at the size and the spread of a token's own channels."""

import torch
from torch import Tensor

from bigain.functional.precision import token_norms
from bigain.grid import Grid
from bigain.scorers.base import TokenScorer

__all__ = ["ChannelVariance", "GlobalMeanDeviation", "L1Norm", "L2Norm"]


class L1Norm(TokenScorer):
    """Sum of a token's absolute channels.

    `sum_c |x_{i,c}|`. Detail is high; 0 and up.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return tokens.float().abs().sum(dim=-1)


class L2Norm(TokenScorer):
    """Euclidean norm of a token.

    `sqrt(sum_c x_{i,c}^2)`. Detail is high; 0 and up.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        return token_norms(tokens.float())


class ChannelVariance(TokenScorer):
    """Unbiased variance over a token's channels.

    `sum_c (x_{i,c} - m_i)^2 / (C - 1)`, m_i being the mean of the token's channels; 0
    where there is one channel alone. Detail is high; 0 and up.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        if tokens.shape[-1] == 1:
            return torch.zeros_like(tokens[..., 0], dtype=torch.float32)
        return tokens.float().var(dim=-1, correction=1)


class GlobalMeanDeviation(TokenScorer):
    """Distance from a token to the mean token of its image.

    `sqrt(sum_c (x_{i,c} - mu_c)^2)`, mu being the mean over the grid's tokens. Detail is
    high; 0 and up.

    References:
        BiGain, Table 13.
    """

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        wide = tokens.float()
        return token_norms(wide - wide.mean(dim=1, keepdim=True))
