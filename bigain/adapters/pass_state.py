"""What hangs in the blocks of a model: one plan a block and forward pass."""

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bigain.adapters.attachment import Attachment
from bigain.adapters.base import Moment, Part, Site
from bigain.adapters.recompute import Visit, in_backward
from bigain.adapters.recording import Record
from bigain.errors import SettingError, SiteError
from bigain.grid import Grid
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer

__all__ = ["BlockPlanner", "modules_taken"]


def modules_taken(model: nn.Module) -> set[nn.Module]:
    """List the modules in which a reducer works already, whatever hooks its seams put where."""
    hooks = [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]  # noqa: SLF001 torch lists hooks nowhere else
    owners = [getattr(hook, "__self__", None) for hook in hooks]
    return {module for owner in owners if isinstance(owner, BlockPlanner) for module in owner.site.modules(owner.parts)}


class BlockPlanner:
    """Plans for the parts of one block.

    Args:
        attachment: What the block belongs to.
        site: The block.
        from_block: Whether plans are made from the block's input, rather than from
            that of the first part to ask.
        parts: The parts of the block that are reduced.
    """

    def __init__(self, attachment: Attachment, site: Site, from_block: bool, parts: Sequence[Part] = ("self",)) -> None:
        self.attachment, self.site, self._from_block = attachment, site, from_block
        self.parts = tuple(parts)
        self._visit: Visit | None = None
        self.forgetting: list[Callable[[], None]] = []  # what the parts do after an exception

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let the parts share a plan, from the block's entry on."""
        attachment = self.attachment
        tokens: Tensor = args[0] if args else kwargs[self.site.tokens]
        if attachment.current is not None:
            attachment.memory.ran = True
            self._visit = self._visiting(tokens)
            if attachment.current.repeatable:
                attachment.memory.replay.keep(self.site.layer, tokens, self._visit)
        else:
            # Run again during backward, or called outside a pass of the model: then its parts share a plan, too,
            # but nothing is known of the timestep or passed on to other blocks.
            self._visit = attachment.memory.replay.find(self.site.layer, tokens)
            if self._visit is None:
                self._check_repeated()
                self._visit = self._visiting(tokens)
        if self._from_block and self._visit is not None and self._visit.plan is None:
            given = tokens if self.site.batch_first else tokens.transpose(0, 1)
            before = given.shape[1] - self.grid.tokens if self.site.after_text else 0
            self._visit.plan = self._make(given[:, before:])

    def leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget the plan, after the block or an exception in it."""
        self._visit = None
        if output is None:  # hooks that are always called cost a compiled block a graph more: here is one
            for forget in self.forgetting:
                forget()

    def _visiting(self, tokens: Tensor) -> Visit:
        """Make the state of a run of the block, whose input is `tokens`."""
        return Visit(self.attachment.moment)

    def __call__(self, tokens: Tensor) -> Reduction:
        """Return the block's plan; `tokens` (`[B, N, C]`, the grid's) is what the asking part was given."""
        visit = self._visit
        if visit is None:
            self._check_repeated()
            return self._make(tokens)
        if visit.plan is None:
            visit.plan = self._make(tokens)
        return visit.plan

    def _check_repeated(self) -> None:
        if in_backward():
            raise SiteError(
                f"{self.site.name} is run again during backward (gradient checkpointing), on an input that the "
                "reducer has not seen in the forward pass, so that other tokens would be merged. Checkpoint "
                "whole blocks, one by one, without moving their inputs."
            )

    @property
    def _moment(self) -> Moment | None:
        """The pass that the block runs in, or ran in if it runs again during backward."""
        return self.attachment.moment if self._visit is None else self._visit.moment

    @property
    def grid(self) -> Grid:
        """The grid that the block sees in its pass, or else in the shape attached for."""
        setup, moment = self.attachment.setup, self._moment
        shape, suffix = (None, 0) if moment is None else (moment.shape, moment.suffix)
        grid = setup.adapter.grid(setup.model, setup.shape if shape is None else shape, self.site)
        return Grid(grid.shape, grid.prefix, grid.suffix + suffix) if suffix else grid

    def _make(self, tokens: Tensor) -> Reduction:
        attachment = self.attachment
        grid = attachment.setup.adapter.fit(self.grid, tokens)
        if grid.size < attachment.setup.min_tokens:
            if attachment.current is not None:
                attachment.current.left_alone[self.site.name] = grid.size
            return NoReduction.of(tokens)
        attachment.memory.planned = True
        return self._planned(tokens, grid)

    def _planned(self, tokens: Tensor, grid: Grid) -> Reduction:
        times, records = self.attachment.choices.sharing, self.attachment.choices.records
        context, reducer = self._context(tokens), self._reducer()
        if times > 1:
            # The mean of the rows that share: none of them, so no class, is the one that decides.
            mean = tokens.reshape(-1, times, *tokens.shape[1:]).mean(dim=1, dtype=torch.float32)
            tokens = mean.to(tokens.dtype)
        plan = reducer.plan(tokens, grid, context)
        if records is not None:
            self._record(records, tokens, grid, plan, context.timestep)
        return plan if times == 1 else plan.repeat(times)

    def _record(
        self, records: list[Record], tokens: Tensor, grid: Grid, plan: Reduction, timestep: Tensor | None
    ) -> None:
        if torch.compiler.is_compiling():
            raise SiteError(
                "report.recording() cannot record under torch.compile, which runs no Python between blocks: record a "
                "pass of the model as it is, before it is compiled."
            )
        # In order of execution. A block without any still plans: a reducer may cache its plan for later ones.
        site, part = self.site, next(part for part in get_args(Part) if part in (self.parts or self.site.parts))
        # A copy: the model may write to its tokens later.
        copied = tokens.detach().clone()
        records.append(Record(site.name, site.layer, part, site.path(part), copied, grid, plan, timestep))

    def _reducer(self) -> TokenReducer:
        attachment, moment = self.attachment, self._moment
        timestep = None if moment is None else moment.timestep
        if isinstance(timestep, int | float) and not torch.compiler.is_compiling():  # dynamo does not trace building
            return attachment.settle(timestep)
        return attachment.choices.reducer

    def _context(self, tokens: Tensor) -> Context:
        attachment, moment, timestep = self.attachment, self._moment, None
        sharing, seed = attachment.choices.sharing, attachment.setup.seed
        if sharing > 1 and tokens.shape[0] % sharing:
            raise SettingError(f"{tokens.shape[0]} rows cannot share plans {sharing} by {sharing}.")
        if moment is not None and moment.timestep is not None:
            given = moment.timestep
            timestep = given if isinstance(given, Tensor) else torch.full((), given, device=tokens.device)
            timestep = timestep.expand(tokens.shape[0])
            timestep = timestep if sharing == 1 else timestep[::sharing]
        # Between passes, no plan may be cached for the next call.
        cache = {} if attachment.current is None else attachment.current.cache
        return Context(timestep, self.site.layer, self.site.stage, seed, cache=cache)
