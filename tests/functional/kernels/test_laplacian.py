"""Norms of the Laplacian that write no field, against those of the field."""

import pytest
import torch

from bigain.functional.filters import laplacian, laplacian_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding", ["zeros", "replicate"])
@pytest.mark.parametrize("shape", [(7,), (5, 6), (1, 9), (3, 4, 5), (2, 2, 2, 3)])
def test_norms_are_those_of_the_field(device, generator, dtype, padding, shape):
    count = torch.Size(shape).numel()
    tokens = torch.randn(2, count + 3, 70, generator=generator).to(dtype)[:, 2:-1]
    field = laplacian(tokens.double().float(), shape, padding).double()
    for order, expected in ((1, field.abs().sum(dim=-1)), (2, field.square().sum(dim=-1).sqrt())):
        norm = laplacian_norm(tokens.to(device), shape, padding, order)
        assert norm.dtype == torch.float32
        torch.testing.assert_close(norm.cpu().double(), expected, atol=0, rtol=2e-6)


def test_wide_tokens(device, generator):
    tokens = torch.randn(1, 12, 1100, generator=generator)
    expected = laplacian(tokens, (3, 4)).abs().sum(dim=-1)
    torch.testing.assert_close(laplacian_norm(tokens.to(device), (3, 4)).cpu(), expected, atol=0, rtol=2e-6)


def test_gradients_flow(device, generator):
    """Scores are differentiable for whoever trains with them: by torch, since the kernel knows no backward."""
    tokens = torch.randn(1, 12, 8, generator=generator).to(device).requires_grad_()
    laplacian_norm(tokens, (3, 4)).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.any()
