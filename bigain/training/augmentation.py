"""Random flips and shifts of a batch of images, on its device."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["flip_and_shift"]


def flip_and_shift(images: Tensor, flip: bool, shift: int, generator: torch.Generator | None = None) -> Tensor:
    """Mirror every second image or so, and move each by a few pixels; what comes in is a reflection.

    Args:
        images: uint8, `[B, C, H, W]`.
        flip: Mirror each image from left to right with probability 1/2.
        shift: Largest shift along either axis, in pixels; less than H and W.
        generator: On the device of the images; torch's own by default.

    Returns:
        Images of the same shape and type.
    """
    rows, _, height, width = images.shape
    device = images.device
    if flip:
        images = torch.where(
            torch.rand(rows, 1, 1, 1, generator=generator, device=device) < 0.5, images.flip(-1), images
        )
    if not shift:
        return images
    padded = F.pad(images.float(), [shift] * 4, mode="reflect").to(images.dtype)
    top, left = torch.randint(2 * shift + 1, (2, rows, 1), generator=generator, device=device)
    y = top + torch.arange(height, device=device)
    x = left + torch.arange(width, device=device)
    row = torch.arange(rows, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[row, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2).contiguous()
