"""Decode images before any work is done, naming every one that cannot be read."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigain.errors import DataError

__all__ = ["decode_all", "decode_image"]

_SHOWN = 5


def decode_image(source: bytes | Path, size: int) -> Tensor:
    """Decode one image to RGB: short side resized (bicubic), then centre crop.

    Args:
        source: Encoded image bytes, or the path of an image file.
        size: Side of the square that is returned, in pixels.

    Returns:
        The image, uint8, with shape `[3, size, size]`.

    Raises:
        OSError: The bytes are no image, or a truncated one.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
        image = opened.convert("RGB")
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decode_all(sources: Iterable[tuple[str, bytes | Path]], size: int, where: str) -> Tensor:
    """Decode every image, or refuse the whole set naming those that fail.

    Args:
        sources: Pairs of the name to show in an error and the bytes or path.
        size: Side of the square images, in pixels.
        where: What the images belong to, for the error.

    Returns:
        uint8 images with shape `[N, 3, size, size]`.

    Raises:
        DataError: Any image is unreadable or truncated.
    """
    images, broken = [], []
    for name, source in sources:
        try:
            images.append(decode_image(source, size))
        except Exception as error:  # each of Pillow's decoders has errors of its own
            told = str(error).strip().splitlines() or [type(error).__name__]
            broken.append(f"{name} ({told[0]})")
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise DataError(
            f"{where}: {len(broken)} of {len(broken) + len(images)} images cannot be read: "
            + "; ".join(broken[:_SHOWN])
            + more
            + ". Nothing was run. Replace or remove them."
        )
    if not images:
        raise DataError(f"{where}: no images found.")
    return torch.stack(images)
