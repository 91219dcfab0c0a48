"""Write Stable Diffusion in small, untrained: the folder that recipes/train/cifar10_sd.yaml begins with.

    python recipes/train/cifar10_sd_start.py checkpoints/cifar10_sd/start

A StableDiffusionPipeline of diffusers' and transformers' own classes for 32 x 32 images. The text encoder
stays as it is drawn here: a class needs states of its own, not a language. The autoencoder needs no training
either: its weights are set so that it gives pixels back as they are, and latents are pixels.
"""

import argparse
import json
import string
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.prompts import PROMPT

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
"""Stable Diffusion's own process."""

LONGEST = 24
"""Tokens of a prompt; CLIP's 77 would be 70 times the end of the text, among which a class is harder to find."""

LARGE = 64.0
"""A constant beside which pixels, from -1 to 1, hardly change what a group norm divides by."""


def main() -> None:
    """Write the folder, and say how large its parts are."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument(
        "--layers", type=int, default=3, help="Transformer blocks in each place: one on the way in, two on the way out."
    )
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--mid", action="store_true", help="With a block in the middle.")
    parser.add_argument("--text-width", type=int, default=64)
    given = parser.parse_args()
    pipe = small_pipeline(given.folder, given.width, given.layers, given.heads, given.mid, given.text_width)
    parts = {"unet": pipe.unet, "vae": pipe.vae, "text encoder": pipe.text_encoder}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    pipe.save_pretrained(given.folder)
    print(f"{given.folder}: {', '.join(f'{name} {count / 1e6:.2f} M' for name, count in counts.items())} values")


def small_pipeline(
    folder: Path, width: int = 128, layers: int = 3, heads: int = 2, mid: bool = False, text_width: int = 64
) -> StableDiffusionPipeline:
    """Make the pipeline; the tokenizer's files lie in the folder, as its class wants it."""
    torch.manual_seed(0)
    words = tokenizer(folder / "tokenizer")
    return StableDiffusionPipeline(
        vae=identity_autoencoder(),
        text_encoder=text_encoder(words, text_width),
        tokenizer=words,
        unet=unet(width, layers, heads, mid, text_width),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unet(width: int, layers: int, heads: int, mid: bool, text_width: int) -> UNet2DConditionModel:
    """Make a U-Net of one level: attention at full resolution alone carries information across the image."""
    network = UNet2DConditionModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(width,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        mid_block_type="UNetMidBlock2DCrossAttn" if mid else None,
        layers_per_block=1,
        transformer_layers_per_block=layers,
        attention_head_dim=heads,  # the number of heads, by an old mistake in its name
        cross_attention_dim=text_width,
        use_linear_projection=True,
        norm_num_groups=16,
    )
    # Residual branches begin as nothing, as in the networks of the papers; diffusers leaves torch's defaults.
    for name, module in network.named_modules():
        if name.endswith(("conv2", "proj_out", "conv_out")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return network


def text_encoder(words: CLIPTokenizer, width: int) -> CLIPTextModel:
    """Make CLIP's text encoder with two layers."""
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=width,
        max_position_embeddings=LONGEST,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.eos_token_id,
    )
    encoder = CLIPTextModel(config)
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 2:  # CLIP's own deviation, 0.02, would leave the words of a prompt all but alike
            nn.init.normal_(parameter, std=1.0 if "token_embedding" in name else parameter.shape[-1] ** -0.5)
    return encoder


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Make CLIP's tokenizer: letters, and merges that make each word of the classes' prompts one token."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [letter for letter in string.printable.strip() if not letter.isupper()]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    words = sorted({word for name in CIFAR10_CLASSES for word in PROMPT.replace("{class}", name).split()})
    texts = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = list[str]()
    # Byte-pair encoding: each merge is applied to every word at once, so that none undoes another.
    while pairs := Counter(pair for text in texts for pair in pairwise(text)):
        pair = min(pairs, key=lambda pair: (-pairs[pair], pair))
        texts = [merged(text, pair) for text in texts]
        merges.append(" ".join(pair))
        tokens.append("".join(pair))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    return CLIPTokenizer(**files, model_max_length=LONGEST)


def merged(text: list[str], pair: tuple[str, str]) -> list[str]:
    """Join a pair wherever it stands in a word."""
    found = list[str]()
    for token in text:
        if found and (found[-1], token) == pair:
            found[-1] += token
        else:
            found.append(token)
    return found


@torch.no_grad()
def identity_autoencoder() -> AutoencoderKL:
    """Make an `AutoencoderKL` that gives pixels back as they are, and whose latents are pixels.

    Its last norm sees each pixel value x once as x and once as -x, beside channels of a large constant
    and its negative, so that it subtracts 0 and divides by the same for every image; and
    silu(u) - silu(-u) = u undoes the activation behind it.
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        latent_channels=3,
        layers_per_block=1,
        norm_num_groups=1,
        mid_block_add_attention=False,
        sample_size=32,
        scaling_factor=1.0,
        force_upcast=True,
    )
    for name, module in vae.named_modules():
        # Residual branches add nothing.
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        if name.endswith("quant_conv"):
            nn.init.dirac_(module.weight)
    spread = LARGE / 2  # 6 channels of up to 1, and 2 of LARGE: the mean square is LARGE**2 / 4
    for half in (vae.encoder, vae.decoder):
        for channel in range(3):
            half.conv_in.weight[channel, channel, 1, 1] = 1
            half.conv_in.weight[3 + channel, channel, 1, 1] = -1
            half.conv_out.weight[channel, channel, 1, 1] = spread
            half.conv_out.weight[channel, 3 + channel, 1, 1] = -spread
        half.conv_in.bias[6], half.conv_in.bias[7] = LARGE, -LARGE
    vae.encoder.conv_out.bias[3:] = -30  # the logarithm of a variance of nothing
    return vae


if __name__ == "__main__":
    main()
