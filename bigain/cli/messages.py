"""Errors as one sentence: what was given, what is accepted, where."""

import re
from collections.abc import Mapping

from bigain.errors import BigainError

__all__ = ["MOVED", "sentence_of", "shortened", "users_error"]

MOVED: Mapping[str, str] = {
    "bigain.data.labelled.LabelledImageData": "bigain.data.module.ImageData",
    "bigain.data.module.LabelledImageData": "bigain.data.module.ImageData",
    "bigain.data.labelled": "bigain.data.dataset",
    "bigain.tasks.diffusion_training": "bigain.training.diffusion",
    "bigain.tasks.feature_training": "bigain.training.features",
    "bigain.tasks.optimizers": "bigain.training.optimizers",
    "bigain.diffusion.schedule": "bigain.diffusion.process",
    **{
        f"bigain.adapters.{name}": f"bigain.adapters.families.{name}"
        for name in (
            *("audioldm2", "cogvideox", "dit", "flux", "hunyuan_dit", "ltx", "pixart", "sd3"),
            *("stable_audio", "timm_vit", "transformers_vit", "unet", "wan"),
        )
    },
    "bigain.adapters.modules": "bigain.adapters.families.any_module",
}
"""Old paths of modules and classes that have moved, and their new ones."""

_GONE: Mapping[str, str] = {
    "NoiseSchedule": "NoiseSchedule is gone: a backbone's process is read from its scheduler's configuration.",
}
"""Names of earlier versions that are gone, and what to do instead."""

_NOISE = ("Does not validate against", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")


def sentence_of(error: BaseException) -> str | None:
    """Say a user's error in a sentence, with the new path of what has moved; `None` for any other error."""
    users = users_error(error)
    return None if users is None else f"{users}{_moved(str(users))}"


def users_error(error: BaseException | None) -> BigainError | None:
    """Find a user's error among an error and its causes.

    jsonargparse takes any error while a recipe is built for a mismatch of types, and raises
    an error of its own that lists everything it tried.
    """
    while error is not None and not isinstance(error, BigainError):
        error = error.__cause__ or error.__context__
    return error


def _moved(message: str) -> str:
    """Say where the modules and classes that a message names are now."""
    hints = []
    for path in dict.fromkeys(re.findall(r"\bbigain(?:\.\w+)+", message)):
        old = next((old for old in MOVED if path == old or path.startswith(f"{old}.")), None)
        gone = next((hint for name, hint in _GONE.items() if path.endswith(f".{name}")), None)
        if gone or old:
            hints.append(gone or f"{path} is now {MOVED[old or '']}{path.removeprefix(old or '')}.")
    return "".join(f" {hint}" for hint in hints)


def shortened(message: str) -> str:
    """Shorten jsonargparse's message about a nested setting to one line.

    The message lists every attempt at each level; the deepest one is most likely what the user meant.
    """
    lines = [line for line in message.splitlines() if line.strip() and not line.strip(" -").startswith(_NOISE)]
    if not lines:
        return message
    ends = [at for at, line in enumerate(lines) if at + 1 == len(lines) or _depth(lines[at + 1]) <= _depth(line)]
    least = max(_depth(lines[at]) for at in ends)
    deepest = [at for at in ends if _depth(lines[at]) == least]
    path: list[str] = []
    for line in reversed(lines[: deepest[0]]):
        if _depth(line) < least:
            path, least = [_plain(line), *path], _depth(line)
    text = ": ".join([*path, "; or ".join(dict.fromkeys(_plain(lines[at]) for at in deepest))])
    # jsonargparse's own wrapper of a nested option says no more than its name.
    given = re.search(r"Given value: (?!NestedArg)(.{1,40})$", message, re.MULTILINE)
    if given and "Got value" not in text:
        text += f"; got {given[1]}"
    return text + ("" if text.endswith((".", "?")) else ".")


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip(" -"))


def _plain(line: str) -> str:
    """Write a place in the recipe's own terms."""
    text = re.sub(r"Parser key \"([^\"]*)\":?", r"\1", line.strip(" -"))
    text = re.sub(r"Problem with given class_path '([^']*)':?", r"\1", text)
    return text.replace("<class '", "").replace("'>", "").replace("typing.", "").removesuffix(":")
