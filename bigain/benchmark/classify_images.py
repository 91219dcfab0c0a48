"""The images and classes of `bigain classify`."""

import re
from collections import Counter
from pathlib import Path

from bigain.backbones.labels import label_of
from bigain.backbones.pipeline import PromptBackbone
from bigain.benchmark.classify_settings import ClassifySettings
from bigain.data.classes import class_list, class_lists
from bigain.data.dataset import ImageDataset
from bigain.data.prompts import fill_prompt
from bigain.data.sources.flat import FlatSource
from bigain.data.sources.official import is_official
from bigain.diffusion.backbone import Backbone
from bigain.errors import SettingError

__all__ = ["beside", "labels_of", "open_images"]


def beside(folder: Path) -> str:
    """Say which files of a folder are no images for us: a telephone's HEIC should not be missed without a word."""
    others = FlatSource(folder, ()).others
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(Counter(others).items()))
    return f"; not read: {kinds}" if kinds else ""


def labels_of(folder: Path, images: ImageDataset) -> str:
    """Say where images have their labels from."""
    own = is_official(folder) or folder.is_file()
    by = "with the labels of the data set" if own else "labelled by their folders"
    return by + (f"; left out for having none: {images.left_out}" if images.left_out else "")


def _classes_given(classes: str | None) -> tuple[str, ...]:
    """Read class names with commas between them, or the name of a list that ships."""
    if classes in class_lists():
        return class_list(str(classes)).classes
    given = tuple(name.strip() for name in classes.split(",")) if classes else ()
    if given and (len(set(given)) < len(given) or len(given) < 2 or "" in given):
        raise SettingError(
            f"classes is two names or more with commas between them, none twice, or a list that ships "
            f"({', '.join(class_lists())}); got {classes!r}."
        )
    return given


def open_images(
    folder: Path, labelled: bool, backbone: Backbone, settings: ClassifySettings
) -> tuple[ImageDataset, list[int] | list[str]]:
    """Open the images, and choose which of the model's labels are asked for, or with which prompts."""
    given = _classes_given(settings.classes)
    classes = given or (None if labelled or backbone.conditioned_on == "prompts" else backbone.class_names)
    if not labelled and not classes:
        raise SettingError(f"{folder} has no labels: say between which classes to decide, --classes=cat,dog.")
    if labelled:
        images = ImageDataset.open(folder, backbone.image_size, classes)
    else:
        images = ImageDataset(FlatSource(folder, classes or ()), backbone.image_size)
    if backbone.conditioned_on == "labels":
        if given and backbone.class_names is None and len(given) == backbone.label_count:
            return images, list(range(len(given)))  # names for all labels of a model that has none, in its order
        return images, [label_of(backbone, name) for name in images.classes]
    if not given and re.fullmatch(r"class \d+", images.classes[0]):
        raise SettingError(f"{folder} has numbers for classes: name them in their order, --classes=cat,dog.")
    prompts = list(fill_prompt(settings.prompt, images.classes))
    if isinstance(backbone, PromptBackbone):
        for prompt in prompts:  # before thousands of images are read
            backbone.check_prompt(prompt)
    return images, prompts
