"""Tiny Stable Diffusion pipelines of the real classes, in double precision, with weights that are nowhere zero."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tests.pipelines import clip_tokenizer, unet, vae

PARTS = ("self", "cross", "mlp")


def _unet(**changes):
    # In double precision, two ways to the same tokens do not differ by what could decide which tokens are merged.
    return unet(**changes).double()


def _vae():
    return vae().double()


def _text_encoder(name="CLIPTextModel"):
    import transformers

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    words = {"vocab_size": 54, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": 16}
    torch.manual_seed(0)
    return getattr(transformers, name)(transformers.CLIPTextConfig(**shape, **words)).eval().double()


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """CLIP's tokenizer, of letters."""
    return clip_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_unet():
    """Make a U-Net of 4 blocks on 8 x 8 latents, 3 of them at full resolution."""
    return _unet


@pytest.fixture(scope="session")
def tiny_sd(tokenizer):
    """Make Stable Diffusion, two pixels to a latent: `tiny_sd(in_channels=9)` changes its U-Net."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    def make(**changes):
        parts = {"unet": _unet(**changes), "vae": _vae(), "text_encoder": _text_encoder(), "tokenizer": tokenizer}
        scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipe = StableDiffusionPipeline(**parts, scheduler=scheduler, **checker)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(scope="session")
def tiny_sdxl(tokenizer):
    """Make Stable Diffusion XL: two text encoders, no attention at full resolution, two blocks in a transformer."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    layout = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2],
        "use_linear_projection": True,
    }
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 32}

    def make():
        unet = _unet(**layout, **conditions, projection_class_embeddings_input_dim=16 + 6 * 8)
        texts = {"text_encoder": _text_encoder(), "text_encoder_2": _text_encoder("CLIPTextModelWithProjection")}
        words = {"tokenizer": tokenizer, "tokenizer_2": tokenizer}
        pipe = StableDiffusionXLPipeline(_vae(), **texts, **words, unet=unet, scheduler=EulerDiscreteScheduler())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture
def sd(tiny_sd):
    return tiny_sd()


@pytest.fixture(scope="session")
def _shared(tiny_sd, tiny_sdxl):
    return {"sd": tiny_sd(), "sdxl": tiny_sdxl()}


@pytest.fixture(params=["sd", "sdxl"])
def either(request, _shared):
    """Stable Diffusion, and XL; for tests that leave them as they were."""
    return _shared[request.param]


@pytest.fixture(scope="session")
def draw():
    """Make images that are not square, by two guided steps: `draw(pipe)`, `draw(pipe, prompt=["a", "b"])`."""

    def images(pipe, **changes):
        generator = torch.Generator().manual_seed(0)
        call = {"prompt": "a cat", "num_inference_steps": 2, "height": 16, "width": 24, "output_type": "pt"}
        return pipe(**{**call, "generator": generator, **changes}).images

    return images


@pytest.fixture
def batch():
    """Arguments of a pass of the U-Net in Stable Diffusion, of two rows."""
    generator = torch.Generator().manual_seed(1)
    return {
        "sample": torch.randn(2, 4, 8, 12, generator=generator).double(),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(2, 7, 16, generator=generator).double(),
    }


@pytest.fixture(scope="session")
def passes():
    """Take down the passes of a network: `with passes(unet) as noted: ...`, then `noted[0].batch` and `.output`."""

    @contextmanager
    def noting(network):
        noted = []

        def note(module, args, kwargs, output):
            given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
            given = {name: value for name, value in given.items() if value is not None and name != "return_dict"}
            noted.append(SimpleNamespace(batch=given, output=output[0]))

        hook = network.register_forward_hook(note, with_kwargs=True)
        try:
            yield noted
        finally:
            hook.remove()

    return noting
