"""What the checks cannot know: that the formulas are these."""

import pytest
import torch

import bigain
from bigain.errors import SettingError

TOKENS = torch.tensor([[[0.0, 1], [3, 0], [5, 5], [5, 6], [9, 9]]])
"""Ranges 1, 3, 0, 1, 0: of the pairs (0, 1) and (2, 3) the second has less detail; the last token has no pair."""


def test_the_score_is_the_largest_channel_less_the_smallest():
    assert bigain.build_scorer("template_range")(TOKENS, bigain.Grid((5,))).tolist() == [[1, 3, 0, 1, 0]]


def test_the_pair_with_less_detail_becomes_its_mean():
    reduction = bigain.build_reducer("template_pairs", ratio=0.2).plan(TOKENS, bigain.Grid((5,)))
    reduced = reduction.reduce(TOKENS)
    assert reduced.tolist() == [[[0, 1], [3, 0], [5, 5.5], [9, 9]]]
    assert reduction.sizes.tolist() == [[1, 1, 2, 1]]
    assert reduction.restore(reduced).tolist() == [[[0, 1], [3, 0], [5, 5.5], [5, 5.5], [9, 9]]]


def test_pairs_lie_along_the_last_axis():
    """Three rows of three: one pair each, and the last column stays."""
    reduction = bigain.build_reducer("template_pairs", ratio=1 / 3).plan(torch.ones(1, 9, 2), bigain.Grid((3, 3)))
    assert reduction.places().tolist() == [[0, 0, 1, 2, 2, 3, 4, 4, 5]]


def test_more_than_there_are_pairs_is_refused():
    reducer = bigain.build_reducer("template_pairs", ratio=0.6)
    with pytest.raises(SettingError, match=r"would remove 3 of 5 tokens.*at most 2"):
        reducer.plan(TOKENS, bigain.Grid((5,)))
