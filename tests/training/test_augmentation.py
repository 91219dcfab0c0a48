"""Flips and shifts are windows of the padded image."""

import torch

from bigain.training.augmentation import flip_and_shift


def windows(image, shift, size=8):
    padded = torch.nn.functional.pad(image.float(), [shift] * 4, mode="reflect")
    places = range(2 * shift + 1)
    return {padded[:, y : y + size, x : x + size].numpy().tobytes() for y in places for x in places}


def test_shifted_images_are_windows_of_the_padded_one():
    image = torch.arange(64).reshape(1, 1, 8, 8).expand(50, 3, 8, 8).to(torch.uint8)
    moved = flip_and_shift(image, True, 2).float()
    known = windows(image[0], 2) | windows(image[0].flip(-1), 2)
    assert all(row.contiguous().numpy().tobytes() in known for row in moved)
    assert len({row.contiguous().numpy().tobytes() for row in moved}) > 5


def test_without_flips_no_image_is_mirrored_and_without_shifts_none_moves():
    image = torch.arange(64).reshape(1, 1, 8, 8).expand(50, 3, 8, 8).to(torch.uint8)
    assert torch.equal(flip_and_shift(image, False, 0), image)
    moved = flip_and_shift(image, False, 1).float()
    assert all(row.contiguous().numpy().tobytes() in windows(image[0], 1) for row in moved)
    flipped = flip_and_shift(image, True, 0)
    mirrored = (flipped == image.flip(-1)).flatten(1).all(1)
    assert ((flipped == image).flatten(1).all(1) ^ mirrored).all()
    assert 10 < mirrored.sum() < 40


def test_a_generator_decides():
    image = torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8)
    first, again = (flip_and_shift(image, True, 3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
