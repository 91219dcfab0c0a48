"""A timm vision transformer, with every token given back, and with merged tokens that stay merged.

    python recipes/reuse/timm_vit.py

Given back, each block returns as many tokens as before, so that heads for segmentation or detection fit. Progressively,
as ToMe was published, each block hands fewer tokens on, and attention weights each by how many it stands for. Here that
changes the logits less: a few tokens merge in each block, and not half of them in each of twelve.
"""

import timm
import torch

import bigain

torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224").eval()  # random weights; pretrained=True downloads trained ones
images = torch.randn(2, 3, 224, 224)
with torch.no_grad():
    whole = model(images)


@torch.no_grad()
def show(name: str) -> torch.Tensor:
    """Print how many tokens leave the last block, and how far the logits are from those of the model alone."""
    tokens = model.forward_features(images)  # no pass of the model: each block plans by itself, which here is the same
    logits = model.forward_head(tokens)
    change = (logits - whole).norm() / whole.norm()
    print(f"{name}: {tokens.shape[1]} tokens come out, the logits changed by {change:.1%}\n")
    return logits


show("nothing attached")
with bigain.attach(model, "lgtm", ratio=0.5) as report:
    print(report)  # the sites, with their tokens before and after
    given_back = show("given back")
with bigain.attach(model, "tome_vit", placement={"progressive": 8}):  # 8 tokens fewer in each of the 12 blocks
    progressive = show("progressive")
