"""What backbones that are conditioned on labels share."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bigain.diffusion.backbone import Backbone
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError

__all__ = ["LabelBackbone", "label_of", "without_label_dropout"]


_SHOWN = 20
"""Class names that an error lists."""


class LabelBackbone(Backbone):
    """A model whose conditions are labels, and whose null condition is one label more.

    Attributes:
        label_count: Number of classes, which is also the null label.
    """

    conditioned_on = "labels"
    label_count: int

    def embed(self, conditions: Sequence[int] | Sequence[str] | Tensor) -> Condition:
        labels = torch.as_tensor(_labels(conditions), dtype=torch.int64, device="cpu")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.label_count:
            raise SettingError(
                f"Labels are from 0 to {self.label_count - 1} in this model; got {int(labels.min())} to "
                f"{int(labels.max())}."
            )
        return Condition(labels=labels)

    def null(self, condition: Condition) -> Condition:
        assert condition.labels is not None
        return Condition(labels=torch.full_like(condition.labels, self.label_count))


def label_of(backbone: Backbone, name: str) -> int:
    """Find the label of a class by its name, one of its synonyms, or its number.

    Raises:
        SettingError: The model has no such class.
    """
    count, known = backbone.label_count or 0, backbone.class_names or ()
    if name.isdecimal() and int(name) < count:
        return int(name)
    for label, names in enumerate(known):
        if name == names or name in (one.strip() for one in names.split(",")):
            return label
    shown = f"{', '.join(known[:_SHOWN])}{f' and {count - _SHOWN} more' if count > _SHOWN else ''}"
    listed = shown if known else f"the numbers 0 to {count - 1}, since it has no names"
    raise SettingError(f"This model's classes are {listed}; got {name!r}.")


def without_label_dropout(network: nn.Module) -> None:
    """Switch off, in place, the label dropout of diffusers' DiT in training mode.

    It would drop the label in each block separately, so that hardly any training row is
    unconditional; the training task drops it once for all blocks.
    """
    from diffusers.models.embeddings import LabelEmbedding

    for module in network.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0


def _labels(conditions: Sequence[int] | Sequence[str] | Tensor) -> Sequence[int] | Tensor:
    if isinstance(conditions, Tensor):
        return conditions
    words = [value for value in conditions if isinstance(value, str)]
    if words:
        raise SettingError(f"This model is conditioned on labels (whole numbers); got the prompt {words[0]!r}.")
    return cast("Sequence[int]", conditions)
