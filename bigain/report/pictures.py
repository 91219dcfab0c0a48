"""Images inside the page."""

import base64
from io import BytesIO

from PIL import Image
from torch import Tensor

__all__ = ["data_uri"]


def data_uri(image: Tensor, largest: int = 128) -> str:
    """Encode an image as a PNG data URI.

    Small images keep their pixels, since the page enlarges them crisply; large ones are
    shrunk so that a page of many stays small.

    Args:
        image: uint8, `[3, H, W]`.
        largest: Longest side of the result, in pixels.
    """
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if max(picture.size) > largest:
        picture.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    target = BytesIO()
    picture.save(target, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")
