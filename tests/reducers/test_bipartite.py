"""What ToMe and L-GTM share: the assignment's invariants on random grids, ratios and batches."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context, NoReduction
from bigain.reducers.lgtm import LGTM
from bigain.reducers.tome import ToMe

KINDS = {
    "tome": lambda ratio, **more: ToMe(ratio, **more),
    "tome fixed": lambda ratio, **more: ToMe(ratio, randomize=False, **more),
    "lgtm": lambda ratio, **more: LGTM(ratio, **more),
}
kinds = st.sampled_from(sorted(KINDS))


@st.composite
def cases(draw, mode=None, smallest=0.0):
    """A reducer, a grid it can work on, tokens, and a context with a timestep for each row."""
    shape = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple))
    cell = (*(draw(st.integers(1, n)) for n in shape[:-1]), draw(st.integers(2, shape[-1])))
    grid = bigain.Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    most = 1 - math.prod(n // s for n, s in zip(shape, cell, strict=True)) / grid.size
    ratio = draw(st.floats(smallest, 1)) * most
    mode = mode or draw(st.sampled_from(["mean", "prune", "mlerp"]))
    reducer = KINDS[draw(kinds)](ratio, cell=cell, mode=mode)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch = draw(st.integers(1, 4))
    tokens = torch.randn(batch, grid.tokens, 8, generator=generator)
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    return reducer, grid, tokens, Context(timestep=timesteps, layer=draw(st.integers(0, 27)))


@given(cases())
def test_lengths_sizes_and_places(case):
    reducer, grid, tokens, context = case
    batch, count, _ = tokens.shape
    reduction = reducer.plan(tokens, grid, context)
    length = count - math.floor(grid.size * reducer.ratio)

    assert reducer.reduced_length(grid) == length
    assert reduction.reduce(tokens).shape == (batch, length, 8)
    assert reduction.places().shape == (batch, count)
    for row, place in enumerate(reduction.places().tolist()):
        assert set(place) == set(range(length))  # every place is taken; each token is in one
        if length < count:
            assert place == reduction.place[row].tolist()
            assert [place[token] for token in reduction.representatives[row]] == list(range(length))
        assert reduction.sizes[row].tolist() == [place.count(slot) for slot in range(length)]


@given(cases(mode="mean"))
def test_restoring_gives_each_token_the_mean_of_its_group(case):
    reducer, grid, tokens, context = case
    reduction = reducer.plan(tokens, grid, context)
    restored = reduction.restore(reduction.reduce(tokens))
    for row, place in enumerate(reduction.places()):
        for token, slot in enumerate(place):
            expected = tokens[row, place == slot].double().mean(dim=0).float()
            torch.testing.assert_close(restored[row, token], expected, atol=1e-5, rtol=1e-5)


@given(cases(mode="prune"))
def test_pruning_copies_the_representative(case):
    reducer, grid, tokens, context = case
    reduction = reducer.plan(tokens, grid, context)
    restored = reduction.restore(reduction.reduce(tokens))
    for row in range(len(tokens)):
        nothing = isinstance(reduction, NoReduction)
        kept = range(tokens.shape[1]) if nothing else reduction.representatives[row][reduction.place[row]]
        assert torch.equal(restored[row], tokens[row, kept])


@given(cases())
def test_prefix_and_suffix_are_untouched(case):
    reducer, grid, tokens, context = case
    reduction = reducer.plan(tokens, grid, context)
    reduced = reduction.reduce(tokens)
    restored = reduction.restore(reduced)
    inside = slice(grid.prefix, grid.prefix + grid.size)
    for sequence in (reduced, restored):
        assert torch.allclose(sequence[:, : grid.prefix], tokens[:, : grid.prefix], atol=1e-6)
        assert torch.allclose(sequence[:, len(sequence[0]) - grid.suffix :], tokens[:, inside.stop :], atol=1e-6)
    # What the fixed tokens hold changes nothing on the grid.
    other = tokens * 50
    other[:, inside] = tokens[:, inside]
    assert torch.equal(reducer.plan(other, grid, context).places(), reduction.places())


@given(cases(), st.randoms(use_true_random=False))
def test_an_image_does_not_depend_on_its_batch(case, random):
    """Alone, in another order, and beside other neighbours; with mixed timesteps."""
    reducer, grid, tokens, context = case
    together = reducer.plan(tokens, grid, context).places()
    order = random.sample(range(len(tokens)), len(tokens))
    shuffled = reducer.plan(tokens[order], grid, Context(context.timestep[order], context.layer)).places()
    assert torch.equal(shuffled, together[order])
    for row in range(len(tokens)):
        timestep = context.timestep[row : row + 1]
        alone = reducer.plan(tokens[row : row + 1], grid, Context(timestep, context.layer)).places()
        assert torch.equal(alone[0], together[row])
        neighbours = torch.cat([tokens.flip(1) * 3, tokens[row : row + 1]])
        times = torch.cat([context.timestep + 1, timestep])
        assert torch.equal(reducer.plan(neighbours, grid, Context(times, context.layer)).places()[-1], together[row])


@given(cases())
@settings(max_examples=10)
def test_ratio_zero_is_the_identity(case):
    reducer, grid, tokens, context = case
    reducer.ratio = 0.0
    reduction = reducer.plan(tokens, grid, context)
    assert reducer.reduced_length(grid) == grid.tokens
    torch.testing.assert_close(reduction.restore(reduction.reduce(tokens)), tokens, atol=1e-6, rtol=1e-6)
    assert torch.equal(reduction.sizes, torch.ones(tokens.shape[:2]))


@given(cases(), st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_finite_and_keeps_its_type(case, dtype):
    reducer, grid, tokens, context = case
    half = (tokens * 1000).to(dtype)
    reduction = reducer.plan(half, grid, context)
    reduced = reduction.reduce(half)
    assert reduced.dtype == reduction.restore(reduced).dtype == dtype
    assert reduced.isfinite().all()
    # The assignment is made in float32: converting the input first changes nothing.
    assert torch.equal(reduction.places(), reducer.plan(half.float(), grid, context).places())


@given(cases(mode="mean", smallest=0.5))
def test_gradients_of_the_mean_are_those_of_the_averaging_matrix(case):
    """restore(reduce(x)) = A x with A symmetric, so that the gradient of <w, A x> is A w."""
    reducer, grid, tokens, context = case
    reduction = reducer.plan(tokens, grid, context)
    tokens = tokens.clone().requires_grad_()
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    (weight * reduction.restore(reduction.reduce(tokens))).sum().backward()
    expected = reduction.restore(reduction.reduce(weight))
    torch.testing.assert_close(tokens.grad, expected, atol=1e-5, rtol=1e-5)


@given(cases())
@settings(max_examples=10)
def test_gradients_flow_in_every_mode_though_the_plan_takes_none(case):
    reducer, grid, tokens, context = case
    tokens = tokens.clone().requires_grad_()
    reduction = reducer.plan(tokens, grid, context)
    assert not reduction.sizes.requires_grad
    # Not the sum of squares: mlerp keeps the largest norm of a group, whatever the others are.
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(1))
    (weight * reduction.restore(reduction.reduce(tokens))).sum().backward()
    assert tokens.grad.isfinite().all()
    if isinstance(reduction, NoReduction):
        return
    kept = reduction.representatives[..., None].expand(-1, -1, 8)
    assert (tokens.grad.gather(1, kept) != 0).any(dim=-1).all()


@pytest.mark.parametrize("kind", ["tome", "lgtm"])
def test_equal_under_compile_without_graph_breaks(noise, kind):
    grid, reducer = bigain.Grid((6, 7), prefix=1), KINDS[kind](0.5, mode="mlerp")

    def run(tokens, timestep):
        reduction = reducer.plan(tokens, grid, Context(timestep, layer=2))
        return reduction.reduce(tokens), reduction.restore(reduction.reduce(tokens) * 2), reduction.sizes

    tokens, timestep = noise(3, 43, 8), torch.tensor([1, 500, 999])
    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, expected in zip(compiled(tokens, timestep), run(tokens, timestep), strict=True):
        torch.testing.assert_close(ours, expected)


def test_more_than_possible_is_refused_naming_the_most():
    """64 tokens in 16 cells leave 48 sources."""
    grid = bigain.Grid((8, 8))
    assert LGTM(0.75).reduced_length(grid) == 16
    for call in (lambda r: r.reduced_length(grid), lambda r: r.plan(torch.zeros(1, 64, 4), grid)):
        with pytest.raises(SettingError, match=r"would remove 51 of 64.*at most 48 \(ratio 0\.75\)"):
            call(LGTM(0.8))


def test_larger_cells_allow_more():
    assert ToMe(0.9, cell=4).reduced_length(bigain.Grid((8, 8))) == 64 - 57


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5, float("nan"), float("inf"), "0.5", None, True])
def test_a_ratio_outside_the_range_is_refused(ratio):
    with pytest.raises(SettingError, match=r"in \[0, 1\); got"):
        ToMe(ratio)


@pytest.mark.parametrize("cell", [0, 1, (1, 1), (), (2, 0), (2, -2), (2.0, 2.0), 2.5])
def test_an_impossible_cell_is_refused(cell):
    with pytest.raises(SettingError, match="A cell is one or more whole numbers"):
        ToMe(0.5, cell=cell)


def test_a_cell_of_other_axes_than_the_grid_is_refused():
    with pytest.raises(SettingError, match=r"cell of 2 axes \(2, 2\) for a grid of 3 axes \(2, 4, 4\)"):
        ToMe(0.5).reduced_length(bigain.Grid((2, 4, 4)))


def test_where_no_cell_fits_nothing_can_be_removed():
    grid = bigain.Grid((3, 8))
    with pytest.raises(SettingError, match=r"no cell of \(4, 4\) fits on a grid of \(3, 8\). Give a smaller cell"):
        LGTM(0.1, cell=4).plan(torch.zeros(1, 24, 4), grid)
    assert LGTM(0.04, cell=4).plan(torch.zeros(1, 24, 4), grid).sizes.shape == (1, 24)  # floor(0.96) is none


def test_an_unknown_mode_is_refused():
    with pytest.raises(SettingError, match="mean, prune, mlerp; got 'sum'"):
        LGTM(0.5, mode="sum")


@pytest.mark.parametrize("name", ["lgtm", "tome", "abm"])
@pytest.mark.parametrize("shape", [(3, 65, 8), (2, 70, 8), (2, 60, 8), (65, 8)], ids=str)
def test_a_plan_refuses_other_tokens_than_it_was_made_for(noise, name, shape):
    """Indices would pick from them without a word."""
    plan = bigain.build_reducer(name, ratio=0.5).plan(noise(2, 65, 8), bigain.Grid((8, 8), prefix=1))
    with pytest.raises(SettingError, match=r"This plan takes 2 rows of |Tokens must have shape"):
        plan.reduce(noise(*shape))
    with pytest.raises(SettingError, match=f"This plan takes 2 rows of {plan.sizes.shape[1]} tokens here"):
        plan.restore(noise(2, 65, 8))


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_window_as_large_as_the_grid_changes_nothing(kind):
    tokens = torch.randn(2, 63, 8, generator=torch.Generator().manual_seed(2))
    grid = bigain.Grid((7, 9))
    everywhere, within = (KINDS[kind](0.5, cell=2, window=window).plan(tokens, grid) for window in (None, 100))
    assert torch.equal(everywhere.place, within.place)
    assert torch.equal(everywhere.representatives, within.representatives)


def test_tokens_merge_within_their_window():
    tokens = torch.randn(1, 64, 8, generator=torch.Generator().manual_seed(2))
    plan = LGTM(0.7, window=2).plan(tokens, bigain.Grid((8, 8)))
    tile = torch.arange(64).reshape(8, 8)
    tile = tile // 8 // 4 * 2 + tile % 8 // 4
    for place in range(plan.sizes.shape[1]):
        assert len(set(tile.flatten()[plan.place[0] == place].tolist())) == 1


@pytest.mark.parametrize("window", [0, -1, 1.5, True, (), (2, 0), "2"])
def test_windows_that_are_none_are_refused(window):
    with pytest.raises(SettingError, match="window is cells along each axis"):
        LGTM(0.5, window=window)


def test_a_window_of_other_axes_is_refused():
    with pytest.raises(SettingError, match=r"LGTM got a window of 3 axes \(2, 2, 2\) for a grid of 2 axes"):
        LGTM(0.5, window=(2, 2, 2)).plan(torch.randn(1, 64, 8), bigain.Grid((8, 8)))
