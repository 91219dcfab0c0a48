"""ToMe of vision transformers: against the published rule, one token at a time."""

import math

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.tome_vit import ToMeViT
from bigain.testing import check_reducer


def by_rule(tokens, removed, prefix, suffix):
    """Merge one row, `[N, C]`: which tokens each token that is left stands for, in their order."""
    count = len(tokens)
    free = [index for index in range(count) if prefix <= index < count - suffix]
    sources, targets = [i for i in free if i % 2 == 0], [i for i in free if i % 2]
    cosine = lambda one, other: float(tokens[one] @ tokens[other] / tokens[one].norm() / tokens[other].norm())  # noqa: E731
    best = {one: max(targets, key=lambda other: cosine(one, other)) for one in sources}
    merged = sorted(sources, key=lambda one: -cosine(one, best[one]))[:removed]
    groups = [[index] for index in range(prefix)]
    groups += [[one] for one in sources if one not in merged]
    groups += [[other, *(one for one in merged if best[one] == other)] for other in targets]
    return groups + [[index] for index in range(count - suffix, count)]


@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (1, 0), (2, 0), (5, 0), (1, 3)])
@pytest.mark.parametrize("size", [16, 17])
def test_every_other_token_merges_into_those_between(noise, prefix, suffix, size):
    grid = bigain.Grid((size,), prefix, suffix)
    tokens = noise(3, grid.tokens, 8)
    for removed in (0, 1, 5, 8):
        reducer = ToMeViT((removed + 0.5) / size)
        plan = reducer.plan(tokens, grid)
        assert plan.sizes.shape[1] == reducer.reduced_length(grid) == grid.tokens - removed
        if not removed:
            assert torch.equal(plan.reduce(tokens), tokens)
            continue
        for row, found, sizes in zip(tokens, plan.reduce(tokens), plan.sizes, strict=True):
            groups = by_rule(row, removed, prefix, suffix)
            assert sizes.tolist() == [len(members) for members in groups]
            torch.testing.assert_close(found, torch.stack([row[members].mean(dim=0) for members in groups]))
        restored, short = plan.restore(plan.reduce(tokens)), plan.reduce(tokens)
        assert all(
            torch.equal(restored[0, member], short[0, place])
            for place, members in enumerate(by_rule(tokens[0], removed, prefix, suffix))
            for member in members
        )


def test_a_merged_token_has_its_destinations_position(noise):
    grid = bigain.Grid((16,), prefix=1)
    tokens = noise(1, 17, 8)
    plan = ToMeViT(0.3).plan(tokens, grid)
    positions = plan.place_positions(torch.arange(17.0)[None, :, None])[0, :, 0].tolist()
    assert positions == [members[0] for members in by_rule(tokens[0], 4, 1, 0)]


def test_the_grids_axes_do_not_matter(noise):
    tokens = noise(2, 17, 8)
    flat, square = (ToMeViT().plan(tokens, bigain.Grid(shape, prefix=1)) for shape in ((16,), (4, 4)))
    assert torch.equal(flat.places(), square.places())


def test_more_than_half_is_refused():
    assert ToMeViT(0.5).reduced_length(bigain.Grid((17,))) == 9
    with pytest.raises(SettingError, match=r"ratio=0.6 would remove 9 of 16 tokens; at once it can remove at most 8"):
        ToMeViT(0.6).reduced_length(bigain.Grid((16,)))
    with pytest.raises(SettingError, match=r"ratio is the share of tokens removed, in \[0, 1\); got 1"):
        ToMeViT(1)
    assert math.isclose(ToMeViT().ratio, 0.5)


@pytest.mark.parametrize("reducer", ToMeViT.examples(), ids=repr)
def test_it_keeps_the_contract_of_reducers(reducer):
    check_reducer(reducer)
