"""IE-KVD: the golden vectors, the formula, its ends, and an alpha that follows each row's timestep."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.base import Context
from bigain.reducers.iekvd import IEKVD, LinearAlpha
from bigain.reducers.pooling import Pooling
from bigain.reducers.todo import ToDo

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20)}
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
GRID = bigain.Grid((5, 7), prefix=1, suffix=2)


def reduce(reducer, tokens, grid=GRID, context=None):
    return reducer.plan(tokens, grid, context).reduce(tokens)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0, 1.2])
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("name", GRIDS)
def test_equals_the_golden_vectors(golden, name, factor, alpha):
    vectors = golden(name)
    found = reduce(IEKVD(factor, alpha), vectors["x"], bigain.Grid(GRIDS[name]))
    torch.testing.assert_close(found, vectors[f"iekvd.f{factor}.a{alpha}"], atol=1e-5, rtol=0)


def test_the_default_alpha_is_the_papers(golden):
    vectors = golden("8x8_c16")
    found = reduce(bigain.build_reducer("iekvd", factor=2), vectors["x"], bigain.Grid((8, 8)))
    torch.testing.assert_close(found, vectors["iekvd.f2.a0.9"], atol=1e-5, rtol=0)


@given(
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 8)), min_size=1, max_size=3),
    st.floats(-1, 2),
    st.integers(0, 2),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_equals_the_formula_on_any_grid(axes, alpha, prefix, suffix, seed):
    """ToDo and Pooling have loops of their own; here is the line through them, in float64."""
    grid = bigain.Grid(tuple(n for n, _ in axes), prefix, suffix)
    factor = tuple(s for _, s in axes)
    tokens = torch.randn(2, grid.tokens, 3, generator=torch.Generator().manual_seed(seed))
    reduction = IEKVD(factor, alpha).plan(tokens, grid)
    nearest, average = reduce(ToDo(factor), tokens, grid).double(), reduce(Pooling(factor), tokens, grid).double()
    reduced = reduction.reduce(tokens)
    torch.testing.assert_close(reduced.double(), alpha * nearest + (1 - alpha) * average, atol=1e-5, rtol=1e-5)
    pooled = Pooling(factor).plan(tokens, grid)
    assert torch.equal(reduction.restore(reduced), pooled.restore(reduced))
    assert torch.equal(reduction.sizes, pooled.sizes)
    assert torch.equal(reduced[:, :prefix], tokens[:, :prefix])
    assert torch.equal(reduced[:, reduced.shape[1] - suffix :], tokens[:, grid.tokens - suffix :])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", [False, True], ids=["number", "schedule"])
def test_the_ends_are_todo_and_pooling_bit_for_bit(noise, dtype, schedule):
    tokens = (noise(2, 38, 8) * 100).to(dtype)
    for alpha, other in ((1.0, ToDo(2)), (0.0, Pooling(2))):
        reducer = IEKVD(2, LinearAlpha(alpha, alpha) if schedule else alpha)
        assert torch.equal(reduce(reducer, tokens, context=Context(torch.tensor([3, 998]))), reduce(other, tokens))


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_half_precision_is_blended_in_float32_and_rounded_once(noise, dtype):
    tokens = (noise(2, 38, 8) * 1000).to(dtype)
    found = reduce(IEKVD(2, 0.37), tokens)
    assert found.dtype == dtype
    assert torch.equal(found, reduce(IEKVD(2, 0.37), tokens.float()).to(dtype))


def alpha_at(timestep, start, end, steps):
    return start * timestep / (steps - 1) + end * (1 - timestep / (steps - 1))


@pytest.mark.parametrize("timesteps", [[0, 999, 500], [250.5, 0.25, 731.0]], ids=["whole", "fractional"])
def test_each_row_follows_its_own_timestep(noise, timesteps):
    tokens = noise(3, 38, 8)
    found = reduce(IEKVD(2, LinearAlpha(0.1, 1.3)), tokens, context=Context(torch.tensor(timesteps)))
    for row, timestep in enumerate(timesteps):
        alone = reduce(IEKVD(2, alpha_at(timestep, 0.1, 1.3, 1000)), tokens[row : row + 1])
        torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_the_schedule_starts_at_pure_noise(noise):
    tokens, schedule = noise(1, 38, 8), LinearAlpha(1.0, 0.0)
    assert torch.equal(
        reduce(IEKVD(2, schedule), tokens, context=Context(torch.tensor([999]))), reduce(ToDo(2), tokens)
    )
    assert torch.equal(
        reduce(IEKVD(2, schedule), tokens, context=Context(torch.tensor([0]))), reduce(Pooling(2), tokens)
    )


def test_the_schedule_knows_how_many_steps_the_model_has(noise):
    tokens = noise(1, 38, 8)
    context = Context(torch.tensor([49]))
    assert torch.equal(reduce(IEKVD(2, LinearAlpha(1.0, 0.0, 50)), tokens, context=context), reduce(ToDo(2), tokens))


@pytest.mark.parametrize("timestep", [torch.tensor(400), torch.tensor([400]), torch.tensor(400.0)], ids=str)
def test_one_timestep_serves_every_row(noise, timestep):
    tokens, reducer = noise(3, 38, 8), IEKVD(2, LinearAlpha(0.1, 0.9))
    each = reduce(reducer, tokens, context=Context(torch.tensor([400, 400, 400])))
    assert torch.equal(reduce(reducer, tokens, context=Context(timestep)), each)


def test_a_row_does_not_depend_on_its_neighbours(noise):
    tokens, timesteps, reducer = noise(3, 38, 8), torch.tensor([5, 500, 900]), IEKVD(3, LinearAlpha(0.1, 0.9))
    together = reduce(reducer, tokens, context=Context(timesteps))
    for row in range(3):
        alone = reduce(reducer, tokens[row : row + 1], context=Context(timesteps[row : row + 1]))
        assert torch.equal(alone[0], together[row])


def test_a_plan_repeats_for_several_rows(noise):
    tokens, timesteps, reducer = noise(2, 38, 8), torch.tensor([5, 900]), IEKVD(2, LinearAlpha(0.1, 0.9))
    twice = tokens.repeat_interleave(3, dim=0)
    repeated = reducer.plan(tokens, GRID, Context(timesteps)).repeat(3).reduce(twice)
    assert torch.equal(repeated, reduce(reducer, twice, context=Context(timesteps.repeat_interleave(3))))


@pytest.mark.parametrize("context", [None, Context()])
def test_a_schedule_without_a_timestep_is_refused(noise, context):
    reducer = IEKVD(2, LinearAlpha(0.1, 0.9))
    assert reducer.reduced_length(GRID) == 15
    with pytest.raises(SettingError, match="needs the timestep of each row, and the context has none"):
        reducer.plan(noise(1, 38, 8), GRID, context)


def test_a_schedule_is_given_as_a_mapping_too():
    given_as = [LinearAlpha(0.1, 0.9), {"start": 0.1, "end": 0.9}, {"start": 0.1, "end": 0.9, "steps": 1000}]
    assert {repr(IEKVD(2, alpha)) for alpha in given_as} == {
        "IEKVD(factor=2, alpha=LinearAlpha(start=0.1, end=0.9, steps=1000))"
    }
    assert repr(bigain.build_reducer("iekvd", factor=2, alpha=given_as[1])) == repr(IEKVD(2, given_as[0]))


def test_the_gradient_is_the_blend_of_both_gradients(noise):
    tokens, weight = noise(1, 38, 4).requires_grad_(), noise(1, 15, 4, seed=1)
    gradients = []
    for reducer in (IEKVD(2, 0.7), ToDo(2), Pooling(2)):
        tokens.grad = None
        (weight * reduce(reducer, tokens)).sum().backward()
        gradients.append(tokens.grad)
    torch.testing.assert_close(gradients[0], 0.7 * gradients[1] + 0.3 * gradients[2])


def test_one_graph_serves_all_timesteps(noise):
    reducer, tokens = IEKVD(2, LinearAlpha(0.1, 0.9)), noise(2, 38, 8)
    compiled = torch.compile(
        lambda x, t: reduce(reducer, x, context=Context(t)), fullgraph=True, dynamic=False, backend="aot_eager"
    )
    for timesteps in (torch.tensor([1, 999]), torch.tensor([600, 2])):
        expected = reduce(reducer, tokens, context=Context(timesteps))
        with torch.compiler.set_stance("default" if timesteps[0] == 1 else "fail_on_recompile"):
            torch.testing.assert_close(compiled(tokens, timesteps), expected)


def test_runs_without_values():
    tokens, context = torch.zeros(2, 38, 8, device="meta"), Context(torch.zeros(2, device="meta"))
    assert reduce(IEKVD(2, LinearAlpha(0.1, 0.9)), tokens, context=context).shape == (2, 15, 8)


def test_averages_only_at_alpha_zero():
    assert IEKVD(2, 0).averages
    assert not IEKVD(2, 0.1).averages
    assert not IEKVD(2, LinearAlpha(0, 0.5)).averages


@pytest.mark.parametrize("alpha", [math.nan, math.inf, "0.9", None, True, [0.1, 0.9]])
def test_an_impossible_alpha_is_refused(alpha):
    with pytest.raises(SettingError, match="alpha is a finite number, or a LinearAlpha"):
        IEKVD(2, alpha)


@pytest.mark.parametrize("alpha", [{}, {"start": 1}, {"start": 0.1, "end": 0.9, "stop": 3}], ids=str)
def test_a_mapping_with_other_keys_is_refused(alpha):
    with pytest.raises(SettingError, match="A linear alpha takes start, end and steps; got"):
        IEKVD(2, alpha)


@pytest.mark.parametrize("settings", [("0", 1), (0, math.nan), (0, 1, 1), (0, 1, 10.0), (True, 1)], ids=str)
def test_an_impossible_schedule_is_refused(settings):
    with pytest.raises(SettingError, match="two finite numbers, start and end, and steps of at least 2"):
        LinearAlpha(*settings)
