"""The backbone, the metric and the method of CONTRIBUTING.md work as they stand."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bigain.adapters.placement import Placement
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example(monkeypatch):
    def run(name):
        (body,) = [code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if f"class {name}(" in code]
        module = ModuleType("my_package")
        monkeypatch.setitem(sys.modules, "my_package", module)
        exec(body, vars(module))
        return getattr(module, name)

    return run


@pytest.fixture
def dit_folder(tmp_path):
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 1}
    network = DiTTransformer2DModel(**shape, in_channels=4, out_channels=8, num_embeds_ada_norm=10)
    stages = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**stages, block_out_channels=[8, 8], norm_num_groups=4, sample_size=16)
    DiTPipeline(network, vae, DDIMScheduler(beta_schedule="scaled_linear")).save_pretrained(tmp_path)
    return tmp_path


def test_the_backbone_follows_its_pipeline(example, dit_folder):
    from diffusers import DiTPipeline

    backbone, pipe = example("LatentDiT")(str(dit_folder)).eval(), DiTPipeline.from_pretrained(dit_folder)
    assert (backbone.image_size, backbone.latent_shape, backbone.label_count) == (16, (4, 8, 8), 10)
    images = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    noise, t, condition = torch.randn(2, 4, 8, 8), torch.tensor([900, 100]), backbone.embed([3, 7])
    with torch.no_grad():
        clean = backbone.encode(images)
        noisy = backbone.process.add_noise(clean, noise, t)
        predicted = pipe.transformer.eval()(noisy, timestep=t, class_labels=torch.tensor([3, 7])).sample
        torch.testing.assert_close(backbone.predict_noise(noisy, t, condition), predicted[:, :4])
        assert backbone.decode(clean).shape == images.shape
    torch.testing.assert_close(noisy, pipe.scheduler.add_noise(clean, noise, t))
    assert backbone.null(condition).labels.tolist() == [10, 10]


def test_the_metric_averages_over_classes(example):
    errors = Errors.of(torch.ones(4, 2, 1), torch.arange(4))
    found = Predictions(("a", "b", "c", "d"), ((0,), (0,), (0,), (1,)), torch.tensor([0, 1, 0, 1]), errors, ("x", "y"))
    assert example("MeanRecall")().score(found).value == pytest.approx((2 / 3 + 1) / 2)


def test_the_method_shows_a_smaller_input(example, tiny_backbone):
    sizes = []
    tiny_backbone.network.register_forward_pre_hook(
        lambda _, args: sizes.append(tuple(args[0].shape[-2:])) if args else None
    )
    noisy, t, condition = torch.randn(2, 3, 8, 8), torch.tensor([900, 100]), tiny_backbone.embed([3, 7])
    with example("SmallerInput")(factor=2).applied(tiny_backbone, Placement(), 0) as applied, torch.no_grad():
        predicted = applied.backbone.predict_noise(noisy, t, condition)
        small = tiny_backbone.predict_noise(noisy[..., ::2, ::2], t, condition)
    assert sizes == [(4, 4), (4, 4)]
    torch.testing.assert_close(predicted[..., ::2, ::2], small)
    torch.testing.assert_close(predicted[..., 1::2, 1::2], small)
