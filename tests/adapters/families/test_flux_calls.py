"""FLUX.1 and Chroma: what a call tells of the grid, and all that a call can come by."""

import copy
import inspect
from functools import partial

import pytest
import torch
from torch import nn

import bigain
from bigain.adapters.families import _positions as positions
from bigain.errors import SettingError, SiteError
from bigain.testing import Specimen, parametrize_with_checks
from tests.comparing import assert_same, assert_same_gradients

SIZES = {"in_channels": 3, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 12}


def tiny(kind="FluxTransformer2DModel", **changes):
    """One double block, then two single ones."""
    import diffusers

    blocks = {"num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (2, 2, 4)}
    own = {"pooled_projection_dim": 10}
    if kind.startswith("Chroma"):
        own = {"approximator_num_channels": 16, "approximator_hidden_dim": 16, "approximator_layers": 1}
    torch.manual_seed(0)
    model = getattr(diffusers, kind)(**SIZES | blocks | own | changes)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.3)
    return model.eval()


def places(rows, columns, image=0):
    lines, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack([torch.full_like(lines, image), lines, across], dim=-1).flatten(0, 1).float()


def inputs(model, ids, rows=2):
    noise = torch.Generator().manual_seed(1)
    made = {
        "hidden_states": torch.randn(rows, len(ids), 3, generator=noise),
        "encoder_hidden_states": torch.randn(rows, 5, 12, generator=noise),
        "pooled_projections": torch.randn(rows, 10, generator=noise),
        "timestep": torch.tensor([0.25, 0.75, 1.0])[:rows],
        "img_ids": ids,
        "txt_ids": torch.zeros(5, 3),
    }
    taken = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in made.items() if name in taken}


@pytest.fixture
def flux():
    return tiny()


def run(model, batch):
    with torch.no_grad():
        return model(**batch, return_dict=False)[0]


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (1, 8), (8, 1)], ids=str)
@pytest.mark.parametrize("old", [False, True], ids=["[N, 3]", "[1, N, 3]"])
def test_the_grid_is_read_from_positions(flux, recording, shape, old):
    batch = inputs(flux, places(*shape))
    batch["img_ids"] = batch["img_ids"][None] if old else batch["img_ids"]
    with bigain.attach(flux, recording, layers=3):
        run(flux, batch)
    assert [call.grid for call in recording.calls] == [bigain.Grid(shape)] * 3


def test_timesteps_run_to_1000(flux, recording):
    with bigain.attach(flux, recording, layers=1):
        run(flux, inputs(flux, places(2, 4)))
    assert recording.calls[0].timestep.tolist() == [250, 750]


def test_positions_are_read_once_a_tensor_and_again_once_written_to(flux, recording, monkeypatch):
    read, layout_of = [], positions.layout_of
    monkeypatch.setattr(positions, "layout_of", lambda ids: read.append(len(ids)) or layout_of(ids))
    batch = inputs(flux, places(4, 6))
    with bigain.attach(flux, recording, layers=1):
        run(flux, batch)
        run(flux, batch)
        assert read == [24]
        batch["img_ids"].copy_(places(6, 4))
        run(flux, batch)
        run(flux, batch | {"img_ids": places(3, 8)})
    assert [call.grid.shape for call in recording.calls] == [(4, 6), (4, 6), (6, 4), (3, 8)]
    assert read == [24] * 3


def test_positions_made_in_inference_mode_are_read(flux, recording):
    with bigain.attach(flux, recording, layers=1), torch.inference_mode():
        flux(**inputs(flux, places(4, 6)))
    assert recording.calls[0].grid.shape == (4, 6)


@pytest.mark.parametrize("ids", [torch.zeros(24, 3), places(4, 6)[torch.randperm(24)]], ids=["zeros", "shuffled"])
def test_positions_that_tell_nothing_leave_the_shape_attached_for(flux, recording, ids):
    with bigain.attach(flux, recording, layers=1, shape=(3, 8)):
        run(flux, inputs(flux, ids))
    assert recording.calls[0].grid.shape == (3, 8)


@pytest.mark.parametrize("count", [24, 36])
def test_without_that_another_number_of_tokens_is_an_error(flux, recording, count):
    """Also a square number: every image of 16:9 has one."""
    told = pytest.raises(SettingError, match=rf"given {count} tokens.*attached for is 64 x 64.*shape=\(36, 64\)")
    with bigain.attach(flux, recording, layers=1), told:
        run(flux, inputs(flux, torch.zeros(count, 3)))


@pytest.mark.parametrize("kind", ["FluxTransformer2DModel", "ChromaTransformer2DModel"])
def test_of_several_images_the_first_is_reduced(recording, kind):
    model, lengths = tiny(kind), []
    batch = inputs(model, torch.cat([places(4, 6), places(2, 5, image=1)]))
    plain = run(model, batch)
    with bigain.attach(model, "identity", layers=3):
        assert_same(run(model, batch), plain)
    with bigain.attach(model, "lgtm", ratio=0.5, layers=3):
        for block in [*model.transformer_blocks, *model.single_transformer_blocks]:
            block.attn.to_q.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
        run(model, batch)
    assert lengths == [12 + 10, 5 + 12 + 10, 5 + 12 + 10]
    with bigain.attach(model, recording, layers=3):
        run(model, batch)
    assert [call.grid for call in recording.calls] == [bigain.Grid((4, 6), suffix=10)] * 3


def test_the_mlp_beside_the_attention_shrinks_in_single_blocks_only(flux):
    lengths = {}
    for name, module in flux.named_modules():
        if name.endswith(("proj_mlp", "ff_context", "ff")):
            module.register_forward_hook(lambda _, args, out, name=name: lengths.update({name: out.shape[1]}))
    with bigain.attach(flux, "lgtm", ratio=0.5, layers=3) as report:
        run(flux, inputs(flux, places(4, 6)))
    assert lengths == {
        "transformer_blocks.0.ff": 24,
        "transformer_blocks.0.ff_context": 5,
        "single_transformer_blocks.0.proj_mlp": 5 + 12,
        "single_transformer_blocks.1.proj_mlp": 5 + 12,
    }
    assert [site.name for site in report.sites][1:] == [f"single_transformer_blocks.{index}.attn" for index in (0, 1)]


@pytest.mark.parametrize("kind", ["FluxTransformer2DModel", "ChromaTransformer2DModel"])
def test_plans_can_be_made_from_the_blocks_input(recording, kind):
    model, given = tiny(kind), []
    batch = inputs(model, places(4, 6))
    block = model.single_transformer_blocks[1]
    block.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["hidden_states"]), with_kwargs=True)
    with bigain.attach(model, recording, placement={"layers": [2], "plan_from": "block"}):
        run(model, batch)
    assert torch.equal(recording.calls[0].tokens, given[0][:, -24:])


def test_rows_that_share_follow_the_mean_of_what_attention_is_given(flux, recording):
    normed = []
    flux.single_transformer_blocks[0].norm.register_forward_hook(lambda _, args, out: normed.append(out[0][:, 5:]))
    with bigain.attach(flux, recording, layers=[1]) as report, report.shared(2):
        batch = {
            k: v.repeat_interleave(2, 0) if k not in ("img_ids", "txt_ids") else v
            for k, v in inputs(flux, places(4, 6)).items()
        }
        batch["encoder_hidden_states"][1::2] *= -1
        run(flux, batch)
    torch.testing.assert_close(recording.calls[0].tokens, normed[0].unflatten(0, (2, 2)).mean(dim=1))


def test_a_block_run_again_during_backward_follows_its_plan_at_a_size_not_attached_for():
    gradients = []
    for kind in ("FluxTransformer2DModel", "ChromaTransformer2DModel"):
        for checkpointed in (False, True):
            model = tiny(kind).train()
            (model.enable_gradient_checkpointing if checkpointed else model.disable_gradient_checkpointing)()
            with bigain.attach(model, "tome", ratio=0.5, layers=3):
                loss = model(**inputs(model, places(4, 6)), return_dict=False)[0].square().mean()
                loss.backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        assert_same_gradients(*gradients)
        gradients.clear()


def test_a_backend_that_is_set_stays_set_and_is_used(flux, monkeypatch):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    name, lengths = AttentionBackendName._NATIVE_MATH, []
    native = _AttentionBackendRegistry._backends[name]

    def counted(query, *args, **kwargs):
        lengths.append(query.shape[1])
        return native(query, *args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, counted)
    flux.set_attention_backend("_native_math")
    with bigain.attach(flux, "lgtm", ratio=0.5, layers=3):
        run(flux, inputs(flux, places(4, 6)))
    assert lengths == [5 + 12] * 3
    assert all(processor._attention_backend == name for processor in flux.attn_processors.values())


def test_a_projection_replaced_after_attaching_is_an_error(flux):
    with bigain.attach(flux, "lgtm", ratio=0.5, layers=3):
        flux.single_transformer_blocks[0].proj_out = copy.deepcopy(flux.single_transformer_blocks[0].proj_out)
        with pytest.raises(SiteError, match=r"single_transformer_blocks\.0\.proj_out was replaced"):
            run(flux, inputs(flux, places(4, 6)))


def test_by_default_all_single_blocks_but_the_first_5_of_38_are_taken():
    with bigain.attach(tiny(num_layers=2, num_single_layers=8), "identity") as report:
        names = [site.name for site in report.sites]
    assert names == [f"single_transformer_blocks.{index}.attn" for index in range(1, 8)]
    with bigain.attach(tiny(num_layers=5, num_single_layers=0), "identity") as report:
        assert [site.name for site in report.sites] == [f"transformer_blocks.{index}.attn" for index in (0, 1)]


@pytest.mark.parametrize("shape", [(64,), (0, 64), (64.0, 64)], ids=str)
def test_a_shape_that_is_none_is_refused(flux, shape):
    with pytest.raises(SettingError, match="tokens along height and width"):
        bigain.attach(flux, "lgtm", ratio=0.5, adapter={"name": "flux", "shape": shape})


CONTROLNETS = [{}, {"num_mode": 3}, {"conditioning_embedding_channels": 3, "num_mode": 2}]


@pytest.mark.parametrize("changes", CONTROLNETS, ids=["plain", "union", "with an encoder"])
def test_a_controlnets_blocks_are_reduced(recording, changes):
    from bigain.adapters.families.flux import FluxAdapter

    net = tiny("FluxControlNetModel", **changes)
    batch = FluxAdapter().inputs(net, 2, (4, 6), torch.device("cpu"), torch.float32)
    plain = run(net, batch)
    with bigain.attach(net, recording, layers=3):
        changed = run(net, batch)
    assert [call.grid.shape for call in recording.calls] == [(4, 6)] * 3
    assert not torch.allclose(changed[0], plain[0])
    assert_same(run(net, batch)[0], plain[0])


def test_positional_orders_are_those_of_the_library():
    import diffusers

    from bigain.adapters.families.flux import _ORDERS

    for name, order in _ORDERS.items():
        parameters = list(inspect.signature(getattr(diffusers, name).forward).parameters)[1:]
        assert tuple(parameters[: len(order)]) == order


REDUCERS = [
    ({"name": "cached", "reducer": {"name": "lgtm", "ratio": 0.5}, "per": "forward"}, "aot_eager"),  # lgtm, too
    ({"name": "abm", "ratio": 0.5}, "eager"),
    ({"name": "iekvd", "factor": 2}, "eager"),
]


@pytest.mark.parametrize(("reducer", "backend"), REDUCERS, ids=["cached", "abm", "iekvd"])
def test_it_compiles_without_a_graph_break(reducer, backend):
    model = tiny(num_single_layers=1, guidance_embeds=True)
    batch = inputs(model, places(4, 6)) | {"guidance": torch.tensor([3.5, 3.5])}
    with bigain.attach(model, reducer, layers=2, shape=(4, 6)):
        expected = run(model, batch)
        torch.testing.assert_close(run(torch.compile(model, fullgraph=True, backend=backend), batch), expected)
    torch.compiler.reset()


def test_a_compiled_pass_takes_the_shape_attached_for():
    model = tiny(num_layers=0, num_single_layers=1)
    with bigain.attach(model, "lgtm", ratio=0.5, layers=1, shape=(3, 8)):
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        batch = inputs(model, places(4, 6))
        torch.testing.assert_close(run(compiled, batch), by_shape(model, batch, places(3, 8)))
        with pytest.raises(Exception, match="nothing in the call tells how they lie"):
            run(compiled, inputs(model, places(2, 5)))
    torch.compiler.reset()


def test_blocks_compiled_one_by_one_follow_the_positions():
    model = tiny(num_single_layers=1)
    with bigain.attach(model, "lgtm", ratio=0.5, layers=2):
        batches = [inputs(model, places(*shape)) for shape in ((4, 6), (6, 4))]
        expected = [run(model, batch) for batch in batches]
        model.compile_repeated_blocks(fullgraph=True, backend="eager")
        torch.testing.assert_close([run(model, batch) for batch in batches], expected)
    torch.compiler.reset()


def by_shape(model, batch, laid):
    """Run eagerly, with the grid that other positions would tell, and the positions as they are."""
    ids = batch["img_ids"].clone()
    told = positions.layout_of(laid.double())
    positions._READ[ids] = (ids._version, told)
    return run(model, batch | {"img_ids": ids})


def test_a_pipeline_makes_finite_images():
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(3, 3, block_out_channels=(4,), latent_channels=3, norm_num_groups=1, shift_factor=0.1)
    none = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    transformer = tiny(in_channels=12, guidance_embeds=True)
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, transformer=transformer, **none)
    pipe.set_progress_bar_config(disable=True)
    given = {"prompt_embeds": torch.randn(2, 5, 12), "pooled_prompt_embeds": torch.randn(2, 10)}

    def images():
        noise = torch.Generator().manual_seed(5)
        return pipe(**given, height=8, width=12, num_inference_steps=2, generator=noise, output_type="pt").images

    plain = images()
    with bigain.attach(pipe, "lgtm", ratio=0.5, layers=3):
        merged = images()
    assert merged.shape == (2, 3, 8, 12)
    assert torch.isfinite(merged).all()
    assert not torch.allclose(merged, plain)
    assert_same(images(), plain)


@parametrize_with_checks(
    [
        Specimen(partial(tiny, kind, num_single_layers=1), {"name": "flux", "shape": [4, 6]}, kind)
        for kind in ("FluxTransformer2DModel", "ChromaTransformer2DModel")
    ]
)
def test_conformance(subject, check):
    check(subject)
