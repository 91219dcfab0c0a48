"""Training through a reducer: gradients reach every parameter, and the loss falls.

    python recipes/reuse/training.py

A merged token is the mean of its tokens and passes its gradient on to them; the choice which tokens merge has none.
What was trained so is then tried on new images, with the reducer and without it: it has learnt to see merged tokens
and does worse on whole ones, so that a reducer that was there in training belongs to the model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import bigain


class Classifier(nn.Module):
    """A vision transformer for images of 16 x 16 pixels and one channel, `[B, 1, 16, 16]` to `[B, 4]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 32, kernel_size=2, stride=2)
        self.positions = nn.Parameter(torch.randn(64, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.encoder(tokens).mean(dim=1))


def batch(rows: int) -> tuple[Tensor, Tensor]:
    """Make noise with one of its quarters brighter, and the number of that quarter."""
    labels = torch.randint(4, (rows,))
    quarters = F.one_hot(labels, 4).view(rows, 1, 2, 2).float()
    return torch.randn(rows, 1, 16, 16) + F.interpolate(quarters, scale_factor=8), labels


torch.manual_seed(0)
model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
where = {"layers": 4, "parts": ["self", "mlp"]}  # all four layers; by default the first 12 of 28, or that share
report = bigain.attach(model, "lgtm", ratio=0.5, placement=where, shape=(8, 8))
print(report)
for step in range(41):
    images, labels = batch(64)
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 0:
        print(f"step {step}: loss {loss.item():.3f}")
reached = sum(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())
print(f"gradients reached {reached} of {len(list(model.parameters()))} parameters")

images, labels = batch(1000)
reduced = (model.eval()(images).argmax(dim=1) == labels).float().mean()
report.detach()
whole = (model(images).argmax(dim=1) == labels).float().mean()
print(f"of 1,000 new images {reduced:.1%} are right with the reducer, {whole:.1%} without it")
