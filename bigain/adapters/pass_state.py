"""A reducer at work in a model: one plan a block and forward pass."""

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Site
from bigain.adapters.recompute import Replay, Visit, in_backward
from bigain.adapters.recording import Record
from bigain.errors import SettingError, SiteError
from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer

__all__ = ["Attachment", "BlockPlanner", "Hooked"]


class Hooked:
    """Base class of all hooks of a reducer: by it a second `attach` sees that a module is taken."""

    @staticmethod
    def holds(module: nn.Module) -> bool:
        """Say whether a reducer has hooks on the module."""
        hooks = module._forward_pre_hooks.values()  # noqa: SLF001 torch lists hooks nowhere else
        return any(isinstance(getattr(hook, "__self__", None), Hooked) for hook in hooks)


@dataclass
class Attachment:
    """A reducer at work in one model, and the forward pass in progress.

    Args:
        model: The model.
        adapter: What knows it.
        reducer: The reducer.
        seed: Seeds what it draws.
        shape: Tokens along each axis of the model's input grid, as given to `attach`, or
            else as configured.
        chosen: The reducer as settled for a timestep that the host knows.
        places: Layer and stage of every block it works in.
        sharing: So many consecutive rows share one plan.
        moment: The forward pass in progress; `None` between passes.
        cache: Lives for one forward pass.
        replay: Plans of blocks that may run again during backward.
        settled: What the reducer came to at timesteps the host knew, by its text.
        watched: Path, parent, attribute and value of all that has to stay in its place.
        active: Whether it is attached. A compiled model notices by it that it is no longer.
        thread: The one that the pass in progress runs in.
        ran: Whether a forward pass has come to a block of it.
        records: Collects the plans that are made; `None` where nothing is recorded.
    """

    model: nn.Module
    adapter: Adapter
    reducer: TokenReducer
    seed: int
    shape: tuple[int, ...]
    chosen: TokenReducer
    places: tuple[Context, ...] = ()
    sharing: int = 1
    moment: Moment | None = None
    cache: dict[Any, Any] = field(default_factory=dict)
    replay: Replay = field(default_factory=Replay)
    settled: dict[str, TokenReducer] = field(default_factory=dict)
    watched: list[tuple[str, Any, str, Any]] = field(default_factory=list)
    active: bool = True
    thread: int | None = None
    ran: bool = False
    records: list[Record] | None = None

    def check_mixed_timesteps(self) -> None:
        """Refuse a reducer that rows at different timesteps could not follow in one batch.

        Raises:
            SettingError: At some block it merges at one timestep and shrinks keys and values at another.
        """
        for place in self.places:
            if len(self.reducer.kinds_at(place)) > 1:
                raise SettingError(
                    f"At layer {place.layer} {self.reducer!r} merges at some timesteps and shrinks keys and values at "
                    "others: rows of one batch cannot do both. Where all rows are at one timestep (generation) it "
                    "works; here, make the merging reducer a kv_merge."
                )

    def settle(self, timestep: float | None) -> TokenReducer:
        """Return the reducer for passes whose rows are all at `timestep`."""
        if timestep is None:
            return self.reducer
        found = self.reducer.at(timestep)
        if found is self.reducer:
            return found
        # The same object for the same phase: a compiled model compiles once a phase.
        return self.settled.setdefault(repr(found), found)

    def watch(self, path: str, parent: Any, name: str) -> None:
        """Refuse a pass once the attribute `name` of `parent`, the module at `path`, was replaced."""
        self.watched.append((path, parent, name, getattr(parent, name)))

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a forward pass: read its shape and timesteps."""
        if not self.active:
            return
        if not torch.compiler.is_compiling():
            self._check_places()
            self._check_thread()
        self.moment, self.cache = self._laid(self.adapter.moment(module, args, kwargs)), {}
        self.replay.open = torch.is_grad_enabled()

    def _laid(self, moment: Moment) -> Moment:
        """Return the moment; refuse a number of tokens that does not fill the shape attached for."""
        count = moment.tokens
        if moment.shape is not None or count is None or math.prod(self.shape) == count:
            return moment
        size = " x ".join(map(str, self.shape))
        # Not a square, even if it could be one: 36 x 64, as any 16:9, could be as well.
        raise SettingError(
            f"{type(self.model).__name__} was given {count} tokens, and nothing in the call tells how they lie; the "
            f"shape attached for is {size}. Say it when attaching, as in attach(model, ..., shape=(36, 64))."
        )

    def _check_thread(self) -> None:
        here = threading.get_ident()
        if self.moment is not None and self.thread not in (None, here):
            raise SiteError(
                f"A second thread runs {type(self.model).__name__} while a pass of another is in progress; the reducer "
                "attached to it follows one pass at a time. Give each thread a copy of the model, or a lock."
            )
        self.thread = here

    def _check_places(self) -> None:
        for path, parent, name, value in self.watched:
            if getattr(parent, name, None) is not value:
                raise SiteError(
                    f"{path}.{name} was replaced after a reducer was attached, which would do nothing there any more. "
                    "Detach it, make the change (set processors, load or unload adapters), and attach again."
                )

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """End the pass, also after an exception: clear its state."""
        if not torch.compiler.is_compiling() and self.thread not in (None, threading.get_ident()):
            return  # refused to another thread: the pass in progress goes on
        self.moment, self.cache, self.replay.open = None, {}, False
        if not self.ran and output is not None:
            raise SiteError(
                f"A forward pass of {type(self.model).__name__} reached none of the blocks that a reducer is attached "
                "to: nothing was reduced. Was it compiled before? Attach first, then compile anew, or call "
                "torch.compiler.reset() after attaching."
            )


class BlockPlanner(Hooked):
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
        # In order of execution. A block without any still plans: a reducer may cache its plan for later ones.
        self._first_part = next(part for part in get_args(Part) if part in (parts or site.parts))
        self._visit: Visit | None = None
        self.forgetting: list[Callable[[], None]] = []  # what the parts do after an exception

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Let the parts share a plan, from the block's entry on."""
        attachment = self.attachment
        tokens: Tensor = args[0] if args else kwargs[self.site.tokens]
        if attachment.moment is not None:
            attachment.ran = True
            self._visit = self._visiting(tokens)
            attachment.replay.keep(self.site.layer, tokens, self._visit)
        else:
            # Run again during backward, or called outside a pass of the model: then its parts share a plan, too,
            # but nothing is known of the timestep or passed on to other blocks.
            self._visit = attachment.replay.find(self.site.layer, tokens)
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
        attachment, moment = self.attachment, self._moment
        shape, suffix = (None, 0) if moment is None else (moment.shape, moment.suffix)
        grid = attachment.adapter.grid(attachment.model, attachment.shape if shape is None else shape, self.site)
        return Grid(grid.shape, grid.prefix, grid.suffix + suffix) if suffix else grid

    def _make(self, tokens: Tensor) -> Reduction:
        times, context, reducer = self.attachment.sharing, self._context(tokens), self._reducer()
        grid = self.attachment.adapter.fit(self.grid, tokens)
        if times > 1:
            # The mean of the rows that share: none of them, so no class, is the one that decides.
            mean = tokens.reshape(-1, times, *tokens.shape[1:]).mean(dim=1, dtype=torch.float32)
            tokens = mean.to(tokens.dtype)
        plan = reducer.plan(tokens, grid, context)
        if self.attachment.records is not None:
            self._record(self.attachment.records, tokens, grid, plan, context.timestep)
        return plan if times == 1 else plan.repeat(times)

    def _record(
        self, records: list[Record], tokens: Tensor, grid: Grid, plan: Reduction, timestep: Tensor | None
    ) -> None:
        if torch.compiler.is_compiling():
            raise SiteError(
                "report.recording() cannot record under torch.compile, which runs no Python between blocks: record a "
                "pass of the model as it is, before it is compiled."
            )
        site, part = self.site, self._first_part
        # A copy: the model may write to its tokens later.
        copied = tokens.detach().clone()
        records.append(Record(site.name, site.layer, part, site.path(part), copied, grid, plan, timestep))

    def _reducer(self) -> TokenReducer:
        attachment, moment = self.attachment, self._moment
        timestep = None if moment is None else moment.timestep
        if isinstance(timestep, int | float) and not torch.compiler.is_compiling():  # dynamo does not trace building
            return attachment.settle(timestep)
        return attachment.chosen

    def _context(self, tokens: Tensor) -> Context:
        attachment, moment, timestep = self.attachment, self._moment, None
        if attachment.sharing > 1 and tokens.shape[0] % attachment.sharing:
            raise SettingError(
                f"{tokens.shape[0]} rows cannot share plans {attachment.sharing} by {attachment.sharing}."
            )
        if moment is not None and moment.timestep is not None:
            given = moment.timestep
            timestep = given if isinstance(given, Tensor) else torch.full((), given, device=tokens.device)
            timestep = timestep.expand(tokens.shape[0])[:: attachment.sharing]
        # Between passes, no plan may be cached for the next call.
        cache = {} if attachment.moment is None else attachment.cache
        return Context(timestep, self.site.layer, self.site.stage, attachment.seed, cache=cache)
