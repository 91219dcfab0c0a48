"""A diffusers pipeline: the same images with every token, and with half of them merged.

    python recipes/reuse/diffusers_pipeline.py
    python recipes/reuse/diffusers_pipeline.py --model facebook/DiT-XL-2-256 --device cuda

A model is a name on the hub, or a folder that `save_pretrained` wrote. Without one the pipeline is tiny, with random
weights, and its images are noise.
"""

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

import bigain


def tiny_pipeline() -> DiTPipeline:
    """Make a DiT of 7 blocks on latents of 8 x 8, which are images of 16 x 16 pixels."""
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 7}
    transformer = DiTTransformer2DModel(**heads, in_channels=4, out_channels=4, sample_size=8, patch_size=1)
    stages = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(**stages, block_out_channels=[8, 8], norm_num_groups=4, sample_size=16)
    return DiTPipeline(transformer.eval(), vae.eval(), DDIMScheduler())


def draw(pipe: DiTPipeline) -> np.ndarray:
    """Draw images of two classes from the same noise each time, `[2, H, W, 3]` from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    return pipe(class_labels=[207, 360], num_inference_steps=5, generator=generator, output_type="np").images


parser = argparse.ArgumentParser(description="Draw images with and without a reducer.")
parser.add_argument("--model", help="name or folder of a DiTPipeline")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

torch.manual_seed(0)
pipe = (DiTPipeline.from_pretrained(args.model) if args.model else tiny_pipeline()).to(args.device)
pipe.set_progress_bar_config(disable=True)
whole = draw(pipe)
with bigain.attach(pipe, "lgtm", ratio=0.5) as report:  # what is compiled, is compiled after this line
    print(report)  # the sites, and their tokens before and after
    merged = draw(pipe)
print(f"with the reducer pixels change by {255 * np.abs(merged - whole).mean():.1f} of 255 on average")
print(f"after detaching by {255 * np.abs(draw(pipe) - whole).mean():.1f}")
