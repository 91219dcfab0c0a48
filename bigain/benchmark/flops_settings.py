"""What `bigain flops` counts: networks and reducers, from options or from another command's recipe."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped] # comes with jsonargparse
from jsonargparse import ArgumentError, ArgumentParser

from bigain.adapters.placement import Placement
from bigain.benchmark.architectures import build_architecture
from bigain.benchmark.flops import FlopCount, FlopCounter
from bigain.benchmark.methods import methods_of
from bigain.benchmark.strict_yaml import load_strictly
from bigain.diffusion.backbone import Backbone
from bigain.errors import DataError, SettingError
from bigain.reducers.base import Identity, TokenReducer

__all__ = ["FlopsSettings", "FlopsTable", "MethodFlops", "count_methods"]


@dataclass(frozen=True)
class FlopsSettings:
    """Count one evaluation of a network under reducers.

    Args:
        network: A shipped architecture (sd15, sd2, sdxl, sd3, dit_xl_2_256, dit_xl_2_512, flux1,
            wan_1_3b, vit_l_16_384, cifar10_dit), or a folder or file with the config.json of a
            diffusers or timm network.
        recipe: Instead of everything else: a recipe of `bigain test` or `bigain compare`,
            whose backbone, reducers, placement and sharing are counted.
        reducer: One reducer. No reduction is always counted too.
        reducers: Several: method name to reducer.
        placement: Which blocks, and which parts of them. Default: those of the published
            methods.
        shape: Tokens along each axis of the network's input grid, `[96, 64]`. Default: as
            configured.
        sharing: How many evaluations share one plan.
        timestep: Count a reducer that switches by timestep at this timestep. Default: as if
            rows could be at any.

    Raises:
        SettingError: No network, or settings that exclude each other.
    """

    network: str | None = None
    recipe: Path | None = None
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    shape: list[int] | None = None
    sharing: int = 1
    timestep: float | None = None

    def __post_init__(self) -> None:
        if (self.network is None) == (self.recipe is None):
            raise SettingError(
                "Give --network (a shipped architecture, or a folder with a config.json) or --recipe (of bigain test "
                f"or bigain compare), one of them; got network={self.network}, recipe={self.recipe}."
            )
        if self.recipe is not None and (given := self._beside_recipe()):
            raise SettingError(f"{self.recipe} says what to count; leave out {', '.join(given)}.")
        methods_of(self.reducer, self.reducers)
        if self.sharing < 1:
            raise SettingError(f"sharing is 1 or more evaluations; got {self.sharing}.")

    def _beside_recipe(self) -> list[str]:
        """Name the settings given that a recipe has too."""
        given = {
            "reducer": not isinstance(self.reducer, Identity),
            "reducers": bool(self.reducers),
            "placement": self.placement != Placement(),
            "shape": self.shape is not None,
            "sharing": self.sharing != 1,
        }
        return [name for name, differs in given.items() if differs]


@dataclass(frozen=True)
class MethodFlops:
    """One row.

    Args:
        name: The method's name.
        reducer: The reducer's settings.
        count: Its operations.
    """

    name: str
    reducer: str
    count: FlopCount


@dataclass(frozen=True)
class FlopsTable:
    """The operations of every method.

    Args:
        title: Network, its grid, placement and sharing, in words.
        methods: One row for each method; the first is no reduction.
    """

    title: str
    methods: tuple[MethodFlops, ...]


@dataclass(frozen=True)
class _Recipe:
    """The parts of another command's recipe that the figures depend on."""

    backbone: Backbone
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    share_plans: bool = False


def count_methods(settings: FlopsSettings) -> FlopsTable:
    """Count every method that the settings name.

    Raises:
        BigainError: Something cannot be built or counted.
    """
    model, reducers, placement, sharing = (
        _of_recipe(settings.recipe, settings.timestep) if settings.recipe else _of_options(settings)
    )
    counter = FlopCounter(model, tuple(settings.shape) if settings.shape is not None else None)
    methods = [
        MethodFlops(name, repr(reducer), counter.count(reducer, placement, sharing))
        for name, reducer in reducers.items()
    ]
    title = [
        settings.network or str(settings.recipe),
        type(counter.network).__name__,
        f"{' x '.join(map(str, counter.shape))} tokens at its input",
        f"placement {placement}",
        *([f"{sharing} evaluations share a plan"] if sharing > 1 else []),
        *([f"timestep {settings.timestep:g}"] if settings.timestep is not None else []),
    ]
    return FlopsTable(", ".join(title), tuple(methods))


def _of_options(settings: FlopsSettings) -> tuple[Any, dict[str, TokenReducer], Placement, int]:
    assert settings.network is not None
    return (
        build_architecture(settings.network),
        _methods(settings, settings.timestep),
        settings.placement,
        settings.sharing,
    )


def _of_recipe(file: Path, timestep: float | None) -> tuple[Backbone, dict[str, TokenReducer], Placement, int]:
    """Build what a recipe says, with the backbone on the meta device, where it reads no weights."""
    recipe = _settings_in(file)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_Recipe)
    given = {item.name: recipe[item.name] for item in fields(_Recipe) if item.name in recipe}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # From backbones that read weights all the same.
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter.*")
            made = parser.instantiate(parser.parse_object(given))
    except ArgumentError as error:
        raise DataError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if made.share_plans and made.backbone.label_count is None:
        raise DataError(f"{file} shares plans among prompts, and does not say how many: count it with share_plans off.")
    sharing = made.backbone.label_count if made.share_plans else 1
    return made.backbone, _methods(made, timestep), made.placement, sharing


def _settings_in(file: Path) -> Mapping[str, Any]:
    """Find the settings of a task or comparison in a recipe."""
    try:
        content = load_strictly(file.read_text(), file)
    except OSError as error:
        raise DataError(f"No recipe at {file}: {error.strerror}.") from error
    except (ValueError, yaml.YAMLError) as error:
        raise DataError(f"{file} is no YAML: {' '.join(str(error).split())}.") from error
    recipe = content if isinstance(content, Mapping) else {}
    task = recipe.get("model")
    found = recipe.get("comparison") or (task.get("init_args") if isinstance(task, Mapping) else None)
    if not isinstance(found, Mapping) or "backbone" not in found:
        raise DataError(
            f"{file} is no recipe of bigain test or bigain compare: it has no backbone under model.init_args or "
            "comparison."
        )
    if found.get("methods"):
        raise DataError(
            f"{file} has methods with placements of their own, which bigain compare counts; bigain flops --recipe "
            "counts reducers under one placement."
        )
    return found


def _methods(given: Any, timestep: float | None) -> dict[str, TokenReducer]:
    """Return the methods to count, no reduction first."""
    baseline, methods = methods_of(given.reducer, given.reducers, timestep)
    return {baseline: Identity(), **methods}
