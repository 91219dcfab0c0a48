"""A scorer: how much detail each token carries."""

from torch import Tensor

from bigain import Grid, TokenScorer

__all__ = ["ChannelRange"]


class ChannelRange(TokenScorer):
    """Distance between a token's largest and smallest channel.

    `max_c x_{i,c} - min_c x_{i,c}`. Detail is high; 0 and up.
    """

    # A formula whose low values mean detail sets detail_is = "low"; callers see its negative.

    def raw(self, tokens: Tensor, grid: Grid) -> Tensor:
        # [B, N_grid, C] to [B, N_grid]; class and text tokens are gone already. In float32 whatever comes.
        # Neighbours: tokens.unflatten(1, grid.shape) is the field, of one, two or three axes, all of which must do.
        wide = tokens.float()
        return wide.amax(dim=-1) - wide.amin(dim=-1)
