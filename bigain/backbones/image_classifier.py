"""What evaluation needs to know of a network that classifies images."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from bigain.data.classes import class_list, synset_words
from bigain.errors import SettingError

__all__ = ["ImageClassifier", "LabelMatching", "model_labels"]

LabelMatching = Literal["names", "order"]
"""How the classes of images become a model's labels; see `model_labels`."""

_UNNAMED = re.compile(r"label[ _]\d+")
"""What transformers calls the labels of a model that has no names."""

_SHOWN = 5


class ImageClassifier(nn.Module, ABC):
    """A network from images to a logit for each of its labels, with its own preprocessing.

    Attributes:
        network: The vision transformer that reducers are attached to.
        label_count: Number of labels.
        label_names: Their names in order, synonyms with commas between them; `None` where it has none.
        preparation: Resizes, crops and normalises an RGB image as the model's configuration says: to
            float32, `[3, H, W]`. It goes to worker processes, so that it knows nothing of the network.
    """

    network: nn.Module
    label_count: int
    label_names: tuple[str, ...] | None = None
    preparation: Callable[[Image.Image], Tensor]

    @abstractmethod
    def logits(self, images: Tensor) -> Tensor:
        """Run the network on prepared images `[B, 3, H, W]`: float32, `[B, label_count]`."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what figures depend on beside the network's weights, in types that JSON has."""


def named(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return label names, or `None` for the ones that transformers makes up."""
    return None if all(_UNNAMED.fullmatch(name.casefold()) for name in names) else tuple(names)


def model_labels(
    classifier: ImageClassifier, classes: Sequence[str], how: LabelMatching | Sequence[int] | None = None
) -> Tensor:
    """Find the model's label of each class of the images.

    Args:
        classifier: The model.
        classes: Class names of the images, in label order.
        how: `names`: a class is the label of the same name, or else the one whose first name that is,
            or else the one with that name among its synonyms, with `_` for a space; another case
            does where none has the same; or it is the label whose number it is. All of ImageNet-1K's
            classes are matched by WordNet identifier where labels have them. `order`: the first class
            is the model's label 0, and so on, as many as the model has. A list: the model's label of
            each class. Default: `names` where the model has any, otherwise `order`.

    Returns:
        int64, `[K]`.

    Raises:
        SettingError: A class has no label, or several; two classes have the same; or not as many as needed.
    """
    if how is None:
        how = "names" if classifier.label_names else "order"
    if how == "names":
        wnids = _wnids(classifier, classes)
        found = [_label_named(classifier, name) for name in wnids or classes]
    elif how == "order":
        if len(classes) != classifier.label_count:
            raise SettingError(
                f"labels=order takes as many classes as the model has labels, {classifier.label_count}; the images "
                f"have {len(classes)} ({_listed(classes)}). Give names, or a list with the model's label of each class."
            )
        found = list(range(len(classes)))
    else:
        found = [int(label) for label in how]
    wrong = [label for label in found if not 0 <= label < classifier.label_count]
    if len(found) != len(classes) or wrong or len(set(found)) < len(found):
        raise SettingError(
            f"labels is one of the model's labels, 0 to {classifier.label_count - 1}, for each of the {len(classes)} "
            f"classes, none twice; got {found[:20]}{'..' if len(found) > 20 else ''}."
        )
    return torch.tensor(found)


def _label_named(classifier: ImageClassifier, name: str) -> int:
    known = classifier.label_names or ()
    found = _labels_named(known, name)
    if not found and name.isdecimal() and int(name) < classifier.label_count:
        return int(name)
    if len(found) == 1:
        return found[0]
    listed = _listed(known) if known else f"the numbers 0 to {classifier.label_count - 1}, since it has no names"
    several = f"names the labels {' and '.join(map(str, found))} of the model" if found else "is no label of the model"
    raise SettingError(
        f"The class {name!r} {several}, whose labels are {listed}. Rename it (--data.classes), or say which labels the "
        "classes are: --model.labels=order, or a list of numbers."
    )


def _labels_named(known: Sequence[str], name: str) -> list[int]:
    """Return the labels that a name fits best: as a whole, as the first name, or as a synonym."""
    for case in (str, str.casefold):
        labels, wanted = [case(_plain(names)) for names in known], case(_plain(name))
        whole = [label for label, names in enumerate(labels) if names == wanted]
        first = [label for label, names in enumerate(labels) if names.startswith(f"{wanted}, ")]
        if whole or first:
            return whole or first
    return [label for label, names in enumerate(labels) if wanted in names.split(", ")]


def _wnids(classifier: ImageClassifier, classes: Sequence[str]) -> list[str] | None:
    """Return the WordNet identifiers of ImageNet-1K's classes if these are all of them, and labels have identifiers.

    Words do not suffice: cranes are birds and machines, and the first word of two labels is maillot.
    """
    wnid_of = dict(zip(class_list("imagenet-1k").classes, synset_words(), strict=True))
    synonyms = {one for names in classifier.label_names or () for one in _plain(names).split(", ")}
    every = {*classes} == {*wnid_of} and synonyms >= {*wnid_of.values()}
    return [wnid_of[name] for name in classes] if every else None


def _plain(name: str) -> str:
    return ", ".join(" ".join(one.split()) for one in name.replace("_", " ").split(","))


def _listed(names: Sequence[str]) -> str:
    return f"{'; '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"
