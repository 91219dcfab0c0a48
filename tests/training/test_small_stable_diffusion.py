"""Stable Diffusion in small: its autoencoder changes nothing, words are tokens, and it trains on its prompts."""

import runpy

import pytest
import torch
from lightning.pytorch import Trainer

from bigain.assets import asset
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.module import ImageData
from bigain.errors import SettingError
from bigain.training.diffusion import DiffusionTraining
from tests.pipelines import loaded, save_sd

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def folder(root, tmp_path_factory):
    start = runpy.run_path(str(root / "recipes/train/cifar10_sd_start.py"))
    place = tmp_path_factory.mktemp("small") / "start"
    start["small_pipeline"](place, width=32, layers=1, text_width=16).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data():
    test = asset("cifar10_test/test.parquet")
    return ImageData(train=test, test=test, limit=8, chunk=4, resident=True, held_out=4900)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_latents_are_pixels_and_pixels_come_back(folder, data, dtype):
    images = data.test_set.batch(range(8))["image"]
    extreme = torch.stack([torch.zeros_like(images[0]), torch.full_like(images[0], 255)])
    images = torch.cat([images, extreme])
    backbone = StableDiffusion(folder, dtype)
    assert backbone.latent_shape == (3, 32, 32)
    latents = backbone.encode(images)
    torch.testing.assert_close(latents, images / 127.5 - 1, atol=1e-3 if dtype != "bf16" else 4e-3, rtol=0)
    assert torch.equal(backbone.decode(latents), images)


def test_training_encodes_what_classification_does(folder, data):
    images = data.test_set.batch(range(8))["image"]
    backbone = StableDiffusion(folder)
    torch.testing.assert_close(backbone.encode_to_train(images), backbone.encode(images), atol=1e-5, rtol=0)


def test_latents_of_a_batch_are_those_of_each_image(tmp_path):
    """With an autoencoder that does change something."""
    backbone = StableDiffusion(save_sd(tmp_path / "sd"))
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(backbone.encode_to_train(images), backbone.encode(images), atol=1e-5, rtol=1e-4)


def test_each_word_of_a_prompt_is_a_token_and_no_two_classes_have_the_same_states(folder):
    pipe = loaded(folder)
    for name in CIFAR10_CLASSES:
        assert len(pipe.tokenizer(f"a photo of a {name}").input_ids) == 7  # and those of start and end
    backbone = StableDiffusion(folder)
    states = backbone.embed([f"a photo of a {name}" for name in CIFAR10_CLASSES]).states.flatten(1)
    apart = torch.cdist(states, states) + 1e9 * torch.eye(10)
    assert apart.min() > 1  # of 24 tokens, each of length 4


def test_it_trains_with_the_prompts_of_the_classes_and_the_empty_one(folder, data, tmp_path):
    torch.manual_seed(0)
    backbone = StableDiffusion(folder)
    task = DiffusionTraining(backbone, lr=2e-3, compile=False, warmup_steps=1, label_dropout=0.5)
    seen, words = (
        [],
        {name: value.clone() for name, value in backbone._encoders["text_encoder"].network.named_parameters()},
    )
    task.backbone.network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"].detach()), with_kwargs=True
    )
    before = {name: value.detach().clone() for name, value in backbone.network.named_parameters()}
    Trainer(max_steps=6, enable_checkpointing=False, **QUIET).fit(task, datamodule=data)
    known = backbone.embed([*data.class_prompts, ""]).states
    rows = torch.cat(seen)
    nearest = (rows[:, None] - known).flatten(2).norm(dim=2)
    assert nearest.min(1).values.max() < 1e-3
    assert 4 <= (nearest.argmin(1) == 10).sum() <= 20  # of 24 rows, half without a prompt
    moved = [name for name, value in backbone.network.named_parameters() if not torch.equal(value, before[name])]
    assert any("attn1.to_q" in name for name in moved)
    for name, value in backbone._encoders["text_encoder"].network.named_parameters():
        assert torch.equal(value, words[name])


def test_prompts_come_from_the_data(folder):
    task = DiffusionTraining(StableDiffusion(folder), compile=False)
    rows = [{"image": torch.zeros(3, 32, 32, dtype=torch.uint8), "label": 0}] * 4
    with pytest.raises(SettingError, match="conditioned on prompts: train it on a data module"):
        Trainer(max_steps=1, enable_checkpointing=False, **QUIET).fit(
            task, torch.utils.data.DataLoader(rows, batch_size=2)
        )
