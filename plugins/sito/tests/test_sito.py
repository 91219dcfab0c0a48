"""SiTo: a slow version with the whole similarity matrix, and where its noise comes from."""

import itertools
import math

import numpy as np
import pytest
import torch
from bigain_sito import SiTo
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.functional.cells import hashed_normal
from bigain.reducers.base import Context, NoReduction


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def slow(image, shape, cell, ratio, noise):
    """Prune one image `[N, C]`: the bases, and for every token the kept token it is restored from."""
    unit = image.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    similarity = unit @ unit.T
    likeness = similarity.sum(axis=1) + noise
    index = np.arange(len(image)).reshape(shape)
    corners = itertools.product(*(range(0, n - s + 1, s) for n, s in zip(shape, cell, strict=True)))
    bases = []
    for corner in corners:
        members = index[tuple(slice(c, c + s) for c, s in zip(corner, cell, strict=True))].ravel()
        bases.append(int(max(members, key=lambda i: likeness[i])))
    sources = [i for i in range(len(image)) if i not in bases]
    sources.sort(key=lambda i: -max(similarity[i, j] for j in bases))
    pruned = sources[: math.floor(len(image) * ratio)]
    kept = [i for i in range(len(image)) if i not in pruned]
    source_of = [i if i in kept else max(kept, key=lambda j: similarity[i, j]) for i in range(len(image))]
    return set(bases), source_of


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(2, 5), min_size=1, max_size=3).map(tuple))
    cell = (*(draw(st.integers(1, n)) for n in shape[:-1]), draw(st.integers(2, shape[-1])))
    grid = bigain.Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    most = 1 - math.prod(n // s for n, s in zip(shape, cell, strict=True)) / grid.size
    reducer = SiTo(draw(st.floats(0, 1)) * most, cell, draw(st.sampled_from([0.0, 0.1, 5.0])))
    seed = draw(st.integers(0, 99))
    timesteps = torch.randint(1000, (2,), generator=torch.Generator().manual_seed(seed))
    return (
        reducer,
        grid,
        randn(2, grid.tokens, 8, seed=seed),
        Context(timesteps, layer=draw(st.integers(0, 27)), seed=3),
    )


@given(cases())
@settings(max_examples=50, deadline=None)
def test_equals_the_slow_version_on_any_grid(case):
    reducer, grid, tokens, context = case
    assume(grid.size > 2)  # two tokens are equally like each other
    noise = reducer.noise * hashed_normal(context.timestep, grid.size, 3 * 4099 + context.layer).double().numpy()
    reduction = reducer.plan(tokens, grid, context)
    reduced = reduction.reduce(tokens)
    restored = reduction.restore(reduced)
    for row in range(2):
        image = tokens[row, grid.prefix : grid.prefix + grid.size]
        _, source_of = slow(image, grid.shape, reducer.cell, reducer.ratio, noise[row])
        origin = [
            *range(grid.prefix),
            *(grid.prefix + i for i in source_of),
            *range(grid.prefix + grid.size, grid.tokens),
        ]
        assert torch.equal(restored[row], tokens[row, origin])
        assert sorted(reduction.sizes[row].tolist()) == sorted(origin.count(kept) for kept in set(origin))


@settings(deadline=None)
@given(cases())
def test_lengths_and_fixed_tokens(case):
    reducer, grid, tokens, context = case
    reduction = reducer.plan(tokens, grid, context)
    reduced = reduction.reduce(tokens)
    length = grid.tokens - math.floor(grid.size * reducer.ratio)
    assert reduced.shape == (2, length, 8)
    assert reducer.reduced_length(grid) == length
    assert reduction.sizes.sum(dim=1).tolist() == [grid.tokens] * 2
    assert torch.equal(reduced[:, : grid.prefix], tokens[:, : grid.prefix])
    assert torch.equal(reduced[:, length - grid.suffix :], tokens[:, grid.tokens - grid.suffix :])


def test_at_the_highest_ratio_the_bases_are_left():
    """Leftover tokens of the 9 x 13 grid are sources: all of them are pruned too."""
    tokens = randn(1, 117, 8)
    reduction = SiTo((117 - 24) / 117, noise=0).plan(tokens, bigain.Grid((9, 13)))
    bases, _ = slow(tokens[0], (9, 13), (2, 2), 0, 0)
    assert set(reduction.representatives[0].tolist()) == bases
    assert len(bases) == 24


def test_a_pruned_token_may_come_back_from_a_source():
    """In cells of two, 5, -5 and -8 degrees are bases; 15 is nearest to one of them, but nearer to the source 24."""
    angles = torch.tensor([5.0, 24, -5, 15, -8, -90]) * math.pi / 180
    tokens = torch.stack([angles.cos(), angles.sin()], dim=-1)[None]
    reduction = SiTo(1 / 6, cell=2, noise=0).plan(tokens, bigain.Grid((6,)))
    restored = reduction.restore(reduction.reduce(tokens))
    assert torch.equal(restored[0], tokens[0, [0, 1, 2, 1, 4, 5]])


def bases(timestep=500, layer=0, seed=0, generator=None):
    """Bases on 32 x 32 where the noise decides, ascending; at the highest ratio nothing else is kept."""
    rows = torch.atleast_1d(torch.tensor(timestep))
    tokens = torch.ones(len(rows), 1024, 4)
    context = Context(rows, layer, seed=seed, generator=generator)
    return SiTo(0.75, noise=1000).plan(tokens, bigain.Grid((32, 32)), context).representatives.sort(dim=1).values


def test_the_same_moment_gives_the_same_noise_in_any_batch():
    batch = bases(timestep=[7, 500, 7], layer=2, seed=1)
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(bases(layer=2, seed=1)[0], batch[1])


@pytest.mark.parametrize("other", [{"timestep": 501}, {"layer": 1}, {"seed": 1}], ids=str)
def test_another_moment_gives_independent_noise(other):
    """Independent choices of one in four agree on a quarter of the 256 cells, give or take 7 (one sigma)."""
    assert 36 <= len(set(bases()[0].tolist()) & set(bases(**other)[0].tolist())) <= 92


def test_a_generator_draws_once_for_all_rows_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    found = bases(timestep=[1, 2], generator=torch.Generator().manual_seed(8))
    assert torch.equal(torch.get_rng_state(), state)
    drawn = torch.randn(1, 1024, generator=torch.Generator().manual_seed(8))
    strongest = drawn.reshape(16, 2, 16, 2).transpose(1, 2).reshape(256, 4).argmax(dim=-1)
    row, column = torch.arange(256) // 16 * 2 + strongest // 2, torch.arange(256) % 16 * 2 + strongest % 2
    assert found.tolist() == [(row * 32 + column).sort().values.tolist()] * 2


def test_without_noise_the_moment_is_ignored():
    tokens, grid = randn(1, 64, 8), bigain.Grid((8, 8))
    first = SiTo(0.5, noise=0).plan(tokens, grid, Context(torch.tensor([3]), layer=1, seed=9))
    assert torch.equal(first.place, SiTo(0.5, noise=0).plan(tokens, grid).place)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_matched_in_float32(dtype):
    tokens, grid = (randn(2, 64, 8) * 1000).to(dtype), bigain.Grid((8, 8))
    reduction = SiTo(0.5).plan(tokens, grid)
    assert torch.equal(reduction.place, SiTo(0.5).plan(tokens.float(), grid).place)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(SiTo(0.5).plan(tokens, grid).place, reduction.place)
    assert reduction.reduce(tokens).dtype == dtype


def test_nothing_pruned_is_no_reduction():
    tokens = randn(1, 64, 8)
    assert isinstance(SiTo(0).plan(tokens, bigain.Grid((8, 8))), NoReduction)


def test_one_graph_under_compile_and_shapes_without_values():
    reducer, grid, tokens = SiTo(0.5), bigain.Grid((6, 7), prefix=1), randn(3, 43, 8)

    def run(tokens, timestep):
        reduction = reducer.plan(tokens, grid, Context(timestep, layer=2))
        return reduction.reduce(tokens), reduction.restore(reduction.reduce(tokens)), reduction.sizes

    timestep = torch.tensor([1, 500, 999])
    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, expected in zip(compiled(tokens, timestep), run(tokens, timestep), strict=True):
        torch.testing.assert_close(ours, expected)
    assert [value.shape for value in run(tokens.to("meta"), timestep.to("meta"))] == [(3, 22, 8), (3, 43, 8), (3, 22)]


def test_settings():
    assert not SiTo(0.5).averages
    assert "ratio=0.5, cell=(2, 2)" in repr(SiTo(0.5))
    assert "noise=0.1" in repr(SiTo(0.5))
    with pytest.raises(SettingError, match=r"SiTo with ratio=0\.8 would remove 51 of 64.*at most 48"):
        SiTo(0.8).reduced_length(bigain.Grid((8, 8)))


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf, "0.1", None, True])
def test_impossible_noise_is_refused(noise):
    with pytest.raises(SettingError, match="noise is a finite number of at least 0; got"):
        SiTo(0.5, noise=noise)
