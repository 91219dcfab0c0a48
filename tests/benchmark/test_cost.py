import pytest
import torch

from bigain.adapters.placement import Placement
from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark.cost import TimedRow, count_operations, time_rows, timing_scores
from bigain.reducers.base import Identity
from bigain.reducers.lgtm import LGTM
from bigain.reducers.todo import ToDo
from bigain.reducers.tome import ToMe
from bigain.tasks.method import Reduced

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


def row(reducer, placement=Placement()):
    return TimedRow(Reduced(reducer), placement, 0)


def count_flops(backbone, reducer, placement=Placement(), sharing=1):
    return count_operations(backbone, row(reducer, placement), backbone.embed(range(10)), sharing)


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


def test_rows_are_timed_in_turn_on_one_set_of_weights(tiny_backbone):
    """Each pass really runs its own row, in the order of rounds, and no weight is copied."""
    order, weights = [], set()
    forward = type(tiny_backbone.network).forward

    def spy(network, *args, **kwargs):
        order.append(len(network.transformer_blocks[0].attn1._forward_pre_hooks))
        weights.add(network.proj_out_2.weight.data_ptr())
        return forward(network, *args, **kwargs)

    rows = {"none": row(Identity()), "lgtm": row(LGTM(0.5)), "kv": row(ToDo(2))}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny_backbone.network), "forward", spy)
        found = time_rows(tiny_backbone, rows, tiny_backbone.embed(range(10)), pass_rows=4, repeats=3)
    assert {name: len(times) for name, times in found.items()} == {"none": 3, "lgtm": 3, "kv": 3}
    assert len(order) == 3 * (3 + 1)
    assert order == order[:3] * 4
    assert weights == {tiny_backbone.network.proj_out_2.weight.data_ptr()}
    assert not tiny_backbone.network.transformer_blocks[0].attn1._forward_pre_hooks


@pytest.mark.slow
def test_compiled_rows_run_code_of_their_own(tiny_backbone, monkeypatch):
    """Dynamo keeps code with a function and does not look at hooks: a row's code must not serve another."""
    limit, condition = torch._dynamo.config.recompile_limit, tiny_backbone.embed([1])
    outputs = {}
    rows = {
        "none": row(Identity()),
        "lgtm": row(LGTM(0.5), Placement(layers=4)),
        "kv": row(ToDo(2), Placement(layers=4)),
    }
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    with monkeypatch.context() as patched:
        # The default backend would write and compile C++, which takes a minute.
        compile_with = torch.compile
        patched.setattr(torch, "compile", lambda one, **more: compile_with(one, **{**more, "backend": backend}))
        patched.setattr(
            "bigain.benchmark.cost.interleaved",
            lambda passes, *_, **__: outputs.update({name: run().clone() for name, run in passes.items()}) or {},
        )
        time_rows(tiny_backbone, rows, condition, pass_rows=2, repeats=1, compile=True)
    assert len(graphs) == len(rows)
    noisy = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 999])
    for name, one in rows.items():
        with torch.no_grad(), one.method.applied(tiny_backbone, one.placement, 0) as applied:
            torch.testing.assert_close(
                outputs[name], applied.backbone.predict(noisy, t, condition.take([0, 0])), rtol=1e-3, atol=1e-4
            )
    assert not torch.allclose(outputs["none"], outputs["lgtm"], rtol=1e-2)
    assert torch._dynamo.config.recompile_limit == limit


def test_times_are_scored_as_ratios_and_milliseconds_only_where_there_are_enough():
    (alone,) = timing_scores([0.2, 0.1, 0.3], [0.1, 0.1, 0.1], 10)
    assert (alone.name, alone.value, alone.low) == ("time", pytest.approx(2.0), None)
    times = [0.2, 0.22, 0.18, 0.2, 0.21, 0.19]
    ratio, ms = timing_scores(times, [0.1] * 6, 10)
    assert (ratio.low, ratio.high) == (pytest.approx(1.8), pytest.approx(2.2))
    assert ms.value == pytest.approx(20.0)
    assert [score.name for score in timing_scores(times, None, 10)] == ["ms"]
