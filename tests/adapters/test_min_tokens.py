"""Blocks with too few tokens are left alone: in the report, in every pass, and in what is counted."""

import pytest
import torch
from torch import nn

import bigain
from bigain.adapters.find import match
from bigain.benchmark.flops import FlopCounter
from bigain.errors import SettingError
from bigain.reducers.cached import Cached
from bigain.reducers.lgtm import LGTM
from bigain.reducers.todo import ToDo
from tests.adapters.test_recording import tiny_flux, tiny_sd3, tiny_vit
from tests.comparing import assert_same

ALL = ("self", "cross", "mlp")
DOWNSAMPLE = [1, 2, 4, 2, 2, 1, 1]
"""Of the blocks of the tiny U-Net: 64, 16 and 4 tokens on 8 x 8 latents."""

NOTHING_LEFT = (
    r"^min_tokens={} leaves every block alone, so that nothing is reduced: the grids of the {} blocks have {} tokens "
    r"in this pass\. Lower it, or choose other blocks\.$"
)


def noisy(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.2)
    return model.double().eval()


def inputs_of(model, shape, rows=2):
    _, _, adapter = match(model)
    torch.manual_seed(1)
    return adapter.inputs(model, rows, shape, torch.device("cpu"), torch.float64)


def output_of(model, given):
    found = model(**given)
    return found if isinstance(found, torch.Tensor) else found[0]


@pytest.mark.parametrize("reducer", [LGTM(0.5), Cached(LGTM(0.5)), ToDo(2)], ids=lambda given: type(given).__name__)
@pytest.mark.parametrize(("min_tokens", "finest"), [(0, 4), (4, 4), (5, 2), (16, 2), (17, 1), (64, 1)])
@torch.no_grad()
def test_in_a_unet_it_is_the_same_as_naming_the_other_blocks(unet, latents, reducer, min_tokens, finest):
    parts = ("self",) if isinstance(reducer, ToDo) else ALL
    by_hand = [layer for layer, downsample in enumerate(DOWNSAMPLE) if downsample <= finest]
    with bigain.attach(unet, reducer, placement={"layers": by_hand, "parts": parts}) as report:
        expected, sites = unet(**latents()).sample, report.sites
    with bigain.attach(unet, reducer, placement={"names": "*", "parts": parts, "min_tokens": min_tokens}) as report:
        assert torch.equal(unet(**latents()).sample, expected)
        assert tuple(site for site in report.sites if not site.left_alone) == sites
        left = [site for site in report.sites if site.left_alone]
        assert len(left) == (7 - len(by_hand)) * len(parts)
        assert all(site.before == site.after == site.grid.size < min_tokens for site in left)


def test_the_report_says_which_blocks_are_left_alone_and_why(unet):
    where = {"layers": [0, 1, 3], "min_tokens": 30}
    with bigain.attach(unet, "lgtm", ratio=0.5, placement=where) as report:
        rows = [row for row in str(report).splitlines() if "tokens" in row]
    assert [row.split(maxsplit=2)[1:] for row in rows] == [
        ["8x8", "64 -> 32 tokens"],
        ["4x4", "16 tokens, left alone: fewer than min_tokens=30"],
        ["4x4", "16 tokens, left alone: fewer than min_tokens=30"],
    ]
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"names": "*", "parts": ALL, "min_tokens": 30}) as report:
        rows = [row.split() for row in str(report).splitlines() if " x " in row]
    assert sum(int(row[0]) for row in rows) == 21
    assert sum(int(row[0]) for row in rows if "alone:" in row) == 12


@torch.no_grad()
def test_the_grids_of_the_pass_decide_not_those_attached_for(unet, latents):
    """12 x 10 latents are 120, 30 and 9 tokens, where 8 x 8 were 64, 16 and 4."""
    large = latents(2, (12, 10))
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"downsample": [1, 2]}):
        expected = unet(**large).sample
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"downsample": 1}):
        small = unet(**latents()).sample
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"names": "*", "min_tokens": 20}):
        assert torch.equal(unet(**large).sample, expected)
        assert torch.equal(unet(**latents()).sample, small)
        assert torch.equal(unet(**large).sample, expected)


@torch.no_grad()
def test_a_grid_too_small_for_the_reducer_is_no_error_where_it_is_left_alone(unet, latents):
    cell = {"name": "lgtm", "ratio": 0.5, "cell": 8}
    with pytest.raises(SettingError, match="no cell of"):
        bigain.attach(unet, cell, placement={"names": "*"})
    with bigain.attach(unet, cell, placement={"names": "*", "min_tokens": 64}):
        unet(**latents())


@torch.no_grad()
def test_where_every_block_is_left_alone_the_first_pass_raises(unet, dit, latents, batch, snapshot):
    before = snapshot(unet, latents())
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"names": "*", "min_tokens": 65}) as report:
        for _ in range(2):  # as long as nothing was reduced
            with pytest.raises(SettingError, match=NOTHING_LEFT.format(65, 7, "64 or 16 or 4")):
                unet(**latents())
        with pytest.raises(SettingError, match=r"^min_tokens=65 leaves every block alone"):
            report.flops()
        unet(**latents(2, (12, 10)))
        assert torch.equal(unet(**latents()).sample, before.output)  # a size among others
    before.check(unet)
    with (
        bigain.attach(dit, "lgtm", ratio=0.5, placement={"min_tokens": 65}),
        pytest.raises(SettingError, match=NOTHING_LEFT.format(65, 1, 64)),
    ):
        dit(**batch)


@pytest.mark.parametrize(
    ("make", "large", "small"),
    [(tiny_flux, (8, 8), (4, 6)), (tiny_sd3, (8, 8), (4, 4))],
    ids=["flux", "sd3"],
)
@pytest.mark.parametrize("reducer", [LGTM(0.5), bigain.build_reducer("pooling", factor=2)], ids=["merge", "kv"])
@torch.no_grad()
def test_left_alone_means_not_touched(make, large, small, reducer):
    """Not even up to rounding: the library rotates positions and masks keys by itself."""
    model = noisy(make())
    few, many = inputs_of(model, small), inputs_of(model, large)
    expected, whole = output_of(model, few), output_of(model, many)
    with bigain.attach(model, reducer, placement={"min_tokens": 60}, shape=large):
        assert not torch.allclose(output_of(model, many), whole, atol=1e-3)
        assert torch.equal(output_of(model, few), expected)


@pytest.mark.parametrize("proportional", [False, True])
@torch.no_grad()
def test_proportional_attention_steps_aside(dit, batch, proportional):
    large = {**batch, "hidden_states": torch.randn(3, 3, 12, 12)}
    expected = dit(**batch).sample
    where = {"min_tokens": 100, "proportional": proportional}
    with bigain.attach(dit, "lgtm", ratio=0.5, placement=where, shape=(12, 12)):
        dit(**large)
        assert torch.equal(dit(**batch).sample, expected)


@torch.no_grad()
def test_class_tokens_do_not_count():
    model = noisy(tiny_vit())
    given = inputs_of(model, (4, 4))
    with bigain.attach(model, "lgtm", ratio=0.5, layers=3):
        expected = model(**given)
    with bigain.attach(model, "lgtm", ratio=0.5, placement={"min_tokens": 16}):
        assert torch.equal(model(**given), expected)
    with (
        bigain.attach(model, "lgtm", ratio=0.5, placement={"min_tokens": 17}),
        pytest.raises(SettingError, match=NOTHING_LEFT.format(17, 3, 16)),
    ):
        model(**given)


@pytest.mark.parametrize(("progressive", "by_hand"), [(2, [2, 2]), ([3, 1, 1], [3, 1]), (True, True)], ids=str)
@torch.no_grad()
def test_in_progressive_placements_merging_ends_with_so_few_left(progressive, by_hand):
    model = noisy(tiny_vit())
    given = inputs_of(model, (4, 4))
    reducer = bigain.build_reducer("tome_vit", ratio=0.15) if progressive is True else bigain.build_reducer("tome_vit")
    with bigain.attach(model, reducer, placement={"progressive": by_hand, "layers": 2}) as report:
        expected, sites, counted = model(**given), report.sites, report.flops()
    with bigain.attach(model, reducer, placement={"progressive": progressive, "min_tokens": 13}) as report:
        assert torch.equal(model(**given), expected)
        assert report.sites[:2] == sites
        assert report.sites[2].before == report.sites[2].after == sites[1].after
        assert report.sites[2].left_alone == "fewer than min_tokens=13"
        assert report.flops() == counted
    with (
        bigain.attach(model, reducer, placement={"progressive": progressive, "min_tokens": 17}),
        pytest.raises(SettingError, match=NOTHING_LEFT.format(17, 3, 16)),
    ):
        model(**given)


@torch.no_grad()
def test_a_sequence_is_as_long_as_the_pass_makes_it():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 24, batch_first=True), 2).eval()
    long, short = torch.randn(2, 32, 16), torch.randn(2, 12, 16)
    adapter, reducer, plain = {"name": "modules", "shape": [12]}, LGTM(0.5, cell=2), model(short)
    with bigain.attach(model, reducer, adapter=adapter, layers=2):
        expected = model(long)
    with bigain.attach(model, reducer, adapter=adapter, placement={"layers": 2, "min_tokens": 13}) as report:
        assert all(site.left_alone for site in report.sites)
        with pytest.raises(SettingError, match=NOTHING_LEFT.format(13, 2, 12)):
            model(short)
        assert torch.equal(model(long), expected)
        with report.recording() as records:
            assert_same(model(short), plain)
        assert not records  # no plan is made


@torch.no_grad()
def test_it_is_settled_when_a_model_is_compiled(unet, latents):
    torch._dynamo.reset()
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"names": "*", "min_tokens": 20}):
        expected = unet(**latents()).sample
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(unet, fullgraph=True, dynamic=False, backend="eager")
        for _ in range(2):
            assert_same(compiled(**latents()).sample, expected)
        later = latents(seed=2)
        assert_same(compiled(**later).sample, unet(**later).sample)
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_compiled_the_first_pass_raises_too(dit, batch):
    torch._dynamo.reset()
    with bigain.attach(dit, "lgtm", ratio=0.5, placement={"min_tokens": 65}):
        compiled = torch.compile(dit, fullgraph=True, dynamic=False, backend="eager")
        # dynamo wraps what is raised where a graph has to be whole.
        with pytest.raises((SettingError, torch._dynamo.exc.Unsupported), match="leaves every block alone"):
            compiled(**batch)


def test_gradient_checkpointing_leaves_the_same_blocks_alone(unet, latents):
    def gradients():
        unet.zero_grad()
        unet(**latents()).sample.square().sum().backward()
        return [parameter.grad.clone() for parameter in unet.parameters() if parameter.grad is not None]

    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"names": "*", "min_tokens": 20}):
        expected = gradients()
        unet.train().enable_gradient_checkpointing()
        for found, wanted in zip(gradients(), expected, strict=True):
            assert_same(found, wanted)


def test_it_goes_with_a_preset_and_is_counted(unet):
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"layers": [0, 5, 6], "parts": ALL}) as report:
        expected = report.flops()
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"names": "*", "parts": ALL, "min_tokens": 20}) as report:
        assert report.flops() == expected
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"preset": "sd_sa_mlp", "min_tokens": 64}) as report:
        assert len(report.sites) == 6
        assert not any(site.left_alone for site in report.sites)
    counter = FlopCounter(unet)
    found = counter.count(LGTM(0.5), {"names": "*", "min_tokens": 20})
    assert found == counter.count(LGTM(0.5), {"layers": [0, 5, 6]})
    assert len(found.parts) == 3


@pytest.mark.parametrize("given", [-1, 1.5, True, "64", None, [64]], ids=str)
def test_what_is_no_number_of_tokens_is_refused(given):
    with pytest.raises(SettingError, match=r"^min_tokens is a number of tokens, 0 or more; got "):
        bigain.Placement(min_tokens=given)
