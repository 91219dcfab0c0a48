"""Means of groups without atomics, against a loop."""

import pytest
import torch

from bigain.functional.matching import group_mean, group_order, group_sizes
from bigain.functional.weighted import merge_by_size


def assignment(generator, batch, count, groups):
    """Every group has a member; the first has most of them."""
    place = torch.randint(groups, (batch, count), generator=generator)
    place[:, : count // 2] = 0
    place[:, count // 2 : count // 2 + groups] = torch.arange(groups)
    return place


def by_loop(tokens, place, groups, weights=None):
    weights = torch.ones(place.shape) if weights is None else weights
    rows = []
    for row in range(len(tokens)):
        means = []
        for group in range(groups):
            member = place[row] == group
            share = weights[row, member].double()[:, None]
            means.append((tokens[row, member].double() * share).sum(0) / share.sum())
        rows.append(torch.stack(means))
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 20, 1030])
def test_means_are_those_of_the_loop(device, generator, dtype, channels):
    tokens = torch.randn(2, 40, channels, generator=generator, dtype=torch.float64).to(dtype)
    place = assignment(generator, 2, 40, 9)
    there = place.to(device)
    order = group_order(there, 9)
    assert order is not None
    mean = group_mean(tokens.to(device), there, group_sizes(there, 9), order)
    assert mean.dtype == dtype
    tolerance = 1e-6 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps
    torch.testing.assert_close(mean.cpu().double(), by_loop(tokens, place, 9), atol=tolerance, rtol=tolerance)


def test_of_tokens_that_count_several_times(device, generator):
    tokens, place = torch.randn(2, 40, 12, generator=generator), assignment(generator, 2, 40, 7)
    sizes = torch.randint(1, 5, (2, 40), generator=generator).float()
    merged, counts = merge_by_size(tokens.to(device), sizes.to(device), place.to(device), 7)
    torch.testing.assert_close(merged.cpu().double(), by_loop(tokens, place, 7, sizes), atol=1e-6, rtol=1e-6)
    assert torch.equal(counts.cpu(), torch.zeros(2, 7).scatter_add(1, place, sizes))


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_a_sum_in_any_order(device, generator, weighted):
    tokens, place = torch.randn(2, 30, 6, generator=generator), assignment(generator, 2, 30, 5).to(device)
    outer = torch.randn(2, 5, 6, generator=generator).to(device)
    sizes = torch.randint(1, 5, (2, 30), generator=generator).float().to(device)
    gradients = []
    for order in (group_order(place, 5), None):
        leaf = tokens.to(device).requires_grad_()
        if not weighted:
            merged = group_mean(leaf, place, group_sizes(place, 5), order)
        elif order is not None:
            merged, _ = merge_by_size(leaf, sizes, place, 5)
        else:
            total = leaf.new_zeros(2, 5, 6).scatter_add(1, place[..., None].expand(-1, -1, 6), leaf * sizes[..., None])
            merged = total / sizes.new_zeros(2, 5).scatter_add(1, place, sizes)[..., None]
        (merged * outer).sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.gpu
def test_the_same_digits_twice(generator):
    tokens, place = torch.randn(4, 4096, 64, generator=generator).cuda(), assignment(generator, 4, 4096, 800).cuda()
    order, sizes = group_order(place, 800), group_sizes(place, 800)
    first = group_mean(tokens, place, sizes, order)
    assert all(torch.equal(first, group_mean(tokens, place, sizes, order)) for _ in range(20))
