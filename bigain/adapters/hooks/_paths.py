"""Find modules by the patterns of paths that a user writes."""

import difflib
import inspect
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from bigain.adapters.base import Planner
from bigain.errors import SettingError, SiteError

__all__ = ["common_block", "find_named", "names_of", "parameter_name", "watch_path"]


def names_of(setting: str, given: Sequence[str] | str | None) -> tuple[str, ...]:
    """Return one name, several or none as a tuple.

    Raises:
        SettingError: Something else, or an empty name.
    """
    names = (given,) if isinstance(given, str) else tuple(given or ())
    if not all(isinstance(name, str) and name for name in names):
        raise SettingError(
            f"{setting} is the path of a module or a pattern of paths, or a list of them; got {given!r}."
        )
    return names


def find_named(model: nn.Module, setting: str, patterns: Sequence[str]) -> list[str]:
    """List the paths in a model that patterns name, in the order in which the model declares them.

    Args:
        model: The model.
        setting: The setting that has them, for errors.
        patterns: Paths, or patterns of paths.

    Raises:
        SiteError: A pattern names nothing, or one module named lies inside another.
    """
    paths = [path for path, _ in model.named_modules() if path]
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise SiteError(f"{setting}={pattern!r} names no module of {type(model).__name__}.{_hint(paths, pattern)}")
    found = [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]
    for path in found:
        outer = next((other for other in found if path.startswith(f"{other}.")), None)
        if outer is not None:
            raise SiteError(
                f"{setting}={list(patterns)} names {outer} and {path} inside of it; take a narrower pattern."
            )
    return found


def common_block(model: nn.Module, attention: str, mlp: str | None) -> str:
    """Say which module is the block of an attention module and an MLP.

    Args:
        model: The model.
        attention: Path of the attention module.
        mlp: Path of the MLP, if there is one.

    Returns:
        Path of the innermost module that contains both; without an MLP, of the attention module's parent. A list
        of modules never runs itself: the next module around it is taken, or the attention module.
    """
    if mlp is None:
        parent = attention.rpartition(".")[0]
        return parent if parent and _runs(model.get_submodule(parent)) else attention
    common: list[str] = []
    for one, other in zip(attention.split(".")[:-1], mlp.split(".")[:-1], strict=False):
        if one != other:
            break
        common.append(one)
    while common and not _runs(model.get_submodule(".".join(common))):
        common.pop()
    return ".".join(common)


def _runs(module: nn.Module) -> bool:
    return type(module).forward is not nn.Module.forward


def parameter_name(module: nn.Module) -> str:
    """Return the name of the first argument of a module's forward."""
    return next(iter(list(inspect.signature(type(module).forward).parameters)[1:]), "")


def watch_path(planner: Planner, path: str, module: nn.Module) -> None:
    """Refuse later passes if a module is no longer at its path in the model."""
    attachment, (parent, _, name) = planner.attachment, path.rpartition(".")
    if module is not attachment.model:
        attachment.watch(parent or type(attachment.model).__name__, attachment.model.get_submodule(parent), name)


def _hint(paths: Sequence[str], pattern: str) -> str:
    # Blocks differ by their number alone: one pattern for all of them is enough.
    known = list(dict.fromkeys(re.sub(r"(?<![^.])\d+(?![^.])", "*", path) for path in paths))
    near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(known[:8])} and others."
