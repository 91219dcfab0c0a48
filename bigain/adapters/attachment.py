"""A reducer attached to a model, and the forward pass in progress."""

import math
import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bigain.adapters.base import Adapter, Moment
from bigain.adapters.recompute import Replay
from bigain.adapters.recording import Record
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Context, TokenReducer

__all__ = ["Attachment", "Choices", "Memory", "Pass", "Setup"]


@dataclass(frozen=True)
class Setup:
    """What attaching fixes.

    Args:
        model: The model.
        adapter: Its adapter.
        reducer: The reducer.
        seed: Seeds the reducer's random choices.
        shape: Tokens along each axis of the model's input grid, as given to `attach`, or else as configured.
        places: Layer and stage of every block it works in.
        min_tokens: Blocks whose grid has fewer tokens are left alone.
    """

    model: nn.Module
    adapter: Adapter
    reducer: TokenReducer
    seed: int
    shape: tuple[int, ...]
    places: tuple[Context, ...] = ()
    min_tokens: int = 0


@dataclass
class Choices:
    """What the report sets for the passes within one of its contexts.

    Args:
        reducer: The reducer, settled for the timestep of the context if there is one.
        sharing: How many consecutive rows share one plan.
        records: Collects the plans that are made; `None` while nothing is recorded.
    """

    reducer: TokenReducer
    sharing: int = 1
    records: list[Record] | None = None


@dataclass(frozen=True)
class Pass:
    """The forward pass in progress.

    Args:
        moment: What the adapter read from its arguments.
        thread: The thread that it runs in; `None` in compiled code.
        repeatable: Whether backward may run its blocks again.
        cache: The cache of its blocks' contexts.
        left_alone: Blocks with too few tokens, each with how many it has.
    """

    moment: Moment
    thread: int | None
    repeatable: bool
    cache: dict[Any, Any]
    left_alone: dict[str, int]


@dataclass
class Memory:
    """What outlives a pass.

    Args:
        settled: The reducer as settled for timesteps that the host knew, by its repr.
        watched: Path, parent, attribute and value of everything that must not be replaced.
        replay: Plans of blocks that may run again during backward.
        ran: Whether a forward pass has reached one of the blocks.
        planned: Whether one of them has planned, rather than been left alone.
    """

    settled: dict[str, TokenReducer] = field(default_factory=dict)
    watched: list[tuple[str, Any, str, Any]] = field(default_factory=list)
    replay: Replay = field(default_factory=Replay)
    ran: bool = False
    planned: bool = False


class Attachment:
    """A reducer at work in one model.

    Args:
        setup: What attaching fixes.

    Attributes:
        choices: What the report sets.
        memory: What outlives a pass.
        current: The forward pass in progress; `None` between passes.
        active: Whether it is attached; tells a compiled model that it no longer is.
    """

    def __init__(self, setup: Setup) -> None:
        self.setup, self.choices, self.memory = setup, Choices(setup.reducer), Memory()
        self.current: Pass | None = None
        self.active = True

    @property
    def model(self) -> nn.Module:
        """The model."""
        return self.setup.model

    @property
    def reducer(self) -> TokenReducer:
        """The reducer, for all timesteps."""
        return self.setup.reducer

    @property
    def moment(self) -> Moment | None:
        """What is known of the pass in progress; `None` between passes."""
        return None if self.current is None else self.current.moment

    def check_mixed_timesteps(self) -> None:
        """Refuse a reducer that cannot serve rows at different timesteps in one batch.

        Raises:
            SettingError: At some block it merges at one timestep and shrinks keys and values at another.
        """
        for place in self.setup.places:
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
        # The same object for the same rules, so that a compiled model compiles once for each set of rules.
        return self.memory.settled.setdefault(repr(found), found)

    def watch(self, path: str, parent: Any, name: str) -> None:
        """Refuse later passes if the attribute `name` of `parent`, the module at `path`, has been replaced."""
        self.memory.watched.append((path, parent, name, getattr(parent, name)))

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a forward pass: read its shape and timesteps."""
        if not self.active:
            return
        thread = None
        if not torch.compiler.is_compiling():
            self._check_places()
            thread = self._checked_thread()
        moment = self._checked_moment(self.setup.adapter.moment(module, args, kwargs))
        self.current = Pass(moment, thread, torch.is_grad_enabled(), {}, {})

    def _checked_moment(self, moment: Moment) -> Moment:
        """Return the moment; refuse a number of tokens that does not fill the shape attached for."""
        count, shape = moment.tokens, self.setup.shape
        if moment.shape is not None or count is None or math.prod(shape) == count:
            return moment
        size = " x ".join(map(str, shape))
        # No guess at a square: 2304 tokens are 48 x 48, but also 36 x 64 (16:9).
        raise SettingError(
            f"{type(self.model).__name__} was given {count} tokens, and nothing in the call tells how they lie; the "
            f"shape attached for is {size}. Say it when attaching, as in attach(model, ..., shape=(36, 64))."
        )

    def _checked_thread(self) -> int:
        here = threading.get_ident()
        if self.current is not None and self.current.thread not in (None, here):
            raise SiteError(
                f"A second thread runs {type(self.model).__name__} while a pass of another is in progress; the reducer "
                "attached to it follows one pass at a time. Give each thread a copy of the model, or a lock."
            )
        return here

    def _check_places(self) -> None:
        for path, parent, name, value in self.memory.watched:
            if getattr(parent, name, None) is not value:
                raise SiteError(
                    f"{path}.{name} was replaced after a reducer was attached, which would do nothing there any more. "
                    "Detach it, make the change (set processors, load or unload adapters), and attach again."
                )

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """End the pass, also after an exception: clear its state."""
        ended = self.current
        if (
            ended is not None
            and not torch.compiler.is_compiling()
            and ended.thread not in (None, threading.get_ident())
        ):
            return  # the refused call of another thread: the pass in progress goes on
        self.current = None
        if output is None:
            return
        if not self.memory.ran:
            raise SiteError(
                f"A forward pass of {type(self.model).__name__} reached none of the blocks that a reducer is attached "
                "to: nothing was reduced. Was it compiled before? Attach first, then compile anew, or call "
                "torch.compiler.reset() after attaching."
            )
        if not self.memory.planned and ended is not None and ended.left_alone:
            raise self._nothing_left(ended.left_alone)

    def _nothing_left(self, left_alone: dict[str, int]) -> SettingError:
        tokens = " or ".join(map(str, sorted(set(left_alone.values()), reverse=True)))
        return SettingError(
            f"min_tokens={self.setup.min_tokens} leaves every block alone, so that nothing is reduced: the grids of "
            f"the {len(left_alone)} blocks have {tokens} tokens in this pass. Lower it, or choose other blocks."
        )
