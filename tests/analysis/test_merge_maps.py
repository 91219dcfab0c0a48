import torch

from bigain.analysis.merge_maps import merge_map
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM


def test_the_map_is_the_plan_the_first_site_makes(tiny_backbone):
    clean, labels = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    found = merge_map(tiny_backbone, LGTM(0.5), clean, labels, timestep=100)
    assert found.grid.shape == (8, 8)
    assert found.site == "transformer_blocks.0.attn1"
    assert found.place.shape == (2, 64)
    assert found.representatives.shape == (2, 32)
    seen = []
    module = tiny_backbone.network.transformer_blocks[0].attn1
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        tiny_backbone.predict_noise(found.noisy, torch.tensor([100, 100]), labels)
    handle.remove()
    assert torch.equal(LGTM(0.5).plan(seen[0], found.grid).place, found.place)
    assert not module._forward_pre_hooks


def test_no_reduction_has_no_map(tiny_backbone):
    assert merge_map(tiny_backbone, Identity(), torch.randn(1, 3, 8, 8), torch.tensor([0]), 100) is None
