"""The Laplacian against scipy, and the neighbour cosine against a loop."""

import itertools
import weakref

import numpy as np
import pytest
import scipy.ndimage
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from bigain.functional.filters import laplacian, neighbour_cosine

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


def cosines_by_loop(image, padding):
    """One token and one neighbour at a time: `[*shape, C]` to `[*shape]`."""
    shape = image.shape[:-1]
    unit = image / np.maximum(np.linalg.norm(image, axis=-1, keepdims=True), 1e-30)
    means = np.empty(shape)
    for index in np.ndindex(shape):
        found = []
        for axis, step in itertools.product(range(len(shape)), (-1, 1)):
            place = [n + step * (axis == k) for k, n in enumerate(index)]
            inside = 0 <= place[axis] < shape[axis]
            if inside or padding == "replicate":
                found.append(unit[index] @ unit[tuple(place) if inside else index])
            elif padding == "zeros":
                found.append(0.0)
        means[index] = np.mean(found) if found else 1.0
    return means


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    padding=st.sampled_from(["valid", "zeros", "replicate"]),
    seed=st.integers(0, 99),
)
def test_neighbour_cosine_equals_the_loop_on_any_grid(shape, padding, seed):
    random = np.random.default_rng(seed)
    images = random.standard_normal((2, *shape, 3)) * random.lognormal(size=(2, *shape, 1)) * 100
    images[0].reshape(-1, 3)[-1] = 0
    expected = np.stack([cosines_by_loop(image, padding).ravel() for image in images])
    ours = neighbour_cosine(torch.from_numpy(images).float().reshape(2, -1, 3), shape, padding)
    torch.testing.assert_close(ours, torch.from_numpy(expected).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(9,), (4, 6), (2, 3, 4)])
def test_neighbours_of_a_checkerboard_are_opposite(shape):
    """With 2, 4 or 6 neighbours."""
    sign = (-1.0) ** torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(0)
    board = sign.reshape(1, -1, 1) * torch.tensor([1.0, 2.0])
    torch.testing.assert_close(neighbour_cosine(board, shape), -torch.ones(1, sign.numel()))


def test_stripes_agree_along_one_axis_alone():
    """Rows alternate between two directions at right angles."""
    stripes = torch.eye(2)[torch.arange(5) % 2][:, None].expand(5, 4, 2).reshape(1, 20, 2)
    cosine = neighbour_cosine(stripes, (5, 4)).reshape(5, 4)
    thirds = torch.tensor([1 / 3, 2 / 3])
    torch.testing.assert_close(cosine[1:-1, 1:-1], torch.full((3, 2), 0.5))
    torch.testing.assert_close(cosine[1:-1, 0], thirds[:1].expand(3))
    torch.testing.assert_close(cosine[0, 1:-1], thirds[1:].expand(2))
    torch.testing.assert_close(cosine[0, 0], torch.tensor(0.5))


def test_a_token_of_zeros_is_like_nothing():
    tokens = torch.zeros(1, 3, 2)
    tokens[0, 1] = 1
    for padding in ("valid", "zeros", "replicate"):
        assert not neighbour_cosine(tokens, (3,), padding)[0, [0, 2]].any()


class LargeTensors(TorchDispatchMode):
    """Counts the tensors of about the input's size that are alive at once, beside the input."""

    def __init__(self, tokens):
        super().__init__()
        self.enough, self.given = tokens.numel() // 2, tokens.untyped_storage().data_ptr()
        self.seen, self.most = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.numel() > self.enough:
            self.seen.append(weakref.ref(result))
        alive = {held.untyped_storage().data_ptr() for ref in self.seen if (held := ref()) is not None}
        self.most = max(self.most, len(alive - {self.given}))
        return result


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1), (torch.float16, 2)], ids=str)
@pytest.mark.parametrize("padding", ["valid", "zeros", "replicate"])
def test_neighbour_cosine_holds_one_large_tensor_at_a_time(dtype, most, padding):
    """In half precision, the float32 copy besides."""
    tokens = torch.randn(2, 120, 64).to(dtype)
    with LargeTensors(tokens) as counter:
        neighbour_cosine(tokens, (4, 5, 6), padding)
    assert counter.most == most
