"""What all scorers share: the formulas of Table 13 by loops, and the manners of a scorer."""

import inspect
import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import BigainError, SettingError

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20), "9x13_c8": (9, 13)}
TABLE_13 = {
    "global_mean_deviation": "high",
    "l1_norm": "high",
    "l2_norm": "high",
    "channel_variance": "high",
    "laplacian_l1": "high",
    "laplacian_l2": "high",
    "dft_spectral_centroid": "high",
    "dft_amplitude": "high",
    "cosine_neighbors": "low",
    "cosine_global_mean": "low",
}
SCORERS = [
    (name, example)
    for name in bigain.registry.available("scorers")
    if (found := bigain.registry.get("scorers", name)).__module__.startswith("bigain.")
    for example in found.examples()
]
EXAMPLES = [example for _, example in SCORERS]
PUBLISHED = [(name, example) for name, example in SCORERS if name != "random"]
every_scorer = pytest.mark.parametrize("scorer", EXAMPLES, ids=repr)


def beside(shape, index):
    """Every place next to `index` along an axis; None where that is beyond the border."""
    places = []
    for axis, step in itertools.product(range(len(shape)), (-1, 1)):
        place = list(index)
        place[axis] += step
        places.append(tuple(place) if 0 <= place[axis] < shape[axis] else None)
    return places


def cosine(one, other):
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return one @ other / norms if norms else 0.0


def slow_laplacian(field, index, padding):
    total = np.zeros(field.shape[-1])
    for place in beside(field.shape[:-1], index):
        if place is not None:
            total += field[place] - field[index]
        elif padding == "zeros":
            total -= field[index]
    return total


def slow_cosine_neighbors(field, index, padding):
    cosines = []
    for place in beside(field.shape[:-1], index):
        if place is not None:
            cosines.append(cosine(field[index], field[place]))
        elif padding != "valid":
            cosines.append(0.0 if padding == "zeros" else cosine(field[index], field[index]))
    return sum(cosines) / len(cosines) if cosines else 1.0


def slow_dft(token):
    count = len(token)
    return [abs(sum(x * np.exp(-2j * np.pi * k * c / count) for c, x in enumerate(token))) for k in range(count)]


def slow_centroid(token):
    amplitudes = slow_dft(token)
    return sum(k * a for k, a in enumerate(amplitudes)) / (sum(amplitudes) + 1e-7)


def slow_variance(token):
    return sum((x - sum(token) / len(token)) ** 2 for x in token) / (len(token) - 1) if len(token) > 1 else 0.0


SLOW = {
    "global_mean_deviation": lambda field, i: np.sqrt(sum((field[i] - field.mean(tuple(range(field.ndim - 1)))) ** 2)),
    "l1_norm": lambda field, i: sum(abs(field[i])),
    "l2_norm": lambda field, i: np.sqrt(sum(field[i] ** 2)),
    "channel_variance": lambda field, i: slow_variance(field[i]),
    "laplacian_l1": lambda field, i, padding: sum(abs(slow_laplacian(field, i, padding))),
    "laplacian_l2": lambda field, i, padding: np.sqrt(sum(slow_laplacian(field, i, padding) ** 2)),
    "dft_spectral_centroid": lambda field, i: slow_centroid(field[i]),
    "dft_amplitude": lambda field, i: sum(slow_dft(field[i])[1:]),
    "cosine_neighbors": slow_cosine_neighbors,
    "cosine_global_mean": lambda field, i: cosine(field[i], field.mean(tuple(range(field.ndim - 1)))),
}


def test_the_scorers_are_those_of_table_13_and_the_control(golden):
    assert {name for name, _ in SCORERS} == {*TABLE_13, "random"}
    assert {key.removeprefix("score.") for key in golden("8x8_c16") if key.startswith("score.")} == set(TABLE_13)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", TABLE_13)
def test_equals_the_golden_vectors(golden, name, grid):
    vectors = golden(grid)
    expected = vectors[f"score.{name}"]
    value = bigain.build_scorer(name).raw(vectors["x"], bigain.Grid(GRIDS[grid]))
    torch.testing.assert_close(value, expected, atol=1e-5 * max(1, float(expected.abs().max())), rtol=0)


@pytest.mark.parametrize(("name", "scorer"), PUBLISHED, ids=str)
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple),
    channels=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_equals_the_formula_by_loops_on_any_grid(name, scorer, shape, channels, seed):
    random = np.random.default_rng(seed)
    # A common part, so that means and cosines are not all near zero; and a token of zeros.
    images = random.standard_normal((2, *shape, channels)) + random.standard_normal(channels)
    images[1].reshape(-1, channels)[0] = 0
    expected = [[SLOW[name](image, i, **vars(scorer)) for i in np.ndindex(shape)] for image in images]
    tokens = torch.from_numpy(images).float().reshape(2, -1, channels)
    scores = scorer.raw(tokens, bigain.Grid(shape))
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "scorer"), PUBLISHED, ids=str)
def test_calling_turns_the_formula_so_that_large_means_detail(noise, name, scorer):
    tokens, grid = noise(2, 35, 6), bigain.Grid((5, 7))
    assert scorer.detail_is == TABLE_13[name]
    sign = 1 if TABLE_13[name] == "high" else -1
    assert torch.equal(scorer(tokens, grid), sign * scorer.raw(tokens, grid))


@pytest.mark.parametrize(("name", "scorer"), PUBLISHED, ids=str)
def test_the_odd_token_of_a_flat_image_has_the_most_detail(name, scorer):
    tokens = torch.ones(1, 49, 8)
    tokens[0, 24] = 5 * torch.tensor([1.0, -1.0]).repeat(4)
    assert scorer(tokens, bigain.Grid((7, 7)))[0].argmax() == 24


@every_scorer
@pytest.mark.parametrize("shape", [(12,), (3, 4), (2, 3, 2)], ids=str)
def test_prefix_and_suffix_are_neither_scored_nor_seen(noise, scorer, shape):
    tokens = noise(2, 12, 4)
    dressed = torch.cat([noise(2, 3, 4) * 100, tokens, noise(2, 2, 4) * 100], dim=1)
    alone = scorer(tokens, bigain.Grid(shape))
    assert alone.shape == (2, 12)
    torch.testing.assert_close(scorer(dressed, bigain.Grid(shape, prefix=3, suffix=2)), alone, atol=1e-5, rtol=1e-6)


@every_scorer
def test_an_image_scores_the_same_alone_and_in_a_batch(noise, scorer):
    tokens, grid = noise(3, 35, 6), bigain.Grid((5, 7))
    together = scorer(tokens, grid)
    for row in range(3):
        torch.testing.assert_close(scorer(tokens[row : row + 1], grid)[0], together[row], atol=1e-5, rtol=1e-6)


@every_scorer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_scored_in_float32(noise, scorer, dtype):
    tokens, grid = noise(2, 35, 6).to(dtype), bigain.Grid((5, 7))
    value = scorer(tokens, grid)
    assert value.dtype == torch.float32
    assert torch.equal(value, scorer(tokens.float(), grid))


@every_scorer
def test_autocast_changes_nothing(noise, scorer):
    tokens, grid = noise(2, 35, 6), bigain.Grid((5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        value = scorer(tokens, grid)
    assert value.dtype == torch.float32
    assert torch.equal(value, scorer(tokens, grid))


DEGENERATE = {
    "constant image": (torch.full((2, 12, 4), 3.0), (3, 4)),
    "zeros": (torch.zeros(2, 12, 4), (3, 4)),
    "zeros in half precision": (torch.zeros(1, 12, 4, dtype=torch.float16), (12,)),
    "one token": (torch.tensor([[[1.0, -2.0, 3.0]]]), (1, 1)),
    "one token of zeros": (torch.zeros(1, 1, 4), (1,)),
    "one channel": (torch.arange(-6.0, 6.0).reshape(1, 12, 1), (2, 3, 2)),
    "two channels": (torch.arange(-12.0, 12.0).reshape(1, 12, 2), (3, 4)),
    "huge in half precision": (torch.full((1, 256, 512), 60000.0, dtype=torch.float16), (16, 16)),
    "huge of both signs": (torch.tensor([60000.0, -60000.0]).half().repeat(1, 256, 256), (16, 16)),
    "smallest in half precision": (torch.full((1, 12, 4), 6e-8, dtype=torch.float16), (3, 4)),
}


@every_scorer
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_scores_finite(scorer, case):
    tokens, shape = DEGENERATE[case]
    value = scorer(tokens, bigain.Grid(shape))
    assert value.shape == tokens.shape[:2]
    assert value.dtype == torch.float32
    assert value.isfinite().all()


@every_scorer
@pytest.mark.parametrize("channels", [1, 6])
def test_runs_on_the_meta_device(scorer, channels):
    value = scorer(torch.empty(2, 41, channels, device="meta"), bigain.Grid((5, 7), prefix=1, suffix=5))
    assert value.is_meta
    assert (value.shape, value.dtype) == ((2, 35), torch.float32)


@every_scorer
def test_compiles_to_one_graph(noise, scorer):
    torch.compiler.reset()
    tokens, grid = noise(2, 36, 6), bigain.Grid((5, 7), prefix=1)
    compiled = torch.compile(lambda x: scorer(x, grid), backend="eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(tokens), scorer(tokens, grid))


@every_scorer
def test_the_input_is_not_written_to(noise, scorer):
    tokens = noise(2, 35, 6)
    scorer(tokens, bigain.Grid((5, 7)))
    assert torch.equal(tokens, noise(2, 35, 6))


@every_scorer
def test_a_scorer_is_a_value(noise, scorer):
    """Its attributes are its settings; a copy from them, or from a pickle, does the same."""
    tokens, grid = noise(1, 16, 4), bigain.Grid((4, 4))
    before = dict(vars(scorer))
    expected = scorer(tokens, grid)
    assert vars(scorer) == before
    assert list(vars(scorer)) == list(inspect.signature(type(scorer)).parameters)
    for copy in (pickle.loads(pickle.dumps(scorer)), type(scorer)(**vars(scorer))):
        assert repr(copy) == repr(scorer)
        assert torch.equal(copy(tokens, grid), expected)


@every_scorer
def test_tokens_off_the_grid_are_refused(scorer):
    with pytest.raises(SettingError, match="Got 15 tokens for a grid of 16"):
        scorer(torch.zeros(1, 15, 2), bigain.Grid((4, 4)))


@pytest.mark.parametrize("name", [*TABLE_13, "random"])
def test_docstrings_tell_the_direction_and_the_source(name):
    found = bigain.registry.get("scorers", name)
    if name in TABLE_13:
        assert f"Detail is {TABLE_13[name]}" in " ".join(found.__doc__.split())
        assert "Table 13" in found.__doc__
    else:
        assert "control" in found.__doc__


def test_a_formula_that_gives_no_number_for_each_token_is_refused():
    class Averages(bigain.TokenScorer):
        def raw(self, tokens, grid):
            return tokens.mean(dim=1)

    with pytest.raises(BigainError, match=r"Averages\.raw gives \[2, 6\] for tokens \[2, 12, 6\]; .* is \[2, 12\]"):
        Averages()(torch.zeros(2, 12, 6), bigain.Grid((3, 4)))
