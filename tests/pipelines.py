"""Tiny pipelines of diffusers' own classes, with weights that are nowhere zero, saved as users' folders are."""

import json
import string

import torch


def filled(model, seed=0):
    """Give every weight a value that matters, whatever the class starts from."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.15)
    return model.eval()


def vae(channels=4, **changes):
    """An autoencoder of two pixels a latent."""
    from diffusers import AutoencoderKL

    down, up = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    shape = {"block_out_channels": (4, 8), "latent_channels": channels, "norm_num_groups": 2, "sample_size": 16}
    torch.manual_seed(0)
    return AutoencoderKL(down_block_types=down, up_block_types=up, **{**shape, **changes}).eval()


def clip(name="CLIPTextModel", **changes):
    """A text encoder of CLIP's class, for `tokenizer`'s 54 words."""
    import transformers

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    words = {"vocab_size": 54, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "projection_dim": 16}
    config = transformers.CLIPTextConfig(**{**shape, **words, **changes})
    return filled(getattr(transformers, name)(config))


def clip_tokenizer(folder):
    """CLIP's tokenizer, of letters."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    letters = list(string.ascii_lowercase)
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    return CLIPTokenizer(**files, model_max_length=77)


def unet(**changes):
    """A U-Net of four blocks on 8 x 8 latents."""
    from diffusers import UNet2DConditionModel

    shape = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16)}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    fixed = {"layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2}
    torch.manual_seed(0)
    return filled(UNet2DConditionModel(**{**shape, "down_block_types": down, "up_block_types": up, **fixed, **changes}))


def save_sd(folder, scheduler=None, **changes):
    """Stable Diffusion; `scheduler` replaces PNDM, which 1.x has."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = scheduler or PNDMScheduler(**betas, skip_prk_steps=True, steps_offset=1)
    words = clip_tokenizer(folder.with_name(folder.name + "_words"))
    parts = {"unet": unet(**changes), "vae": vae(), "text_encoder": clip(), "tokenizer": words}
    checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, scheduler=scheduler, **checker).save_pretrained(folder)
    return folder


def save_sdxl(folder, **settings):
    """Stable Diffusion XL: two text encoders, and pooled text and sizes beside the timestep."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "cross_attention_dim": 32}
    network = unet(**conditions, projection_class_embeddings_input_dim=16 + 6 * 8)
    texts = {"text_encoder": clip(), "text_encoder_2": clip("CLIPTextModelWithProjection")}
    words = clip_tokenizer(folder.with_name(folder.name + "_words"))
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipe = StableDiffusionXLPipeline(
        vae(),
        **texts,
        tokenizer=words,
        tokenizer_2=words,
        unet=network,
        scheduler=EulerDiscreteScheduler(**betas, steps_offset=1, timestep_spacing="leading"),
        **settings,
    )
    pipe.save_pretrained(folder)
    return folder


def transformer(name, **changes):
    """A transformer of two blocks on 8 x 8 latents, of DiT's or PixArt's class; it gives a variance too."""
    import diffusers

    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "out_channels": 8}
    torch.manual_seed(0)
    return filled(getattr(diffusers, name)(**{**shape, **changes}))


def save_dit(folder, scheduler=None, **changes):
    """DiT of ImageNet's 1000 labels; `scheduler` replaces DDIM, which the published one has."""
    from diffusers import DDIMScheduler, DiTPipeline

    network = transformer("DiTTransformer2DModel", **changes)
    DiTPipeline(network, vae(), scheduler or DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


def t5(width=16, **changes):
    """A text encoder of T5's class, for the words of `t5_tokenizer`."""
    from transformers import T5Config, T5EncoderModel

    shape = {"vocab_size": 32, "d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return filled(T5EncoderModel(T5Config(**{**shape, **changes})))


def t5_tokenizer(**settings):
    """T5's tokenizer, of letters: the mark of a word's beginning is a token of its own."""
    from transformers import T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase]
    return T5Tokenizer(vocab=[(word, -2.0 if word == "▁" else 0.0) for word in words], extra_ids=0, **settings)


def save_pixart(folder, name="Alpha", scheduler=None, encoder=None, **changes):
    """PixArt-alpha or -Sigma; `scheduler` replaces DPM-Solver++, which the published ones have."""
    import diffusers

    # Three embeddings of sizes make up one: the width is divided by 3.
    shape = {"attention_head_dim": 12, "caption_channels": 16, "cross_attention_dim": 24}
    pipe = getattr(diffusers, f"PixArt{name}Pipeline")(
        t5_tokenizer(),
        encoder or t5(),
        vae(),
        transformer("PixArtTransformer2DModel", norm_type="ada_norm_single", **{**shape, **changes}),
        scheduler or diffusers.DPMSolverMultistepScheduler(),
    )
    pipe.save_pretrained(folder)
    return folder


def as_tensor(images):
    """Images of a pipeline, `output_type="np"`, as uint8 `[B, 3, H, W]`."""
    return torch.from_numpy((images * 255).round().astype("uint8")).permute(0, 3, 1, 2)


def change_json(file, **changes):
    """Change entries of an object in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def save_sd3(folder, with_t5=True, transformer=None, **settings):
    """Stable Diffusion 3; `settings` are the scheduler's."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    shape = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2, "pos_embed_max_size": 12}
    width = {"num_attention_heads": 2, "attention_head_dim": 8, "caption_projection_dim": 16}
    text = {"joint_attention_dim": 40, "pooled_projection_dim": 32}
    words = clip_tokenizer(folder.with_name(folder.name + "_words"))
    pipe = StableDiffusion3Pipeline(
        transformer=filled(SD3Transformer2DModel(**{**shape, **width, **text, **(transformer or {})})),
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **settings}),
        vae=vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip("CLIPTextModelWithProjection"),
        tokenizer=words,
        text_encoder_2=clip("CLIPTextModelWithProjection", hidden_act="gelu"),
        tokenizer_2=words,
        text_encoder_3=t5(40, feed_forward_proj="gated-gelu") if with_t5 else None,
        tokenizer_3=t5_tokenizer(model_max_length=512) if with_t5 else None,
    )
    pipe.save_pretrained(folder)
    return folder


def save_flux(folder, guidance_embeds=True, **settings):
    """FLUX.1; `settings` are the scheduler's."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    shape = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "axes_dims_rope": (2, 2, 4)}
    width = {"num_attention_heads": 2, "attention_head_dim": 8}
    text = {"joint_attention_dim": 40, "pooled_projection_dim": 16, "guidance_embeds": guidance_embeds}
    pipe = FluxPipeline(
        transformer=filled(FluxTransformer2DModel(**shape, **width, **text)),
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        vae=vae(scaling_factor=1.5, shift_factor=0.06),
        text_encoder=clip(),
        tokenizer=clip_tokenizer(folder.with_name(folder.name + "_words")),
        text_encoder_2=t5(40, feed_forward_proj="gated-gelu"),
        tokenizer_2=t5_tokenizer(model_max_length=512),
    )
    pipe.save_pretrained(folder)
    return folder


def loaded(folder):
    """diffusers' own pipeline."""
    from diffusers import DiffusionPipeline

    index = json.loads((folder / "model_index.json").read_text())
    # It wants to be told what a folder lacks on purpose.
    lacking = {name: None for name, entry in index.items() if entry == [None, None]}
    pipe = DiffusionPipeline.from_pretrained(folder, **lacking)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, seed, **call):
    """The image that diffusers' pipeline draws in 4 steps: uint8, `[1, 3, 16, 16]`."""
    generator = torch.Generator("cpu").manual_seed(seed)
    call = {"num_inference_steps": 4, "height": 16, "width": 16, "output_type": "np", **call}
    images = torch.from_numpy(pipe("a cat", generator=generator, **call).images)
    return (images * 255).round().to(torch.uint8).permute(0, 3, 1, 2)


def assert_same_image(found, expected):
    """The same image but for rounding: the last bits of products depend on where their operands lie in memory."""
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() <= 0.05
