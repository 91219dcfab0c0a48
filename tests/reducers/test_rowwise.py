"""Rowwise: each row of a batch follows a reduction of its own."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import NoReduction
from bigain.reducers.kv_merge import KVMerge
from bigain.reducers.lgtm import LGTM
from bigain.reducers.rowwise import Rowwise
from bigain.reducers.todo import ToDo
from bigain.reducers.tome import ToMe

GRID = bigain.Grid((4, 6), prefix=1)
CHOICE = torch.tensor([2, 0, 1, 0])


@pytest.fixture
def tokens(noise):
    return noise(4, 25, 8)


@pytest.fixture
def branches(tokens):
    """Of 13, 25 and 18 tokens."""
    return LGTM(0.5).plan(tokens, GRID), NoReduction.of(tokens), ToMe(0.3).plan(tokens, GRID)


def test_each_row_is_reduced_and_restored_by_the_branch_it_chose(tokens, branches):
    reduction = Rowwise.of(branches, CHOICE)
    reduced = reduction.reduce(tokens)
    restored = reduction.restore(reduced)
    assert reduced.shape == (4, 25, 8)
    assert reduction.sizes.shape == (4, 25)
    for row, number in enumerate(CHOICE.tolist()):
        own = branches[number]
        length = own.sizes.shape[1]
        assert torch.equal(reduced[row, :length], own.reduce(tokens)[row])
        assert torch.equal(reduction.sizes[row, :length], own.sizes[row])
        assert not reduction.sizes[row, length:].any()
        assert torch.equal(restored[row], own.restore(own.reduce(tokens))[row])
    assert reduction.sizes.sum(dim=1).tolist() == [25] * 4


def test_what_attention_leaves_in_empty_places_is_not_restored(tokens, branches):
    reduction = Rowwise.of(branches, CHOICE)
    reduced = reduction.reduce(tokens)
    spoilt = torch.where((reduction.sizes == 0)[..., None], torch.nan, reduced)
    assert spoilt.isnan().any()
    assert torch.equal(reduction.restore(spoilt), reduction.restore(reduced))


def test_it_is_padded_only_where_lengths_differ(tokens, branches):
    same = LGTM(0.5).plan(tokens, GRID), ToMe(0.5).plan(tokens, GRID)
    for given, padded in [(same, False), (branches, True), ((Rowwise.of(branches, CHOICE), branches[1]), True)]:
        reduction = Rowwise.of(given, CHOICE.clamp(max=1))
        assert reduction.padded is padded
        assert bool((reduction.sizes == 0).any()) is padded


def test_the_kind_is_that_of_the_branches_that_reduce(tokens, branches):
    todo, merged = ToDo(2).plan(tokens, GRID), KVMerge(LGTM(0.5)).plan(tokens, GRID)
    nothing = NoReduction.of(tokens)
    for given, kind in [
        (branches, "merge"),
        ((todo, merged), "kv"),
        ((nothing, todo), "kv"),
        ((nothing, nothing), "merge"),
    ]:
        assert Rowwise.of(given, CHOICE.clamp(max=1)).kind == kind


def test_a_merge_and_keys_and_values_alone_do_not_go_together(tokens, branches):
    with pytest.raises(SettingError, match="Rows of one batch cannot follow a merging reducer and one of keys and val"):
        Rowwise.of((branches[0], ToDo(2).plan(tokens, GRID)), CHOICE)


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_plan_repeats_for_several_rows(tokens, branches, times):
    many = tokens.repeat_interleave(times, dim=0)
    reduction = Rowwise.of(branches, CHOICE).repeat(times)
    plans = LGTM(0.5).plan(many, GRID), NoReduction.of(many), ToMe(0.3).plan(many, GRID)
    expected = Rowwise.of(plans, CHOICE.repeat_interleave(times))
    assert torch.equal(reduction.choice, expected.choice)
    assert torch.equal(reduction.sizes, expected.sizes)
    assert torch.equal(reduction.reduce(many), expected.reduce(many))
    assert torch.equal(reduction.restore(reduction.reduce(many)), expected.restore(expected.reduce(many)))
    assert (reduction.kind, reduction.padded) == ("merge", True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tokens_keep_their_type_and_may_have_other_channels(tokens, branches, dtype):
    reduction = Rowwise.of(branches, CHOICE)
    reduced = reduction.reduce(tokens[..., :3].to(dtype))
    assert reduced.dtype == dtype
    assert reduction.restore(reduced).shape == (4, 25, 3)
    assert reduction.sizes.dtype == torch.float32


def test_gradients_reach_every_token_of_a_row_through_its_own_branch(tokens, branches):
    tokens.requires_grad_()
    reduction = Rowwise.of(branches, CHOICE)
    weight = torch.randn(4, 25, 8, generator=torch.Generator().manual_seed(1))
    (reduction.restore(reduction.reduce(tokens)) * weight).sum().backward()
    for row, number in enumerate(CHOICE.tolist()):
        alone = tokens.detach().clone().requires_grad_()
        own = branches[number]
        (own.restore(own.reduce(alone)) * weight).sum().backward()
        torch.testing.assert_close(tokens.grad[row], alone.grad[row])
