"""ToMe: the golden vectors, a loop version, and where its randomness comes from."""

import pytest
import torch

import bigain
from bigain.functional.cells import hashed_picks
from bigain.reducers.base import Context
from bigain.reducers.tome import ToMe

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20), "9x13_c8": (9, 13)}
SHAPES = [
    ((13,), (2,)),
    ((12,), (3,)),
    ((9, 7), (2, 2)),
    ((8, 6), (4, 1)),
    ((4, 5, 6), (2, 2, 2)),
    ((3, 4, 4), (1, 2, 2)),
]


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", GRIDS)
def test_top_left_equals_the_golden_vectors(golden, name, ratio):
    vectors = golden(name)
    reduction = ToMe(ratio, randomize=False).plan(vectors["x"], bigain.Grid(GRIDS[name]))
    reduced = reduction.reduce(vectors["x"])
    key = f"tome_topleft.{ratio}"
    torch.testing.assert_close(reduced.sort(dim=1).values, vectors[f"{key}.merged_sorted"], atol=1e-5, rtol=0)
    torch.testing.assert_close(reduction.restore(reduced), vectors[f"{key}.restored"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["mean", "prune", "mlerp"])
@pytest.mark.parametrize(("shape", "cell"), SHAPES, ids=str)
def test_top_left_equals_the_loop_on_any_grid(noise, slow_merge, shape, cell, mode):
    tokens = noise(2, torch.Size(shape).numel(), 8)
    reduction = ToMe(0.4, randomize=False, cell=cell, mode=mode).plan(tokens, bigain.Grid(shape))
    restored = reduction.restore(reduction.reduce(tokens))
    for row in range(2):
        slow = slow_merge(tokens[row], shape, cell, 0.4, lambda _, members: members[0], mode)
        assert set(reduction.representatives[row].tolist()) == set(slow.groups)
        torch.testing.assert_close(restored[row].double(), torch.from_numpy(slow.restored), atol=1e-5, rtol=1e-5)


def test_drawn_destinations_equal_the_loop(noise, slow_merge):
    tokens, timesteps = noise(2, 48, 8), torch.tensor([10, 900])
    draws = hashed_picks(timesteps, 12, 4, salt=3 * 4099 + 5).tolist()
    reduction = ToMe(0.5).plan(tokens, bigain.Grid((6, 8)), Context(timesteps, layer=5, seed=3))
    restored = reduction.restore(reduction.reduce(tokens))
    for image, draw_of, result in zip(tokens, draws, restored, strict=True):
        slow = slow_merge(image, (6, 8), (2, 2), 0.5, lambda number, members, d=draw_of: members[d[number]])
        torch.testing.assert_close(result.double(), torch.from_numpy(slow.restored), atol=1e-5, rtol=1e-5)


def test_a_generator_draws_once_for_all_rows(noise, slow_merge):
    tokens = noise(3, 48, 8)
    draws = torch.randint(4, (1, 12), generator=torch.Generator().manual_seed(8))[0].tolist()
    context = Context(torch.tensor([1, 2, 3]), generator=torch.Generator().manual_seed(8))
    reduction = ToMe(0.5).plan(tokens, bigain.Grid((6, 8)), context)
    restored = reduction.restore(reduction.reduce(tokens))
    for row in range(3):
        slow = slow_merge(tokens[row], (6, 8), (2, 2), 0.5, lambda number, members: members[draws[number]])
        torch.testing.assert_close(restored[row].double(), torch.from_numpy(slow.restored), atol=1e-5, rtol=1e-5)


def destinations(reducer, context, batch=1):
    """Which token of each cell the reducer picks, `[B, 256]`, on a grid of 32 x 32.

    At the highest ratio every source is merged, so that destinations alone are left.
    """
    tokens = torch.randn(1, 1024, 4, generator=torch.Generator().manual_seed(0)).expand(batch, -1, -1)
    left = reducer.plan(tokens, bigain.Grid((32, 32)), context).representatives
    y, x = left // 32, left % 32
    cell = (y // 2) * 16 + x // 2
    assert all(sorted(row) == list(range(256)) for row in cell.tolist())
    return torch.empty_like(left).scatter(1, cell, (y % 2) * 2 + x % 2)


def draw(timestep=500, layer=0, seed=0, generator=None):
    rows = torch.atleast_1d(torch.tensor(timestep))
    return destinations(ToMe(0.75), Context(rows, layer, seed=seed, generator=generator), len(rows))


def test_the_same_moment_gives_the_same_draw_in_any_batch():
    batch = draw([7, 500, 7, 999], layer=2, seed=1)
    assert torch.equal(batch[0], batch[2])
    assert torch.equal(draw([500], layer=2, seed=1)[0], batch[1])


@pytest.mark.parametrize("other", [{"timestep": 501}, {"layer": 1}, {"seed": 1}])
def test_another_moment_gives_an_independent_draw(other):
    """Independent draws of four agree on a quarter of the 256 cells, give or take 7 (one sigma)."""
    assert 36 <= (draw() == draw(**other)).sum() <= 92


def test_each_place_in_the_cell_is_drawn_alike():
    counts = draw(list(range(0, 1000, 25))).flatten().bincount(minlength=4)
    expected = counts.sum() / 4
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # chi-square, 3 degrees of freedom, 99.9 %


def test_a_scalar_timestep_stands_for_every_row():
    tome = ToMe(0.75)
    scalar = destinations(tome, Context(torch.tensor(500)), batch=3)
    assert torch.equal(scalar, draw([500, 500, 500]))


def test_no_context_and_no_timestep_are_one_draw():
    tome = ToMe(0.75)
    assert torch.equal(destinations(tome, None), destinations(tome, Context()))


def test_a_generator_is_reproducible_and_moves_on():
    generator = torch.Generator().manual_seed(4)
    first, second = draw([1, 2], generator=generator), draw([1, 2], generator=generator)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first, second)
    generator.manual_seed(4)
    assert torch.equal(draw([3], generator=generator)[0], first[0])


def test_drawing_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    draw()
    draw(generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)


def test_without_randomness_the_moment_is_ignored():
    fixed = ToMe(0.75, randomize=False)
    generator = torch.Generator().manual_seed(0)
    picks = destinations(fixed, Context(torch.tensor([5]), layer=9, seed=2, generator=generator))
    assert not picks.any()
