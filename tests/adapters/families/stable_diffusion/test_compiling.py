"""Compiled U-Nets inside pipelines, whole and block by block."""

import pytest
import torch

import bigain
from bigain.errors import SiteError

LGTM = {"name": "lgtm", "ratio": 0.5}
CACHED = {"name": "cached", "reducer": {"name": "abm", "ratio": 0.4}}
SCHEDULED = {"name": "iekvd", "factor": 2, "alpha": {"start": 0.2, "end": 1.3}}


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-4


@pytest.fixture
def counted():
    """The compiler's counters, from nothing on."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return torch._dynamo.utils.counters


@pytest.fixture
def small(tiny_sd):
    """One stage and one block, for the compiler."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",), "mid_block_type": None}
    return tiny_sd(block_out_channels=(8,), **blocks)


def test_a_compiled_unet_in_a_pipeline_is_one_graph_for_every_step(small, draw, counted):
    plain = draw(small, num_inference_steps=3)
    with bigain.attach(small, CACHED, placement={"parts": ("self", "mlp")}):
        expected = draw(small, num_inference_steps=3)
        small.unet = torch.compile(small.unet, fullgraph=True, dynamic=False, backend="aot_eager")
        close(draw(small, num_inference_steps=3), expected)
    assert not counted["graph_break"]
    assert counted["stats"]["unique_graphs"] == 1
    differ(expected, plain)


@torch.no_grad()
def test_a_unet_compiled_in_place_is_one_graph(small, batch, counted):
    unet, plain = small.unet, small.unet(**batch).sample
    report = bigain.attach(unet, SCHEDULED, placement={"names": "*"})
    expected = unet(**batch).sample
    unet.compile(fullgraph=True, dynamic=False, backend="eager")
    close(unet(**batch).sample, expected)
    unet(**{**batch, "timestep": torch.tensor(20)})
    assert counted["stats"]["unique_graphs"] == 1
    differ(expected, plain)
    report.detach()
    close(unet(**batch).sample, plain)


@torch.no_grad()
def test_what_is_compiled_already_is_refused_whole_or_in_part(small, batch):
    plain, unet = small.unet(**batch).sample, small.unet
    small.unet = torch.compile(unet, backend="eager")
    for model in (small, small.unet):
        with pytest.raises(SiteError, match=r"is compiled already, .* Attach first, then compile"):
            bigain.attach(model, "lgtm", ratio=0.5)
    small.unet = unet
    unet.compile_repeated_blocks(backend="eager")
    with pytest.raises(SiteError, match=r"is compiled already, .* Attach first, then compile"):
        bigain.attach(small, "lgtm", ratio=0.5)
    for block in unet.modules():
        block._compiled_call_impl = None
    close(unet(**batch).sample, plain)


@torch.no_grad()
def test_blocks_compiled_one_by_one_share_graphs(tiny_unet, batch, counted):
    """Plans and blocks are graphs apart, of which blocks of one shape share both."""
    unet = tiny_unet(layers_per_block=2)
    plain = unet(**batch).sample
    report = bigain.attach(unet, LGTM, placement={"names": "*"})
    expected = unet(**batch).sample
    unet.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
    close(unet(**batch).sample, expected)
    graphs, blocks = counted["stats"]["unique_graphs"], len(report.sites)
    assert graphs < blocks
    unet(**{**batch, "timestep": torch.tensor(20), "sample": batch["sample"] + 1})
    assert counted["stats"]["unique_graphs"] == graphs
    differ(expected, plain)
    report.detach()
    close(unet(**batch).sample, plain)


@torch.no_grad()
def test_more_stages_with_kept_plans_than_the_compiler_allows_graphs_are_an_error(tiny_unet, batch, counted):
    """Two graphs a stage: `torch._dynamo.config.recompile_limit` allows 8. Never a silent return to code as it was."""
    unet = tiny_unet()
    with bigain.attach(unet, CACHED, placement={"names": "*"}):
        expected = unet(**batch).sample
        unet.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="eager")
        with (
            torch._dynamo.config.patch(recompile_limit=2),
            pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit),
        ):
            unet(**batch)
        torch._dynamo.reset()
        with torch._dynamo.config.patch(recompile_limit=4):
            close(unet(**batch).sample, expected)
