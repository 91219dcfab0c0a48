"""L-GTM: the golden vectors, and a loop version with scipy's Laplacian."""

import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

import bigain
from bigain.errors import SettingError
from bigain.reducers.lgtm import LGTM
from bigain.scorers.base import TokenScorer
from bigain.scorers.laplacian import LaplacianL1


def least_detail(tokens, shape, mode="constant"):
    """Pick the token of lowest Laplacian-l1 score; `tokens` is one image, `[N, C]`."""
    fields = tokens.double().T.reshape(-1, *shape).numpy()
    score = sum(abs(scipy.ndimage.laplace(field, mode=mode)) for field in fields).ravel()
    return lambda _, members: min(members, key=lambda i: score[i])


def compare(slow_merge, tokens, shape, cell, ratio, mode="mean"):
    reduction = LGTM(ratio, cell=cell, mode=mode).plan(tokens, bigain.Grid(shape))
    restored = reduction.restore(reduction.reduce(tokens))
    for row, image in enumerate(tokens):
        slow = slow_merge(image, shape, cell, ratio, least_detail(image, shape), mode)
        if len(slow.groups) < len(image):  # otherwise nothing merges, and no token stands for others
            assert set(reduction.representatives[row].tolist()) == set(slow.groups)
        torch.testing.assert_close(restored[row].double(), torch.from_numpy(slow.restored), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize(("name", "shape"), [("8x8_c16", (8, 8)), ("12x20_c8", (12, 20))])
def test_equals_the_golden_vectors(golden, name, shape, ratio):
    vectors = golden(name)
    reduction = bigain.build_reducer("lgtm", ratio=ratio).plan(vectors["x"], bigain.Grid(shape))
    restored = reduction.restore(reduction.reduce(vectors["x"]))
    torch.testing.assert_close(restored, vectors[f"lgtm.{ratio}.restored"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["mean", "prune", "mlerp"])
@pytest.mark.parametrize(
    ("shape", "cell"), [((13,), (2,)), ((9, 7), (2, 2)), ((7, 8), (3, 2)), ((3, 5, 6), (2, 2, 2))], ids=str
)
def test_equals_the_loop_on_any_grid(noise, slow_merge, shape, cell, mode):
    compare(slow_merge, noise(2, torch.Size(shape).numel(), 8), shape, cell, 0.4, mode)


@given(st.lists(st.integers(2, 6), min_size=1, max_size=3).map(tuple), st.floats(0, 0.45), st.integers(0, 99))
def test_equals_the_loop_on_random_grids(slow_merge, shape, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, torch.Size(shape).numel(), 8, generator=generator)
    compare(slow_merge, tokens, shape, (2,) * len(shape), ratio)


def test_padding_of_the_scorer_is_followed(noise, slow_merge):
    tokens = noise(1, 36, 8) + 2
    lgtm = LGTM(0.75, scorer=LaplacianL1("replicate"))
    reduction = lgtm.plan(tokens, bigain.Grid((6, 6)))
    slow = slow_merge(tokens[0], (6, 6), (2, 2), 0.75, least_detail(tokens[0], (6, 6), "nearest"))
    assert set(reduction.representatives[0].tolist()) == set(slow.groups)


def test_any_scorer_decides_the_destinations(noise):
    """A scorer that finds most detail at the first token of each row makes the last ones destinations."""

    class LessToTheRight(TokenScorer):
        def raw(self, tokens, grid):
            return -torch.arange(grid.size, dtype=torch.float32).expand(len(tokens), -1)

    reduction = LGTM(0.75, scorer=LessToTheRight()).plan(noise(1, 16, 8), bigain.Grid((4, 4)))
    assert sorted(reduction.representatives[0].tolist()) == [5, 7, 13, 15]


def test_equal_scores_pick_the_first_of_the_cell(noise):
    class Flat(TokenScorer):
        def raw(self, tokens, grid):
            return torch.zeros(tokens.shape[:2])

    grid, tokens = bigain.Grid((4, 4)), noise(1, 16, 8)
    first = bigain.build_reducer("tome", ratio=0.5, randomize=False).plan(tokens, grid)
    assert torch.equal(LGTM(0.5, scorer=Flat()).plan(tokens, grid).place, first.place)


def test_the_scorer_sees_the_grid_without_prefix_and_suffix(noise):
    seen = []

    class Spy(LaplacianL1):
        def raw(self, tokens, grid):
            seen.append((tokens.shape, grid))
            return super().raw(tokens, grid)

    LGTM(0.5, scorer=Spy()).plan(noise(2, 19, 8), bigain.Grid((4, 4), prefix=1, suffix=2))
    assert seen == [((2, 16, 8), bigain.Grid((4, 4)))]


def test_scorers_by_name_mapping_and_object_are_the_same():
    specs = ["laplacian_l1", {"name": "laplacian_l1"}, "bigain.scorers.laplacian.LaplacianL1", LaplacianL1()]
    assert {repr(LGTM(0.5, scorer=spec)) for spec in specs} == {repr(LGTM(0.5))}


def test_an_unknown_scorer_is_refused_with_the_nearest():
    with pytest.raises(SettingError, match=r"no scorer named 'laplacian_11'\. Did you mean laplacian_l1"):
        LGTM(0.5, scorer="laplacian_11")
