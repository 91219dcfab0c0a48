import json
import shutil

import pytest
import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from bigain.assets import asset
from bigain.backbones.pixel_dit import WEIGHTS_NAME, PixelDiT
from bigain.errors import DataError, SettingError


def test_the_embedded_model_is_what_its_card_says():
    backbone = PixelDiT()
    parameters = sum(p.numel() for p in backbone.network.parameters())
    assert parameters == pytest.approx(6.13e6, rel=0.001)
    assert (asset("cifar10_dit") / WEIGHTS_NAME).stat().st_size < 16e6
    assert (backbone.overlap, backbone.image_size, backbone.null_label) == (5, 32, 10)


def test_the_embedded_model_denoises():
    """Far below 1, the error of predicting nothing; on real images, with the right label."""
    from bigain.data.module import LabelledImageData

    backbone, images = PixelDiT().eval(), LabelledImageData(limit=2).test_set
    clean, noise = backbone.encode(images.images), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([500, 500])
    noisy = backbone.schedule.add_noise(clean, noise, steps, backbone.schedule.alphas_cumprod())
    with torch.no_grad():
        error = (backbone.predict_noise(noisy, steps, images.labels) - noise).square().mean()
    assert error < 0.05


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


def test_weights_that_are_not_there_are_told(tmp_path):
    with pytest.raises(DataError, match=r"config\.json is missing"):
        PixelDiT(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["truncated", "other shape", "no json"])
def test_damaged_weights_are_told(tiny_weights, tmp_path, damage):
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


def test_another_number_of_classes_is_told(tiny_weights):
    with pytest.raises(DataError, match="knows 10 classes, 2 were named"):
        PixelDiT(tiny_weights, classes=("a", "b"))


@pytest.mark.parametrize("settings", [{"heads": 5}, {"width": 18}, {"patch_size": 3}, {"overlap": 2}])
def test_impossible_shapes_are_refused(settings):
    with pytest.raises(SettingError, match="PixelDiT got"):
        PixelDiT(weights=None, depth=1, **{"width": 16, "heads": 2, "image_size": 8, **settings})
