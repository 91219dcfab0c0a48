"""Decode one image."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["decode_image", "read_image", "reason_of"]


def read_image(encoded: bytes) -> Image.Image:
    """Read a whole image as RGB, at its own size.

    Raises:
        Exception: Not an image, or a truncated one; each of Pillow's decoders has errors of its own.
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        return opened.convert("RGB")


def decode_image(encoded: bytes, size: int) -> Tensor:
    """Decode one image to RGB: short side resized (bicubic), then centre crop.

    Args:
        encoded: The bytes of an image file.
        size: Side of the square that is returned, in pixels.

    Returns:
        The image, uint8, with shape `[3, size, size]`.
    """
    image = read_image(encoded)
    if image.size != (size, size):
        scale = size / min(image.size)
        width, height = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def reason_of(error: BaseException) -> str:
    """Say in one line why an image cannot be read."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
