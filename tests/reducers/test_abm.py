"""ABM: the golden vectors, a loop over tiles with scipy's Laplacian, and its limits."""

import itertools
import math

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.abm import ABM
from bigain.reducers.base import Context, NoReduction
from bigain.scorers.base import TokenScorer

GOLDEN = [
    (name, shape, ratio)
    for name, shape in {"8x8_c16": (8, 8), "12x20_c8": (12, 20), "9x13_c8": (9, 13)}.items()
    for ratio in (0.1, 0.3, 0.5, 0.7)
    if (name, ratio) != ("9x13_c8", 0.7)  # more than its 24 tiles can give
]


def tiles_by_loop(shape, cell):
    index = np.arange(math.prod(shape)).reshape(shape)
    corners = itertools.product(*(range(0, n - s + 1, s) for n, s in zip(shape, cell, strict=True)))
    return [index[tuple(slice(c, c + s) for c, s in zip(corner, cell, strict=True))].ravel() for corner in corners]


def merged_by_loop(image, shape, cell, ratio, aggregation):
    """Tiles that are averaged, of one image `[N, C]`."""
    fields = image.double().T.reshape(-1, *shape).numpy()
    scores = sum(abs(scipy.ndimage.laplace(field, mode="constant")) for field in fields).ravel()
    tiles = tiles_by_loop(shape, cell)
    detail = {"sum": np.sum, "max": np.max}[aggregation]
    smoothest = sorted(tiles, key=lambda tile: detail(scores[tile]))
    return smoothest[: math.floor(len(image) * ratio) // (math.prod(cell) - 1)]


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(2, 6), min_size=1, max_size=3).map(tuple))
    cell = (*(draw(st.integers(1, n)) for n in shape[:-1]), draw(st.integers(2, shape[-1])))
    grid = bigain.Grid(shape, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    most = math.prod(n // s for n, s in zip(shape, cell, strict=True)) * (math.prod(cell) - 1) / grid.size
    reducer = ABM(draw(st.floats(0, 1)) * most, aggregation=draw(st.sampled_from(["sum", "max"])), cell=cell)
    tokens = torch.randn(2, grid.tokens, 4, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    return reducer, grid, tokens


@pytest.mark.parametrize("aggregation", ["sum", "max"])
@pytest.mark.parametrize(("name", "shape", "ratio"), GOLDEN)
def test_equals_the_golden_vectors(golden, name, shape, ratio, aggregation):
    vectors = golden(name)
    reducer = bigain.build_reducer("abm", ratio=ratio, aggregation=aggregation)
    reduction = reducer.plan(vectors["x"], bigain.Grid(shape))
    restored = reduction.restore(reduction.reduce(vectors["x"]))
    torch.testing.assert_close(restored, vectors[f"abm_{aggregation}.{ratio}.restored"], atol=1e-5, rtol=0)


@given(cases())
def test_equals_the_loop_on_any_grid(case):
    """Merged tiles give their mean; every other token, leftover, prefix and suffix included, is as it was."""
    reducer, grid, tokens = case
    body = slice(grid.prefix, grid.prefix + grid.size)
    reduction = reducer.plan(tokens, grid)
    restored = reduction.restore(reduction.reduce(tokens))
    for row in range(2):
        expected = tokens[row].double()
        tiles = merged_by_loop(tokens[row, body], grid.shape, reducer.cell, reducer.ratio, reducer.aggregation)
        for tile in tiles:
            expected[tile + grid.prefix] = tokens[row, tile + grid.prefix].double().mean(dim=0)
        torch.testing.assert_close(restored[row].double(), expected, atol=1e-6, rtol=1e-6)
        assert sorted(reduction.sizes[row].tolist(), reverse=True) == [
            *[len(tile) for tile in tiles],
            *[1] * (grid.tokens - sum(map(len, tiles))),
        ]


@given(cases())
def test_lengths_sizes_and_places(case):
    reducer, grid, tokens = case
    reduction, saved = reducer.plan(tokens, grid), math.prod(reducer.cell) - 1
    length = reducer.reduced_length(grid)
    removed, allowed = grid.tokens - length, math.floor(grid.size * reducer.ratio)
    assert allowed - saved < removed <= allowed
    assert removed % saved == 0
    assert reduction.reduce(tokens).shape == (2, length, 4)
    assert reduction.sizes.sum(dim=1).tolist() == [grid.tokens] * 2
    assume(removed)
    for row, place in enumerate(reduction.place.tolist()):
        assert [place.count(slot) for slot in range(length)] == reduction.sizes[row].tolist()


@given(cases())
def test_prefix_and_suffix_keep_their_places(case):
    reducer, grid, tokens = case
    reduced = reducer.plan(tokens, grid).reduce(tokens)
    assert torch.equal(reduced[:, : grid.prefix], tokens[:, : grid.prefix])
    after = reduced.shape[1] - grid.suffix
    assert torch.equal(reduced[:, after:], tokens[:, grid.prefix + grid.size :])


def test_leftover_tokens_stay(noise):
    """On 9 x 13, the last row and column are in no tile, even where all tiles are merged."""
    tokens = noise(2, 117, 4)
    reduction = ABM(72 / 117).plan(tokens, bigain.Grid((9, 13)))
    restored = reduction.restore(reduction.reduce(tokens)).reshape(2, 9, 13, 4)
    image = tokens.reshape(2, 9, 13, 4)
    assert torch.equal(restored[:, 8], image[:, 8])
    assert torch.equal(restored[:, :, 12], image[:, :, 12])
    assert not (restored[:, :8, :12] == image[:, :8, :12]).any()


class First(TokenScorer):
    """The first channel is the score."""

    def raw(self, tokens, grid):
        return tokens[..., 0].float()


def test_sum_and_max_differ_where_one_token_stands_out():
    tokens = torch.tensor([0.0, 5, 4, 4])[None, :, None]
    tiles = {kind: ABM(0.25, First(), kind, 2).plan(tokens, bigain.Grid((4,))).tiles for kind in ("sum", "max")}
    assert tiles["sum"].tolist() == [[[0, 1]]]
    assert tiles["max"].tolist() == [[[2, 3]]]


def test_of_equal_tiles_the_earlier_are_merged():
    tokens = torch.zeros(1, 4096, 1)
    reduction = ABM(0.5, scorer=First()).plan(tokens, bigain.Grid((64, 64)))
    rows, columns = reduction.tiles[0, :, 0] // 64, reduction.tiles[0, :, 0] % 64
    assert torch.equal((rows // 2) * 32 + columns // 2, torch.arange(682))


def test_a_row_does_not_depend_on_its_neighbours(noise):
    tokens, grid = noise(3, 42, 8), bigain.Grid((6, 7))
    together = ABM(0.4).plan(tokens, grid).place
    for row in range(3):
        assert torch.equal(ABM(0.4).plan(tokens[row : row + 1], grid).place[0], together[row])


def test_a_ratio_that_pays_for_no_tile_is_no_reduction(noise):
    """Two tokens off is less than a tile of 2 x 2 gives."""
    tokens, grid = noise(1, 64, 4), bigain.Grid((8, 8))
    assert ABM(2 / 64).reduced_length(grid) == 64
    assert isinstance(ABM(2 / 64).plan(tokens, grid), NoReduction)
    assert ABM(3 / 64).reduced_length(grid) == 61


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(noise, dtype):
    tokens, grid = (noise(2, 64, 8) * 1000).to(dtype), bigain.Grid((8, 8))
    reduction = ABM(0.7, cell=4).plan(tokens, grid)
    reduced = reduction.reduce(tokens)
    assert reduced.dtype == dtype
    assert torch.equal(reduced, reduction.reduce(tokens.float()).to(dtype))
    assert torch.equal(ABM(0.7, cell=4).plan(tokens.float(), grid).place, reduction.place)


def test_gradients_are_those_of_the_averaging_matrix(noise):
    """restore(reduce(x)) = A x with A symmetric, so that the gradient of <w, A x> is A w."""
    tokens, weight = noise(2, 66, 4).requires_grad_(), noise(2, 66, 4, seed=1)
    reduction = ABM(0.6).plan(tokens, bigain.Grid((8, 8), prefix=1, suffix=1))
    assert not reduction.sizes.requires_grad
    (weight * reduction.restore(reduction.reduce(tokens))).sum().backward()
    torch.testing.assert_close(tokens.grad, reduction.restore(reduction.reduce(weight)))


def test_a_plan_repeats_for_several_rows(noise):
    tokens, grid = noise(2, 42, 8), bigain.Grid((6, 7))
    twice, reducer = tokens.repeat_interleave(2, dim=0), ABM(0.4)
    assert torch.equal(reducer.plan(tokens, grid).repeat(2).reduce(twice), reducer.plan(twice, grid).reduce(twice))


def test_one_graph_under_compile(noise):
    reducer, grid, tokens = ABM(0.5, aggregation="max"), bigain.Grid((6, 7), prefix=1), noise(3, 43, 8)

    def run(tokens):
        reduction = reducer.plan(tokens, grid, Context())
        return reduction.reduce(tokens), reduction.restore(reduction.reduce(tokens)), reduction.sizes

    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, expected in zip(compiled(tokens), run(tokens), strict=True):
        torch.testing.assert_close(ours, expected)


def test_runs_without_values():
    tokens = torch.zeros(2, 43, 8, device="meta")
    reduction = ABM(0.5).plan(tokens, bigain.Grid((6, 7), prefix=1))
    assert reduction.restore(reduction.reduce(tokens)).shape == (2, 43, 8)


def test_it_merges_and_averages():
    assert ABM(0.5).kinds == {"merge"}
    assert ABM(0.5).averages


def test_more_than_possible_is_refused_naming_the_most():
    """64 tokens in 16 tiles give 48; 117 in 24 give 72, a ratio of 0.615."""
    assert ABM(0.75).reduced_length(bigain.Grid((8, 8))) == 16
    for grid, ratio, text in [
        (bigain.Grid((8, 8)), 0.8, r"would remove 51 of 64.*at most 48 \(ratio 0\.75\)"),
        (bigain.Grid((9, 13)), 0.7, r"would remove 81 of 117.*at most 72 \(ratio 0\.615\)"),
        (bigain.Grid((1, 9)), 0.2, r"would remove 1 of 9 tokens, but no cell of \(2, 2\) fits"),
    ]:
        for call in (lambda r, g: r.reduced_length(g), lambda r, g: r.plan(torch.zeros(1, g.size, 4), g)):
            with pytest.raises(SettingError, match=text):
                call(ABM(ratio), grid)


def test_bad_settings_are_refused():
    with pytest.raises(SettingError, match="'sum' or 'max'; got 'mean'"):
        ABM(0.5, aggregation="mean")
    with pytest.raises(SettingError, match=r"in \[0, 1\); got 1"):
        ABM(1)
    with pytest.raises(SettingError, match="A cell is one or more whole numbers"):
        ABM(0.5, cell=1)
    with pytest.raises(SettingError, match=r"ABM got a cell of 2 axes \(2, 2\) for a grid of 1 axes"):
        ABM(0.5).reduced_length(bigain.Grid((8,)))
