"""Lists of class names, in label order, each with its source, its licence and the paper's prompt."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped] # it has no stubs

from bigain.errors import SettingError

__all__ = ["CIFAR10_CLASSES", "ClassList", "class_list", "class_lists", "name_synsets", "named_classes", "synset_words"]

_FOLDER = Path(__file__).with_name("class_lists")
_IMAGENET = "imagenet-1k"


@dataclass(frozen=True)
class ClassList:
    """One file of `class_lists`.

    Args:
        name: The name users write.
        title: The data set.
        source: Where the names are from.
        licence: Their licence.
        prompt: The prompt of a class; `{class}` is its name.
        prompt_source: Where the prompt is from.
        classes: Class names in label order.
    """

    name: str
    title: str
    source: str
    licence: str
    prompt: str
    prompt_source: str
    classes: tuple[str, ...]


def class_lists() -> tuple[str, ...]:
    """Return the names of the lists that ship."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


@cache
def class_list(name: str) -> ClassList:
    """Look up a list; ImageNet's are named by the words of their identifiers.

    Raises:
        SettingError: There is none of this name.
    """
    if name not in class_lists():
        raise SettingError(f"There is no list of classes named {name!r}; there are {', '.join(class_lists())}.")
    content = _read(name)
    named = content.pop("classes")
    if name.startswith("imagenet"):
        named = name_synsets([*named])
    return ClassList(name, classes=tuple(named), **content)


def named_classes(given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Return class names as they were given, those of a list if its name was given.

    Raises:
        SettingError: There is no such list.
    """
    if given is None:
        return None
    return class_list(given).classes if isinstance(given, str) else tuple(given)


@cache
def synset_words() -> Mapping[str, str]:
    """Return the words of ImageNet-1K's classes by their WordNet identifiers, such as n01440764, in their order."""
    words: Mapping[str, str] = _read(_IMAGENET)["classes"]
    return words


def name_synsets(wnids: Sequence[str], words: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Name classes by the first of their words, each otherwise than all of ImageNet-1K, so that a part has its names.

    Args:
        wnids: WordNet identifiers.
        words: The words of some, with commas between them, in place of those that ship; an identifier without any
            is its name.
    """
    known, every = {**synset_words(), **(words or {})}, sorted({*synset_words(), *wnids})
    full = [known.get(wnid, wnid) for wnid in every]
    names = [text.split(",")[0].strip() for text in full]
    for longer in (full, [f"{text} ({wnid})" for text, wnid in zip(full, every, strict=True)]):
        count = Counter(names)
        names = [name if count[name] == 1 else more for name, more in zip(names, longer, strict=True)]
    name_of = dict(zip(every, names, strict=True))
    return tuple(name_of[wnid] for wnid in wnids)


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return content


CIFAR10_CLASSES = class_list("cifar-10").classes
"""The classes of CIFAR-10."""
