"""The checks that scorers and reducers share."""

import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import TokenReducer
from bigain.testing.cases import Case
from bigain.testing.comparing import Outcome, Subject, expect, expect_finite, outcome, pick_rows, same_outcome

__all__ = [
    "check_autocast_changes_nothing",
    "check_batch_order_invariance",
    "check_batch_size_invariance",
    "check_finite_on_flat_tokens",
    "check_finite_on_huge_tokens",
    "check_finite_on_smallest_inputs",
    "check_half_precision",
    "check_inputs_are_not_written_to",
    "check_neighbour_invariance",
    "check_no_state_between_calls",
    "check_pickles",
    "check_repeats_itself",
    "check_tokens_off_the_grid_are_refused",
]

_HALVES = (torch.float16, torch.bfloat16)


def check_repeats_itself(subject: Subject, case: Case) -> None:
    """Methods are compared on the same images: they must not differ by the luck of one draw."""
    first, second = _run(subject, case), _run(subject, case)
    same_outcome(second, first, "second call against the first")


def check_no_state_between_calls(subject: Subject, case: Case) -> None:
    """What one forward pass leaves behind would change the next, and figures would depend on what ran before."""
    before, fresh = pickle.dumps(vars(subject)), pickle.loads(pickle.dumps(subject))
    first = _run(subject, case)
    busy = replace(case, batch=case.batch + 1, channels=case.channels + 1, seed=case.seed + 1, layer=case.layer + 1)
    _run(subject, busy)
    other = _run(subject, case, case.tokens(1), case.timesteps(1))
    expect(pickle.dumps(vars(subject)) == before, f"its attributes changed, to {vars(subject)}")
    same_outcome(_run(subject, case), first, "again after others against the first time")
    same_outcome(other, _run(fresh, case, case.tokens(1), case.timesteps(1)), "after others against alone")


def check_pickles(subject: Subject, case: Case) -> None:
    """Data loaders and workers of a parallel run receive their settings by pickle."""
    copy = pickle.loads(pickle.dumps(subject))
    expect(repr(copy) == repr(subject), f"it comes back as {copy!r}, not {subject!r}")
    same_outcome(_run(copy, case), _run(subject, case), "the pickled copy against the original")


def check_inputs_are_not_written_to(subject: Subject, case: Case) -> None:
    """The model still uses the tokens afterwards, in the residual branch for one."""
    tokens, timestep = case.tokens(), case.timesteps()
    _run(subject, case, tokens, timestep)
    expect(torch.equal(tokens, case.tokens()), "the tokens have changed")
    expect(torch.equal(timestep, case.timesteps()), "the timesteps have changed")
    if isinstance(subject, TokenReducer):
        reduction = subject.plan(tokens, case.grid, case.context())
        reduced = reduction.reduce(tokens).clone()
        before = reduced.clone()
        reduction.restore(reduced)
        expect(torch.equal(reduced, before), "the reduced tokens have changed in restore")


def check_batch_size_invariance(subject: Subject, case: Case) -> None:
    """An image's result must not depend on how many others are in the batch, which memory alone decides."""
    case = case.with_rows(3)
    whole = _run(subject, case)
    for rows in ([row] for row in range(case.batch)):
        same_outcome(_run_rows(subject, case, rows), pick_rows(whole, rows), f"row {rows[0]} alone against in a batch")
    rows = [0, 1, 2, 0, 1]
    same_outcome(_run_rows(subject, case, rows), pick_rows(whole, rows), "rows 0, 1, 2, 0, 1 against 0, 1, 2")


def check_batch_order_invariance(subject: Subject, case: Case) -> None:
    """An image's result must not depend on its place in the batch: data sets are shuffled and sharded."""
    case = case.with_rows(3)
    order = [2, 0, 1]
    expected = pick_rows(_run(subject, case), order)
    same_outcome(_run_rows(subject, case, order), expected, "rows 2, 0, 1 against 0, 1, 2")


def check_neighbour_invariance(subject: Subject, case: Case) -> None:
    """The diffusion classifier compares images and classes that share a batch: none may see another."""
    case = case.with_rows(3)
    expected = _run(subject, case)
    for row in range(case.batch):
        own = (torch.arange(case.batch) == row).to(case.tokens().device)
        tokens = torch.where(own[:, None, None], case.tokens(), 3 * case.tokens(1) + 1)
        timestep = torch.where(own, case.timesteps(), case.timesteps(1))
        found = pick_rows(_run(subject, case, tokens, timestep), [row])
        same_outcome(found, pick_rows(expected, [row]), f"row {row} beside other rows")


def check_half_precision(subject: Subject, case: Case) -> None:
    """In half precision ties and rounded sums would decide what merges: compare and sum in float32."""
    for dtype in _HALVES:
        half = case.tokens().to(dtype)
        found, wide = _run(subject, case, half), _run(subject, case, half.float())
        expected = {name: value.to(dtype) if name in ("reduced", "restored") else value for name, value in wide.items()}
        step = 2 * torch.finfo(dtype).eps
        for name in expected:
            tolerance = step if name in ("reduced", "restored") else 1e-5  # sizes and places of a soft merge are shares
            what = f"of {dtype} tokens against the same in float32"
            same_outcome({name: found[name]}, {name: expected[name]}, what, tolerance, tolerance)


def check_autocast_changes_nothing(subject: Subject, case: Case) -> None:
    """Mixed precision may round the model's products, but not what merges or how much detail a token has."""
    expected = _run(subject, case)
    with torch.autocast(case.tokens().device.type, dtype=torch.bfloat16):
        found = _run(subject, case)
    same_outcome(found, expected, "under autocast to bfloat16 against without")


def check_finite_on_flat_tokens(subject: Subject, case: Case) -> None:
    """Black images and padding give equal or zero tokens, and one NaN spoils the whole image."""
    for value in (0.0, 3.0):
        for dtype in (torch.float32, *_HALVES):
            tokens = torch.full_like(case.tokens(), value, dtype=dtype)
            expect_finite(_run(subject, case, tokens), f"all tokens {value:g} in {dtype}")


def check_finite_on_huge_tokens(subject: Subject, case: Case) -> None:
    """Activations near float16's largest number do occur in diffusion models; their sums must not overflow."""
    # A narrow band, so that no method's own formula has to leave float16's range (65,504).
    tokens = (58_000 + 2_000 * case.tokens().clamp(-1, 1)).half()
    expect_finite(_run(subject, case, tokens), "float16 tokens from 56,000 to 60,000")


def check_finite_on_smallest_inputs(subject: Subject, case: Case) -> None:
    """One token or one channel must give finite numbers or a `SettingError`, not NaN from a division by none."""
    fixed = case.grid.prefix, case.grid.suffix
    smallest: list[tuple[str, Case]] = [
        ("one token on the grid", replace(case, grid=Grid((1,) * case.grid.axes, *fixed))),
        ("one channel", replace(case, channels=1)),
        ("one row", replace(case, batch=1)),
    ]
    for what, small in smallest:
        try:
            found = _run(subject, small)
        except SettingError:
            continue
        expect_finite(found, what)


def check_tokens_off_the_grid_are_refused(subject: Subject, case: Case) -> None:
    """Tokens that do not lie on the grid would be reduced silently as if they did."""
    tokens = case.tokens()
    wrong = {"one token too few": tokens[:, 1:], "two axes": tokens[0], "four axes": tokens[None]}
    for what, given in wrong.items():
        message = f"tokens with {what}, {list(given.shape)} on {case.grid}, are accepted; a SettingError is expected"
        _expect_refusal(lambda given=given: _run(subject, case, given), message)  # type: ignore[misc]


def _expect_refusal(call: Callable[[], object], message: str) -> None:
    try:
        call()
    except SettingError:
        return
    raise AssertionError(message)


def _run(subject: Subject, case: Case, tokens: Tensor | None = None, timestep: Tensor | None = None) -> Outcome:
    tokens = case.tokens() if tokens is None else tokens
    return outcome(subject, tokens, case.grid, case.context(timestep))


def _run_rows(subject: Subject, case: Case, rows: Sequence[int]) -> Outcome:
    index = list(rows)
    return _run(subject, case, case.tokens()[index], case.timesteps()[index])
