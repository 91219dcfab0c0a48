"""transformers' image encoders with every token given back: by hand, and whatever backend is set."""

import math
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import bigain
from bigain.errors import SettingError, SiteError
from bigain.testing import parametrize_with_checks
from tests.comparing import assert_same

REDUCERS = {
    "merge": {"name": "tome", "ratio": 0.4, "randomize": False},
    "kv": {"name": "kv_merge", "reducer": {"name": "lgtm", "ratio": 0.4}},
    "window": {"name": "pooling", "factor": 2},
}
ROUNDED = {"atol": 1e-5, "rtol": 1e-4}
"""Where transformers takes a softmax in float32, whatever the model is in."""

SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
WORDS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
WORDS |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
# Model: its configuration, and where its blocks are: norms, attention, scales, tokens before the grid.
VIT = ("ViTConfig", "layernorm_before", "attention", "layernorm_after", 1)
CLIP = ("CLIPVisionConfig", "layer_norm1", "self_attn", "layer_norm2", 1)
SIGLIP = ("SiglipVisionConfig", "layer_norm1", "self_attn", "layer_norm2", 0)
DINO = ("Dinov2Config", "norm1", "attention", "norm2", 1)
REGISTERS = ("Dinov2WithRegistersConfig", "norm1", "attention", "norm2", 5)
MODELS = {
    "ViTModel": ("layers", VIT),
    "ViTForImageClassification": ("vit.layers", VIT),
    "CLIPVisionModel": ("encoder.layers", CLIP),
    "CLIPVisionModelWithProjection": ("vision_model.encoder.layers", CLIP),
    "CLIPForImageClassification": ("vision_model.encoder.layers", CLIP),
    "SiglipVisionModel": ("encoder.layers", SIGLIP),
    "SiglipForImageClassification": ("vision_model.encoder.layers", SIGLIP),
    "Dinov2Model": ("encoder.layer", DINO),
    "Dinov2ForImageClassification": ("dinov2.encoder.layer", DINO),
    "Dinov2WithRegistersModel": ("encoder.layer", REGISTERS),
    "Dinov2WithRegistersForImageClassification": ("dinov2_with_registers.encoder.layer", REGISTERS),
}


def noisy(model):
    torch.manual_seed(0)
    for key, parameter in model.named_parameters():
        spread = 0.1 if parameter.ndim == 1 else 0.3
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1 and not key.endswith("bias")), std=spread)
    return model.double().eval()


def tiny(name="ViTForImageClassification", **changes):
    """Make a model of 3 blocks of 2 heads x 16 channels on a 4 x 4 grid, in double precision."""
    import transformers

    kind = MODELS[name][1][0]
    shape = {**SHAPE, **({} if kind.startswith("Dino") else {"intermediate_size": 64}), **changes}
    if name in ("CLIPForImageClassification", "SiglipForImageClassification"):
        whole = getattr(transformers, kind.replace("Vision", ""))
        return noisy(getattr(transformers, name)(whole(vision_config=shape, text_config=WORDS, num_labels=5)))
    return noisy(getattr(transformers, name)(getattr(transformers, kind)(num_labels=5, **shape)))


def images(rows=3, size=(32, 32), seed=1):
    return torch.randn(rows, 3, *size, generator=torch.Generator().manual_seed(seed)).double()


def output_of(model, x, **given):
    found = model(x, **given)
    return next(found[key] for key in ("logits", "image_embeds", "pooler_output", "last_hidden_state") if key in found)


def refusal(model, *given, **settings):
    with pytest.raises((SiteError, SettingError)) as caught:
        bigain.attach(model, *given, **settings)
    return type(caught.value), str(caught.value)


def attention(attn, queries, keys, bias=0):
    """Softmax attention as a textbook has it."""
    given = (attn.q_proj, queries), (attn.k_proj, keys), (attn.v_proj, keys)
    query, key, value = (layer(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for layer, x in given)
    mixed = (query @ key.transpose(-1, -2) / math.sqrt(attn.head_dim) + bias).softmax(-1) @ value
    return (getattr(attn, "o_proj", None) or attn.out_proj)(mixed.transpose(1, 2).flatten(2))


@contextmanager
def by_hand(model, name, reducer, shape=(4, 4), proportional=False, mlp=True):
    """Write the blocks of a model out."""
    path, (_, first, attn, second, prefix) = MODELS[name]
    grid, layers = bigain.Grid(shape, prefix=prefix), model.get_submodule(path)

    def forward(block, x):
        normed = getattr(block, first)(x)
        plan = reducer.plan(normed, grid)
        short, bias = plan.reduce(normed), plan.sizes.double().log()[:, None, None] if proportional else 0
        if plan.kind == "kv":
            mixed = attention(getattr(block, attn), normed, short, bias)
        else:
            mixed = plan.restore(attention(getattr(block, attn), short, short, bias))
        x = x + getattr(block, "layer_scale1", nn.Identity())(mixed)
        normed = getattr(block, second)(x)
        merged = mlp and plan.kind == "merge"
        done = plan.restore(block.mlp(plan.reduce(normed))) if merged else block.mlp(normed)
        return x + getattr(block, "layer_scale2", nn.Identity())(done)

    for layer in layers:
        layer.forward = lambda x, *_, layer=layer, **__: forward(layer, x)
    yield model
    for layer in layers:
        del layer.forward


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_attached_forward_equals_the_one_by_hand(name):
    model, x = tiny(name), images()
    plain = output_of(model, x)
    for spec, given in REDUCERS.items():
        reducer, parts = bigain.build_reducer(given), ("self", "mlp") if spec == "merge" else ("self",)
        for proportional in (False, True):
            with by_hand(model, name, reducer, proportional=proportional):
                expected = output_of(model, x)
            assert not torch.allclose(expected, plain, atol=1e-3)
            with bigain.attach(model, reducer, placement={"parts": parts, "proportional": proportional}):
                torch.testing.assert_close(output_of(model, x), expected, atol=1e-6, rtol=1e-6)
            assert_same(output_of(model, x), plain)


@pytest.mark.parametrize("name", ["ViTModel", "CLIPVisionModel", "SiglipVisionModel", "Dinov2WithRegistersModel"])
@torch.no_grad()
def test_images_of_other_sizes_lie_on_grids_of_their_own(name):
    model, reducer = tiny(name), bigain.build_reducer("lgtm", ratio=0.3)
    more = {} if name.startswith("Dino") else {"interpolate_pos_encoding": True}
    for shape in ((4, 6), (6, 2)):
        x = images(2, (shape[0] * 8, shape[1] * 8))
        with by_hand(model, name, reducer, shape, mlp=False):
            expected = output_of(model, x, **more)
        with bigain.attach(model, reducer) as report:
            torch.testing.assert_close(output_of(model, x, **more), expected, atol=1e-6, rtol=1e-6)
            assert {site.grid.shape for site in report.sites} == {(4, 4)}


@pytest.mark.parametrize("name", MODELS)
def test_class_and_register_tokens_stand_before_the_grid(name):
    prefix = MODELS[name][1][4]
    with bigain.attach(tiny(name), "tome", ratio=0.5) as report:
        assert [(site.grid, site.before, site.after) for site in report.sites] == [
            (bigain.Grid((4, 4), prefix=prefix), 16 + prefix, 8 + prefix)
        ] * 3


@torch.no_grad()
def test_a_backend_that_is_set_stays_set():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen = []

    def noting(module, query, key, value, mask, **given):
        seen.append((query.shape[2], key.shape[2], mask))
        return sdpa_attention_forward(module, query, key, value, mask, **given)

    ALL_ATTENTION_FUNCTIONS.register("noting", noting)
    for name in ("ViTModel", "CLIPVisionModel", "SiglipVisionModel", "Dinov2Model"):
        model, x, cut = tiny(name), images(), 16 + MODELS[name][1][4]
        for spec, lengths in (("merge", (cut - 6, cut - 6)), ("kv", (cut, cut - 6))):
            with bigain.attach(model, REDUCERS[spec]):
                expected = output_of(model, x)
                model.set_attn_implementation("eager")
                torch.testing.assert_close(output_of(model, x), expected, **ROUNDED)
                model.set_attn_implementation("noting")
                seen.clear()
                torch.testing.assert_close(output_of(model, x), expected)
                assert seen == [(*lengths, None)] * 3
                model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_backends_that_cannot_add_to_logits_are_refused_where_keys_are_weighted():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register("quick", lambda *given, **more: None)
    told = (
        "vit.layers.0.attention attends with quick, which cannot add to the logits, as weighting keys by how many "
        'tokens they stand for does: set_attn_implementation("sdpa"), or leave proportional off.'
    )
    model = tiny()
    with bigain.attach(model, REDUCERS["merge"], placement={"proportional": True}):
        model.set_attn_implementation("quick")
        with pytest.raises(SiteError) as caught:
            model(images())
        assert str(caught.value) == told
    for where in ({"proportional": True}, {"progressive": 2}):
        assert refusal(model, "tome", ratio=0.5, cell=2, placement=where) == (SiteError, told)
    bigain.attach(model, "tome", ratio=0.5).detach()


@torch.no_grad()
def test_masks_are_refused_in_the_call():
    model, mask = tiny(), torch.ones(3, 17, dtype=torch.int64)
    mask[:, 9:] = 0
    for spec in REDUCERS.values():
        with bigain.attach(model, spec):
            with pytest.raises(SiteError, match=r"^vit.layers.0.attention was called with attention_mask, which says"):
                model(images(), attention_mask=mask)
            assert model(images()).logits.isfinite().all()


def test_a_model_of_image_and_text_is_attached_to_by_its_image_tower():
    import transformers

    config = transformers.CLIPConfig(vision_config={**SHAPE, "intermediate_size": 64}, text_config=WORDS)
    model, x = noisy(transformers.CLIPModel(config)), images()
    plain = model.get_image_features(x).pooler_output
    with bigain.attach(model, "tome", ratio=0.5) as report:
        assert [site.name for site in report.sites] == [f"encoder.layers.{index}.self_attn" for index in range(3)]
        assert not torch.allclose(model.get_image_features(x).pooler_output, plain, atol=1e-3)
    assert_same(model.get_image_features(x).pooler_output, plain)


@torch.no_grad()
def test_derived_classes_are_served_if_their_attention_is_the_librarys():
    from transformers.models.vit.modeling_vit import ViTAttention

    class Renamed(ViTAttention):
        pass

    class Own(ViTAttention):
        def forward(self, hidden_states, attention_mask=None, **given):
            return super().forward(hidden_states, attention_mask, **given)

    model, x = tiny(), images()
    with bigain.attach(model, REDUCERS["kv"]):
        expected = output_of(model, x)
    for layer in model.vit.layers:
        layer.attention.__class__ = Renamed
    model.set_attn_implementation("eager")
    with bigain.attach(model, REDUCERS["kv"]):
        torch.testing.assert_close(output_of(model, x), expected, **ROUNDED)
    model.vit.layers[1].attention.__class__ = Own
    kind, text = refusal(model, REDUCERS["kv"])
    assert kind is SiteError
    assert "nothing is known of how vit.layers.1.attention, a Own, makes them" in text
    with bigain.attach(model, REDUCERS["merge"]):
        assert output_of(model, x).isfinite().all()


def test_another_version_of_the_library_is_told_apart_in_words():
    model = tiny()
    del model.vit.layers
    kind, text = refusal(model, "tome", ratio=0.5)
    assert kind is SiteError
    assert text.startswith("ViTForImageClassification is not as the adapter for ViT (transformers")
    assert "It was tested with transformers 5.23.0; this is " in text


@torch.no_grad()
def test_hidden_states_keep_their_lengths():
    model, x = tiny(), images()
    for spec in REDUCERS.values():
        with bigain.attach(model, spec):
            assert [state.shape for state in model(x, output_hidden_states=True).hidden_states] == [(3, 17, 32)] * 4


def gradients(model, batches):
    model.zero_grad(set_to_none=True)
    sum(output_of(model, x).pow(2).sum() for x in batches).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["ViTForImageClassification", "CLIPVisionModel", "Dinov2ForImageClassification"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_gradients_there_are_without(name, reentrant):
    # transformers checkpoints the inside of a block: of its hooks, those of the block do not run again.
    model, batches = tiny(name).train(), [images().requires_grad_(), images(2, seed=2).requires_grad_()]
    parts = {"tome": ("self", "mlp"), "kv_merge": ("self",)}
    for spec in ({"name": "tome", "ratio": 0.5}, {"name": "kv_merge", "reducer": {"name": "tome", "ratio": 0.4}}):
        for source in ("part", "block"):
            where = {"parts": parts[spec["name"]], "plan_from": source}
            with bigain.attach(model, spec, placement=where):
                model.activation_checkpointing_disable()
                expected = gradients(model, batches)
                model.activation_checkpointing_enable({"use_reentrant": reentrant})
                found = gradients(model, batches)
            assert set(found) == set(expected)
            for key, value in expected.items():
                torch.testing.assert_close(found[key], value, atol=1e-9, rtol=1e-7)


def vit():
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**shape, image_size=16, patch_size=4))


def dinov2():
    import transformers

    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return transformers.Dinov2WithRegistersModel(
        transformers.Dinov2WithRegistersConfig(**shape, image_size=16, patch_size=4)
    )


@parametrize_with_checks([vit, dinov2])
def test_conformance(subject, check):
    check(subject)
