import pytest
import torch

from bigain.functional.precision import token_norms, without_autocast


@pytest.mark.parametrize("channels", [1, 2, 7])
def test_norms_have_one_axis_less_with_and_without_values(noise, channels):
    """torch 2.11 keeps an axis of length 1 on the meta device, and where it compiles."""
    values = noise(3, 5, channels)
    torch.testing.assert_close(token_norms(values), values.square().sum(dim=-1).sqrt())
    assert token_norms(values.to("meta")).shape == (3, 5)
    compiled = torch.compile(token_norms, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(values), token_norms(values))


def test_products_stay_in_float32_under_autocast(noise):
    with torch.autocast("cpu", torch.bfloat16):
        assert (noise(2, 3) @ noise(3, 2)).dtype == torch.bfloat16
        with without_autocast(torch.device("cpu")):
            assert (noise(2, 3) @ noise(3, 2)).dtype == torch.float32


def test_the_meta_device_knows_no_autocast():
    with without_autocast(torch.device("meta")):
        assert (torch.ones(2, 3, device="meta") @ torch.ones(3, 2, device="meta")).shape == (2, 2)
