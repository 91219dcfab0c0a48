"""Offloading and casting wrap the forward of modules; so far as it works on the CPU. The rest is in test_gpu.py."""

import pytest
import torch

import bigain
from tests.comparing import assert_same

PARTS = ("self", "cross", "mlp")
CPU = torch.device("cpu")


def differ(found, other):
    assert found.isfinite().all()
    assert (found - other).abs().max() > 1e-4


def model_offload(unet):
    import accelerate

    accelerate.cpu_offload_with_hook(unet, execution_device=CPU)


def sequential_offload(unet):
    import accelerate

    accelerate.cpu_offload(unet, execution_device=CPU)


def hook_on_every_attention(unet):
    from accelerate.hooks import ModelHook, add_hook_to_module

    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2", "ff", "transformer_blocks.0")):
            add_hook_to_module(module, ModelHook(), append=True)


def group_offload(kind):
    def offload(unet):
        groups = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        unet.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type=kind, **groups)

    return offload


WAYS = {
    "model": model_offload,
    "sequential": sequential_offload,
    "hooks": hook_on_every_attention,
    "groups of blocks": group_offload("block_level"),
    "groups of leaves": group_offload("leaf_level"),
}


@pytest.mark.parametrize("spec", [{"name": "lgtm", "ratio": 0.5}, {"name": "todo", "factor": 2}], ids=str)
@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@torch.no_grad()
def test_offloading_before_or_after_attaching_changes_no_value(tiny_unet, batch, way, order, spec):
    from accelerate.hooks import remove_hook_from_module

    unet, parts = tiny_unet(), PARTS if spec["name"] == "lgtm" else PARTS[:1]
    plain = unet(**batch).sample
    with bigain.attach(unet, spec, placement={"parts": parts}):
        expected = unet(**batch).sample
    differ(expected, plain)
    if order == "before":
        way(unet)
    report = bigain.attach(unet, spec, placement={"parts": parts})
    if order == "after":
        way(unet)
    assert_same(unet(**batch).sample, expected)
    report.detach()
    assert_same(unet(**batch).sample, plain)
    remove_hook_from_module(unet, recurse=True)
    assert_same(unet(**batch).sample, plain)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_reduction_saves_is_counted_whatever_wraps_the_network(tiny_unet, way):
    counted = []
    for wrap in (lambda unet: None, way):
        unet = tiny_unet()
        wrap(unet)
        with bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": PARTS}) as report:
            counted.append(report.flops())
    assert counted[1] == counted[0]


@torch.no_grad()
def test_offloading_taken_away_while_attached_leaves_the_reducer(tiny_unet, batch):
    from accelerate.hooks import remove_hook_from_module

    unet = tiny_unet()
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": PARTS}):
        expected = unet(**batch).sample
    for way in (model_offload, sequential_offload, hook_on_every_attention):
        way(unet)
        with bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": PARTS}):
            remove_hook_from_module(unet, recurse=True)
            assert_same(unet(**batch).sample, expected)


@torch.no_grad()
def test_a_pipeline_offloaded_in_groups_makes_the_same_images(sd, draw):
    with bigain.attach(sd, "lgtm", ratio=0.5):
        expected = draw(sd)
        sd.enable_group_offload(onload_device=CPU, offload_type="leaf_level")
        assert_same(draw(sd), expected)


@pytest.mark.parametrize("order", ["before", "after"])
@torch.no_grad()
def test_weights_stored_in_eight_bits_are_reduced_in_the_computing_type(tiny_unet, batch, order):
    unet = tiny_unet()
    batch = {key: value.float() if value.is_floating_point() else value for key, value in batch.items()}

    def cast():
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    unet.float()
    if order == "before":
        cast()
        plain = unet(**batch).sample
    with bigain.attach(unet, "lgtm", ratio=0.5, placement={"parts": PARTS}):
        if order == "after":
            cast()
        found = unet(**batch).sample
    plain = unet(**batch).sample
    assert unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    assert found.dtype == torch.float32
    differ(found, plain)
