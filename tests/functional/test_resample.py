"""Coarser grids: the loop over cells, torch's own resampling, and the cells' arithmetic."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from bigain.functional.resample import cell_average, cell_maximum, cell_sizes, cell_token, coarse_shape, copy_to_cells

CPU = torch.device("cpu")


def cells_by_loop(shape, factor):
    """Tokens of every cell, each as an array of the cell's own shape; the last ones may be smaller."""
    index = np.arange(math.prod(shape)).reshape(shape)
    corners = itertools.product(*(range(0, n, s) for n, s in zip(shape, factor, strict=True)))
    return [index[tuple(slice(c, c + s) for c, s in zip(corner, factor, strict=True))] for corner in corners]


def middle_of(cell, factor):
    """The token at half the factor along each axis, or the last one there is."""
    return cell[tuple(min(s // 2, n - 1) for s, n in zip(factor, cell.shape, strict=True))]


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple))
    factor = tuple(draw(st.integers(1, 9)) for _ in shape)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    return shape, factor, torch.randn(2, math.prod(shape), 3, generator=generator)


@given(cases())
def test_every_token_is_in_exactly_one_cell(case):
    shape, factor, _ = case
    cells = cells_by_loop(shape, factor)
    assert math.prod(coarse_shape(shape, factor)) == len(cells)
    assert cell_sizes(shape, factor, CPU).tolist() == [cell.size for cell in cells]
    numbers = torch.arange(len(cells), dtype=torch.float32)[None, :, None]
    copied = copy_to_cells(numbers, shape, factor)[0, :, 0].tolist()
    assert all(copied[token] == number for number, cell in enumerate(cells) for token in cell.flat)
    assert len(copied) == math.prod(shape)


@given(cases())
def test_average_and_maximum_equal_the_loop(case):
    shape, factor, tokens = case
    members = [torch.from_numpy(cell.ravel()) for cell in cells_by_loop(shape, factor)]
    average = torch.stack([tokens[:, m].double().mean(dim=1) for m in members], dim=1)
    torch.testing.assert_close(cell_average(tokens, shape, factor).double(), average, atol=1e-6, rtol=1e-6)
    maximum = torch.stack([tokens[:, m].amax(dim=1) for m in members], dim=1)
    assert torch.equal(cell_maximum(tokens, shape, factor), maximum)


@given(cases())
def test_one_token_a_cell_equals_the_loop(case):
    shape, factor, tokens = case
    cells = cells_by_loop(shape, factor)
    middle, first = [middle_of(cell, factor) for cell in cells], [cell.flat[0] for cell in cells]
    assert torch.equal(cell_token(tokens, shape, factor, middle=True), tokens[:, middle])
    assert torch.equal(cell_token(tokens, shape, factor, middle=False), tokens[:, first])


SHAPES = {(60,): (5,), (12, 20): (4, 2), (6, 10): (3, 5), (4, 6, 9): (2, 3, 3)}


@pytest.mark.parametrize(("shape", "factor"), SHAPES.items(), ids=str)
def test_divisible_grids_equal_torch(noise, shape, factor):
    tokens, axes = noise(2, math.prod(shape), 5), len(shape)
    image = tokens.transpose(1, 2).reshape(2, 5, *shape)
    size = coarse_shape(shape, factor)
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[axes - 1](image, factor)
    maximum = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[axes - 1](image, factor)
    found = {
        cell_average(tokens, shape, factor): average,
        cell_maximum(tokens, shape, factor): maximum,
        cell_token(tokens, shape, factor, middle=True): F.interpolate(image, size, mode="nearest-exact"),
        cell_token(tokens, shape, factor, middle=False): F.interpolate(image, size, mode="nearest"),
        copy_to_cells(cell_average(tokens, shape, factor), shape, factor): F.interpolate(average, shape),
    }
    for ours, torchs in found.items():
        torch.testing.assert_close(ours, torchs.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_averaged_in_float32(dtype):
    """Large values of either sign and a 1: in half precision the sum overflows or loses the 1."""
    large = torch.full((1, 32, 1), 32000.0)
    tokens = torch.cat([large, torch.ones(1, 1, 1), -large], dim=1).to(dtype)
    average = cell_average(tokens, (65,), (65,))
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((1, 1, 1), 1 / 65))
    assert cell_maximum(tokens, (65,), (65,)).dtype == cell_token(tokens, (65,), (65,), middle=True).dtype == dtype


@given(cases())
def test_shapes_without_values(case):
    shape, factor, tokens = case
    count, meta = math.prod(coarse_shape(shape, factor)), tokens.to("meta")
    coarse = cell_average(meta, shape, factor)
    assert coarse.shape == cell_maximum(meta, shape, factor).shape == (2, count, 3)
    assert cell_token(meta, shape, factor, middle=True).shape == (2, count, 3)
    assert copy_to_cells(coarse, shape, factor).shape == tokens.shape
    assert cell_sizes(shape, factor, meta.device).shape == (count,)


def test_tokens_cut_out_of_a_longer_sequence(noise):
    """Prefix and suffix leave the grid's tokens strided."""
    long = noise(3, 40, 4)
    cut = long[:, 2:37]
    for operation in (cell_average, cell_maximum):
        assert torch.equal(operation(cut, (5, 7), (2, 3)), operation(cut.clone(), (5, 7), (2, 3)))


def test_gradients_of_the_average_are_shared_by_the_cells_tokens(noise):
    tokens = noise(1, 15, 2).requires_grad_()
    cell_average(tokens, (3, 5), (2, 2)).sum().backward()
    shares = copy_to_cells(1 / cell_sizes((3, 5), (2, 2), CPU)[None, :, None], (3, 5), (2, 2))
    torch.testing.assert_close(tokens.grad, shares.expand(1, 15, 2))
