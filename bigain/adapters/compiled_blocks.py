"""Blocks that are compiled one by one, some with hooks and some without."""

from collections.abc import Callable, Iterable
from functools import partial

from torch import nn

__all__ = ["tell_apart"]

_MARK = "_bigain_reduces"


def tell_apart(network: nn.Module, hooked: Iterable[nn.Module], undo: list[Callable[[], None]]) -> None:
    """Keep compiled code of a block without hooks from running for one that has some.

    Blocks of one class share what `torch.compile` makes of them, and dynamo does not look at hooks when
    it decides whether that fits: without this, the reducer would do nothing from the second pass on. So blocks
    with hooks have a mark, and those without look whether they have one, which dynamo does notice.

    Args:
        network: The network.
        hooked: Its modules that a reducer is attached to.
        undo: What takes all of it back is added here.
    """
    marked = [module for module in hooked if module is not network and _is_block(module)]
    classes, taken = {type(module) for module in marked}, {id(module) for module in marked}
    for module in network.modules():
        if id(module) in taken:
            setattr(module, _MARK, getattr(module, _MARK, 0) + 1)
            undo.append(partial(_unmark, module))
        elif type(module) in classes:
            undo.append(module.register_forward_pre_hook(_look).remove)


def _unmark(module: nn.Module) -> None:
    """Take one mark away: two reducers may be attached to parts of one block."""
    left = getattr(module, _MARK) - 1
    if left:
        setattr(module, _MARK, left)
    else:
        delattr(module, _MARK)


def _is_block(module: nn.Module) -> bool:
    """Say whether somebody might compile it by itself; torch's own layers run as one kernel only without hooks."""
    return next(module.children(), None) is not None and not type(module).__module__.startswith("torch.nn.")


def _look(module: nn.Module, args: object) -> None:
    getattr(module, _MARK, 0)
