"""Arguments of a forward call by their names, where an adapter serves classes that order them differently."""

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["Orders", "named_arguments"]

Orders = Mapping[str, tuple[str, ...]]
"""For each class, the order of its forward's arguments, as far as they matter."""


def named_arguments(model: nn.Module, orders: Orders, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call by name; the model is of a class of `orders`, or derived from one."""
    if not args:
        return kwargs
    for base in type(model).__mro__:
        if base.__name__ in orders:
            return dict(zip(orders[base.__name__], args, strict=False)) | kwargs
    return kwargs
