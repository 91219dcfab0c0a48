"""CLIP score against a plain forward pass of transformers, on a tiny CLIP that is saved as users' are."""

import numpy as np
import pytest
import torch

from bigain.data.prompts import ClassPrompts
from bigain.errors import DataError, SettingError
from bigain.metrics.clip_score import ClipScore
from tests.pipelines import clip_tokenizer, filled


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    place = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    text = {**shape, "vocab_size": 54, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    vision = {**shape, "image_size": 16, "patch_size": 8}
    model = filled(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)))
    with torch.no_grad():
        model.visual_projection.weight.neg_()  # otherwise all is unlike
    model.save_pretrained(place)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(images, clip_tokenizer(place / "words")).save_pretrained(place)
    return place


def expected(folder, images, prompts):
    """One pair after the other through the whole model."""
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    found = []
    for image, prompt in zip(images, prompts, strict=True):
        pixels = np.moveaxis(image.numpy(), 0, -1)
        with torch.no_grad():
            out = model(**processor(text=[prompt], images=pixels, return_tensors="pt"))
        found.append(max(0.0, 100 * float(torch.cosine_similarity(out.text_embeds, out.image_embeds))))
    return found


def test_it_is_the_cosine_of_a_plain_forward_pass(folder, images, drawn):
    prompts = ["a cat", "a long dog on a roof", "a cat", "ships"] * 3
    pixels = images(12, 0)
    pixels[::2] //= 3
    score = ClipScore(folder).score(drawn(*pixels.split(5), prompts=prompts))
    single = torch.tensor(expected(folder, pixels, prompts))
    assert single.std() > 0.1
    assert score.value == pytest.approx(float(single.mean()), abs=1e-3)
    half = 1.96 * float(single.std()) / 12**0.5
    assert (score.low, score.high) == (
        pytest.approx(score.value - half, abs=1e-2),
        pytest.approx(score.value + half, abs=1e-2),
    )
    assert (score.name, score.better) == ("clip_score", "higher")
    assert "12 images" in score.note


def test_it_is_loaded_without_a_bar(folder, images, drawn, capfd):
    capfd.readouterr()
    ClipScore(folder).score(drawn(images(2, 0), prompts=["a cat", "a dog"]))
    assert capfd.readouterr().err == ""


def test_each_image_is_compared_with_its_own_prompt(folder, images, drawn):
    pixels, prompts = images(4, 0), ["a", "dogs", "ship on sea", "x y z"]
    one = ClipScore(folder).score(drawn(pixels, prompts=prompts)).value
    other = ClipScore(folder).score(drawn(pixels, prompts=prompts[::-1])).value
    assert one != pytest.approx(other, abs=1e-4)


def test_unlike_is_zero_and_not_negative(folder, tmp_path, images, drawn):
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.visual_projection.weight.neg_()
    model.save_pretrained(tmp_path / "other")
    CLIPProcessor.from_pretrained(folder).save_pretrained(tmp_path / "other")
    assert ClipScore(folder).score(drawn(images(2, 0), prompts=["a", "b"])).value > 0
    assert ClipScore(tmp_path / "other").score(drawn(images(2, 0), prompts=["a", "b"])).value == 0


def test_long_prompts_are_refused_and_not_cut(folder):
    metric = ClipScore(folder)
    metric.check(ClassPrompts(classes=("cat", "d" * 70), prompt="{class}"))
    with pytest.raises(SettingError, match=r"has 82 tokens; CLIP in .* reads 77\. Shorten it"):
        metric.check(ClassPrompts(classes=("cat", "d" * 80), prompt="{class}"))


def test_the_identity_is_of_the_weights(folder, tmp_path):
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.logit_scale.add_(1)
    model.save_pretrained(tmp_path / "other")
    CLIPProcessor.from_pretrained(folder).save_pretrained(tmp_path / "other")
    assert ClipScore(folder).identity() == ClipScore(folder).identity()
    assert ClipScore(folder).identity() != ClipScore(tmp_path / "other").identity()


def test_what_is_no_clip_is_refused(folder, tmp_path, images, drawn):
    import shutil

    with pytest.raises(DataError, match=r"No CLIP at .*none: give a folder"):
        ClipScore(tmp_path / "none").identity()
    shutil.copytree(folder, tmp_path / "unsafe")
    (tmp_path / "unsafe" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "unsafe" / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"CLIP in .*unsafe cannot be loaded"):
        ClipScore(tmp_path / "unsafe").identity()
    with pytest.raises(SettingError, match="needs the images' prompts"):
        ClipScore(folder).score(drawn(images(2, 0)))
