"""Training with merged tokens, and what else is done with a model besides calling it."""

import pytest
import torch

import bigain
from bigain.errors import SiteError

TOME = {"class_path": "bigain.reducers.tome_vit.ToMeViT"}


def gradients(model, output_of, batches):
    model.zero_grad(set_to_none=True)
    sum(output_of(model, x).pow(2).sum() for x in batches).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def checkpoint(model, how=True):
    if hasattr(model, "set_grad_checkpointing"):
        model.set_grad_checkpointing(bool(how))
    elif how:
        model.activation_checkpointing_enable(how if isinstance(how, dict) else {"use_reentrant": False})
    else:
        model.activation_checkpointing_disable()


@pytest.mark.parametrize(
    "form", ["mean", "rope_each_head", "ViTForImageClassification", "SiglipVisionModel", "Dinov2ForImageClassification"]
)
@pytest.mark.parametrize("source", ["keys", "block"])
def test_gradients_reach_everything_also_with_checkpointing(tiny, images, output_of, form, source):
    model, batches = tiny(form).train(), [images(), images(2, seed=2)]
    plain = gradients(model, output_of, batches)
    where = {"progressive": [4, 3, 2], "plan_from": source}
    with bigain.attach(model, TOME, placement=where):
        expected = gradients(model, output_of, batches)
        checkpoint(model)
        found = gradients(model, output_of, batches)
    checkpoint(model, how=False)
    assert {name for name, value in plain.items() if value.any()} == {n for n, v in expected.items() if v.any()}
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-7)


def test_timm_may_checkpoint_in_the_reentrant_way(tiny, images, output_of):
    from timm.layers import set_reentrant_ckpt

    model, x = tiny("mean").train(), images().requires_grad_()
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        expected = gradients(model, output_of, [x])
        checkpoint(model)
        set_reentrant_ckpt(True)
        try:
            found = gradients(model, output_of, [x])
        finally:
            set_reentrant_ckpt(False)
        assert set(found) == set(expected)
        assert all(torch.allclose(found[name], value, atol=1e-9) for name, value in expected.items())
        with pytest.raises(SiteError, match="asked to pool tokens by themselves"):  # backward left nothing behind
            model.forward_head(torch.zeros(3, 13, 32).double())


def test_checkpointing_that_loses_gradients_is_refused(tiny, images, output_of):
    model = tiny("ViTForImageClassification").train()
    checkpoint(model, {"use_reentrant": True})
    refused = pytest.raises(SiteError, match=r"^vit\.layers\.0 is checkpointed in the reentrant way")
    with bigain.attach(model, TOME, placement={"progressive": 3}), refused:
        output_of(model, images().requires_grad_())


@torch.no_grad()
def test_dropout_behind_the_mlp_drops_what_it_gives_for_merged_tokens(tiny, images):
    model, seen = tiny("ViTForImageClassification").train(), []
    layer = model.vit.layers[0]
    layer.dropout.p = 1.0  # nothing is left of either branch, so that the block only merges
    layer.layernorm_before.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with bigain.attach(model, TOME, placement={"progressive": 8, "layers": 1}):
        layer.layernorm_after.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
        model(images())
    whole, short, output = seen
    assert (whole.shape[1], short.shape[1]) == (17, 9)
    torch.testing.assert_close(output, short)


@torch.no_grad()
def test_features_may_be_pooled_by_hand_right_after_they_are_made(tiny, images):
    for form in ("mean", "mean_and_max", "attention_pool", "eva"):
        model, x = tiny(form), images()
        with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
            expected = model(x)
            features = model.forward_features(x)
            torch.testing.assert_close(model.forward_head(features), expected)
            with pytest.raises(SiteError, match=r"^3 rows of 5 tokens came where the blocks had given 3 of "):
                model.forward_head(features[:, :5])
            model(x)
            with pytest.raises(SiteError, match=r"^\w+ was asked to pool tokens by themselves, and how many each of"):
                model.forward_head(features)


@torch.no_grad()
def test_maps_of_the_image_are_refused(tiny, images):
    model, x = tiny(), images()
    with bigain.attach(model, TOME, placement={"progressive": 4}):
        for ask in (model.forward_intermediates, model.get_intermediate_layers):
            with pytest.raises(SiteError, match=r"^VisionTransformer\.forward_intermediates lays tokens out on the im"):
                ask(x)
    assert model.forward_intermediates(x, intermediates_only=True)[0].shape == (3, 32, 4, 4)
