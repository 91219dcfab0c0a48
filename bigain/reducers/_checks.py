"""Checks that run before what a subclass implements."""

from collections.abc import Callable
from functools import wraps
from typing import Any

__all__ = ["put_check_before"]


def put_check_before(cls: type, name: str, check: Callable[..., None]) -> None:
    """Run a check before every call of a method that a subclass implements."""
    method = getattr(cls, name)
    if getattr(method, "_is_checked", False) or getattr(method, "__isabstractmethod__", False):
        return

    @wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return method(*args, **kwargs)

    checked._is_checked = True  # type: ignore[attr-defined]  # noqa: SLF001
    setattr(cls, name, checked)
