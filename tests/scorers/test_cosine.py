"""Cosine scorers: borders, invariances, refusals."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.scorers.cosine import CosineGlobalMean, CosineNeighbors

GRID = bigain.Grid((4, 5))
PADDINGS = ["valid", "zeros", "replicate"]


@pytest.mark.parametrize("padding", PADDINGS)
def test_neighbour_cosine_ignores_the_contrast_of_every_single_token(noise, padding):
    tokens, factors = noise(2, 20, 6), noise(2, 20, 1, seed=1).exp()
    scorer = CosineNeighbors(padding)
    torch.testing.assert_close(scorer(factors * tokens, GRID), scorer(tokens, GRID), atol=1e-6, rtol=0)


def test_cosine_with_the_mean_ignores_the_contrast_of_the_image(noise):
    tokens = noise(2, 20, 6)
    torch.testing.assert_close(CosineGlobalMean()(1000 * tokens, GRID), CosineGlobalMean()(tokens, GRID))


def test_a_flat_image_has_no_detail_anywhere_as_published(noise):
    """Unlike the Laplacian, the published cosine does not lift the border."""
    tokens = noise(2, 1, 6).expand(2, 20, 6)
    for scorer in (CosineNeighbors(), CosineNeighbors("replicate"), CosineGlobalMean()):
        torch.testing.assert_close(scorer.raw(tokens, GRID), torch.ones(2, 20))


def test_zero_padding_lifts_the_border():
    score = CosineNeighbors("zeros")(torch.ones(1, 20, 2), GRID).reshape(4, 5)
    torch.testing.assert_close(
        -score,
        torch.tensor(
            [[0.5, 0.75, 0.75, 0.75, 0.5], [0.75, 1, 1, 1, 0.75], [0.75, 1, 1, 1, 0.75], [0.5, 0.75, 0.75, 0.75, 0.5]]
        ),
    )


@pytest.mark.parametrize(("padding", "raw"), [("valid", 1), ("zeros", 0), ("replicate", 1)])
def test_a_token_without_neighbours(padding, raw):
    value = CosineNeighbors(padding).raw(torch.tensor([[[3.0, 4.0]]]), bigain.Grid((1, 1)))
    torch.testing.assert_close(value, torch.tensor([[float(raw)]]))


def test_opposite_to_the_mean_is_the_most_detail():
    tokens = torch.ones(1, 20, 3)
    tokens[0, 7] = -1
    raw = CosineGlobalMean().raw(tokens, GRID)[0]
    torch.testing.assert_close(raw, torch.ones(20) - 2 * (torch.arange(20) == 7).float())


def test_tokens_whose_mean_is_zero_score_zero():
    tokens = torch.tensor([[[1.0, 2.0], [-1.0, -2.0]]])
    assert not CosineGlobalMean()(tokens, bigain.Grid((2,))).any()


def test_unknown_padding_is_refused():
    with pytest.raises(SettingError, match="'valid', 'zeros' or 'replicate'; got 'reflect'"):
        CosineNeighbors("reflect")
