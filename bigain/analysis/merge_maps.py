"""Which tokens merged, and where."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigain.adapters.attach import find_sites
from bigain.adapters.placement import Placement
from bigain.diffusion.backbone import Backbone
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer
from bigain.reducers.bipartite import Merge

__all__ = ["MergeMap", "merge_map"]


@dataclass(frozen=True)
class MergeMap:
    """The assignment a reducer makes at the first site it is attached to.

    Args:
        noisy: float32, `[B, C, h, w]`: what the network saw.
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
    backbone: Backbone,
    reducer: TokenReducer,
    clean: Tensor,
    labels: Tensor,
    timestep: int,
    placement: Placement = Placement(),
    seed: int = 0,
) -> MergeMap | None:
    """Plan a reduction of real inputs at the first site and return it; `None` if it merges nothing.

    Args:
        backbone: The model, with nothing attached.
        reducer: The reducer.
        clean: Latents, `[B, C, h, w]`.
        labels: int64, `[B]`.
        timestep: How much noise is added, the same for every row.
        placement: Where the reducer would be attached.
        seed: Seeds the noise and what the reducer draws.
    """
    network, adapter, wanted, (site, *_) = find_sites(backbone.network, placement)
    part = next(part for part in wanted.parts if part in site.parts)
    source = wanted.plan_from or adapter.plan_from
    planned_from = site.block if source == "block" else site.module(part)
    steps = torch.full((len(clean),), timestep, device=clean.device)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32).to(clean.device)
    noisy = backbone.schedule.add_noise(clean, noise, steps, backbone.schedule.alphas_cumprod(clean.device))
    tokens = _input_of(planned_from, lambda: backbone.predict_noise(noisy, steps, labels))
    grid = adapter.grid(network, adapter.configured_shape(network), site)
    plan = reducer.plan(tokens, grid, Context(timestep=steps, layer=site.layer, stage=site.stage, seed=seed))
    if plan.kind != "merge" or isinstance(plan, NoReduction):
        return None
    place = plan.places()
    return MergeMap(noisy, place, _representatives(plan, place), grid, site.path(part), timestep)


def _representatives(plan: Reduction, place: Tensor) -> Tensor:
    """Name the token that each place stands for; the first of its group where the method has none."""
    if isinstance(plan, Merge):
        return plan.representatives
    tokens = torch.arange(place.shape[1], device=place.device).expand_as(place)
    return torch.zeros_like(plan.sizes, dtype=torch.int64).scatter_reduce(1, place, tokens, "amin", include_self=False)


def _input_of(module: nn.Module, run: Callable[[], object]) -> Tensor:
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args, kwargs: seen.append(args[0]), with_kwargs=True)
    try:
        with torch.inference_mode():
            run()
    finally:
        handle.remove()
    return seen[0]
