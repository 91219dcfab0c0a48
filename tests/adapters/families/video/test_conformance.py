"""The contract of adapters, on a tiny model of each family."""

from functools import partial

from bigain.testing import parametrize_with_checks
from bigain.testing.adapters.bench import Specimen

SMALL = {"num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}


def wan(**changes):
    from diffusers import WanTransformer3DModel

    text = {"attention_head_dim": 12, "text_dim": 10, "freq_dim": 16, "ffn_dim": 32, "rope_max_seq_len": 32}
    return WanTransformer3DModel(**SMALL, **text, **changes)


def cogvideox(**changes):
    from diffusers import CogVideoXTransformer3DModel

    sample = {"attention_head_dim": 16, "sample_width": 12, "sample_height": 10, "sample_frames": 9}
    text = {"max_text_seq_length": 7, "text_embed_dim": 10, "time_embed_dim": 8}
    return CogVideoXTransformer3DModel(**SMALL, **sample, **text, **changes)


def ltx():
    from diffusers import LTXVideoTransformer3DModel

    return LTXVideoTransformer3DModel(**SMALL, attention_head_dim=10, cross_attention_dim=20, caption_channels=10)


SUBJECTS = [
    Specimen(partial(wan, image_dim=6, added_kv_proj_dim=24), {"name": "wan", "shape": [2, 3, 4]}, "wan"),
    Specimen(partial(cogvideox, patch_size_t=2, use_rotary_positional_embeddings=True), name="cogvideox"),
    Specimen(ltx, {"name": "ltx", "shape": [2, 3, 4]}),
]


@parametrize_with_checks(SUBJECTS)
def test_conformance(subject, check):
    check(subject)
