"""The seam of modules that the user names, of which only the tokens are known."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bigain.adapters.base import Part, Planner, Seam, Site, Undo
from bigain.adapters.hooks._paths import watch_path
from bigain.adapters.hooks.reduced import ReducedCall
from bigain.errors import BigainError, SettingError, SiteError
from bigain.reducers.base import Context, NoReduction, Reduction, TokenReducer

__all__ = ["NamedSeam"]


@dataclass(frozen=True)
class NamedSeam(Seam):
    """A module that maps tokens, `[B, N, C]`, to as many, or to a tuple that begins with them.

    Args:
        module: Its path in the block.
        tokens: Name of the argument that holds them; `None` for the first.
        keys: Paths, in the module, of the projections of keys and values.
    """

    module: str
    tokens: str | None = None
    keys: tuple[str, ...] = ()

    def check(self, site: Site, part: Part, reducer: TokenReducer, proportional: bool) -> None:
        module, path = site.module(part), site.path(part)
        names = inspect.signature(type(module).forward).parameters
        if self.tokens is not None and self.tokens not in names:
            raise SiteError(
                f"{path} takes {', '.join(list(names)[1:])}; there is no tokens={self.tokens!r} among them."
            )
        if part != "self":
            return
        if proportional:
            raise SiteError(f"Proportional attention does not know what is inside {path}, a {type(module).__name__}.")
        missing = [name for name in self.keys if name not in dict(module.named_modules())]
        if missing:
            inside = ", ".join(name for name, _ in module.named_children())
            raise SiteError(
                f"{path} has no {' and no '.join(missing)}, named as keys; it has {inside or 'no modules'}."
            )
        kinds = reducer.kinds_at(Context(layer=site.layer, stage=site.stage))
        if "kv" in kinds and not self.keys:
            raise SiteError(
                f"{reducer!r} shrinks keys and values, and nothing says how {path} makes them: name its projections, "
                'as keys=["to_k", "to_v"] beside attention, or take a merging reducer.'
            )

    def install(self, planner: Planner, part: Part, proportional: bool) -> Undo:
        module, path = planner.site.module(part), planner.site.path(part)
        watch_path(planner, path, module)
        work = ReducedModule(self, module, planner, part)
        undo: Undo = [
            module.register_forward_pre_hook(work.before, with_kwargs=True).remove,
            module.register_forward_hook(work.after, always_call=True).remove,
        ]
        for key in self.keys:
            watch_path(planner, f"{path}.{key}", module.get_submodule(key))
            undo.append(module.get_submodule(key).register_forward_pre_hook(work.shorten).remove)
        return undo


class ReducedModule(ReducedCall):
    """Lets a module of which only the tokens are known run on reduced tokens.

    Args:
        seam: What the user says of it.
        module: The module.
        planner: Plans for its block.
        part: Which part of the block it is.
    """

    def __init__(self, seam: NamedSeam, module: nn.Module, planner: Planner, part: Part) -> None:
        super().__init__(planner)
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        self._name = seam.tokens or next(iter(names), "")
        self._position = names.index(self._name) if self._name in names else 0
        self._keys, self._part, self._path = seam.keys, part, planner.site.path(part)
        self._count = self._waiting = 0

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Shorten the tokens of a call, or keep the plan for its keys and values."""
        tokens = self.turned(self._find(args, kwargs))
        plan = self.planner(tokens)
        if plan.padded:
            raise SettingError(
                f"At {self._path} the rows of one batch would be reduced to different lengths, which a module of which "
                "nothing is known cannot mask. Give all rows one timestep: report.at(timestep)."
            )
        if isinstance(plan, NoReduction) or (plan.kind == "kv" and self._part != "self"):
            return None  # kv: a composite at a block where it leaves queries alone
        self.plan, self._count = plan, tokens.shape[1]
        self._waiting = len(self._keys) if plan.kind == "kv" else 0
        if plan.kind == "kv":
            return None
        short = self.turned(plan.reduce(tokens))
        if len(args) > self._position:
            return (*args[: self._position], short, *args[self._position + 1 :]), kwargs
        return args, {**kwargs, self._name: short}

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """Restore the output and forget the plan; add a hint to an exception."""
        if output is not None:
            self._check_keys()
        elif self.plan is not None:
            self._explain(self.plan)
        return super().after(module, args, output)

    def shorten(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        """Shorten the input of a projection of keys or values."""
        if self.plan is None or self.plan.kind != "kv":
            return None
        if not args or args[0].ndim != 3 or args[0].shape[1] != self._count:
            raise SiteError(
                f"The keys {' and '.join(self._keys)} of {self._path} must each be given its {self._count} tokens, "
                "[B, N, C], and were not."
            )
        self._waiting -= 1
        return self.plan.reduce(args[0]), *args[1:]

    def _find(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the tokens of a call."""
        found = args[self._position] if len(args) > self._position else kwargs.get(self._name)
        if not isinstance(found, Tensor) or found.ndim != 3:
            given = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise SiteError(
                f"{self._path} is reduced by its argument {self._name!r}, tokens [B, N, C], and was given {given}. "
                "Where another argument holds them, name it: tokens=... beside attention."
            )
        return found

    def restored(self, plan: Reduction, tokens: Any) -> Tensor:
        length, axis = plan.sizes.shape[1], 1 if self.planner.site.batch_first else 0
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[axis] != length:
            given = list(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise SiteError(
                f"{self._path} gave {given} for {length} tokens; what is reduced gives as many, [B, N, C], or a tuple "
                "that begins with them."
            )
        return super().restored(plan, tokens)

    def _check_keys(self) -> None:
        if self._waiting:
            raise SiteError(
                f"{self._path} did not call {' and '.join(self._keys)}, named as keys, so that keys and values were "
                "not reduced."
            )

    def _explain(self, plan: Reduction) -> None:
        """Add a note to the exception that left the module, which may have expected N tokens."""
        error = sys.exception()
        if error is None or isinstance(error, BigainError):
            return
        length = plan.sizes.shape[1]
        if plan.kind == "kv":
            cause = (
                f"{' and '.join(self._keys)}, named as keys, gave {length} keys and values for {self._count} queries"
            )
        else:
            cause = f"it was given {length} tokens in place of {self._count}"
        error.add_note(
            f"A reducer is attached to {self._path}: {cause}. Masks, positions and lengths that the module takes from "
            "elsewhere do not follow."
        )
