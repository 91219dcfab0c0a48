"""Video: a transformer block over frames, height and width, a grid of three axes.

    python recipes/reuse/video_block.py

A cell of (1, 2, 2) lies within one frame. ABM merges tokens with others of their cell, so that frames stay apart. L-GTM
keeps one destination in each cell, and merges other tokens into whichever is most similar, in whatever frame. ABM
makes one token of each cell of four that it merges, three fewer each: 394 are left of 784, not 392.
"""

import torch
from torch import nn

import bigain

torch.manual_seed(0)
video = torch.randn(1, 3, 8, 112, 112)  # [B, C, T, H, W]
embed = nn.Conv3d(3, 64, kernel_size=(2, 8, 8), stride=(2, 8, 8))
block = nn.TransformerEncoderLayer(64, 4, 256, batch_first=True, norm_first=True).eval()
grid = bigain.Grid((4, 14, 14))
frame = torch.arange(grid.size) // (14 * 14)  # of each token: the last axis runs fastest

with torch.no_grad():
    tokens = embed(video).flatten(2).transpose(1, 2)  # [1, 784, 64]
    whole = block(tokens)
    for name in ("abm", "lgtm"):
        reducer = bigain.build_reducer(name, ratio=0.5, cell=(1, 2, 2))
        with bigain.attach(block, reducer, shape=grid.shape) as report:
            print(report)
            output = block(tokens)
        place = reducer.plan(block.norm1(tokens), grid).places()[0]  # of each token in the shorter sequence
        abroad = ((place[:, None] == place) & (frame[:, None] != frame)).any(dim=1)
        print(f"output changed by {(output - whole).norm() / whole.norm():.1%};", end=" ")
        print(f"{abroad.float().mean():.0%} of the tokens merged with tokens of other frames\n")
