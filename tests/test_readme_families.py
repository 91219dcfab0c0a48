"""The README's example for each family, on tiny models that lie where its names point to."""

import re
from pathlib import Path

import pytest
import torch

import bigain

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()
SECTION = README.split("<!-- families: begin -->")[1].split("<!-- families: end -->")[0]
EXAMPLES = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
HEADS = {"num_attention_heads": 2, "num_layers": 4}
VIDEO = {**HEADS, "num_layers": 3, "in_channels": 4, "out_channels": 4}


def _unet(kind, **changes):
    shape = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16)}
    down, up = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    fixed = {"layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16, "attention_head_dim": 2}
    return kind(**{**shape, "down_block_types": down, "up_block_types": up, **fixed, **changes})


def _sdxl(folder):
    import diffusers

    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = _unet(diffusers.UNet2DConditionModel, **conditions, projection_class_embeddings_input_dim=16 + 6 * 8)
    down, up = ["DownEncoderBlock2D"] * 2, ["UpDecoderBlock2D"] * 2
    shape = {"block_out_channels": (4, 8), "latent_channels": 4, "norm_num_groups": 2, "sample_size": 16}
    vae = diffusers.AutoencoderKL(down_block_types=down, up_block_types=up, **shape)
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = diffusers.EulerDiscreteScheduler()
    diffusers.StableDiffusionXLPipeline(vae, **absent, unet=unet, scheduler=scheduler).save_pretrained(folder)


def _networks():
    import diffusers

    dit = {**HEADS, "attention_head_dim": 8, "sample_size": 8, "in_channels": 4}
    yield "facebook/DiT-XL-2-512/transformer", diffusers.DiTTransformer2DModel(**dit, patch_size=1)
    pixart = {"cross_attention_dim": 16, "caption_channels": 10, "out_channels": 4}
    yield "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS/transformer", diffusers.PixArtTransformer2DModel(**dit, **pixart)
    texts = {"cross_attention_dim": 12, "cross_attention_dim_t5": 16, "text_len": 3, "text_len_t5": 4}
    hunyuan = {**dit, **texts, "hidden_size": 16, "patch_size": 2, "pooled_projection_dim": 8}
    yield "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers/transformer", diffusers.HunyuanDiT2DModel(**hunyuan)
    joint = {"joint_attention_dim": 12, "pooled_projection_dim": 10, "num_attention_heads": 2, "in_channels": 4}
    sd3 = {"sample_size": 16, "num_layers": 3, "attention_head_dim": 8, "caption_projection_dim": 16}
    network = diffusers.SD3Transformer2DModel(**joint, **sd3, dual_attention_layers=(0,), pos_embed_max_size=16)
    yield "stabilityai/stable-diffusion-3.5-medium/transformer", network
    flux = {"num_layers": 1, "num_single_layers": 6, "attention_head_dim": 16, "axes_dims_rope": (4, 6, 6)}
    yield "black-forest-labs/FLUX.1-dev/transformer", diffusers.FluxTransformer2DModel(**joint, **flux)
    # Large patches: the pipelines' default is 32,760 tokens, which this network would attend over for minutes.
    wan = {"attention_head_dim": 12, "text_dim": 10, "freq_dim": 16, "ffn_dim": 32, "patch_size": (3, 6, 8)}
    yield "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/transformer", diffusers.WanTransformer3DModel(**VIDEO, **wan)
    sample = {"sample_width": 12, "sample_height": 10, "sample_frames": 9, "time_embed_dim": 8, "text_embed_dim": 10}
    network = diffusers.CogVideoXTransformer3DModel(**VIDEO, **sample, attention_head_dim=16, max_text_seq_length=5)
    yield "THUDM/CogVideoX-5b/transformer", network
    ltx = {"attention_head_dim": 10, "caption_channels": 10, "cross_attention_dim": 20}
    yield "Lightricks/LTX-Video/transformer", diffusers.LTXVideoTransformer3DModel(**VIDEO, **ltx)
    audio = {**VIDEO, "num_key_value_attention_heads": 1, "attention_head_dim": 16, "sample_size": 24}
    widths = {"cross_attention_dim": 16, "global_states_input_dim": 10, "cross_attention_input_dim": 5}
    network = diffusers.StableAudioDiTModel(**audio, **widths, time_proj_dim=8)
    yield "stabilityai/stable-audio-open-1.0/transformer", network
    widths = {"cross_attention_dim": ((None, 12, 20), (None, 12, 20)), "sample_size": 16}
    yield "cvssp/audioldm2/unet", _unet(diffusers.AudioLDM2UNet2DConditionModel, **widths)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Save tiny models under the names of the large ones."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    _sdxl(folder / "stabilityai/stable-diffusion-xl-base-1.0")
    for name, network in _networks():
        network.save_pretrained(folder / name)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, image_size=32, patch_size=4, projection_dim=8))
    clip.save_pretrained(folder / "openai/clip-vit-base-patch32")
    return folder


def test_there_is_an_example_for_every_adapter():
    assert len(EXAMPLES) >= len(bigain.available("adapters"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda body: body.split("model = ")[-1].split("pipe = ")[-1][:40])
def test_the_example_of_a_family_runs_and_attaches(example, hub, monkeypatch, capsys):
    import timm

    monkeypatch.chdir(hub)
    space = {"bigain": bigain, "torch": torch, "timm": timm}
    assert len([line for line in example.splitlines() if line.strip()]) <= 5
    exec(example, space)
    report = space["report"]
    assert capsys.readouterr().out == ""
    attached = report._attachment.setup
    assert all(site.after < site.before for site in report.sites)
    if "modules" not in example:  # of a model that nothing knows, inputs cannot be made
        counted = report.flops()
        assert counted.before > counted.after > 0
        inputs = attached.adapter.inputs(attached.model, 1, attached.shape, torch.device("cpu"), torch.float32)
        with torch.no_grad():
            output = attached.model.eval()(**inputs)
        first = output if isinstance(output, torch.Tensor) else output[0]
        assert first.isfinite().all()
    report.detach()
