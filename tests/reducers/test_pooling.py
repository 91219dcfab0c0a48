"""Pooling: the golden vectors, torch's pooling, and a loop over cells."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.pooling import Pooling

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20)}


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", GRIDS)
def test_average_equals_the_golden_vectors(golden, name, factor):
    vectors = golden(name)
    reduction = bigain.build_reducer("pooling", factor=factor).plan(vectors["x"], bigain.Grid(GRIDS[name]))
    torch.testing.assert_close(reduction.reduce(vectors["x"]), vectors[f"avg.f{factor}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, (4, 3)])
@pytest.mark.parametrize(("pool", "torchs"), [("average", F.avg_pool2d), ("max", F.max_pool2d)])
def test_equals_torchs_pooling_where_the_factor_divides(noise, factor, pool, torchs):
    tokens = noise(2, 72, 5)
    expected = torchs(tokens.transpose(1, 2).reshape(2, 5, 12, 6), factor).flatten(2).transpose(1, 2)
    found = Pooling(factor, pool).plan(tokens, bigain.Grid((12, 6))).reduce(tokens)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=3),
    st.sampled_from(["average", "max"]),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_equals_the_loop_on_any_grid(axes, pool, prefix, suffix, seed):
    shape, factor = tuple(n for n, _ in axes), tuple(s for _, s in axes)
    grid = bigain.Grid(shape, prefix, suffix)
    tokens = torch.randn(2, grid.tokens, 3, generator=torch.Generator().manual_seed(seed))
    groups = {}
    for token, place in enumerate(np.ndindex(shape)):
        groups.setdefault(tuple(p // s for p, s in zip(place, factor, strict=True)), []).append(token + prefix)
    fixed = [[i] for i in range(prefix)], [[i] for i in range(prefix + grid.size, grid.tokens)]
    ordered = [*fixed[0], *(groups[cell] for cell in sorted(groups)), *fixed[1]]

    reduction = Pooling(factor, pool).plan(tokens, grid)
    reduced = reduction.reduce(tokens)
    restored = reduction.restore(reduced)
    assert reduction.sizes.tolist() == [[len(group) for group in ordered]] * 2
    assert reduced.shape[1] == Pooling(factor, pool).reduced_length(grid) == len(ordered)
    for place, group in enumerate(ordered):
        members = tokens[:, group].double()
        expected = members.mean(dim=1) if pool == "average" else members.amax(dim=1)
        torch.testing.assert_close(reduced[:, place].double(), expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(restored[:, group], reduced[:, [place] * len(group)])


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_averaging_keeps_the_sum_when_weighted_by_size(height, width, factor):
    tokens = torch.randn(1, height * width, 2, generator=torch.Generator().manual_seed(height))
    reduction = Pooling(factor).plan(tokens, bigain.Grid((height, width)))
    total = (reduction.reduce(tokens) * reduction.sizes[..., None]).sum(dim=1)
    torch.testing.assert_close(total, tokens.sum(dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pool", ["average", "max"])
def test_half_precision_is_rounded_once(noise, pool, dtype):
    tokens, grid = (noise(2, 35, 4) * 1000).to(dtype), bigain.Grid((5, 7))
    reducer = Pooling(3, pool)
    reduced = reducer.plan(tokens, grid).reduce(tokens)
    assert reduced.dtype == dtype
    assert torch.equal(reduced, reducer.plan(tokens.float(), grid).reduce(tokens.float()).to(dtype))


def test_large_values_in_half_precision_do_not_overflow():
    tokens = torch.full((1, 16, 2), 60000.0, dtype=torch.float16)
    assert Pooling(4).plan(tokens, bigain.Grid((4, 4))).reduce(tokens).tolist() == [[[60000, 60000]]]


def test_negative_cells_have_negative_maxima_at_the_border():
    """Nothing is filled in where the last cell is smaller."""
    tokens = -torch.ones(1, 25, 2)
    reduced = Pooling(2, "max").plan(tokens, bigain.Grid((5, 5))).reduce(tokens)
    assert torch.equal(reduced, -torch.ones(1, 9, 2))


def test_which_of_them_averages():
    assert Pooling(2).averages
    assert not Pooling(2, "max").averages


@pytest.mark.parametrize("pool", ["average", "max"])
def test_one_graph_under_compile(noise, pool):
    reducer, grid, tokens = Pooling(2, pool), bigain.Grid((3, 5, 7), suffix=1), noise(2, 106, 4)

    def run(tokens):
        reduction = reducer.plan(tokens, grid)
        return reduction.reduce(tokens), reduction.restore(reduction.reduce(tokens)), reduction.sizes

    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, expected in zip(compiled(tokens), run(tokens), strict=True):
        torch.testing.assert_close(ours, expected)


def test_bad_settings_are_refused():
    with pytest.raises(SettingError, match="'average' or 'max'; got 'mean'"):
        Pooling(2, "mean")
    with pytest.raises(SettingError, match="factor is a whole number"):
        Pooling(0)
