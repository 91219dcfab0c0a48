"""Plans recorded while passes make them."""

import gc
import weakref

import pytest
import torch

import bigain
from bigain.adapters.find import match
from bigain.errors import SiteError
from bigain.reducers.base import Context
from tests.comparing import assert_same


def tiny_flux():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(2, 2, 4),
    )


def tiny_sd3():
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    return SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
    )


def tiny_vit():
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=16, depth=3, num_heads=2, num_classes=5)


MODELS = {"flux": (tiny_flux, (8, 8)), "sd3": (tiny_sd3, (8, 8)), "vit": (tiny_vit, (4, 4))}


def inputs_of(model, shape, rows=2):
    _, _, adapter = match(model)
    torch.manual_seed(1)
    return adapter.inputs(model, rows, shape, torch.device("cpu"), next(model.parameters()).dtype)


@torch.no_grad()
@pytest.mark.parametrize("source", ["block", "part"])
@pytest.mark.parametrize("family", [*MODELS, "dit", "unet"])
def test_a_record_has_what_a_plan_was_made_from(family, source, tiny_dit, tiny_unet):
    make, shape = (MODELS | {"dit": (tiny_dit, (8, 8)), "unet": (tiny_unet, (8, 8))})[family]
    model = make().eval()
    reducer = bigain.build_reducer("lgtm", ratio=0.5)
    batch = inputs_of(model, shape)
    where = {"plan_from": source, "parts": ["self", "mlp"] if family != "flux" else ["self"]}
    with bigain.attach(model, reducer, placement=where, shape=shape) as report:
        model(**batch)
        with report.recording() as records:
            model(**batch)
        model(**batch)
    blocks = {record.block for record in records}
    assert len(records) == len(blocks) == len({record.layer for record in records}) > 0
    for record in records:
        assert record.part == "self"
        assert record.tokens.shape[:2] == (2, record.grid.tokens)
        again = reducer.plan(record.tokens, record.grid, Context(record.timestep, record.layer))
        assert torch.equal(again.places(), record.plan.places())


@torch.no_grad()
def test_nothing_is_planned_twice_and_cached_plans_are_recorded_for_each_block(dit, batch, recording):
    with bigain.attach(dit, recording, layers=3) as report, report.recording() as records:
        dit(**batch)
    assert len(recording.calls) == len(records) == 3
    with (
        bigain.attach(dit, "cached", reducer={"name": "lgtm", "ratio": 0.5}, layers=3) as report,
        report.recording() as records,
    ):
        dit(**batch)
    assert [record.layer for record in records] == [0, 1, 2]
    assert torch.equal(records[0].plan.places(), records[2].plan.places())


@torch.no_grad()
def test_rows_that_share_a_plan_are_recorded_as_their_mean(dit, batch):
    doubled = {name: given.repeat_interleave(2, 0) for name, given in batch.items() if isinstance(given, torch.Tensor)}
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=1) as report, report.shared(2), report.recording() as records:
        dit(**doubled)
    (record,) = records
    assert record.tokens.shape[0] == record.plan.sizes.shape[0] == len(doubled["hidden_states"]) // 2


@torch.no_grad()
def test_progressive_blocks_record_the_tokens_that_are_left():
    model = tiny_vit().eval()
    with bigain.attach(model, "tome_vit", placement={"progressive": 2}) as report, report.recording() as records:
        model(torch.randn(2, 3, 64, 64))
    assert [record.grid.tokens for record in records] == [17, 15, 13]
    assert [record.plan.sizes.shape[1] for record in records] == [15, 13, 11]


@torch.no_grad()
def test_nothing_is_kept_outside_of_recording(dit, batch):
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2) as report:
        with report.recording() as records:
            dit(**batch)
        count, first = len(records), weakref.ref(records[0].tokens)
        dit(**batch)
        assert len(records) == count
        del records
        gc.collect()
        assert first() is None
    with pytest.raises(SiteError, match="The reducer is detached"), report.recording():
        pass


@torch.no_grad()
def test_a_compiled_model_is_recorded_or_refused_in_words(dit, batch):
    torch._dynamo.reset()
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2) as report:
        whole = torch.compile(dit, backend="eager", fullgraph=True)
        expected = whole(**batch).sample
        refused = pytest.raises((SiteError, torch._dynamo.exc.Unsupported), match=r"cannot record under torch\.compile")
        with report.recording(), refused:
            whole(**batch)
        assert_same(whole(**batch).sample, expected)
        torch._dynamo.reset()
        pieces = torch.compile(dit, backend="eager")
        pieces(**batch)
        with report.recording() as records:  # graphs may break: the hooks run as they are
            pieces(**batch)
        assert [record.layer for record in records] == [0, 1]
        assert all(record.tokens.shape == (len(batch["hidden_states"]), 64, 16) for record in records)
