"""Find the blocks of a model that a placement names."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from bigain.adapters.base import Adapter, Site
from bigain.adapters.placement import BLOCK_CHOICES, PRESETS, Placement
from bigain.errors import SiteError

__all__ = ["select_sites"]


def select_sites(adapter: Adapter, name: str, sites: list[Site], placement: Placement) -> tuple[Placement, list[Site]]:
    """Find the blocks that a placement names; the placement returned has its preset resolved.

    Args:
        adapter: The adapter of the model.
        name: The adapter's registered name.
        sites: Every block.
        placement: What is asked for.

    Raises:
        SiteError: The model has no such blocks, or they have no such parts.
    """
    if not sites:
        raise SiteError("The model has no transformer block that a reducer could work in.")
    placement = _resolve(name, sites, placement)
    chosen = sites
    if all(getattr(placement, choice) is None for choice in BLOCK_CHOICES):
        default = adapter.default_layers(sites)
        chosen = [site for site in sites if site.layer in default]
    if placement.layers is not None:
        chosen = _by_layers(sites, placement.layers)
    for wanted, matching in ((placement.names, _by_name), (placement.downsample, _by_grid)):
        for item in wanted if isinstance(wanted, tuple) else ():
            if not any(matching(site, item) for site in sites):
                raise SiteError(f"No block meets {item!r} of {placement}. {_inventory(sites)}")
    chosen = [site for site in chosen if _by_name(site, placement.names) and _by_grid(site, placement.downsample)]
    if not chosen:
        raise SiteError(f"No block meets {placement}. {_inventory(sites)}")
    for part in placement.parts:
        if not any(part in site.parts for site in chosen):
            had = ", ".join(sorted({known for site in chosen for known in site.parts}))
            raise SiteError(f"None of the {len(chosen)} blocks that {placement} names has {part!r}; they have {had}.")
    return placement, chosen


def _resolve(name: str, sites: list[Site], placement: Placement) -> Placement:
    if placement.preset is None:
        return placement
    preset = PRESETS[placement.preset]
    if preset.adapter != name or preset.blocks not in (None, len(sites)):
        size = f" of {preset.blocks} blocks" if preset.blocks else ""
        raise SiteError(
            f"Placement {placement.preset!r} is for models of the adapter {preset.adapter!r}{size}; "
            f"this one has the adapter {name!r} and {len(sites)} blocks."
        )
    others = {name: getattr(placement, name) for name in ("plan_from", "proportional", "min_tokens")}
    return replace(preset.placement, **others)


def _by_layers(sites: list[Site], layers: Sequence[int] | int) -> list[Site]:
    known = [site.layer for site in sites]
    wanted = known[:layers] if isinstance(layers, int) else list(layers)
    enough = not isinstance(layers, int) or 1 <= layers <= len(known)
    if not enough or not wanted or not set(wanted) <= set(known):
        raise SiteError(
            f"layers={layers} was asked for; the model has blocks {known[0]} to {known[-1]}: give indices among "
            f"them, or how many of the first (1 to {len(known)})."
        )
    return [site for site in sites if site.layer in wanted]


def _by_name(site: Site, names: Sequence[str] | str | None) -> bool:
    patterns = (names,) if isinstance(names, str) else names
    return patterns is None or any(fnmatchcase(site.name, pattern) for pattern in patterns)


def _by_grid(site: Site, downsample: Sequence[int] | int | None) -> bool:
    wanted = (downsample,) if isinstance(downsample, int) else downsample
    return wanted is None or site.downsample in wanted


def _inventory(sites: list[Site]) -> str:
    grids = ", ".join(map(str, sorted({site.downsample for site in sites})))
    return f"There are {len(sites)} blocks, {sites[0].name} to {sites[-1].name}, with downsample {grids}."
