"""L-GTM as released: the golden vectors, a loop over strips of scores, and the grids it refuses."""

import pytest
import torch

import bigain
from bigain.errors import SettingError
from bigain.reducers.lgtm import LGTM
from bigain.reducers.lgtm_released import LGTMReleased
from bigain.scorers.base import TokenScorer

GRIDS = {"8x8_c16": (8, 8), "12x20_c8": (12, 20)}


def least_in_its_run(scores, cell):
    """Cell number n is given the position of the least of the n-th `s_y * s_x` scores in memory."""
    size = cell[0] * cell[1]

    def pick(number, members):
        run = scores[number * size : (number + 1) * size]
        return members[run.index(min(run))]

    return pick


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("name", GRIDS)
def test_equals_the_golden_vectors(golden, name, ratio):
    vectors = golden(name)
    reduction = bigain.build_reducer("lgtm_released", ratio=ratio).plan(vectors["x"], bigain.Grid(GRIDS[name]))
    restored = reduction.restore(reduction.reduce(vectors["x"]))
    torch.testing.assert_close(restored, vectors[f"lgtm_released.{ratio}.restored"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["mean", "prune", "mlerp"])
@pytest.mark.parametrize(("shape", "cell"), [((4, 8), (2, 2)), ((6, 6), (3, 2)), ((8, 6), (2, 3))], ids=str)
def test_equals_the_loop(noise, slow_merge, shape, cell, mode):
    grid = bigain.Grid(shape, prefix=1, suffix=2)
    tokens = noise(2, grid.tokens, 8)
    body = tokens[:, 1 : 1 + grid.size]
    scorer = LGTM(0.5).scorer
    reduction = LGTMReleased(0.4, cell=cell, mode=mode).plan(tokens, grid)
    restored = reduction.restore(reduction.reduce(tokens))
    for image, scores, found in zip(body, scorer(body, bigain.Grid(shape)).tolist(), restored, strict=True):
        slow = slow_merge(image, shape, cell, 0.4, least_in_its_run(scores, cell), mode)
        torch.testing.assert_close(
            found[1 : 1 + grid.size].double(), torch.from_numpy(slow.restored), atol=1e-5, rtol=1e-5
        )
    assert torch.allclose(restored[:, :1], tokens[:, :1])
    assert torch.allclose(restored[:, -2:], tokens[:, -2:])


def test_on_two_rows_of_four_the_runs_are_the_rows(noise):
    """Least at the second place of the upper row and the first of the lower: so in the left and the right cell."""

    class First(TokenScorer):
        def raw(self, tokens, grid):
            return tokens[..., 0]

    tokens = noise(1, 8, 4)
    tokens[0, :, 0] = torch.tensor([9.0, 1, 7, 5, 0, 9, 8, 2])
    plans = [kind(0.75, scorer=First()).plan(tokens, bigain.Grid((2, 4))) for kind in (LGTMReleased, LGTM)]
    assert [plan.representatives[0].tolist() for plan in plans] == [[1, 2], [4, 7]]


def test_it_differs_from_the_papers_rule_on_most_cells():
    """On unrelated scores the destinations agree by chance, in a quarter of the cells."""
    tokens = torch.randn(1, 4096, 8, generator=torch.Generator().manual_seed(0))
    plans = [kind(0.75).plan(tokens, bigain.Grid((64, 64))) for kind in (LGTM, LGTMReleased)]
    first, second = (set(plan.representatives[0].tolist()) for plan in plans)
    assert 0.2 < len(first & second) / 1024 < 0.32


@pytest.mark.parametrize("shape", [(64,), (9, 13), (8, 7), (7, 8), (2, 4, 4)], ids=str)
def test_grids_the_released_code_does_not_know_are_refused(shape):
    grid = bigain.Grid(shape)
    for ratio in (0, 0.3):
        reducer = LGTMReleased(ratio, cell=2)
        for call in (lambda r: r.reduced_length(grid), lambda r: r.plan(torch.zeros(1, grid.size, 4), grid)):
            with pytest.raises(
                SettingError, match=r"only grids of 2 axes which cells divide; got cells of \(2,.*Use LGTM"
            ):
                call(reducer)


def test_it_takes_what_lgtm_takes():
    assert repr(LGTMReleased(0.5)) == repr(LGTM(0.5)).replace("LGTM", "LGTMReleased", 1)
    with pytest.raises(SettingError, match=r"LGTMReleased with ratio=0\.8 would remove 51 of 64.*at most 48"):
        LGTMReleased(0.8).reduced_length(bigain.Grid((8, 8)))
