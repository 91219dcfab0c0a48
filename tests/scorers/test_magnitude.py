"""Norms, variance and distance to the mean: closed forms and invariances."""

import pytest
import torch

import bigain
from bigain.scorers.magnitude import ChannelVariance, GlobalMeanDeviation, L1Norm, L2Norm

GRID = bigain.Grid((4, 5))


def one_token(scorer, *channels):
    return scorer(torch.tensor([[channels]], dtype=torch.float32), bigain.Grid((1,))).item()


def test_closed_forms():
    assert one_token(L1Norm(), 3, -4) == 7
    assert one_token(L2Norm(), 3, -4) == 5
    assert one_token(ChannelVariance(), 1, 2, 3) == 1
    assert one_token(GlobalMeanDeviation(), 3, -4) == 0


def test_one_channel_has_no_variance(noise):
    assert torch.equal(ChannelVariance()(noise(2, 20, 1), GRID), torch.zeros(2, 20))


def test_two_opposite_tokens_are_their_norm_from_their_mean():
    tokens = torch.tensor([[[3.0, 4.0], [-3.0, -4.0]]])
    assert GlobalMeanDeviation()(tokens, bigain.Grid((2,))).tolist() == [[5, 5]]


def test_each_image_has_its_own_mean():
    """Two flat images of different colour both have no deviation."""
    tokens = torch.tensor([1.0, 100.0])[:, None, None].expand(2, 20, 3)
    assert not GlobalMeanDeviation()(tokens, GRID).any()


def test_prefix_tokens_do_not_move_the_mean():
    tokens = torch.cat([torch.full((1, 1, 3), 1e4), torch.ones(1, 20, 3)], dim=1)
    assert not GlobalMeanDeviation()(tokens, bigain.Grid((4, 5), prefix=1)).any()


@pytest.mark.parametrize(
    ("scorer", "power"), [(L1Norm(), 1), (L2Norm(), 1), (GlobalMeanDeviation(), 1), (ChannelVariance(), 2)], ids=str
)
def test_scores_grow_with_contrast(noise, scorer, power):
    tokens = noise(2, 20, 6)
    torch.testing.assert_close(scorer(-3 * tokens, GRID), 3**power * scorer(tokens, GRID))


def test_a_common_offset_changes_norms_alone(noise):
    """The variance ignores what a token's channels share, the deviation what the tokens share."""
    tokens = noise(1, 20, 6)
    per_token, per_channel = tokens + noise(1, 20, 1, seed=1), tokens + noise(1, 1, 6, seed=1)
    torch.testing.assert_close(ChannelVariance()(per_token, GRID), ChannelVariance()(tokens, GRID))
    torch.testing.assert_close(GlobalMeanDeviation()(per_channel, GRID), GlobalMeanDeviation()(tokens, GRID))
    for scorer, changed in [(L1Norm(), per_token), (L2Norm(), per_token), (ChannelVariance(), per_channel)]:
        assert not torch.allclose(scorer(changed, GRID), scorer(tokens, GRID), rtol=0.01)


def test_norms_keep_their_order(noise):
    """||x||_2 <= ||x||_1 <= sqrt(C) ||x||_2."""
    tokens = noise(2, 20, 9)
    large, small = L1Norm()(tokens, GRID), L2Norm()(tokens, GRID)
    assert (small < large).all()
    assert (large < 3 * small).all()
