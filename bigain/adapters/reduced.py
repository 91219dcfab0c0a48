"""What is put into a model: parts of a block that run on reduced tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bigain.adapters.base import Adapter, Moment, Part, Site
from bigain.adapters.proportional import attend_proportionally
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Context, Reduction, TokenReducer

__all__ = ["Attachment", "Planner", "ReducedModule", "ReducedProcessor"]


@dataclass
class Attachment:
    """A reducer at work in one model, and the forward pass in progress.

    Args:
        model: The model.
        adapter: What knows it.
        reducer: The reducer.
        seed: Seeds what it draws.
        chosen: The reducer as settled for a timestep that the host knows.
        places: Layer and stage of every block it works in.
        sharing: So many consecutive rows share one plan.
        moment: The forward pass in progress; `None` between passes.
        cache: Lives for one forward pass.
        layer: Block in progress, if plans are kept for its parts.
        plan: Its plan, once made.
        settled: What the reducer came to at timesteps the host knew, by its text.
        wrapped: Path and attention module of every processor that was wrapped, and what wraps it.
    """

    model: nn.Module
    adapter: Adapter
    reducer: TokenReducer
    seed: int
    chosen: TokenReducer
    places: tuple[Context, ...] = ()
    sharing: int = 1
    moment: Moment | None = None
    cache: dict[Any, Any] = field(default_factory=dict)
    layer: int | None = None
    plan: Reduction | None = None
    settled: dict[str, TokenReducer] = field(default_factory=dict)
    wrapped: list[tuple[str, Any, "ReducedProcessor"]] = field(default_factory=list)

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

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take down the moment, before a forward pass."""
        # U-Nets hold the switch in their stages, not at the top.
        if torch.is_grad_enabled() and any(getattr(part, "gradient_checkpointing", False) for part in module.modules()):
            # Blocks would run again during backward, where neither the timestep nor the
            # pass's cache is known: other tokens would be merged, and gradients be wrong.
            raise SiteError(
                f"{type(module).__name__} has gradient checkpointing on, which a reducer cannot follow. "
                "Turn it off with model.disable_gradient_checkpointing(), or detach the reducer."
            )
        for name, attention, processor in self.wrapped:
            if attention.processor is not processor:
                raise SiteError(
                    f"The processor of {name} was set anew after a reducer was attached, which would do nothing there "
                    "any more. Detach it, set processors, and attach again."
                )
        self.moment, self.cache, self.layer, self.plan = self.adapter.moment(module, args, kwargs), {}, None, None

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget it, after the pass or an exception in it."""
        self.moment, self.cache, self.layer, self.plan = None, {}, None, None


class Planner:
    """Plans for the parts of one block.

    Args:
        attachment: What the block belongs to.
        site: The block.
    """

    def __init__(self, attachment: Attachment, site: Site) -> None:
        self.attachment, self.site = attachment, site

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Let the parts share a plan, from the block's entry on: the first to ask makes it."""
        self.attachment.layer, self.attachment.plan = self.site.layer, None

    def enter_planning(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Plan from the block's input."""
        if self.attachment.moment is None:
            return  # A block called by itself: its parts plan for themselves, and nothing is kept.
        self.attachment.layer = self.site.layer
        self.attachment.plan = self._make(args[0] if args else kwargs["hidden_states"])

    def __call__(self, tokens: Tensor) -> Reduction:
        """Return the block's plan; `tokens` (`[B, N, C]`) is what the asking part was given."""
        held = self.attachment
        if held.moment is None or held.layer != self.site.layer:
            # A part called by itself, outside a forward pass.
            return self._make(tokens)
        if held.plan is None:
            held.plan = self._make(tokens)
        return held.plan

    def _make(self, tokens: Tensor) -> Reduction:
        held = self.attachment
        shape = held.adapter.configured_shape(held.model) if held.moment is None else held.moment.shape
        grid = held.adapter.grid(held.model, shape, self.site)
        times, context, reducer = held.sharing, self._context(tokens), self._reducer()
        if times == 1:
            return reducer.plan(tokens, grid, context)
        # The mean of the rows that share: none of them, so no class, is the one that decides.
        mean = tokens.reshape(-1, times, *tokens.shape[1:]).mean(dim=1, dtype=torch.float32).to(tokens.dtype)
        return reducer.plan(mean, grid, context).repeat(times)

    def _reducer(self) -> TokenReducer:
        held = self.attachment
        timestep = None if held.moment is None else held.moment.timestep
        if isinstance(timestep, int | float) and not torch.compiler.is_compiling():  # dynamo does not trace building
            return held.settle(timestep)
        return held.chosen

    def _context(self, tokens: Tensor) -> Context:
        held, timestep = self.attachment, None
        if held.sharing > 1 and tokens.shape[0] % held.sharing:
            raise SettingError(f"{tokens.shape[0]} rows cannot share plans {held.sharing} by {held.sharing}.")
        if held.moment is not None and held.moment.timestep is not None:
            given = held.moment.timestep
            timestep = given if isinstance(given, Tensor) else torch.full((), given, device=tokens.device)
            timestep = timestep.expand(tokens.shape[0])[:: held.sharing]
        # Between passes nothing may be kept for the next call.
        kept = {} if held.moment is None else held.cache
        return Context(timestep, self.site.layer, self.site.stage, held.seed, cache=kept)


class ReducedProcessor:
    """Runs whatever attention processor was there on reduced tokens."""

    @staticmethod
    def around(inner: Any, planner: Planner, part: Part, proportional: bool) -> "ReducedProcessor":
        """Wrap a processor; the wrapper takes the same arguments."""
        return _with_signature_of(type(inner).__call__)(inner, planner, part, proportional)

    def __init__(self, inner: Any, planner: Planner, part: Part, proportional: bool) -> None:
        self.inner, self._planner, self._part, self._proportional = inner, planner, part, proportional

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if self._part == "cross":
            return self._cross(attn, hidden_states, encoder_hidden_states, attention_mask, *args, **kwargs)
        if encoder_hidden_states is not None or attention_mask is not None:
            name = self._planner.site.path(self._part)
            raise SiteError(f"{name} is reduced as self-attention, but was called with encoder states or a mask.")
        reduction = self._planner(hidden_states)
        short = reduction.reduce(hidden_states)
        if self._proportional:
            mixed = attend_proportionally(
                attn, hidden_states if reduction.kind == "kv" else short, short, reduction.sizes
            )
        else:
            mask = _mask(reduction, hidden_states.dtype)
            queries, keys = (hidden_states, short) if reduction.kind == "kv" else (short, None)
            mixed = self.inner(attn, queries, keys, mask, *args, **kwargs)
        return mixed if reduction.kind == "kv" else reduction.restore(mixed)

    def __reduce__(self) -> tuple[Any, ...]:
        # Its class has no address of its own to be pickled by.
        return _blank, (type(self.inner),), vars(self)

    def _cross(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        reduction = self._planner(hidden_states)
        if reduction.kind == "kv":  # a composite at a block where it leaves queries alone
            return self.inner(attn, hidden_states, *args, **kwargs)  # type: ignore[no-any-return]
        return reduction.restore(self.inner(attn, reduction.reduce(hidden_states), *args, **kwargs))


@cache
def _with_signature_of(inner: Callable[..., Tensor]) -> type[ReducedProcessor]:
    """Make a `ReducedProcessor` whose `__call__` shows the arguments of `inner`.

    diffusers passes on those arguments that the signature names, and drops the rest;
    a signature is looked for in `__wrapped__`.
    """

    def call(self: ReducedProcessor, *args: Any, **kwargs: Any) -> Tensor:
        return ReducedProcessor.__call__(self, *args, **kwargs)

    call.__wrapped__ = inner  # type: ignore[attr-defined]
    return type("ReducedProcessor", (ReducedProcessor,), {"__call__": call})


def _blank(inner: type[Any]) -> ReducedProcessor:
    kind = _with_signature_of(inner.__call__)
    return kind.__new__(kind)


def _mask(reduction: Reduction, dtype: torch.dtype) -> Tensor | None:
    """Leave out places that stand for no token, as an additive mask `[B, 1, M]`."""
    if not reduction.padded:
        return None
    empty = (reduction.sizes == 0)[:, None]
    return torch.zeros_like(empty, dtype=dtype).masked_fill(empty, torch.finfo(dtype).min)


class ReducedModule:
    """Hooks that let a module, such as an MLP, run on reduced tokens.

    Args:
        planner: Plans for its block.
    """

    def __init__(self, planner: Planner) -> None:
        self._planner = planner
        self._plan: Reduction | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Shorten the input, in a forward pre-hook."""
        tokens, *rest = args
        reduction = self._planner(tokens)
        # A composite may leave queries alone at this block.
        self._plan = None if reduction.kind == "kv" else reduction
        return args if self._plan is None else (reduction.reduce(tokens), *rest)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Restore the output, in a forward hook."""
        plan, self._plan = self._plan, None
        return output if plan is None else plan.restore(output)
