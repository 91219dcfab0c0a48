"""The selection of what merges, against a sort."""

import pytest
import torch

from bigain.functional import kernels
from bigain.functional.matching import place_merged


def case(generator, values, batch=3, destinations=17):
    sources = values.shape[1]
    index = torch.stack([torch.randperm(sources + destinations, generator=generator) for _ in range(batch)])
    partner = torch.randint(destinations, values.shape, generator=generator)
    return values, partner, index[:, destinations:], index[:, :destinations]


@pytest.mark.parametrize("removed", [1, 2, 30, 50, 51])
@pytest.mark.parametrize("steps", [None, 5, 1])
def test_it_is_the_sort(device, generator, monkeypatch, removed, steps):
    """With values that are all different, with few different ones, and with one: of equals the first merge."""
    values = torch.rand(3, 51, generator=generator) * 2 - 1
    if steps:
        values = (values * steps).round() / steps
    inputs = [one.to(device) for one in case(generator, values)]
    placed = place_merged(*inputs, removed)
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    assert all(torch.equal(one, other) for one, other in zip(placed, place_merged(*inputs, removed), strict=True))


def test_zero_and_minus_zero_are_equal(device, generator, monkeypatch):
    values = torch.tensor([[0.0, -0.0, 0.0, -0.0, 0.5, -0.5]])
    inputs = [one.to(device) for one in case(generator, values, batch=1, destinations=2)]
    placed = place_merged(*inputs, 3)
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    assert all(torch.equal(one, other) for one, other in zip(placed, place_merged(*inputs, 3), strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("sources", [3072, 12_288, 16_384, 20_000])
def test_it_is_the_sort_at_real_sizes(generator, monkeypatch, sources):
    values = torch.rand(2, sources, generator=generator)
    inputs = [one.cuda() for one in case(generator, values, batch=2, destinations=sources // 3)]
    placed = place_merged(*inputs, sources * 9 // 10)
    monkeypatch.setattr(kernels, "_INSTALLED", False)
    expected = place_merged(*inputs, sources * 9 // 10)
    assert all(torch.equal(one, other) for one, other in zip(placed, expected, strict=True))
