"""Attention of one's own, with all that a plan says: positions, sizes, padding, kind, the moment of a pass.

    python recipes/reuse/rotary_attention.py

Positions follow the tokens (`place_positions`), keys weigh as many tokens as they stand for (`sizes`), and a `Context`
tells each block its index and the timestep of each row. Rows at different timesteps may keep different numbers of
tokens: the shorter are filled up with places of size 0, which weighted attention leaves out.
"""

import torch
from torch import Tensor, nn

import bigain
from bigain.functional.attention import proportional_attention


def rotate(heads: Tensor, positions: Tensor) -> Tensor:
    """Rotate `[B, H, N, D]` by positions on two axes, `[B, N, 2]`."""
    frequencies = 100 ** -torch.linspace(0, 1, heads.shape[-1] // 4)
    angle = (positions[..., None] * frequencies).flatten(-2)[:, None]
    first, second = heads.chunk(2, dim=-1)
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


class Attention(nn.Module):
    """Rotary self-attention under a reducer, `[B, N, C]` to `[B, N, C]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor, positions: Tensor, plan: bigain.Reduction) -> Tensor:
        short, moved = plan.reduce(tokens), plan.place_positions(positions)
        whole = plan.kind == "kv"  # queries stay: only keys and values are fewer
        query = self.split(tokens if whole else short, 0, positions if whole else moved)
        key, value = self.split(short, 1, moved), self.split(short, 2)
        mixed = proportional_attention(query, key, value, plan.sizes)
        output = self.out(mixed.transpose(1, 2).flatten(2))
        return output if whole else plan.restore(output)

    def split(self, tokens: Tensor, part: int, positions: Tensor | None = None) -> Tensor:
        """Project tokens to queries, keys or values, `[B, H, N, D]`."""
        heads = self.qkv(tokens).chunk(3, dim=-1)[part].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return heads if positions is None else rotate(heads, positions)


torch.manual_seed(0)
grid = bigain.Grid((8, 8), prefix=1)
blocks = nn.ModuleList(Attention(64, 4) for _ in range(4)).eval()
start, timestep = torch.randn(2, grid.tokens, 64), torch.tensor([900, 100])
places = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
positions = torch.cat([torch.zeros(1, 2), places]).expand(2, -1, -1)  # the class token stands at the origin


@torch.no_grad()
def run(reducer: bigain.TokenReducer, rows: slice = slice(None)) -> Tensor:
    """Run the blocks; one cache serves a pass, so that a method may plan once for several blocks."""
    tokens, cache = start[rows], {}
    for layer, block in enumerate(blocks):
        plan = reducer.plan(tokens, grid, bigain.Context(timestep[rows], layer, cache=cache))
        tokens = tokens + block(tokens, positions[rows], plan)
    return tokens


whole = run(bigain.build_reducer("identity"))
late = [{"reducer": "identity", "timesteps": [800, 1000]}]  # near pure noise every token stays
merge = {"name": "lgtm", "ratio": 0.5}
for reducer in (
    bigain.build_reducer("cached", reducer=merge),  # one assignment for all blocks
    bigain.build_reducer("iekvd", factor=2),
    bigain.build_reducer("scheduled", rules=late, otherwise=merge),  # row 0 keeps its tokens, row 1 does not
):
    change = (run(reducer) - whole).norm(dim=(1, 2)) / whole.norm(dim=(1, 2))
    print(f"{grid.tokens} -> {reducer.reduced_length(grid)} tokens")
    print(f"  {reducer}\n  changes the two rows by {change[0]:.1%} and {change[1]:.1%}")
