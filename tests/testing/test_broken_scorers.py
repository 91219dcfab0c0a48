"""Every check of scorers fails on a scorer that is broken in just that way, and on none that is sound."""

from typing import Literal

import pytest
import torch

from bigain.errors import SettingError
from bigain.scorers.base import TokenScorer
from bigain.testing import ContractError, check_scorer, checks_of

CHECKS = {check.name: check for check in checks_of("scorers")}


class Energy(TokenScorer):
    """Sound: the base of all that are broken."""

    def __init__(self, keep: float = 0.5, norm: Literal["l1", "l2"] | None = "l1"):
        if not 0 < keep <= 1 or norm not in ("l1", "l2", None):
            raise SettingError("bad setting")
        self.keep, self.norm = keep, norm

    def raw(self, tokens, grid):
        return tokens.float().abs().sum(dim=-1)


class Flat(Energy):
    detail_is = "low"


class ExtraAxis(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid)[..., None]


class Doubles(Energy):
    def raw(self, tokens, grid):
        return tokens.double().abs().sum(dim=-1)


class InputType(Energy):
    def raw(self, tokens, grid):
        return tokens.abs().sum(dim=-1)


class NeitherWay(Energy):
    detail_is = "medium"


class NotTurned(Flat):
    def __call__(self, tokens, grid):
        return self.raw(grid.body(tokens), grid)


class LooksAtPrefix(Energy):
    def __call__(self, tokens, grid):
        return super().__call__(tokens - tokens.mean(dim=1, keepdim=True), grid)


class Renames(Energy):
    def __init__(self, keep: float = 0.5):
        self.kept = keep


class Stores(Energy):
    """Keeps something else than it was given."""

    def __init__(self, keep: float = 0.5):
        self.keep = 1 - keep / 2


class Silent(Energy):
    def __repr__(self):
        return "Silent()"


class Clips(Energy):
    def __init__(self, keep: float = 0.5):
        self.keep = min(max(keep, 0.1), 1)


class Crashes(Energy):
    def __init__(self, keep: float = 0.5):
        assert 0 < keep <= 1
        self.keep = keep


class AnyNorm(Energy):
    def __init__(self, norm: Literal["l1", "l2"] | None = None):
        self.norm = norm


class AnyTokens(Energy):
    def __call__(self, tokens, grid):
        return tokens.float().abs().sum(dim=-1)


class Draws(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid) + torch.rand_like(tokens[..., 0], dtype=torch.float32)


class Counts(Energy):
    calls = 0

    def raw(self, tokens, grid):
        self.calls += 1
        return super().raw(tokens, grid)


class RemembersLast(Energy):
    """Keeps what it saw last, where none of its attributes shows it."""

    last = 0.0

    def raw(self, tokens, grid):
        before, score = self.last, super().raw(tokens, grid)
        type(self).last = score.mean()
        return score + before


class Lambda(Energy):
    def __init__(self):
        self.power = lambda value: value

    def raw(self, tokens, grid):
        return self.power(tokens.float().abs()).sum(dim=-1)


class Forgets(Energy):
    def __reduce__(self):
        return (Energy, ())


class WritesTokens(Energy):
    def raw(self, tokens, grid):
        return tokens.abs_().float().sum(dim=-1)


class CountsRows(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid) * len(tokens)


class NumbersRows(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid) + torch.arange(len(tokens), device=tokens.device)[:, None]


class BatchMean(Energy):
    def raw(self, tokens, grid):
        return (tokens.float() - tokens.float().mean(dim=0)).abs().sum(dim=-1)


class Halves(Energy):
    """Adds up in the input's type."""

    def raw(self, tokens, grid):
        return tokens.abs().cumsum(dim=-1)[..., -1].float()


class Product(Energy):
    """A product that autocast rounds."""

    def raw(self, tokens, grid):
        return (tokens.float().abs() @ tokens.new_ones(tokens.shape[-1], 1, dtype=torch.float32))[..., 0].float()


class Divides(Energy):
    def raw(self, tokens, grid):
        score = super().raw(tokens, grid)
        return score / score.mean(dim=1, keepdim=True)


class Spread(Energy):
    """One channel has no unbiased variance."""

    def raw(self, tokens, grid):
        deviation = tokens.float() - tokens.float().mean(dim=-1, keepdim=True)
        return deviation.square().sum(dim=-1) / torch.full_like(deviation[..., 0], tokens.shape[-1] - 1)


class Loops(Energy):
    def raw(self, tokens, grid):
        return torch.stack([token.float().abs().sum() for token in tokens.flatten(0, 1)]).reshape(tokens.shape[:2]) * (
            1 if tokens.tolist() else 2
        )


class HostIndex(Energy):
    def raw(self, tokens, grid):
        index = torch.arange(tokens.shape[1]).to(tokens.device)
        return super().raw(tokens, grid)[:, index]


class Item(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid) / max(tokens.abs().max().item(), 1)


class Branches(Energy):
    def raw(self, tokens, grid):
        score = super().raw(tokens, grid)
        return score + 1 if score.sum() > 0 else score


class PythonList(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid) * torch.tensor([2.0], device=tokens.device)


class PythonNumber(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid) * torch.tensor(2.0, device=tokens.device)


class ListIndex(Energy):
    def raw(self, tokens, grid):
        return super().raw(tokens, grid)[:, list(range(tokens.shape[1]))]


class Mask(Energy):
    def raw(self, tokens, grid):
        score = super().raw(tokens, grid)
        return score * score[score > 1].mean()


class MaskedWrite(Energy):
    def raw(self, tokens, grid):
        score = super().raw(tokens, grid)
        score[score > 1] = score[score > 1].flip(0)
        return score


class Breaks(Energy):
    def raw(self, tokens, grid):
        torch._dynamo.graph_break()
        return super().raw(tokens, grid)


class Recompiles(Energy):
    """Something on the host changes with every call."""

    calls = 0

    def raw(self, tokens, grid):
        type(self).calls += 1
        return super().raw(tokens, grid) * (type(self).calls + 1) / (type(self).calls + 1)


BROKEN = [
    ("check_scores_have_shape_and_type", ExtraAxis(), r"raw gives \[3, 36, 1\] for tokens"),
    ("check_scores_have_shape_and_type", Doubles(), "are torch.float64"),
    ("check_large_means_detail", NeitherWay(), "it is 'medium'"),
    ("check_large_means_detail", NotTurned(), "against -1 times raw: 108 of 108 values differ"),
    ("check_fixed_tokens_are_not_scored", LooksAtPrefix(), "after prefix and suffix have changed"),
    ("check_settings_are_attributes", Renames(), "there is no attribute of that name"),
    ("check_settings_are_attributes", Stores(), "built again from its own attributes it is"),
    ("check_settings_are_attributes", Silent(), "repr does not show keep, norm"),
    ("check_impossible_settings_are_refused", Clips(), "keep=0 is accepted"),
    ("check_impossible_settings_are_refused", Crashes(), "keep=0 raises AssertionError"),
    ("check_impossible_settings_are_refused", AnyNorm(), "norm='no-such-choice' is accepted"),
    ("check_tokens_off_the_grid_are_refused", AnyTokens(), r"one token too few, \[3, 35, 8\] on Grid.* are accepted"),
    ("check_repeats_itself", Draws(), "second call against the first"),
    ("check_no_state_between_calls", Counts(), "its attributes changed, to {'keep': 0.5, 'norm': 'l1', 'calls'"),
    ("check_no_state_between_calls", Lambda(), "pickle|local object"),
    ("check_no_state_between_calls", RemembersLast(), "again after others against the first time"),
    ("check_pickles", Lambda(), "pickle"),
    ("check_pickles", Forgets(), r"comes back as Energy\("),
    ("check_inputs_are_not_written_to", WritesTokens(), "the tokens have changed"),
    ("check_batch_size_invariance", CountsRows(), "row 0 alone against in a batch"),
    ("check_batch_order_invariance", NumbersRows(), "rows 2, 0, 1 against 0, 1, 2"),
    ("check_neighbour_invariance", BatchMean(), "row 0 beside other rows"),
    ("check_half_precision", InputType(), "torch.float16, expected torch.float32"),
    ("check_half_precision", Halves(), "of torch.float16 tokens against the same in float32"),
    ("check_autocast_changes_nothing", Product(), "under autocast"),
    ("check_finite_on_flat_tokens", Divides(), "all tokens 0 in torch.float32: 108 of 108 values are NaN"),
    ("check_finite_on_huge_tokens", Halves(), "float16 tokens from 56,000"),
    ("check_finite_on_smallest_inputs", Spread(), "one channel: 108 of 108 values are NaN"),
    ("check_runs_on_meta_device", Loops(), "NotImplementedError"),
    ("check_runs_on_meta_device", HostIndex(), "make it on the device of the tokens"),
    ("check_runs_on_meta_device", Item(), "item"),
    ("check_no_host_synchronisation", Item(), "_local_scalar_dense.* reads values on the host"),
    ("check_no_host_synchronisation", Branches(), "_local_scalar_dense"),
    ("check_no_host_synchronisation", Loops(), r"tolist\(\) was called"),
    ("check_no_host_synchronisation", PythonList(), r"tensor\(\) was called: a tensor made of Python numbers"),
    ("check_no_host_synchronisation", PythonNumber(), r"tensor\(\) was called: a tensor made of Python numbers"),
    ("check_no_host_synchronisation", ListIndex(), "lift_fresh.* a tensor made of Python numbers"),
    ("check_no_host_synchronisation", Mask(), r"aten\.index\.Tensor was called"),
    ("check_no_host_synchronisation", MaskedWrite(), r"aten\.index"),
    ("check_compiles_to_one_graph", Breaks(), "Unsupported"),
    ("check_compiles_to_one_graph", Branches(), "Unsupported"),
    ("check_compiles_to_one_graph", Recompiles(), "recompil"),
]


@pytest.mark.parametrize(("name", "scorer", "seen"), BROKEN, ids=lambda item: getattr(item, "__name__", None))
def test_a_broken_scorer_is_caught(name, scorer, seen):
    with pytest.raises(ContractError, match=seen) as caught:
        CHECKS[name](scorer)
    (failure,) = caught.value.failures
    assert failure.name == name


def test_every_check_has_a_scorer_that_it_catches():
    assert {name for name, _, _ in BROKEN} == set(CHECKS)


@pytest.mark.parametrize("scorer", [Energy(), Energy(1.0, None), Flat()], ids=repr)
def test_a_sound_scorer_passes(scorer):
    check_scorer(scorer)


def test_what_does_not_wait_is_not_reported():
    """Writing one value through a mask, and numbers in arithmetic, stay on the device."""

    class Fills(Energy):
        def raw(self, tokens, grid):
            score = super().raw(tokens, grid)
            score[score > 3] = 3
            score[:, 0] = 1
            return torch.where(score > 2, 2.5, score) + torch.full_like(score, 2)

    CHECKS["check_no_host_synchronisation"](Fills())
    CHECKS["check_runs_on_meta_device"](Fills())
