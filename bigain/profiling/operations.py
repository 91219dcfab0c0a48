"""Floating-point operations, counted from shapes alone on the meta device."""

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from bigain.errors import BigainError, SettingError
from bigain.profiling.formulas import formulas

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["COUNTED", "META", "Operations", "count_pass", "main_dtype", "on_meta", "operations_of"]

COUNTED = (
    "Counted as torch.utils.flop_counter does: matrix products, convolutions (the Laplacian is one) and attention, "
    "a multiply-add as 2; sorting and element-wise work are not."
)
"""What the figures contain, in words."""

META = torch.device("meta")

_WRAPPERS = {"_hf_hook", "_old_forward", "_diffusers_hook"}
"""Attributes of a module whose forward accelerate or diffusers wraps."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Operations:
    """Floating-point operations of one forward pass of one row, without and with a reducer.

    Args:
        before: Operations without it.
        after: Operations with it, planning included.
        reducible: The part of `before` in the reduced modules: no reducer there can save more.
    """

    before: float
    after: float
    reducible: float

    @property
    def saved(self) -> float:
        """Share of the operations that is saved; below 0 where planning costs more than it saves."""
        return 1 - self.after / self.before if self.before else 0.0

    @property
    def share(self) -> float:
        """Share of the operations that is in the reduced modules."""
        return self.reducible / self.before if self.before else 0.0

    def __str__(self) -> str:
        return (
            f"{self.before / 1e9:.4g} -> {self.after / 1e9:.4g} GFLOPs per row and pass: {self.saved:.1%} saved. "
            f"The reduced modules are {self.share:.1%} of them."
        )


def on_meta(model: Model) -> Model:
    """Copy a model to the meta device: its shapes, without its values and hooks.

    Args:
        model: The model, which is not changed.
    """
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to(META), requires_grad=False) for weight in model.parameters()
    }
    memo |= {id(buffer): buffer.detach().to(META) for buffer in model.buffers()}
    left_out = object()
    # Offloading wraps forward to move weights. There are none to move here, and not all of its hooks can be copied.
    wrapped = [vars(module) for module in model.modules() if not _WRAPPERS.isdisjoint(vars(module))]
    memo |= {id(one[name]): left_out for one in wrapped for name in (*_WRAPPERS, "forward") if name in one}
    copied = copy.deepcopy(model, memo)
    for module in copied.modules():
        for name in [name for name, value in vars(module).items() if value is left_out]:
            delattr(module, name)
        for table in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001 torch lists hooks nowhere else
            table.clear()  # a user's hook that counts passes, say, must not see these
    return copied


def main_dtype(model: nn.Module) -> torch.dtype:
    """Return the type of most weights: libraries keep some parameters in float32 whatever the model's type."""
    numbers: Counter[torch.dtype] = Counter()
    for weight in model.parameters():
        numbers[weight.dtype] += weight.numel()
    ((dtype, _),) = numbers.most_common(1)
    return dtype


def count_pass(evaluate: Callable[[int], Any], rows: int, failure: str) -> "FlopCounterMode":
    """Count one forward pass.

    Args:
        evaluate: Runs a pass on the meta device, given the number of rows.
        rows: The number of rows.
        failure: The beginning of the error's message.

    Raises:
        SettingError: The pass fails.
    """
    # Not at the top: torch imports triton with it, where that is installed.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    try:
        # In inference mode, composite operators are counted before they are decomposed.
        with torch.inference_mode(), counter:
            evaluate(rows)
    except BigainError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SettingError(f"{failure}: {reason[0]}") from error
    return counter


def operations_of(counter: "FlopCounterMode", model: nn.Module, paths: tuple[str, ...]) -> float:
    """Sum the operations of modules, by their paths in the model."""
    counted = counter.get_flop_counts()  # by module; the model goes by its class
    return float(sum(sum(counted.get(f"{type(model).__name__}.{path}", {}).values()) for path in paths))
