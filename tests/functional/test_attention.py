"""Proportional attention against its definition, copies of the keys, and the additive bias."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from bigain.functional.attention import proportional_attention

WIDTHS = [1, 6, 7, 8, 36, 64, 72, 80]
"""Head dimensions: multiples of 8 and others; 6 with its two channels is one."""

every_width = pytest.mark.parametrize("width", WIDTHS)


def heads(width, keys=11, batch=2, seed=0):
    """Queries, keys and values of 3 heads, and sizes from 1 to 9."""
    generator = torch.Generator().manual_seed(seed)
    lengths = 7, keys, keys
    made = [torch.randn(batch, 3, length, width, generator=generator) for length in lengths]
    return (*made, torch.randint(1, 10, (batch, keys), generator=generator).float())


def definition(query, key, value, sizes):
    """softmax(q k / sqrt(d) + log s) v in double precision."""
    query, key, value, sizes = (x.double() for x in (query, key, value, sizes))
    logits = torch.einsum("bhnd,bhmd->bhnm", query, key) / math.sqrt(query.shape[-1])
    weights = logits.exp() * sizes[:, None, None]
    return (weights / weights.sum(dim=-1, keepdim=True)) @ value


def one_channel(query, key, value, sizes):
    """As published: sqrt(d) in one more channel of the query, log s in that of the key."""
    width = query.shape[-1]
    extra = sizes.log().to(key.dtype)[:, None, :, None].expand(*key.shape[:3], 1)
    query = torch.cat([query, query.new_full((*query.shape[:3], 1), math.sqrt(width))], dim=-1)
    key = torch.cat([key, extra], dim=-1)
    return F.scaled_dot_product_attention(query, key, F.pad(value, (0, 1)), scale=1 / math.sqrt(width))[..., :width]


class Calls(TorchDispatchMode):
    """Takes down the operators that attend, with the shape of what they are given, and whether a bias is."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "attention" in str(func):
            masked = (kwargs or {}).get("attn_mask") is not None
            self.seen.append((str(func), [x.shape[-1] for x in args[:3]], masked))
        return func(*args, **(kwargs or {}))


@every_width
def test_equals_the_definition(width):
    given = heads(width)
    torch.testing.assert_close(proportional_attention(*given).double(), definition(*given), atol=1e-5, rtol=0)


@every_width
def test_equals_the_additive_bias(width):
    query, key, value, sizes = heads(width, seed=1)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=sizes.log()[:, None, None])
    torch.testing.assert_close(proportional_attention(query, key, value, sizes), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [8, 36])
def test_a_key_counts_as_often_as_it_stands_for_a_token(width):
    query, key, value, sizes = heads(width, batch=1, seed=2)
    times = sizes[0].long()
    copies = [x.repeat_interleave(times, dim=2) for x in (key, value)]
    assert copies[0].shape[2] == times.sum() > key.shape[2]
    expected = F.scaled_dot_product_attention(query, *copies)
    torch.testing.assert_close(proportional_attention(query, key, value, sizes), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_key_that_stands_for_no_token_is_left_out_whatever_it_holds(dtype):
    query, key, value, sizes = heads(36)
    sizes[0, :4] = 0
    sizes[1, 2:] = 0
    given = [x.to(dtype) for x in (query, key, value)]
    found = proportional_attention(*given, sizes)
    for row, kept in enumerate([range(4, 11), range(2)]):
        few = [x[row : row + 1, :, kept.start : kept.stop] for x in given[1:]]
        alone = proportional_attention(given[0][row : row + 1], *few, sizes[row : row + 1, kept.start : kept.stop])
        torch.testing.assert_close(
            found[row],
            alone[0],
            atol=1e-6 if dtype == torch.float32 else 2e-2,
            rtol=0 if dtype == torch.float32 else 2e-2,
        )
    empty = (sizes == 0)[:, None, :, None]
    other = [torch.where(empty, 5 - x, x) for x in given[1:]]
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(proportional_attention(given[0], *other, sizes), found, atol=tolerance, rtol=tolerance)


@every_width
def test_sizes_of_one_are_plain_attention(width):
    query, key, value, sizes = heads(width)
    expected = F.scaled_dot_product_attention(query, key, value)
    found = proportional_attention(query, key, value, torch.ones_like(sizes))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("width", [8, 36, 64, 72])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_nearer_to_the_truth_than_one_channel(dtype, width):
    """Rounding to the type happens before both, so that what is left is each form's own error."""
    generator = torch.Generator().manual_seed(3)
    query, key, value, _ = (x.to(dtype) for x in heads(width, keys=64, batch=4, seed=4))
    sizes = torch.randint(1, 501, (4, 64), generator=generator).float()
    truth = definition(query, key, value, sizes)
    ours, naive = [f(query, key, value, sizes).double() for f in (proportional_attention, one_channel)]
    worst, of_one_channel = (ours - truth).square().mean().sqrt(), (naive - truth).square().mean().sqrt()
    assert ours.isfinite().all()
    assert worst < 0.8 * of_one_channel
    # What remains is what attention itself loses in this type.
    exact = F.scaled_dot_product_attention(query, key, value, attn_mask=sizes.log().to(dtype)[:, None, None])
    assert worst < 1.5 * (exact.double() - truth).square().mean().sqrt()


def test_autocast_rounds_no_more_than_attention_in_that_type_does():
    query, key, value, _ = (x.bfloat16().float() for x in heads(64, keys=64, seed=4))
    sizes = torch.randint(1, 501, (2, 64), generator=torch.Generator().manual_seed(3)).float()
    expected = proportional_attention(query.bfloat16(), key.bfloat16(), value.bfloat16(), sizes)
    with torch.autocast("cpu", torch.bfloat16):
        found = proportional_attention(query, key, value, sizes)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0.02)


@every_width
def test_it_runs_on_the_flash_path_without_a_bias(width):
    query, key, value, sizes = heads(width)
    expected = definition(query, key, value, sizes)
    with Calls() as calls, sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        found = proportional_attention(query, key, value, sizes)
    ((name, widths, masked),) = calls.seen
    assert "flash" in name
    assert not masked
    assert len(set(widths)) == 1
    assert widths[0] % 8 == 0
    assert width + 2 <= widths[0] < width + 10
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [8, 36])
def test_gradients_are_those_of_the_additive_bias(width):
    query, key, value, sizes = heads(width)
    sizes[0, 3] = 0
    target = torch.randn(query.shape, generator=torch.Generator().manual_seed(5))

    def biased(query, key, value, sizes):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=sizes.log()[:, None, None])

    found = []
    for attend in (proportional_attention, biased):
        inputs = [x.clone().requires_grad_() for x in (query, key, value)]
        (attend(*inputs, sizes) * target).sum().backward()
        found.append([x.grad for x in inputs])
    for ours, expected in zip(*found, strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    assert not found[0][1][0, :, 3].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_shape_and_type_are_those_of_the_query(dtype):
    query, key, value, sizes = heads(36)
    found = proportional_attention(query.to(dtype), key.to(dtype), value.to(dtype), sizes)
    assert found.shape == query.shape
    assert found.dtype == dtype


def test_it_runs_on_the_meta_device():
    assert proportional_attention(*(x.to("meta") for x in heads(36))).shape == (2, 3, 7, 36)


def test_one_graph_serves_all_sizes():
    given, other = heads(36), heads(36, seed=6)
    compiled = torch.compile(proportional_attention, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), proportional_attention(*given))
    with torch.compiler.set_stance("fail_on_recompile"):
        found = compiled(*other)
    torch.testing.assert_close(found, proportional_attention(*other))
