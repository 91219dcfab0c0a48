import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel, EulerDiscreteScheduler
from safetensors.torch import load_file
from torch import nn

from bigain.assets import asset
from bigain.backbones.cards import card, check_weights
from bigain.backbones.pixel_dit import WEIGHTS_NAME, PixelDiT
from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.sampler import Sampler
from bigain.errors import DataError, SettingError


def test_the_embedded_model_is_what_its_card_says():
    backbone = PixelDiT()
    parameters = sum(p.numel() for p in backbone.network.parameters())
    assert parameters == pytest.approx(6.13e6, rel=0.001)
    assert (asset("cifar10_dit") / WEIGHTS_NAME).stat().st_size < 16e6
    assert (backbone.overlap, backbone.image_size, backbone.label_count) == (5, 32, 10)


@pytest.fixture(scope="module")
def reference():
    """What version 0.1 of bigain computed with the embedded model, on the first two embedded images."""
    return load_file(Path(__file__).parents[1] / "golden" / "embedded_model.safetensors")


@pytest.fixture(scope="module")
def embedded():
    return PixelDiT().eval()


@torch.no_grad()
def test_the_embedded_model_predicts_as_before(embedded, reference):
    t, stages = torch.tensor([166, 833]), Stages((1, 3), (3, 1))
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), embedded.latent_shape)
    clean = embedded.encode(reference["images"])
    noisy = embedded.process.add_noise(clean, noise_set.noise[:2], t)
    torch.testing.assert_close(noisy, reference["noisy"], rtol=1e-5, atol=1e-5)
    found = embedded.predict_noise(reference["noisy"], t, Condition(labels=torch.tensor([3, 10])))
    torch.testing.assert_close(found, reference["predicted"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_embedded_model_classifies_as_before(embedded, reference):
    stages, condition = Stages((1, 3), (3, 1)), embedded.embed(range(10))
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), embedded.latent_shape)
    classify = DiffusionClassifier(embedded.predict_noise, embedded.process, noise_set, stages, condition, rows=8)
    found = classify(embedded.encode(reference["images"][:1]))  # the second would take as long and say the same
    assert torch.equal(found.prediction, reference["chosen"][:1])
    torch.testing.assert_close(found.errors, reference["errors"][:1], rtol=1e-4, atol=1e-5, equal_nan=True)


@torch.no_grad()
def test_the_embedded_model_samples_as_before(embedded, reference):
    found = Sampler(embedded, steps=6, guidance=1.5, rows=2)(embedded.embed([1]), [5])
    assert (found.int() - reference["samples"][:1].int()).abs().max() <= 1


def test_diffusers_loads_what_we_load(tiny_weights):
    ours = PixelDiT(tiny_weights).eval().network.state_dict()
    theirs = DiTTransformer2DModel.from_pretrained(tiny_weights).state_dict()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value)


def test_windows_and_a_pointwise_projection_are_one_convolution():
    """An overlapping patch embedding is a convolution whose kernel is the window."""
    torch.manual_seed(0)
    backbone = PixelDiT(weights=None, width=16, depth=1, heads=2, overlap=3, image_size=8)
    pointwise = backbone.network.pos_embed.proj
    whole = nn.Conv2d(3, 16, 3, padding=1)
    whole.weight.data = pointwise.weight.data.reshape(16, 3, 3, 3)
    whole.bias.data = pointwise.bias.data
    noisy = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(pointwise(backbone._windows(noisy)), whole(noisy))


def test_encoding_and_decoding_give_the_pixels_back(tiny_backbone):
    images = torch.randint(0, 256, (4, 3, 8, 8)).to(torch.uint8)
    assert torch.equal(tiny_backbone.decode(tiny_backbone.encode(images)), images)


def test_weights_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"config\.json is missing"):
        PixelDiT(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["truncated", "other shape", "no json"])
def test_damaged_weights_are_refused(tiny_weights, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_weights, folder)
    if damage == "truncated":
        (folder / WEIGHTS_NAME).write_bytes((folder / WEIGHTS_NAME).read_bytes()[:100])
    elif damage == "other shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_layers": 5}))
    else:
        (folder / "config.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        PixelDiT(folder)


def test_a_model_of_latents_is_refused(tmp_path):
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "sample_size": 8}
    latent = DiTTransformer2DModel(
        **shape, in_channels=4, out_channels=8, num_embeds_ada_norm=10, norm_type="ada_norm_zero"
    )
    latent.save_pretrained(tmp_path / "latent")
    with pytest.raises(DataError, match="takes 4 channels and gives 8"):
        PixelDiT(tmp_path / "latent")


def test_a_loaded_model_brings_its_number_of_labels(tiny_weights, tmp_path):
    few = PixelDiT(weights=None, width=16, depth=1, heads=2, image_size=8, label_count=3)
    few.network.save_pretrained(tmp_path / "few")
    assert (few.label_count, PixelDiT(tmp_path / "few").label_count, PixelDiT(tiny_weights).label_count) == (3, 3, 10)


def test_labels_are_embedded_and_have_a_null(tiny_backbone):
    found = tiny_backbone.embed([0, 9])
    assert found.labels.tolist() == tiny_backbone.embed(torch.tensor([0, 9])).labels.tolist() == [0, 9]
    assert tiny_backbone.null(found).labels.tolist() == [10, 10]


@pytest.mark.parametrize(
    ("conditions", "expected"), [([10], "from 0 to 9"), ([-1], "from 0 to 9"), (["a cat"], "prompt 'a cat'")]
)
def test_what_is_no_label_is_refused(tiny_backbone, conditions, expected):
    with pytest.raises(SettingError, match=expected):
        tiny_backbone.embed(conditions)


def test_a_folder_brings_its_scheduler(tiny_weights, tmp_path):
    folder = shutil.copytree(tiny_weights, tmp_path / "copy")
    assert PixelDiT(folder).scheduler == PixelDiT().scheduler  # one that has none follows the embedded model
    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(folder)
    backbone = PixelDiT(folder)
    assert backbone.scheduler["_class_name"] == "EulerDiscreteScheduler"
    assert backbone.process.identity()["beta_schedule"] == "scaled_linear"
    assert PixelDiT(folder, scheduler={"_class_name": "DDIMScheduler"}).process.identity()["beta_schedule"] == "linear"
    (folder / "scheduler_config.json").write_text("[]")
    with pytest.raises(DataError, match="a mapping is expected"):
        PixelDiT(folder)


def test_the_embedded_scheduler_is_one_that_diffusers_loads():
    scheduler = DDIMScheduler.from_pretrained(asset("cifar10_dit"))
    assert (scheduler.config.timestep_spacing, scheduler.config.clip_sample) == ("trailing", True)


def test_other_weights_under_the_embedded_name_are_refused(tiny_weights, tmp_path):
    with pytest.raises(DataError, match="is not what the card of 'embedded' describes"):
        check_weights(card("embedded"), tiny_weights / WEIGHTS_NAME)
    check_weights(card("embedded"), asset("cifar10_dit") / WEIGHTS_NAME)


def test_a_damaged_embedded_model_is_refused_where_it_is_loaded(tmp_path, monkeypatch):
    shutil.copytree(asset("cifar10_dit"), tmp_path / "cifar10_dit")
    file = tmp_path / "cifar10_dit" / WEIGHTS_NAME
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # one bit, which safetensors cannot notice
    file.write_bytes(content)
    monkeypatch.setattr("bigain.assets._HERE", tmp_path)
    with pytest.raises(DataError, match="sha256"):
        PixelDiT()


def test_an_unknown_card_is_refused():
    with pytest.raises(DataError, match="there are embedded"):
        card("nobody")


def test_on_the_meta_device_only_shapes_are_read():
    with torch.device("meta"):
        backbone = PixelDiT()
    assert next(backbone.parameters()).is_meta
    assert backbone.process.alpha(torch.tensor([0])).device.type == "cpu"


@pytest.mark.parametrize("settings", [{"heads": 5}, {"width": 18}, {"patch_size": 3}, {"overlap": 2}])
def test_impossible_shapes_are_refused(settings):
    with pytest.raises(SettingError, match="PixelDiT got"):
        PixelDiT(weights=None, depth=1, **{"width": 16, "heads": 2, "image_size": 8, **settings})
