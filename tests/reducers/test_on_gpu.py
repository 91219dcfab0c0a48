"""Reducers in half precision on a GPU, where kernels do what PyTorch does elsewhere."""

import pytest
import torch

import bigain
from bigain.functional import kernels
from bigain.reducers.base import NoReduction

pytestmark = pytest.mark.gpu

REDUCERS = {
    "lgtm": {"ratio": 0.7},
    "lgtm, window": {"ratio": 0.7, "window": 4},
    "tome": {"ratio": 0.7, "randomize": False},
    "tome_vit": {"ratio": 0.4},
    "lgtm, mlerp": {"ratio": 0.5, "mode": "mlerp"},
    "abm": {"ratio": 0.7},
    "iekvd": {"factor": 2},
}


def build(name):
    return bigain.build_reducer(name.split(",")[0], **REDUCERS[name])


@pytest.fixture(scope="module")
def tokens():
    generator = torch.Generator().manual_seed(4)
    coarse = torch.randn(2, 64, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear").flatten(2).transpose(1, 2)
    return (smooth + 0.3 * torch.randn(2, 4096, 64, generator=generator)).half().cuda()


def there_and_back(name, tokens):
    plan = build(name).plan(tokens, bigain.Grid((64, 64)))
    assert not isinstance(plan, NoReduction)
    return plan, plan.restore(plan.reduce(tokens))


@pytest.mark.parametrize("name", REDUCERS)
def test_the_same_digits_twice(name, tokens):
    _, first = there_and_back(name, tokens)
    assert all(torch.equal(first, there_and_back(name, tokens)[1]) for _ in range(10))


@pytest.mark.parametrize("name", REDUCERS)
def test_kernels_decide_as_pytorch_does(name, tokens, monkeypatch):
    """But for near ties, of which there are few."""
    plan, back = there_and_back(name, tokens)
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    expected, other = there_and_back(name, tokens)
    assert (plan.sizes == expected.sizes).float().mean() > 0.99
    alike = (back - other).abs().amax(dim=-1) <= 2e-3 * other.abs().amax()
    assert alike.float().mean() > 0.98


def test_a_row_does_not_depend_on_its_neighbours(tokens):
    for name in REDUCERS:
        _, together = there_and_back(name, tokens)
        _, alone = there_and_back(name, tokens[1:])
        assert torch.equal(together[1:], alone), name
