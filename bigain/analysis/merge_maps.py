"""Which tokens merged, and where."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bigain.adapters.report import AttachReport
from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.grid import Grid
from bigain.reducers.base import NoReduction, Reduction
from bigain.reducers.bipartite import Merge

__all__ = ["MergeMap", "merge_map"]


@dataclass(frozen=True)
class MergeMap:
    """The assignment of the first block with a reducer in one forward pass.

    Args:
        noisy: The network's input, float32, `[B, C, h, w]`.
        place: int64, `[B, N]`: each token's place in the reduced sequence.
        representatives: int64, `[B, M]`: the token each place stands for.
        grid: How the tokens lie.
        site: Path of the attention module.
        timestep: The timestep.
    """

    noisy: Tensor
    place: Tensor
    representatives: Tensor
    grid: Grid
    site: str
    timestep: int


def merge_map(
    backbone: Backbone, report: AttachReport, clean: Tensor, condition: Condition, timestep: int, seed: int = 0
) -> MergeMap | None:
    """Record a forward pass and return the first block's assignment; `None` if that merges nothing.

    Args:
        backbone: The model, not compiled, with a reducer attached.
        report: What `attach` returned.
        clean: Latents, `[B, C, h, w]`.
        condition: B rows.
        timestep: The timestep of every row.
        seed: Seeds the noise.
    """
    t = torch.full((len(clean),), timestep, device=clean.device)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32).to(clean.device)
    noisy = backbone.process.add_noise(clean, noise, t)
    with report.recording() as records, torch.inference_mode():
        backbone.predict(noisy, t, condition.to(clean.device))
    first = records[0]
    if first.plan.kind != "merge" or isinstance(first.plan, NoReduction):
        return None
    place = first.plan.places()
    return MergeMap(noisy, place, _representatives(first.plan, place), first.grid, first.name, timestep)


def _representatives(plan: Reduction, place: Tensor) -> Tensor:
    """Return the token that each place stands for; the first of its group if the method names none."""
    if isinstance(plan, Merge):
        return plan.representatives
    tokens = torch.arange(place.shape[1], device=place.device).expand_as(place)
    return torch.zeros_like(plan.sizes, dtype=torch.int64).scatter_reduce(1, place, tokens, "amin", include_self=False)
