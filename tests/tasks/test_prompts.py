"""Prompts of an evaluation: embedded on the device of the run, a part at a time, and equal to embedding at once."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from bigain.backbones.dit import DiT
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.data.captions import CaptionPrompts
from bigain.data.prompts import ClassPrompts
from bigain.diffusion import condition
from bigain.diffusion.sampler import Sampler
from bigain.errors import SettingError
from bigain.metrics.base import GenerationMetric
from bigain.results.cache import cache_folder
from bigain.results.scores import Score
from bigain.tasks.evaluation import embed_classes
from bigain.tasks.generation import GenerationTask
from bigain.training.diffusion import DiffusionTraining
from tests.pipelines import save_dit, save_sd
from tests.trainers import QUIET

CAPTIONS = ["a cat on a roof", "two dogs", "a ship", "the sea and a bird", "one more dog", "a red car"]


class Count(GenerationMetric):
    def identity(self):
        return {"metric": "count"}

    def score(self, images):
        return Score("count", float(sum(map(len, images))))


@pytest.fixture
def captions(tmp_path):
    table = [{"image_id": number, "id": number, "caption": text} for number, text in enumerate(CAPTIONS)]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": table}))
    return CaptionPrompts(tmp_path / "captions.json", chunk=2)


@pytest.fixture
def model(tmp_path, own_cache):
    return save_sd(tmp_path / "model")


def test_captions_draw_the_same_images_whatever_is_in_memory(model, captions, tmp_path, monkeypatch):
    backbone = StableDiffusion(model).eval()
    at_once = backbone.embed(CAPTIONS)
    expected = Sampler(backbone, 2, 1.5, 2)(at_once, range(6))
    monkeypatch.setattr(PROMPTS, "__defaults__", (3 * at_once.states[0].nbytes,))
    asked, embed = [], StableDiffusion.embed
    monkeypatch.setattr(StableDiffusion, "embed", lambda self, given: asked.append(len(given)) or embed(self, given))
    task = GenerationTask(StableDiffusion(model), metrics=[Count()], steps=2, rows=2, output=tmp_path / "out")
    Trainer(**QUIET).test(task, datamodule=captions, verbose=False)
    chunks = [load_file(file)["image"] for file in sorted((tmp_path / "out" / "samples").glob("*.safetensors"))]
    assert (torch.cat(chunks).int() - expected.int()).abs().max() <= 1
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["settings"]["condition"] == at_once.identity()
    assert max(asked) <= 3


PROMPTS = condition.PromptConditions.__init__


def test_prompts_are_embedded_where_the_run_is(model, monkeypatch):
    """Lightning brings the network to its device after that: a device that is not the network's is asked for here."""
    backbone = StableDiffusion(model)
    moved = []
    encoder = backbone._encoders["text_encoder"]
    original = type(encoder).on
    monkeypatch.setattr(type(encoder), "on", lambda self, device: moved.append(device) or original(self, device))
    backbone.text_device = torch.device("cpu", 0)
    found = embed_classes(backbone, ("a", "b"), ["a cat", "a dog"]).take([1])
    assert moved == [torch.device("cpu", 0)]
    assert torch.equal(found.states, backbone.embed(["a dog"]).states)


def test_a_task_says_where_before_it_embeds(model, tmp_path, monkeypatch):
    task = GenerationTask(StableDiffusion(model), metrics=[Count()], steps=1, rows=2, output=tmp_path / "out")
    seen, embed = [], StableDiffusion.embed
    monkeypatch.setattr(
        StableDiffusion, "embed", lambda self, given: seen.append(self.text_device) or embed(self, given)
    )
    trainer = Trainer(**QUIET)
    trainer.test(task, datamodule=ClassPrompts(count=2, classes=("a cat", "a dog")), verbose=False)
    assert set(seen) == {trainer.strategy.root_device}


def test_a_long_prompt_is_refused_before_any_is_embedded(model, monkeypatch):
    backbone = StableDiffusion(model)
    monkeypatch.setattr(StableDiffusion, "encode_prompt", None)
    with pytest.raises(SettingError, match="tokens; the text_encoder of this model sees 77"):
        embed_classes(backbone, ("a", "b"), ["a cat", "d" * 90])


def test_training_keeps_no_latents(tmp_path, own_cache):
    """Every image and its mirror image would stay on disk."""
    backbone = DiT(save_dit(tmp_path / "dit"))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    task = DiffusionTraining(backbone, compile=False)
    task.training_step({"image": images, "label": torch.tensor([1, 2])}, 0).backward()
    assert not list(cache_folder().rglob("*.safetensors"))
    backbone.encode(images)
    assert len(list(cache_folder().rglob("*.safetensors"))) == 2
