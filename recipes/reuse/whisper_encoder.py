"""Speech: the 1,500 frames of a Whisper encoder, a grid of one axis.

    python recipes/reuse/whisper_encoder.py

No adapter knows Whisper, so its attention modules are named; `keys` are their projections of keys and values, for
reducers that shorten these alone. On one axis, cells and factors are numbers of neighbouring frames.
"""

import torch
from transformers import WhisperConfig, WhisperModel

import bigain

torch.manual_seed(0)
encoder_sizes = {"d_model": 64, "encoder_layers": 4, "encoder_attention_heads": 4, "encoder_ffn_dim": 256}
decoder_sizes = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 256}
config = WhisperConfig(**encoder_sizes, **decoder_sizes, init_std=0.1)
encoder = WhisperModel(config).eval().get_encoder()  # or of WhisperModel.from_pretrained("openai/whisper-base")
spectrogram = torch.randn(1, 80, 3000)  # 30 seconds, of which convolutions make 1,500 frames

names = {"name": "modules", "attention": "layers.*.self_attn", "keys": ["k_proj", "v_proj"], "shape": [1500]}
reducers = [{"name": "lgtm", "ratio": 0.5, "cell": 2}, {"name": "iekvd", "factor": 2}]
with torch.no_grad():
    whole = encoder(spectrogram).last_hidden_state
    for reducer in reducers:
        with bigain.attach(encoder, reducer, adapter=names) as report:
            frames = encoder(spectrogram).last_hidden_state
        print(report)
        print(f"{frames.shape[1]} frames come out, changed by {(frames - whole).norm() / whole.norm():.1%}\n")
