"""Tokens that stand for several: against tokens repeated as often."""

import pytest
import torch

from bigain.functional.weighted import mean_by_size, merge_by_size


def given(noise, dtype=torch.float64):
    sizes = torch.tensor([[1, 3, 2, 1, 4], [2, 2, 1, 5, 1]])
    place = torch.tensor([[0, 1, 1, 2, 0], [2, 0, 1, 1, 1]])
    return noise(2, 5, 3).to(dtype), sizes, place


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_merging_is_the_mean_of_copies(noise, dtype):
    tokens, sizes, place = given(noise, dtype)
    merged, counts = merge_by_size(tokens, sizes.float(), place, 3)
    assert merged.dtype == dtype
    for row in range(2):
        copies, where = tokens[row].repeat_interleave(sizes[row], 0), place[row].repeat_interleave(sizes[row])
        for spot in range(3):
            expected = copies[where == spot].double().mean(dim=0)
            torch.testing.assert_close(
                merged[row, spot].double(), expected, atol=1e-2 if dtype.itemsize == 2 else 1e-6, rtol=0
            )
            assert counts[row, spot] == (where == spot).sum()


def test_merging_twice_is_merging_at_once(noise):
    tokens, sizes, place = given(noise)
    half, counts = merge_by_size(tokens, sizes.float(), place, 3)
    twice, last = merge_by_size(half, counts, torch.tensor([[0, 1, 0], [0, 0, 1]]), 2)
    at_once = torch.stack([torch.tensor([0, 1, 0])[place[0]], torch.tensor([0, 0, 1])[place[1]]])
    expected, whole = merge_by_size(tokens, sizes.float(), at_once, 2)
    torch.testing.assert_close(twice, expected)
    assert torch.equal(last, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_the_mean_is_that_of_copies(noise, dtype):
    tokens, sizes, _ = given(noise, dtype)
    found = mean_by_size(tokens, sizes.float())
    assert found.dtype == dtype
    for row in range(2):
        expected = tokens[row].double().repeat_interleave(sizes[row], 0).mean(dim=0)
        torch.testing.assert_close(found[row].double(), expected, atol=1e-3 if dtype.itemsize == 2 else 1e-6, rtol=0)
