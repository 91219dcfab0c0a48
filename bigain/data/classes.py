"""Lists of class names, in label order."""

__all__ = ["CIFAR10_CLASSES", "classes_of"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
"""The classes of CIFAR-10."""


def classes_of(count: int) -> tuple[str, ...]:
    """Return the class names of a model with so many labels, where bigain ships them; otherwise none."""
    return CIFAR10_CLASSES if count == len(CIFAR10_CLASSES) else ()
