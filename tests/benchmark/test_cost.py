import pytest
import torch

from bigain.adapters.placement import Placement
from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark.cost import count_flops, measure_latency
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.tome import ToMe

WIDTH, DEPTH, TOKENS = 192, 8, 1024


def closed_form(merged_blocks=0, left=TOKENS, scoring=0):
    """Two operations per multiplication: projections, attention, MLP, modulation, embeddings, matching, scoring."""

    def block(tokens):
        attention = 2 * 4 * tokens * WIDTH**2 + 4 * tokens**2 * WIDTH
        mlp = 2 * 8 * TOKENS * WIDTH**2
        modulation = 2 * (256 * WIDTH + WIDTH**2 + 6 * WIDTH**2)
        return attention + mlp + modulation

    matching = 2 * (TOKENS * 3 // 4) * (TOKENS // 4) * WIDTH
    ends = 2 * TOKENS * 75 * WIDTH + 2 * TOKENS * WIDTH * 3 + 2 * (256 * WIDTH + WIDTH**2 + 2 * WIDTH**2)
    return ends + (DEPTH - merged_blocks) * block(TOKENS) + merged_blocks * (block(left) + matching + scoring)


@pytest.fixture(scope="module")
def backbone():
    return PixelDiT()


def test_no_reduction_costs_the_closed_form(backbone):
    assert count_flops(backbone, Identity()) == closed_form()


# The Laplacian is a 3 x 3 convolution of each channel.
@pytest.mark.parametrize(("reducer", "scoring"), [(LGTM(0.5), 2 * 9 * WIDTH * TOKENS), (ToMe(0.5), 0)])
def test_merging_half_in_three_blocks_costs_the_closed_form(backbone, reducer, scoring):
    assert count_flops(backbone, reducer) == closed_form(3, TOKENS // 2, scoring)


def test_a_shared_plan_costs_its_share(backbone):
    planning = 3 * (2 * (TOKENS * 3 // 4) * (TOKENS // 4) * WIDTH)
    alone, shared = (count_flops(backbone, ToMe(0.5), sharing=rows) for rows in (1, 10))
    assert alone - shared == pytest.approx(0.9 * planning, rel=1e-12)


def test_counting_leaves_the_model_alone(backbone):
    before = next(backbone.parameters()).clone()
    count_flops(backbone, LGTM(0.5), Placement(layers=8))
    assert next(backbone.parameters()).device.type == "cpu"
    assert torch.equal(next(backbone.parameters()), before)
    assert not backbone.network._forward_hooks


def test_latency_is_a_median_between_its_quartiles(tiny_backbone):
    found = measure_latency(tiny_backbone, rows=2, repeats=5, warmup=1)
    assert 0 < found.low <= found.median <= found.high
    assert (found.rows, found.repeats) == (2, 5)
    assert measure_latency(tiny_backbone, rows=1, repeats=1, warmup=0).median > 0
