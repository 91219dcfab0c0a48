"""Decode one image."""

import io
import re

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

__all__ = ["decode_image", "read_image", "reason_of"]


def read_image(encoded: bytes) -> Image.Image:
    """Read a whole image as RGB, at its own size, as a viewer shows it.

    It is turned as its EXIF orientation says; what is transparent lies on white; of 16 bits a pixel the upper
    eight remain, where Pillow would make everything above 255 white.

    Raises:
        Exception: Not an image, a truncated one, or one whose range of values is not known; each of Pillow's
            decoders has errors of its own.
    """
    with Image.open(io.BytesIO(encoded)) as opened:
        image = _upright(opened)
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise ValueError(f"it has 32 bits a pixel, mode {image.mode}: which value is white is not known")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")


def decode_image(encoded: bytes, size: int) -> Tensor:
    """Decode one image to RGB: short side resized (bicubic), then centre crop.

    Sides and corners are rounded as by torchvision's `Resize` and `CenterCrop`, with which published figures were made.

    Args:
        encoded: The bytes of an image file.
        size: Side of the square that is returned, in pixels.

    Returns:
        The image, uint8, with shape `[3, size, size]`.
    """
    image = read_image(encoded)
    if image.size != (size, size):
        width, height = (int(size * side / min(image.size)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (round((side - size) / 2) for side in (width, height))
        image = image.crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def reason_of(error: BaseException) -> str:
    """Say in one line why an image cannot be read."""
    # Pillow names the object in memory that it read from.
    lines = re.sub(r" <_io\.BytesIO object at \w+>", "", str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, of which Pillow raises errors of every kind, says nothing of the pixels
        return image
