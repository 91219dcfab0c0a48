"""The checks of scorers alone."""

import torch

from bigain.scorers.base import TokenScorer
from bigain.testing.cases import Case
from bigain.testing.comparing import expect, same

__all__ = ["check_fixed_tokens_are_not_scored", "check_large_means_detail", "check_scores_have_shape_and_type"]


def check_scores_have_shape_and_type(scorer: TokenScorer, case: Case) -> None:
    """Reducers index scores by the grid's tokens and compare them in float32."""
    score = scorer(case.tokens(), case.grid)
    expected = [case.batch, case.grid.size]
    expect(list(score.shape) == expected, f"scores have shape {list(score.shape)}, expected {expected}")
    expect(score.dtype == torch.float32, f"scores are {score.dtype}, expected torch.float32")


def check_large_means_detail(scorer: TokenScorer, case: Case) -> None:
    """Reducers take large scores for detail: a formula whose low values mean detail has to be negated once."""
    expect(scorer.detail_is in ("high", "low"), f"detail_is is 'high' or 'low'; it is {scorer.detail_is!r}")
    sign = 1 if scorer.detail_is == "high" else -1
    raw = scorer.raw(case.grid.body(case.tokens()), case.grid)
    same(scorer(case.tokens(), case.grid), sign * raw, f"the score against {sign:+d} times raw")


def check_fixed_tokens_are_not_scored(scorer: TokenScorer, case: Case) -> None:
    """Class, time and text tokens lie beside the image: they have no place in it and no neighbours."""
    tokens, body = case.tokens(), slice(case.grid.prefix, case.grid.prefix + case.grid.size)
    other = 50 * tokens + 7
    other[:, body] = tokens[:, body]
    same(scorer(other, case.grid), scorer(tokens, case.grid), "the score after prefix and suffix have changed")
