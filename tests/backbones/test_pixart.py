"""PixArt from a folder: the images of diffusers' own pipelines."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

import bigain
from bigain.backbones.folder import PipelineFolder
from bigain.backbones.pixart import PixArt
from bigain.diffusion.sampler import Sampler
from bigain.errors import DataError, SettingError
from tests.pipelines import as_tensor, assert_same_image, change_json, loaded, save_dit, save_pixart, t5

LGTM = {"name": "lgtm", "ratio": 0.5}

KINDS = {
    "alpha": lambda folder: save_pixart(folder),
    "alpha, ddim": lambda folder: save_pixart(folder, scheduler=DDIMScheduler(clip_sample=False)),
    "alpha, sizes": lambda folder: save_pixart(folder, sample_size=128),  # three embeddings in one
    "sigma": lambda folder: save_pixart(folder, "Sigma"),
    "sigma, 128": lambda folder: save_pixart(folder, "Sigma", sample_size=128, use_additional_conditions=False),
    "no variance": lambda folder: save_pixart(folder, out_channels=4),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    return KINDS[request.param](tmp_path_factory.mktemp("models") / "model")


def drawn(pipe, prompt, seed, guidance):
    call = {"num_inference_steps": 4, "guidance_scale": guidance, "height": 16, "width": 16, "output_type": "np"}
    asked = {"clean_caption": False, "use_resolution_binning": False}
    return as_tensor(pipe(prompt, generator=torch.Generator("cpu").manual_seed(seed), **call, **asked).images)


@pytest.mark.parametrize(
    ("guidance", "reducer"), [(1.0, None), (4.5, None), pytest.param(4.5, LGTM, marks=pytest.mark.same_digits)]
)
def test_an_image_is_that_of_the_pipeline(folder, guidance, reducer):
    pipe, backbone = loaded(folder), PixArt(folder, image_size=16)
    sampler = Sampler(backbone, steps=4, guidance=guidance, rows=1)
    expected, found = drawn(pipe, " A cat", 3, guidance), sampler(backbone.embed([" A cat"]), [3])
    if reducer is not None:
        whole = expected
        with bigain.attach(pipe.transformer, dict(reducer)):
            expected = drawn(pipe, " A cat", 3, guidance)
        with bigain.attach(backbone.network, dict(reducer)):
            found = sampler(backbone.embed([" A cat"]), [3])
        assert not torch.equal(expected, whole)
    assert_same_image(found, expected)
    assert expected.float().std() > 5  # an image, not a plain colour
    assert not torch.equal(expected, drawn(pipe, "zebras", 3, guidance))  # which depends on the prompt


@pytest.mark.parametrize("prompt", ["A cat ", ""])
def test_what_the_network_predicts_is_what_the_pipelines_parts_give(folder, prompt):
    """A plain loop over the pipeline's components."""
    pipe, backbone = loaded(folder), PixArt(folder, image_size=16)
    image = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean = pipe.vae.encode(image.float() / 127.5 - 1).latent_dist.mean
    clean = backbone.encode(image)
    torch.testing.assert_close(clean, mean * pipe.vae.config.scaling_factor)
    with torch.no_grad():
        states, mask, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
    condition = backbone.embed([prompt, prompt])
    torch.testing.assert_close(condition.states, states.expand(2, -1, -1))
    assert torch.equal(condition.mask, mask.expand(2, -1))
    sizes = {"resolution": torch.tensor([[16.0, 16.0]] * 2), "aspect_ratio": torch.tensor([[1.0]] * 2)}
    t = torch.tensor([100, 700])
    text = {"encoder_hidden_states": states.expand(2, -1, -1), "encoder_attention_mask": mask.expand(2, -1)}
    with torch.no_grad():
        expected = pipe.transformer(clean, **text, timestep=t, added_cond_kwargs=sizes).sample[:, :4]
        found = backbone.predict(clean, t, condition)
    torch.testing.assert_close(found, expected)


def test_rows_of_a_batch_are_those_drawn_alone(folder):
    backbone = PixArt(folder, image_size=16)
    condition = backbone.embed(["a cat", "a very long zebra", ""])
    together = Sampler(backbone, steps=3, guidance=4, rows=3)(condition, [1, 2, 3])
    alone = torch.cat([Sampler(backbone, 3, 4, rows=1)(condition.take([i]), [i + 1]) for i in range(3)])
    assert (together.int() - alone.int()).abs().max() <= 1


def test_only_alpha_of_1024_pixels_is_told_sizes(tmp_path):
    assert PixArt(save_pixart(tmp_path / "small")).embed(["a"]).added == {}
    large = PixArt(save_pixart(tmp_path / "large", sample_size=128), image_size=32).embed(["a"]).added
    assert {name: value.tolist() for name, value in large.items()} == {
        "resolution": [[32.0, 32.0]],
        "aspect_ratio": [[1.0]],
    }


def test_alpha_and_sigma_of_one_encoder_keep_their_own_states(tmp_path):
    """Both are published with the same T5, but alpha pads a prompt to 120 tokens, Sigma to 300."""
    alpha, sigma = PixArt(save_pixart(tmp_path / "alpha")), PixArt(save_pixart(tmp_path / "sigma", "Sigma"))
    assert [one.embed(["a cat"]).states.shape[1] for one in (alpha, sigma, alpha)] == [120, 300, 120]


@pytest.mark.parametrize(("name", "most"), [("Alpha", 120), ("Sigma", 300)])
def test_a_prompt_that_is_too_long_is_refused(tmp_path, name, most):
    backbone = PixArt(save_pixart(tmp_path / "model", name))
    # Each letter is two tokens, that of a word's beginning and its own, and one ends the prompt.
    longest = "a " * ((most - 1) // 2)
    assert int(backbone.embed([longest]).mask.sum()) == 2 * ((most - 1) // 2) + 1
    with pytest.raises(SettingError, match=f"has {most + 1} tokens; the text_encoder of this model sees {most}"):
        backbone.embed([longest + "a"])


def test_a_folder_as_it_was_published_is_loaded(tmp_path):
    """Its files name the class that PixArt's class was once part of."""
    folder = save_pixart(tmp_path / "model")
    expected = drawn(loaded(folder), "a cat", 3, 4.5)
    change_json(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    change_json(folder / "transformer" / "config.json", _class_name="Transformer2DModel")
    backbone = PixArt(folder)
    assert_same_image(Sampler(backbone, 4, 4.5, rows=1)(backbone.embed(["a cat"]), [3]), expected)


def test_another_scheduler_of_the_same_process_can_be_chosen(tmp_path):
    folder = save_pixart(tmp_path / "model", "Sigma")
    pipe, backbone = loaded(folder), PixArt(folder)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    chosen = Sampler(backbone, 4, 4.5, rows=1, scheduler="diffusers.DDIMScheduler")
    found = chosen(backbone.embed(["a"]), [1])
    assert_same_image(found, drawn(pipe, "a", 1, 4.5))
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert not torch.equal(found, drawn(pipe, "a", 1, 4.5))


def test_in_half_precision_t5_keeps_the_weights_that_would_overflow(tmp_path):
    backbone = PixArt(save_pixart(tmp_path / "model", encoder=t5(feed_forward_proj="gated-gelu")), "fp16")
    kept = {name for name, value in backbone._encoders["text_encoder"].network.named_parameters() if value.itemsize > 2}
    assert len(kept) == 2
    assert all(name.endswith("wo.weight") for name in kept)
    assert backbone.network.dtype == torch.float16
    assert backbone.embed(["a cat"]).states.dtype == torch.float16


@pytest.mark.parametrize("missing", ["sentencepiece", "protobuf"])
def test_a_vocabulary_that_cannot_be_read_here_names_what_it_needs(tmp_path, monkeypatch, missing):
    """Published models have sentencepiece's file alone."""
    folder = save_pixart(tmp_path / "model")
    (folder / "tokenizer" / "spiece.model").write_bytes(b"")
    PixArt(folder)  # tokenizer.json is enough
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name in ("sentencepiece", "protobuf"):
        monkeypatch.setattr(f"transformers.utils.is_{name}_available", lambda there=name != missing: there)
    with pytest.raises(
        DataError, match=r"sentencepiece and protobuf to be read: pip install 'bigain\[sentencepiece\]'"
    ):
        PixArt(folder)


def test_a_vocabulary_of_sentencepiece_alone_is_read_as_by_its_own_library(tmp_path):
    """Published folders have spiece.model and no tokenizer.json."""
    import sentencepiece

    folder = save_pixart(tmp_path / "model")
    words = ["a photo of a cat", "two dogs on a red roof", "the quick brown fox", "jumps over lazy boats"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words * 20),
        model_prefix=str(folder / "tokenizer" / "spiece"),
        vocab_size=40,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    usual = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer" / "spiece.model"))
    tokenizer = PipelineFolder.open(folder, ["PixArtAlphaPipeline"]).tokenizer("tokenizer")
    for text in (*words, "a zebra, 3 cats!"):
        assert tokenizer(text).input_ids == [*usual.encode(text), usual.eos_id()]


def test_bad_input_is_refused_in_words(tmp_path):
    folder = save_pixart(tmp_path / "model")
    with pytest.raises(SettingError, match=r"multiple of 4 \(2 pixels a latent, 2 latents a patch\); got 18"):
        PixArt(folder, image_size=18)
    with pytest.raises(DataError, match="holds a DiTPipeline; accepted here: PixArtAlphaPipeline, PixArtSigmaPipeline"):
        PixArt(save_dit(tmp_path / "other"))
    for given in ([1, 2], [], torch.tensor([1]), ["a cat", 1]):
        with pytest.raises(SettingError, match="PixArt is conditioned on prompts"):
            PixArt(folder).embed(given)
    index = json.loads((folder / "model_index.json").read_text())
    change_json(folder / "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(DataError, match="names no text_encoder, which this model needs"):
        PixArt(folder)
    change_json(folder / "model_index.json", **{**index, "text_encoder": ["transformers", "BertModel"]})
    with pytest.raises(DataError, match="names BertModel as text_encoder; accepted: T5EncoderModel"):
        PixArt(folder)


def test_large_models_in_shards_are_loaded_without_bars(tmp_path, capfd):
    """Both libraries draw a bar for shards; whether other programs' bars are shown stays as it was."""
    from diffusers import PixArtTransformer2DModel
    from diffusers.utils.logging import is_progress_bar_enabled
    from transformers import T5EncoderModel

    whole, sharded = save_pixart(tmp_path / "whole"), save_pixart(tmp_path / "sharded")
    for name, kind in (("text_encoder", T5EncoderModel), ("transformer", PixArtTransformer2DModel)):
        (sharded / name).rename(tmp_path / name)
        kind.from_pretrained(tmp_path / name).save_pretrained(sharded / name, max_shard_size="5KB")
        assert len([*(sharded / name).glob("*.safetensors")]) > 1
    capfd.readouterr()
    found = PixArt(sharded)
    found.embed(["a cat"])
    assert capfd.readouterr().err == ""
    assert is_progress_bar_enabled()
    expected = PixArt(whole).network.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.network.state_dict().items())
