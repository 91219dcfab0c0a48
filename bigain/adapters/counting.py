"""What attaching saves, counted from shapes alone: floating-point operations on the meta device."""

import copy
import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from bigain.adapters.base import Adapter
from bigain.adapters.pass_state import Attachment, Hooked
from bigain.errors import BigainError, SettingError
from bigain.profiling.formulas import formulas

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

__all__ = ["COUNTED", "META", "WIDTH", "Worth", "counted_pass", "flops_of", "network_pass", "on_meta"]

COUNTED = (
    "Counted as torch.utils.flop_counter does: matrix products, convolutions (the Laplacian is one) and attention, "
    "a multiply-add as 2; sorting and element-wise work are not."
)
"""What the figures hold, in words."""

META = torch.device("meta")

_SMALL_SHARE = 0.16
"""Sites that hold less of a model's operations than this leave a compiled model nearly as slow as it was.

Measured on an H100 (assets/latency_h100_run): with 15.4 %, Stable Diffusion 2.0 was at most 7 % faster;
with 18.0 %, DiT-XL/2 11 %.
"""

WIDTH = 100
"""Columns of text."""

_WRAPPERS = {"_hf_hook", "_old_forward", "_diffusers_hook"}
"""What accelerate and diffusers leave in a module whose forward they wrap."""

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Worth:
    """What a reducer saves of one forward pass of one row.

    Args:
        before: Operations without it.
        after: Operations with it, planning included.
        share: Share of `before` that lies in the sites: no reducer there can save more.
        reason: Why nothing could be counted; then the rest is 0.
    """

    before: float = 0.0
    after: float = 0.0
    share: float = 0.0
    reason: str = ""

    @property
    def saved(self) -> float:
        """Share of the operations that is saved; below 0 where planning costs more than it spares."""
        return 1 - self.after / self.before if self.before else 0.0

    @property
    def is_small(self) -> bool:
        """Whether the sites hold too little for a compiled model to gain from any reducer there."""
        return not self.reason and self.share < _SMALL_SHARE

    def __str__(self) -> str:
        if self.reason:
            return f"Operations were not counted: {self.reason}"
        told = [
            f"{_billions(self.before)} -> {_billions(self.after)} GFLOPs a row and pass: {self.saved:.1%} saved. "
            f"The sites hold {self.share:.1%} of them."
        ]
        if self.is_small:
            told.append(
                "Little to gain: with fused attention, a compiled model whose sites held 15 % was at most 7 % faster "
                "(Stable Diffusion 2.0 on an H100). Larger inputs, or more blocks and parts, make it more."
            )
        elif self.saved <= 0:
            told.append("Nothing to gain: planning takes more operations than reduction saves here.")
        return "\n".join(textwrap.fill(line, WIDTH) for line in told)


def _billions(flops: float) -> str:
    return f"{flops / 1e9:.4g}"


def on_meta(model: Model) -> Model:
    """Copy a model to the meta device: its shapes, never its values."""
    held: dict[int, Any] = {
        id(weight): nn.Parameter(weight.detach().to(META), requires_grad=False) for weight in model.parameters()
    }
    held |= {id(buffer): buffer.detach().to(META) for buffer in model.buffers()}
    left_out = object()
    # Offloading wraps forward to move weights, which are none here; and its hooks cannot all be copied.
    wrapped = [vars(module) for module in model.modules() if not _WRAPPERS.isdisjoint(vars(module))]
    held |= {id(one[name]): left_out for one in wrapped for name in (*_WRAPPERS, "forward") if name in one}
    copied = copy.deepcopy(model, held)
    for module in copied.modules():
        for name in [name for name, value in vars(module).items() if value is left_out]:
            delattr(module, name)
        for table in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001 torch lists hooks nowhere else
            for key, hook in list(table.items()):
                # Whatever else hangs in the model, a counter of passes say, is not to be told of this one.
                if not isinstance(getattr(hook, "__self__", None), Attachment | Hooked):
                    table.pop(key)
    return copied


def network_pass(network: nn.Module, adapter: Adapter, shape: tuple[int, ...]) -> Callable[[int], Any]:
    """Return a forward pass on made-up inputs of so many rows."""
    # Libraries keep single parameters in float32 whatever the model is in: that of most weights.
    held: Counter[torch.dtype] = Counter()
    for weight in network.parameters():
        held[weight.dtype] += weight.numel()
    ((dtype, _),) = held.most_common(1)
    return lambda rows: network(**adapter.inputs(network, rows, shape, META, dtype))


def counted_pass(evaluate: Callable[[int], Any], rows: int, told: str) -> "FlopCounterMode":
    """Count one pass of so many rows.

    Args:
        evaluate: Runs the pass on the meta device.
        rows: How many rows.
        told: What it means that the pass fails.

    Raises:
        SettingError: It fails.
    """
    # Not above: torch imports triton with it, where that is installed.
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    try:
        # In inference mode operators that are made of others are counted before they are taken apart.
        with torch.inference_mode(), counter:
            evaluate(rows)
    except BigainError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SettingError(f"{told}: {reason[0]}") from error
    return counter


def flops_of(counter: "FlopCounterMode", network: nn.Module, paths: tuple[str, ...]) -> float:
    """Sum the operations of modules, by their paths in the network."""
    counted = counter.get_flop_counts()  # by module; the network goes by its class
    return float(sum(sum(counted.get(f"{type(network).__name__}.{path}", {}).values()) for path in paths))
