"""Regions of a network, each compiled: the same numbers, in every pass, from fewer graphs."""

from contextlib import ExitStack

import pytest
import torch

from bigain.adapters.placement import Placement
from bigain.benchmark.flops import FlopCounter
from bigain.benchmark.network_cases import NetworkAt, network_cases
from bigain.benchmark.regions import regions_of
from bigain.benchmark.timed_cases import fresh_compiler
from bigain.reducers.cached import Cached
from bigain.reducers.iekvd import IEKVD
from bigain.reducers.lgtm import LGTM

CPU = torch.device("cpu")
REDUCERS = {"lgtm": LGTM(0.5), "cached": Cached(LGTM(0.5)), "iekvd": IEKVD(2)}


def dit():
    from diffusers import DiTTransformer2DModel

    size = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 8, "sample_size": 8, "patch_size": 1}
    kind = {"norm_type": "ada_norm_zero", "num_embeds_ada_norm": 10, "in_channels": 4, "out_channels": 4}
    return DiTTransformer2DModel(**size, **kind)


def unet():
    from diffusers import UNet2DConditionModel

    kinds = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    size = {"sample_size": 8, "block_out_channels": [16], "layers_per_block": 1, "norm_num_groups": 8}
    return UNet2DConditionModel(**kinds, **size, attention_head_dim=2, cross_attention_dim=8)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "names"), [(dit, ["lgtm", "cached", "iekvd"]), (unet, ["lgtm"])])
def test_regions_give_the_same_in_every_pass_while_all_cases_have_code(make, names):
    """Blocks with hooks and without share a class: in a second pass the one's code would run as the other's."""
    torch.manual_seed(0)
    network = make().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    counter = FlopCounter(network)
    inputs = counter.adapter.inputs(network, 2, counter.shape, CPU, torch.float32)
    at = NetworkAt(network, inputs, counter, Placement(layers=[0, 1]), 0)
    reducers = {name: REDUCERS[name] for name in names}
    counts = {name: counter.count(one, at.placement) for name, one in reducers.items()}
    found = {}
    for regional in (None, "eager"):
        with ExitStack() as stack:
            stack.enter_context(fresh_compiler())
            beside = ["floors", "peers", "written_out"] if make is dit else ["floors"]
            cases = network_cases(at, "none", reducers, counts, beside, regional)
            passes = {case: stack.enter_context(case.build()) for case in cases}
            runs = {case: one.run if regional is None else one.compiled("eager") for case, one in passes.items()}
            for case, run in [*runs.items()] * 2:
                with torch.inference_mode(), case.around():
                    found.setdefault(case.name, []).append(run()[0].clone())
    for first, *others in found.values():
        for other in others:
            torch.testing.assert_close(other, first)
    assert not torch.allclose(found["lgtm"][-1], found["none"][-1])


def test_regions_are_blocks_and_what_stands_in_lists_beside_them():
    network = unet()
    at = FlopCounter(network)
    blocks = [site.block for site in at.adapter.sites(network)]
    kinds = [type(region).__name__ for region in regions_of(network, blocks)]
    assert kinds.count("BasicTransformerBlock") == len(blocks) == 4
    assert kinds.count("ResnetBlock2D") == 1 + 2 + 2
    inside = [inner for region in regions_of(network, blocks) for inner in region.modules()]
    assert len({id(module) for module in inside}) == len(inside)
