"""Progressive placements: tokens that merge in one block stay merged in all that follow.

As published for vision transformers (ToMe): each block merges between attention and MLP
and passes the sizes on; attention and pooling weight a token by its size.
"""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from torch import nn

from bigain.adapters.attachment import Attachment
from bigain.adapters.base import Adapter, Site, Undo
from bigain.adapters.pass_state import modules_taken
from bigain.adapters.placement import Placement
from bigain.adapters.progressive.merging import Branch, MergingBlock, Step, set_removed
from bigain.adapters.progressive.pools import Pool, Progress
from bigain.adapters.report import SiteReport, too_few
from bigain.errors import SettingError, SiteError
from bigain.grid import Grid
from bigain.reducers.base import Context, TokenReducer

__all__ = ["ProgressiveAdapter", "check_progressive", "install_steps", "plan_steps", "step_reports", "tome_schedule"]


class ProgressiveAdapter(Adapter):
    """An adapter of models whose output does not depend on how many tokens there are.

    Attributes:
        spatial: Names of the model's methods that lay tokens out on the grid, which merged
            tokens do not fill.
    """

    spatial: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def branch(self, site: Site) -> Branch:
        """Return where a block's tokens merge.

        Raises:
            SiteError: The block's class is not known.
        """

    @abstractmethod
    def pools(self, model: nn.Module) -> list[Pool]:
        """List where the model pools its tokens; reading a class token needs nothing.

        Raises:
            SiteError: The model pools in a way that cannot weight tokens.
        """


class Refusal:
    """Replaces a method that needs every token.

    Args:
        name: Its name.
        model: The model's class.
    """

    def __init__(self, name: str, model: str) -> None:
        self._name, self._model = name, model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse."""
        raise SiteError(
            f"{self._model}.{self._name} lays tokens out on the image, and tokens stay merged in a progressive "
            "placement: use a placement that is not, or detach first."
        )


def tome_schedule(blocks: int, removed: int, inflect: float = 0.0) -> list[int]:
    """Return how many tokens ToMe removes in each block, for `Placement(progressive=...)`.

    Args:
        blocks: How many blocks there are.
        removed: r, the mean over the blocks.
        inflect: From -1 (most in the first blocks) over 0 (constant) to 1 (most in the last).

    Raises:
        SettingError: A number of blocks below 1, r below 0, or an inflection outside [-1, 1].

    References:
        Token Merging: Your ViT but Faster (Bolya et al., 2023), section 4.1: r with a
        decreasing schedule is inflection -1.
    """
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in (blocks, removed))
    if not whole or blocks < 1 or removed < 0 or not -1 <= inflect <= 1:
        raise SettingError(
            "tome_schedule takes 1 block or more, 0 tokens or more, and an inflection from -1 to 1; "
            f"got {blocks!r}, {removed!r}, {inflect!r}."
        )
    first = int(removed * (1 - inflect))
    last = 2 * removed - first
    if blocks == 1:
        return [removed]
    return [int(first + (last - first) * index / (blocks - 1)) for index in range(blocks)]


def check_progressive(adapter: Adapter, reducer: TokenReducer, placement: Placement, sites: Sequence[Site]) -> None:
    """Refuse what cannot be progressive.

    Raises:
        SettingError: The model, the reducer, or the number of blocks does not allow it.
    """
    if not isinstance(adapter, ProgressiveAdapter):
        raise SettingError(
            f"progressive is for vision transformers, whose tokens may stay merged (adapters timm_vit and "
            f"transformers_vit); {adapter.family} gives every token back."
        )
    if "kv" in reducer.kinds:
        raise SettingError(
            f"{reducer!r} shrinks keys and values, which leaves every token in the sequence; progressive takes a "
            "reducer that merges (tome_vit, tome, lgtm, abm)."
        )
    removal = placement.removal
    assert removal is not None
    if removal.tokens is not None and not isinstance(getattr(reducer, "ratio", None), float):
        raise SettingError(
            f"progressive={removal.tokens!r} says how many tokens each block removes, in place of the reducer's ratio, "
            f"and {reducer!r} has none; give progressive=True, or a reducer with a ratio."
        )
    removal.of_blocks(len(sites))


def plan_steps(
    adapter: Adapter,
    model: nn.Module,
    shape: tuple[int, ...],
    reducer: TokenReducer,
    placement: Placement,
    sites: Sequence[Site],
) -> tuple[Step, ...]:
    """List what each block does to the sequence, from the first that merges on.

    Args:
        adapter: The adapter.
        model: The model.
        shape: Tokens along each axis of its input grid.
        reducer: The reducer.
        placement: How many tokens each block removes.
        sites: The blocks that merge.

    Raises:
        SiteError: A block or the pooling is not known, or a block has a reducer already.
        SettingError: More tokens than a block can remove.
    """
    assert isinstance(adapter, ProgressiveAdapter)
    adapter.pools(model)  # raises if the model pools in a way that cannot weight tokens
    removal, steps = placement.removal, []
    assert removal is not None
    wanted = {site.layer: number for site, number in zip(sites, removal.of_blocks(len(sites)), strict=True)}
    first = min(wanted)
    grid = adapter.grid(model, shape, sites[0])
    left, occupied = grid.size, modules_taken(model)
    for site in adapter.sites(model):
        if site.layer < first:
            continue
        if occupied.intersection(site.modules(tuple(site.parts))):
            raise SiteError(f"A reducer is attached already, at {site.path('self')}. Detach it first.")
        step = Step(site, adapter.branch(site), None, None, grid.prefix, left, left)
        if site.layer in wanted:
            step = _merging(step, reducer, wanted[site.layer], placement.min_tokens)
        steps.append(step)
        left = step.after
    return tuple(steps)


def step_reports(steps: Sequence[Step], min_tokens: int) -> list[SiteReport]:
    """Report each block that merges, with its tokens before and after."""
    rows = []
    for step in steps:
        grid, why = Grid((step.before,), step.prefix), too_few(min_tokens) if step.before < min_tokens else ""
        if step.reducer is not None:
            rows.append(SiteReport(step.site.name, grid, grid.tokens, step.after + step.prefix, why))
    return rows


def install_steps(attachment: Attachment, steps: Sequence[Step], placement: Placement, undo: Undo) -> None:
    """Put the hooks into the model; each change adds its undoing to `undo` at once."""
    adapter, model = attachment.setup.adapter, attachment.model
    assert isinstance(adapter, ProgressiveAdapter)
    few = placement.min_tokens  # a pass may bring more tokens than the size attached for
    progress = Progress(merges=any(step.after < step.before or step.before < few for step in steps))
    undo.append(model.register_forward_pre_hook(progress.begin).remove)
    undo.append(model.register_forward_hook(progress.end, always_call=True).remove)
    source = placement.plan_from or "keys"
    for index, step in enumerate(steps):
        block = MergingBlock(attachment, step, progress, source, placement.weighted, starts=index == 0)
        undo.extend(block.install())
    for pool in adapter.pools(model):
        undo.extend(pool.install(attachment, progress))
    for name in adapter.spatial:
        setattr(model, name, Refusal(name, type(model).__name__))
        undo.append(partial(delattr, model, name))


def _merging(step: Step, reducer: TokenReducer, removed: int | None, min_tokens: int) -> Step:
    """Make a block merge; with too few tokens at the size attached for, only in larger passes."""
    grid, site = Grid((step.before,), step.prefix), step.site
    if grid.size < min_tokens:
        return replace(step, reducer=reducer if removed is None else copy.copy(reducer), removed=removed)
    context = Context(layer=site.layer, stage=site.stage)
    try:
        if removed is None:
            return replace(step, reducer=reducer, after=reducer.reduced_length(grid, context) - grid.prefix)
        own, most = copy.copy(reducer), _most(reducer, grid, context, removed)
    except SettingError as error:
        raise SettingError(f"At {site.name}, which is given {grid.size} tokens in a row: {error}") from error
    if most < removed:
        raise SettingError(
            f"{site.name} is given {grid.size} tokens in a row and is to remove {removed}; the most that "
            f"{type(reducer).__name__} can remove there, up to {removed}, is {most}."
        )
    return replace(step, reducer=own, removed=removed, after=grid.size - removed)


def _most(reducer: TokenReducer, grid: Grid, context: Context, wanted: int) -> int:
    """Return the most tokens that a reducer can remove, at most `wanted`.

    Raises:
        SettingError: The reducer does not work on such a grid, whatever its ratio.
    """
    own = copy.copy(reducer)
    for removed in range(min(wanted, grid.size - 1), -1, -1):
        set_removed(own, removed, grid.size)
        try:
            return int(grid.tokens - own.reduced_length(grid, context))
        except SettingError:
            if not removed:
                raise
    return 0
