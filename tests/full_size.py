"""Save a pipeline of full size with random weights, to see whether what tiny ones do also fits a GPU and its memory.

    python -m tests.full_size sd2 /tmp/sd2                     # or sdxl, dit_xl_2_512, sd3, flux1
    bigain generate "a cat" --model=/tmp/sd2 --compile=true    # and so on; the images are noise

Tokenizers are the tests' own, of letters; every network has the size of the published model.
"""

import sys
from contextlib import contextmanager
from pathlib import Path

import torch

from bigain.benchmark.architectures import build_random
from tests.pipelines import clip_tokenizer, t5_tokenizer

_WIDE_VAE = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@contextmanager
def _on(device, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def vae(**changes):
    """The autoencoder of Stable Diffusion, eight pixels a latent."""
    from diffusers import AutoencoderKL

    shape = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    return AutoencoderKL(**{**blocks, **shape, **changes})


def clip(width, layers, heads, act="gelu", name="CLIPTextModel"):
    """A text encoder of CLIP's class."""
    import transformers

    shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    words = {"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": width}
    config = transformers.CLIPTextConfig(**shape, **words, num_attention_heads=heads, hidden_act=act)
    return getattr(transformers, name)(config)


def clip_l(name="CLIPTextModel"):
    return clip(768, 12, 12, "quick_gelu", name)


def clip_g():
    return clip(1280, 32, 20, name="CLIPTextModelWithProjection")


def t5_xxl():
    """The encoder of T5 v1.1 XXL, 4.7 billion parameters."""
    from transformers import T5Config, T5EncoderModel

    shape = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
    return T5EncoderModel(T5Config(**shape, feed_forward_proj="gated-gelu"))


def _parts(name, words):
    """The pipeline's class, and its components but for the network."""
    import diffusers

    euler = diffusers.EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading")
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    both = {"tokenizer": words, "tokenizer_2": words}
    if name == "sd2":
        texts = {"text_encoder": clip(1024, 23, 16), "tokenizer": words}
        return diffusers.StableDiffusionPipeline, {"vae": vae(), **texts, "scheduler": euler, **checker}
    if name == "sdxl":
        texts = {"text_encoder": clip_l(), "text_encoder_2": clip_g(), **both}
        found = vae(scaling_factor=0.13025, sample_size=1024)
        return diffusers.StableDiffusionXLPipeline, {"vae": found, **texts, "scheduler": euler}
    if name == "dit_xl_2_512":
        return diffusers.DiTPipeline, {"vae": vae(), "scheduler": diffusers.DDIMScheduler(clip_sample=False)}
    if name == "sd3":
        texts = {"text_encoder": clip_l("CLIPTextModelWithProjection"), "text_encoder_2": clip_g(), **both}
        third = {"text_encoder_3": t5_xxl(), "tokenizer_3": t5_tokenizer(model_max_length=512)}
        found = vae(**_WIDE_VAE, scaling_factor=1.5305, shift_factor=0.0609)
        return diffusers.StableDiffusion3Pipeline, {"vae": found, **texts, **third, "scheduler": flow}
    texts = {"text_encoder": clip_l(), "tokenizer": words, "text_encoder_2": t5_xxl()}
    found = vae(**_WIDE_VAE, scaling_factor=0.3611, shift_factor=0.1159)
    others = {"tokenizer_2": t5_tokenizer(model_max_length=512), "scheduler": flow}
    return diffusers.FluxPipeline, {"vae": found, **texts, **others}


def save(name, folder, device="cuda"):
    """Save one, in half precision."""
    dtype = torch.bfloat16 if name == "flux1" else torch.float16
    torch.manual_seed(0)
    words = clip_tokenizer(folder.with_name(folder.name + "_words"))
    with _on(device, dtype):
        found, parts = _parts(name, words)
    key = "unet" if name in ("sd2", "sdxl") else "transformer"
    found(**parts, **{key: build_random(name, torch.device(device), dtype)}).save_pretrained(folder)


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "cuda")
