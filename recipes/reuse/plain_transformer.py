"""A reducer in a transformer of one's own: called in its forward pass, or attached from outside.

    python recipes/reuse/plain_transformer.py

`Block` is all it takes: plan from the tokens that attention is about to see, attend over fewer, put the output back.
`attach` does the same to a model that was written without a reducer, given the names of its attention modules and how
the tokens lie. With methods that look at a token's content alone, as here, both give the same output. Others want a
`bigain.Context` with the block's index, the timestep and a cache: rotary_attention.py.
"""

import torch
from torch import Tensor, nn

import bigain


class Block(nn.Module):
    """A pre-norm transformer block over tokens on a grid, `[B, N, C]` to `[B, N, C]`."""

    def __init__(self, width: int, heads: int, grid: bigain.Grid, reducer: bigain.TokenReducer) -> None:
        super().__init__()
        self.grid, self.reducer = grid, reducer
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm1(tokens)
        reduction = self.reducer.plan(normed, self.grid)
        short = reduction.reduce(normed)
        if reduction.kind == "merge":  # queries, keys and values shrink, and the output is put back
            attended = reduction.restore(self.attention(short, short, short, need_weights=False)[0])
        else:  # "kv": keys and values alone
            attended = self.attention(normed, short, short, need_weights=False)[0]
        tokens = tokens + attended
        return tokens + self.mlp(self.norm2(tokens))


torch.manual_seed(0)
grid = bigain.Grid((16, 16), prefix=1)  # an image after its class token, which is never merged
tokens = torch.randn(2, grid.tokens, 64)
lgtm, identity = bigain.build_reducer("lgtm", ratio=0.5), bigain.build_reducer("identity")
inside = nn.Sequential(*(Block(64, 4, grid, lgtm) for _ in range(4))).eval()
plain = nn.Sequential(*(Block(64, 4, grid, identity) for _ in range(4))).eval()
plain.load_state_dict(inside.state_dict())
names = {"name": "modules", "attention": "*.attention", "shape": grid.shape, "prefix": grid.prefix}
with torch.no_grad():
    whole, called = plain(tokens), inside(tokens)
    with bigain.attach(plain, lgtm, adapter=names) as report:
        attached = plain(tokens)
print(report)
print(f"called and attached differ by at most {(called - attached).abs().max():.1e}")
print(f"half of the tokens merged changes the output by {(called - whole).norm() / whole.norm():.1%}")
