"""ToDo: the golden vectors, torch's interpolation, and what happens at the far border."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context, NoReduction
from bigain.reducers.todo import ToDo

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20)}


def loop(length, side, offset):
    """Along one axis: the cell of every token, and the token that is taken of every cell."""
    cells = [i // side for i in range(length)]
    members = [[i for i in range(length) if cells[i] == cell] for cell in range(max(cells) + 1)]
    return cells, [group[min(offset, len(group) - 1)] for group in members]


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("pick", ["nearest-exact", "nearest"])
@pytest.mark.parametrize("name", GRIDS)
def test_equals_the_golden_vectors(golden, name, pick, factor):
    vectors = golden(name)
    reduction = bigain.build_reducer("todo", factor=factor, pick=pick).plan(vectors["x"], bigain.Grid(GRIDS[name]))
    assert torch.equal(reduction.reduce(vectors["x"]), vectors[f"todo_{pick.replace('-', '_')}.f{factor}"])


@pytest.mark.parametrize("pick", ["nearest-exact", "nearest"])
@pytest.mark.parametrize(("shape", "factor"), [((20,), 5), ((9, 15), 3), ((8, 6), (4, 3)), ((4, 6, 6), 2)], ids=str)
def test_equals_interpolation_where_the_factor_divides(noise, shape, factor, pick):
    tokens = noise(2, math.prod(shape), 3)
    sides = (factor,) * len(shape) if isinstance(factor, int) else factor
    image = tokens.transpose(1, 2).reshape(2, 3, *shape)
    size = [n // s for n, s in zip(shape, sides, strict=True)]
    expected = F.interpolate(image, size, mode=pick).flatten(2).transpose(1, 2)
    assert torch.equal(ToDo(factor, pick).plan(tokens, bigain.Grid(shape)).reduce(tokens), expected)


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=3),
    st.sampled_from(["nearest-exact", "nearest"]),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_equals_the_loop_on_any_grid(axes, pick, prefix, suffix):
    """Each token keeps its number as its value, so that reducing and restoring show where everything went."""
    shape, factor = tuple(n for n, _ in axes), tuple(s for _, s in axes)
    grid = bigain.Grid(shape, prefix, suffix)
    numbers = torch.arange(grid.tokens, dtype=torch.float32)[None, :, None].repeat(2, 1, 1)
    index = torch.arange(grid.size).reshape(shape)
    home = torch.arange(grid.size).reshape(shape)
    for axis, (length, side) in enumerate(axes):
        cells, taken = loop(length, side, side // 2 if pick == "nearest-exact" else 0)
        index = index.index_select(axis, torch.tensor(taken))
        home = home.index_select(axis, torch.tensor([taken[cell] for cell in cells]))

    reducer = ToDo(factor, pick)
    reduction = reducer.plan(numbers, grid)
    reduced = reduction.reduce(numbers)
    start, stop = list(range(prefix)), list(range(prefix + grid.size, grid.tokens))
    assert reduced[1, :, 0].tolist() == [*start, *(index.flatten() + prefix).tolist(), *stop]
    assert reduced.shape[1] == reducer.reduced_length(grid)
    restored = reduction.restore(reduced)
    assert restored[1, :, 0].tolist() == [*start, *(home.flatten() + prefix).tolist(), *stop]
    groups = [restored[0, :, 0].tolist().count(value) for value in reduced[0, :, 0].tolist()]
    assert reduction.sizes.tolist() == [groups, groups]


def test_the_last_cell_is_smaller_where_the_factor_does_not_divide():
    """Seven tokens in cells of three: 0 1 2, 3 4 5, 6; no token is dropped or stretched."""
    tokens = torch.arange(7.0)[None, :, None]
    reduction = ToDo(3).plan(tokens, bigain.Grid((7,)))
    assert reduction.reduce(tokens).flatten().tolist() == [1, 4, 6]
    assert reduction.restore(reduction.reduce(tokens)).flatten().tolist() == [1, 1, 1, 4, 4, 4, 6]
    assert reduction.sizes.tolist() == [[3, 3, 1]]


def test_only_keys_and_values_shrink(noise):
    reducer = ToDo(2)
    assert reducer.kinds == {"kv"}
    assert reducer.plan(noise(1, 16, 4), bigain.Grid((4, 4))).kind == "kv"
    assert not reducer.averages


@pytest.mark.parametrize(("factor", "shape"), [(1, (4, 4)), ((1, 1), (4, 4)), (2, (1, 1)), ((1, 3), (4, 1))], ids=str)
def test_as_many_cells_as_tokens_are_no_reduction(noise, factor, shape):
    tokens = noise(1, math.prod(shape), 4)
    reduction = ToDo(factor).plan(tokens, bigain.Grid(shape))
    assert isinstance(reduction, NoReduction)
    assert reduction.reduce(tokens) is tokens


def test_a_plan_repeats_for_several_rows(noise):
    tokens, grid = noise(2, 17, 4), bigain.Grid((4, 4), prefix=1)
    twice = tokens.repeat_interleave(2, dim=0)
    reduction = ToDo(3).plan(tokens, grid).repeat(2)
    assert torch.equal(reduction.reduce(twice), ToDo(3).plan(twice, grid).reduce(twice))
    assert reduction.sizes.shape == (4, 5)


def test_one_graph_under_compile(noise):
    reducer, grid, tokens = ToDo(2), bigain.Grid((5, 7), prefix=1), noise(2, 36, 4)

    def run(tokens):
        reduction = reducer.plan(tokens, grid, Context())
        return reduction.reduce(tokens), reduction.restore(reduction.reduce(tokens)), reduction.sizes

    compiled = torch.compile(run, fullgraph=True, dynamic=False, backend="aot_eager")
    for ours, expected in zip(compiled(tokens), run(tokens), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("factor", [0, -1, 1.5, "2", None, True, (), (2, 0), (2, 2.0), (True, 2)])
def test_an_impossible_factor_is_refused(factor):
    with pytest.raises(SettingError, match="factor is a whole number of at least 1, or one for each axis; got"):
        ToDo(factor)


def test_a_factor_of_other_axes_than_the_grid_is_refused():
    for call in (lambda r, g: r.reduced_length(g), lambda r, g: r.plan(torch.zeros(1, 32, 4), g)):
        with pytest.raises(SettingError, match=r"ToDo got a factor of 2 axes \(2, 2\) for a grid of 3 axes"):
            call(ToDo((2, 2)), bigain.Grid((2, 4, 4)))


def test_an_unknown_pick_is_refused():
    with pytest.raises(SettingError, match="'nearest-exact' or 'nearest'; got 'middle'"):
        ToDo(2, pick="middle")


def test_settings_are_shown_and_examples_are_of_the_class():
    assert repr(ToDo(2)) == "ToDo(factor=2, pick='nearest-exact')"
    assert repr(ToDo([2, 4], "nearest")) == "ToDo(factor=(2, 4), pick='nearest')"
    assert all(isinstance(example, ToDo) for example in ToDo.examples())
