import torch

import bigain
from bigain.analysis.merge_maps import merge_map
from bigain.reducers.lgtm import LGTM
from tests.comparing import assert_same


def test_the_map_is_the_plan_the_first_site_makes(tiny_backbone):
    clean, condition = torch.randn(2, 3, 8, 8), tiny_backbone.embed([1, 2])
    with bigain.attach(tiny_backbone.network, LGTM(0.5)) as report:
        found = merge_map(tiny_backbone, report, clean, condition, timestep=100)
    assert found.grid.shape == (8, 8)
    assert found.site == "transformer_blocks.0.attn1"
    assert found.place.shape == (2, 64)
    assert found.representatives.shape == (2, 32)
    seen = []
    module = tiny_backbone.network.transformer_blocks[0].attn1
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        tiny_backbone.predict(found.noisy, torch.tensor([100, 100]), condition)
    handle.remove()
    assert torch.equal(LGTM(0.5).plan(seen[0], found.grid).place, found.place)
    assert not module._forward_pre_hooks


def test_the_noise_follows_the_process_and_the_seed(tiny_backbone):
    clean, condition = torch.randn(1, 3, 8, 8), tiny_backbone.embed([3])
    with bigain.attach(tiny_backbone.network, LGTM(0.5)) as report:
        maps = [merge_map(tiny_backbone, report, clean, condition, 100, seed) for seed in (0, 0, 1)]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    assert_same(maps[0].noisy, tiny_backbone.process.add_noise(clean, noise, torch.tensor([100])))
    assert torch.equal(maps[0].noisy, maps[1].noisy)
    assert not torch.equal(maps[0].noisy, maps[2].noisy)


def test_no_reduction_has_no_map(tiny_backbone):
    with bigain.attach(tiny_backbone.network, "identity") as report:
        assert merge_map(tiny_backbone, report, torch.randn(1, 3, 8, 8), tiny_backbone.embed([0]), 100) is None
