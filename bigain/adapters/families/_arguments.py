"""Arguments of a forward call by their names, where an adapter serves classes that order them differently."""

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["Orders", "named_arguments"]

Orders = Mapping[str, tuple[str, ...]]
"""By class, the order of its forward's arguments, as far as they matter."""


def named_arguments(model: nn.Module, orders: Orders, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Put the arguments of a call of a model, of one of the classes of `orders` or derived from one, under names."""
    if not args:
        return kwargs
    for kind in type(model).__mro__:
        if kind.__name__ in orders:
            return dict(zip(orders[kind.__name__], args, strict=False)) | kwargs
    return kwargs
