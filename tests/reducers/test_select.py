"""Select: sorting by scipy's Laplacian, where its randomness comes from, and who stands for whom."""

import math

import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.functional.cells import hashed_picks
from bigain.reducers.base import Context, NoReduction
from bigain.reducers.select import Select
from bigain.scorers.base import TokenScorer

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20), "9x13_c8": (9, 13)}


class First(TokenScorer):
    """The first channel is the score."""

    def raw(self, tokens, grid):
        return tokens[..., 0].float()


class FirstMeansSmooth(First):
    detail_is = "low"


def kept_by_loop(scores, count, which):
    order = sorted(range(len(scores)), key=lambda i: (scores[i] if which == "low" else -scores[i], i))
    return sorted(order[:count])


def nearest_by_loop(kept, size):
    """For every token the kept one nearest to it, the earlier of two."""
    return [min(kept, key=lambda k: (abs(k - token), k)) for token in range(size)]


@pytest.mark.parametrize("which", ["low", "high"])
@pytest.mark.parametrize("name", GRIDS)
def test_keeps_a_quarter_by_the_golden_scores(golden, name, which):
    vectors = golden(name)
    tokens, grid = vectors["x"], bigain.Grid(GRIDS[name])
    reduction = bigain.build_reducer("select", keep=0.25, which=which).plan(tokens, grid)
    for row, scores in enumerate(vectors["score.laplacian_l1"].tolist()):
        expected = kept_by_loop(scores, grid.size // 4, which)
        assert torch.equal(reduction.reduce(tokens)[row], tokens[row, expected])


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.floats(0.01, 1),
    st.sampled_from(["low", "high"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_equals_the_loop_on_any_grid(shape, keep, which, prefix, suffix, seed):
    grid = bigain.Grid(shape, prefix, suffix)
    tokens = torch.randn(2, grid.tokens, 4, generator=torch.Generator().manual_seed(seed))
    count = max(1, math.floor(grid.size * keep))
    reducer = Select(keep, which=which)
    reduction = reducer.plan(tokens, grid)
    reduced, fixed = reduction.reduce(tokens), list(range(prefix + grid.size, grid.tokens))
    assert reduced.shape[1] == reducer.reduced_length(grid) == prefix + count + suffix
    for row, image in enumerate(tokens[:, prefix : prefix + grid.size].double()):
        fields = image.T.reshape(-1, *shape).numpy()
        scores = sum(abs(scipy.ndimage.laplace(field, mode="constant")) for field in fields).ravel()
        kept = kept_by_loop(scores, count, which)
        places = [*range(prefix), *(k + prefix for k in kept), *fixed]
        assert torch.equal(reduced[row], tokens[row, places])
        stand_ins = [*range(prefix), *(k + prefix for k in nearest_by_loop(kept, grid.size)), *fixed]
        assert torch.equal(reduction.restore(reduced)[row], tokens[row, stand_ins])
        assert reduction.sizes[row].tolist() == [stand_ins.count(place) for place in places]


def test_a_dropped_token_between_two_kept_ones_goes_to_the_earlier():
    tokens = torch.tensor([1.0, 9, 0, 9, 9, 0, 9, 9])[None, :, None]
    reduction = Select(3 / 8, scorer=First()).plan(tokens, bigain.Grid((8,)))
    assert reduction.kept.tolist() == [[0, 2, 5]]
    assert reduction.restore(torch.tensor([[[10.0], [20], [30]]])).flatten().tolist() == [
        *(10, 10, 20, 20),
        *(30, 30, 30, 30),
    ]
    assert reduction.sizes.tolist() == [[2, 2, 4]]


@pytest.mark.parametrize("which", ["low", "high"])
def test_of_equal_scores_the_earlier_token_stays(which):
    tokens = torch.zeros(2, 4096, 1)
    reduction = Select(0.25, scorer=First(), which=which).plan(tokens, bigain.Grid((64, 64)))
    assert torch.equal(reduction.kept, torch.arange(1024).expand(2, -1))


def test_low_is_little_detail_whichever_way_the_formula_points():
    tokens, grid = torch.arange(8.0)[None, :, None], bigain.Grid((8,))
    assert Select(0.25, scorer=First()).plan(tokens, grid).kept.tolist() == [[0, 1]]
    assert Select(0.25, scorer=First(), which="high").plan(tokens, grid).kept.tolist() == [[6, 7]]
    assert Select(0.25, scorer=FirstMeansSmooth()).plan(tokens, grid).kept.tolist() == [[6, 7]]
    assert Select(0.25, scorer=FirstMeansSmooth(), which="high").plan(tokens, grid).kept.tolist() == [[0, 1]]


def test_at_least_one_token_stays():
    tokens, grid = torch.tensor([3.0, 1, 2])[None, :, None], bigain.Grid((3,))
    reduction = Select(0.01, scorer=First()).plan(tokens, grid)
    assert reduction.kept.tolist() == [[1]]
    assert reduction.restore(reduction.reduce(tokens)).flatten().tolist() == [1, 1, 1]
    assert reduction.sizes.tolist() == [[3]]


def test_keeping_all_is_no_reduction(noise):
    tokens = noise(1, 16, 4)
    reduction = Select(1).plan(tokens, bigain.Grid((4, 4)))
    assert isinstance(reduction, NoReduction)
    assert reduction.reduce(tokens) is tokens


GRID = bigain.Grid((32, 32))


def drawn(timestep=500, layer=0, seed=0, own=0, generator=None, tokens=None):
    rows = torch.atleast_1d(torch.tensor(timestep))
    tokens = torch.zeros(len(rows), 1024, 1) if tokens is None else tokens
    context = Context(rows, layer, seed=seed, generator=generator)
    return Select(0.25, which="random", seed=own).plan(tokens, GRID, context).kept


def test_random_tokens_are_those_of_lowest_draw():
    draws = hashed_picks(torch.tensor([10, 900]), 1024, 2**32, 3 * 4099 + 5 + 7 * 0x9E3779B1)
    expected = [kept_by_loop(row, 256, "low") for row in draws.tolist()]
    assert drawn([10, 900], layer=5, seed=3, own=7).tolist() == expected


def test_the_same_moment_gives_the_same_tokens_in_any_batch_and_image(noise):
    batch = drawn([7, 500, 7, 999], layer=2, seed=1, tokens=noise(4, 1024, 3))
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(drawn([500], layer=2, seed=1)[0], batch[1])


@pytest.mark.parametrize("other", [{"timestep": 501}, {"layer": 1}, {"seed": 1}, {"own": 1}], ids=str)
def test_another_moment_gives_independent_tokens(other):
    """Two independent quarters of 1,024 tokens share 64, give or take 6 (one sigma)."""
    shared = set(drawn()[0].tolist()) & set(drawn(**other)[0].tolist())
    assert 40 <= len(shared) <= 88


def test_each_token_is_kept_alike():
    counts = drawn(list(range(0, 1000, 5))).flatten().bincount(minlength=1024)
    assert counts.sum() == 200 * 256
    # The variance of 200 draws of a quarter is 37.5; its estimate over 1,024 tokens varies by some 4 %.
    assert 30 < counts.float().var() < 45


def test_without_a_timestep_one_selection_serves_all(noise):
    tokens, random = noise(3, 1024, 2), Select(0.25, which="random")
    kept = random.plan(tokens, GRID).kept
    assert torch.equal(kept[0], kept[2])
    assert torch.equal(random.plan(tokens, GRID, Context()).kept, kept)
    scalar = random.plan(tokens, GRID, Context(torch.tensor(500))).kept
    assert torch.equal(scalar, drawn([500, 500, 500]))


def test_a_generator_draws_once_for_all_rows():
    kept = drawn([1, 2], generator=torch.Generator().manual_seed(8))
    draws = torch.rand(1, 1024, generator=torch.Generator().manual_seed(8))[0].tolist()
    assert kept.tolist() == [kept_by_loop(draws, 256, "low")] * 2


def test_half_precision_keeps_the_same_tokens_as_its_values_in_float32(noise):
    half = noise(2, 64, 8).half()
    reduction = Select(0.25).plan(half, bigain.Grid((8, 8)))
    assert torch.equal(reduction.kept, Select(0.25).plan(half.float(), bigain.Grid((8, 8))).kept)
    assert reduction.reduce(half).dtype == torch.float16


def test_only_keys_and_values_shrink(noise):
    assert Select(0.5).kinds == {"kv"}
    assert Select(0.5).plan(noise(1, 16, 4), bigain.Grid((4, 4))).kind == "kv"
    assert not Select(0.5).averages


def test_gradients_reach_the_kept_tokens_alone(noise):
    tokens = noise(1, 16, 4).requires_grad_()
    reduction = Select(0.5).plan(tokens, bigain.Grid((4, 4)))
    assert not reduction.sizes.requires_grad
    reduction.reduce(tokens).sum().backward()
    assert tokens.grad[0, :, 0].nonzero().flatten().tolist() == reduction.kept[0].tolist()


@pytest.mark.parametrize("which", ["low", "random"])
def test_one_graph_under_compile(noise, which):
    reducer, grid = Select(0.3, which=which), bigain.Grid((6, 7), prefix=1)

    def run(tokens, timestep):
        reduction = reducer.plan(tokens, grid, Context(timestep, layer=2))
        return reduction.reduce(tokens), reduction.restore(reduction.reduce(tokens)), reduction.sizes

    tokens, timestep = noise(3, 43, 8), torch.tensor([1, 500, 999])
    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, expected in zip(compiled(tokens, timestep), run(tokens, timestep), strict=True):
        torch.testing.assert_close(ours, expected)


def test_runs_without_values():
    tokens = torch.zeros(2, 43, 8, device="meta")
    reduction = Select(0.3).plan(tokens, bigain.Grid((6, 7), prefix=1))
    assert reduction.restore(reduction.reduce(tokens)).shape == (2, 43, 8)
    assert reduction.sizes.shape == (2, 13)


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, math.nan, math.inf, "0.5", None, True])
def test_a_share_outside_the_range_is_refused(keep):
    with pytest.raises(SettingError, match=r"in \(0, 1\]; got"):
        Select(keep)


def test_other_bad_settings_are_refused():
    with pytest.raises(SettingError, match="'low', 'high' or 'random'; got 'lowest'"):
        Select(0.5, which="lowest")
    with pytest.raises(SettingError, match=r"seed is a whole number; got 0\.5"):
        Select(0.5, seed=0.5)
    with pytest.raises(SettingError, match="no scorer named 'laplace'"):
        Select(0.5, scorer="laplace")
