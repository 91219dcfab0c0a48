"""The Laplacian, against scipy."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigain.functional.filters import laplacian

SCIPY_MODE = {"zeros": "constant", "replicate": "nearest"}


def by_scipy(tokens, shape, padding):
    """One channel of one row at a time."""
    rows = []
    for row in tokens.numpy():
        fields = [scipy.ndimage.laplace(channel.reshape(shape), mode=SCIPY_MODE[padding]) for channel in row.T]
        rows.append(np.stack([field.ravel() for field in fields], axis=-1))
    return torch.from_numpy(np.stack(rows))


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    padding=st.sampled_from(["zeros", "replicate"]),
    seed=st.integers(0, 99),
)
def test_equals_scipy_on_any_grid(shape, padding, seed):
    tokens = torch.randn(2, int(np.prod(shape)), 3, generator=torch.Generator().manual_seed(seed))
    ours = laplacian(tokens, shape, padding)
    torch.testing.assert_close(ours, by_scipy(tokens, shape, padding), atol=1e-5, rtol=1e-5)


def test_impulse_shows_the_kernel_of_the_paper():
    impulse = torch.zeros(3, 3)
    impulse[1, 1] = 1
    kernel = laplacian(impulse.reshape(1, 9, 1), (3, 3)).reshape(3, 3)
    assert kernel.tolist() == [[0, 1, 0], [1, -4, 1], [0, 1, 0]]


def test_constant_field_is_flat_with_replicated_border_alone():
    ones = torch.ones(1, 16, 1)
    assert not laplacian(ones, (4, 4), "replicate").any()
    ring = laplacian(ones, (4, 4), "zeros").reshape(4, 4)
    assert ring.tolist() == [[-2, -1, -1, -2], [-1, 0, 0, -1], [-1, 0, 0, -1], [-2, -1, -1, -2]]


def test_quadratic_has_constant_laplacian_inside():
    """x² + 3y² has the Laplacian 2 + 6, exactly so on a grid."""
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(5.0), indexing="ij")
    inside = laplacian((x**2 + 3 * y**2).reshape(1, 30, 1), (6, 5)).reshape(6, 5)[1:-1, 1:-1]
    assert torch.equal(inside, torch.full((4, 3), 8.0))


def test_row_major_order_of_a_grid_that_is_not_square():
    """Transposing the grid transposes the result."""
    field = torch.randn(4, 7)
    wide = laplacian(field.reshape(1, 28, 1), (4, 7)).reshape(4, 7)
    tall = laplacian(field.T.reshape(1, 28, 1), (7, 4)).reshape(7, 4)
    torch.testing.assert_close(wide, tall.T)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    tokens = (torch.randn(1, 16, 4) * 1e4).to(dtype)
    result = laplacian(tokens, (4, 4))
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, laplacian(tokens.float(), (4, 4)))
