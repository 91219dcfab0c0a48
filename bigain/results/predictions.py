"""What a classifier predicted."""

from dataclasses import dataclass

from torch import Tensor

from bigain.results.errors import Errors

__all__ = ["Predictions"]


@dataclass(frozen=True)
class Predictions:
    """The predictions of one method on named images.

    Args:
        names: N names of images.
        labels: The labels of each image; a prediction is right if it is one of them.
        predicted: int64, `[N]`, the predicted class of each image.
        errors: The errors they were made from; their images are numbered as here.
        classes: Class names in label order.
    """

    names: tuple[str, ...]
    labels: tuple[tuple[int, ...], ...]
    predicted: Tensor
    errors: Errors
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)
