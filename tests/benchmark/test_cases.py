"""Floors, written-out attention and tomesd: what is timed beside methods is what it says."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bigain.adapters.attach import attach
from bigain.adapters.placement import Placement
from bigain.benchmark.floors import Sliced, first_merging, removed_share
from bigain.benchmark.flops import FlopCounter
from bigain.benchmark.latency import measure_latency
from bigain.benchmark.latency_settings import LatencySettings
from bigain.benchmark.latency_table import notes_below
from bigain.benchmark.network_cases import NetworkAt, network_cases
from bigain.benchmark.self_attention import SelfAttention, attention_cases, made_up_tokens
from bigain.benchmark.timed_cases import Case, Pass, Timing, time_cases
from bigain.benchmark.written_out import written_out_attention
from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.abm import ABM
from bigain.reducers.iekvd import IEKVD
from bigain.reducers.lgtm import LGTM
from bigain.reducers.todo import ToDo

CPU = torch.device("cpu")
GRID = Grid((8, 8))
ALL = ("floors", "peers", "written_out")
REDUCERS = {"iekvd": IEKVD(2), "lgtm": LGTM(0.5)}


@pytest.fixture
def block():
    torch.manual_seed(0)
    return SelfAttention(16, 2).eval()


@pytest.fixture
def tokens():
    torch.manual_seed(1)
    return made_up_tokens(2, GRID, 16, CPU, torch.float32)


@torch.no_grad()
def outputs(cases):
    """Run each case once, as it is."""
    found = {}
    for case in cases:
        with case.build() as one, case.around():
            found[case.name] = one.run()
    return found


def names(cases, kind):
    return [case.name for case in cases if case.kind == kind]


def test_a_floor_is_the_first_tokens_by_hand(block, tokens):
    found = outputs(attention_cases(block, tokens, GRID, "none", REDUCERS, ["floors"]))
    few = tokens[:, :32]
    by_hand = torch.cat([few + block.attend(block.norm(few), block.norm(few)), tokens[:, 32:]], dim=1)
    torch.testing.assert_close(found["floor: sliced 50%"], by_hand)
    torch.testing.assert_close(found["floor: no self-attention"], tokens + block.norm(tokens))
    torch.testing.assert_close(found["none"], block(tokens))


def test_a_sliced_plan_is_as_long_as_that_of_the_reducer_it_is_like():
    for reducer in (LGTM(0.7), ABM(0.7)):
        sliced = Sliced(reducer)
        plan = sliced.plan(torch.randn(2, 64, 4), GRID)
        assert sliced.reduced_length(GRID) == plan.sizes.shape[1] == reducer.reduced_length(GRID)
    assert first_merging({"kv": ToDo(2), "a": LGTM(0.7), "b": LGTM(0.5)})[0] == "a"
    assert first_merging({"kv": ToDo(2)}) is None
    assert removed_share(LGTM(0.75), GRID) == 0.75


def test_a_reducer_works_around_the_attention(block, tokens):
    """Planned from the input, reduced behind the norm, and restored before the residual."""
    found = outputs(attention_cases(block, tokens, GRID, "none", REDUCERS, []))
    normed = block.norm(tokens)
    plan = LGTM(0.5).plan(tokens, GRID)
    short = plan.reduce(normed)
    torch.testing.assert_close(found["lgtm"], tokens + plan.restore(block.attend(short, short)))
    short = IEKVD(2).plan(tokens, GRID).reduce(normed)
    torch.testing.assert_close(found["iekvd"], tokens + block.attend(normed, short))
    torch.testing.assert_close(found["lgtm: reduce"], plan.reduce(tokens))
    torch.testing.assert_close(found["lgtm: restore"], plan.restore(plan.reduce(tokens)))


def test_attention_written_out_is_the_same_up_to_rounding_and_outlasts_nothing(block, tokens):
    before = F.scaled_dot_product_attention
    found = outputs(attention_cases(block, tokens, GRID, "none", REDUCERS, ["written_out"]))
    torch.testing.assert_close(found["baseline: written-out attention"], found["none"])
    torch.testing.assert_close(found["baseline: lgtm, written out"], found["lgtm"])
    assert F.scaled_dot_product_attention is before
    query, key, value = (torch.randn(2, 3, count, 8) for count in (5, 7, 7))
    masks = (None, torch.rand(2, 1, 5, 7) > 0.3, torch.randn(2, 1, 1, 7))
    for mask in masks:
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.3)
        with written_out_attention():
            torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, mask, scale=0.3), expected)
    with written_out_attention(), pytest.raises(SettingError, match="no causal masks"):
        F.scaled_dot_product_attention(query, query, query, is_causal=True)


def test_compiled_code_of_written_out_attention_holds_the_operator(block, tokens):
    """Inductor would make fused attention of a product, a softmax and a product."""
    seen = []

    def backend(graph, inputs):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph

    torch.compiler.reset()
    with torch.no_grad(), written_out_attention():
        torch.compile(lambda: block(tokens), backend=backend, fullgraph=True)()
    torch.compiler.reset()
    (graph,) = seen
    assert any("written_out_attention" in name for name in graph)
    assert not any("scaled_dot_product" in name for name in graph)


def test_tomesd_merges_as_many_tokens(block, tokens):
    pytest.importorskip("tomesd")
    cases = attention_cases(block, tokens, GRID, "none", REDUCERS, ["peers"])
    assert names(cases, "peer") == ["peer: tomesd"]
    found = outputs(cases)
    assert found["peer: tomesd"].shape == tokens.shape
    assert not torch.allclose(found["peer: tomesd"], found["none"])
    assert found["tomesd: merge"].shape[1] == 32
    assert found["tomesd: plan, merge, unmerge"].shape == tokens.shape


def test_cases_of_one_name_are_timed_as_often_and_a_failure_leaves_the_others():
    def building(run):
        return lambda: nullcontext(Pass.whole(run))

    def full():
        raise torch.OutOfMemoryError

    cases = [Case(name, "method", building(run)) for name, run in (("a", lambda: torch.ones(1)), ("b", full))]
    rows = time_cases(cases, Timing(CPU, ("eager",), "eager", 3, 0))["eager"]
    assert [(len(row.times), row.failure) for row in rows] == [(3, None), (0, "does not fit")]


@pytest.fixture
def at(tiny_unet_config):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel.from_config(tiny_unet_config).eval()
    counter = FlopCounter(network)
    inputs = counter.adapter.inputs(network, 2, counter.shape, CPU, torch.float32)
    return NetworkAt(network, inputs, counter, Placement(), 0)


def test_a_network_stays_as_it_was_while_all_its_cases_exist(at):
    counts = {name: at.counter.count(one, at.placement) for name, one in REDUCERS.items()}
    cases = network_cases(at, "none", REDUCERS, counts, ALL)
    assert names(cases, "method") == ["iekvd", "lgtm"]
    assert names(cases, "floor") == ["floor: sliced 50%", "floor: no self-attention"]
    found = {name: output[0] for name, output in outputs(cases).items()}
    with torch.no_grad():
        plain = at.network(**at.inputs)[0]
        with attach(at.network, LGTM(0.5)):
            reduced = at.network(**at.inputs)[0]
    torch.testing.assert_close(found["none"], plain)
    torch.testing.assert_close(found["lgtm"], reduced)
    torch.testing.assert_close(found["baseline: written-out attention"], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["baseline: lgtm, written out"], reduced, rtol=1e-4, atol=1e-5)
    others = [name for name in found if name not in ("none", "baseline: written-out attention")]
    assert not any(torch.allclose(found[name], plain, rtol=1e-4, atol=1e-5) for name in others)


def test_a_network_without_self_attention_returns_the_inputs_of_its_sites(at):
    with torch.no_grad(), at.without_attention() as one:
        found = one.run()[0]
    handles = [site.module("self").register_forward_hook(lambda module, args, output: args[0]) for site in at.sites]
    with torch.no_grad():
        torch.testing.assert_close(found, at.network(**at.inputs)[0])
    for handle in handles:
        handle.remove()


def test_tomesd_patches_a_copy_up_to_the_grid_of_the_sites(at):
    tomesd = pytest.importorskip("tomesd")
    counts = {"lgtm": at.counter.count(LGTM(0.5), at.placement)}
    cases = network_cases(at, "none", {"lgtm": LGTM(0.5)}, counts, ["peers"])
    (case,) = (case for case in cases if case.kind == "peer")
    found = outputs([case])["peer: tomesd"][0]
    with torch.no_grad():
        plain = at.network(**at.inputs)[0]
        tomesd.apply_patch(at.network, ratio=0.5, use_rand=False)
        others = {name: value for name, value in at.inputs.items() if name != "sample"}
        expected = at.network(at.inputs["sample"], **others)[0]
        tomesd.remove_patch(at.network)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain)


def test_tomesd_is_left_out_where_it_would_work_in_other_blocks(at):
    pytest.importorskip("tomesd")
    counts = {"lgtm": at.counter.count(LGTM(0.5), at.placement)}
    encoder = replace(at, placement=Placement(names="down_blocks.*"))
    assert names(network_cases(encoder, "none", {"lgtm": LGTM(0.5)}, counts, ["peers"]), "peer") == []


def test_without_tomesd_one_line_says_how_to_install_it(block, tokens, monkeypatch):
    for module in ("peers", "latency"):
        monkeypatch.setattr(f"bigain.benchmark.{module}.has_tomesd", lambda: False)
    assert names(attention_cases(block, tokens, GRID, "none", REDUCERS, ALL), "peer") == []
    sizes = {"self_attention": True, "shape": [4, 4], "channels": 8, "heads": 2}
    settings = LatencySettings(reducer=LGTM(0.5), device="cpu", modes=["eager"], repeats=1, warmup=0, **sizes)
    assert any("pip install 'bigain[bench]'" in note for note in notes_below(measure_latency(settings)))


def test_an_error_of_another_package_is_a_row():
    def failing():
        raise ValueError("no such size")

    cases = [
        Case(name, kind, lambda run=run: nullcontext(Pass.whole(run)))
        for name, kind, run in (("none", "none", lambda: torch.ones(1)), ("theirs", "peer", failing))
    ]
    none, theirs = time_cases(cases, Timing(CPU, ("eager",), "eager", 2, 0))["eager"]
    assert (len(none.times), theirs.failure) == (2, "fails: ValueError: no such size.")
