"""Run a scorer or a reducer, and compare outcomes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer
from bigain.scorers.base import TokenScorer

__all__ = ["Outcome", "Subject", "expect", "expect_finite", "markers", "outcome", "pick_rows", "same", "same_outcome"]

Subject = TokenScorer | TokenReducer

Outcome = Mapping[str, Tensor]
"""Tensors by name; the rows are the first axis of each."""


def expect(condition: bool, seen: str) -> None:
    """Fail with what was seen; unlike `assert`, also under `python -O`."""
    if not condition:
        raise AssertionError(seen)


def markers(reduction: Reduction) -> Tensor:
    """Restore 1, 2, .., M: each token's place counted from 1, float32 `[B, N]`.

    It shows where tokens went without looking into the reduction, and counts from 1 so
    that a token restored from nowhere shows as 0.
    """
    batch, length = reduction.sizes.shape
    numbers = torch.arange(1, length + 1, device=reduction.sizes.device, dtype=torch.float32)
    return reduction.restore(numbers[None, :, None].repeat(batch, 1, 1))[..., 0]


def outcome(subject: Subject, tokens: Tensor, grid: Grid, context: Context | None = None) -> Outcome:
    """Run a subject: return a scorer's scores, or the tensors of a reducer's plan."""
    if isinstance(subject, TokenScorer):
        return {"score": subject(tokens, grid)}
    reduction = subject.plan(tokens, grid, context)
    reduced = reduction.reduce(tokens)
    restored = reduction.restore(reduced)
    return {"reduced": reduced, "restored": restored, "sizes": reduction.sizes, "places": markers(reduction)}


def pick_rows(whole: Outcome, rows: Sequence[int]) -> Outcome:
    """Take rows of every tensor."""
    return {name: value[list(rows)] for name, value in whole.items()}


def same(found: Tensor, expected: Tensor, what: str, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Fail unless shape, type and, up to rounding, values agree; NaN agrees with nothing."""
    expect(found.shape == expected.shape, f"{what}: shape {list(found.shape)}, expected {list(expected.shape)}")
    expect(found.dtype == expected.dtype, f"{what}: {found.dtype}, expected {expected.dtype}")
    wrong = ~torch.isclose(found, expected, rtol=rtol, atol=atol)
    if wrong.any():
        first = tuple(wrong.nonzero()[0].tolist())
        raise AssertionError(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} values differ, "
            f"the first at {list(first)}: {found[first].item():.6g}, expected {expected[first].item():.6g}"
        )


def same_outcome(found: Outcome, expected: Outcome, what: str, rtol: float = 1e-5, atol: float = 1e-5) -> None:
    """Fail unless two outcomes agree in every tensor."""
    for name in expected:
        same(found[name], expected[name], f"{name}, {what}", rtol, atol)


def expect_finite(found: Outcome, what: str) -> None:
    """Fail if an outcome has NaN or infinity."""
    for name, value in found.items():
        bad = int((~value.isfinite()).sum())
        expect(not bad, f"{name}, {what}: {bad} of {value.numel()} values are NaN or infinite")
