"""One image decoded: torchvision's sizes and crops, and every kind of pixels that files have."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from bigain.data.decode import decode_image, read_image, reason_of


def encoded(image, kind="PNG", **settings):
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def picture(width, height):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("width", "height"), [(37, 29), (29, 37), (33, 100), (101, 34), (17, 16), (16, 17), (5, 9), (500, 375), (16, 16)]
)
def test_odd_sizes_are_resized_and_cropped_as_by_torchvision(width, height):
    image = picture(width, height)
    usual = v2.Compose([v2.Resize(16, v2.InterpolationMode.BICUBIC), v2.CenterCrop(16), v2.PILToTensor()])
    assert torch.equal(decode_image(encoded(image), 16), usual(image))


def test_sixteen_bits_are_scaled_and_not_cut_off():
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16) + 77
    for kind in ("PNG", "TIFF"):
        found = decode_image(encoded(Image.fromarray(deep), kind), 16)
        assert torch.equal(found, torch.arange(256).to(torch.uint8).reshape(1, 16, 16).expand(3, 16, 16))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_known_range_are_refused(kind):
    with pytest.raises(ValueError, match="32 bits a pixel"):
        read_image(encoded(Image.fromarray(np.ones((4, 4), kind)), "TIFF"))


def test_what_is_transparent_lies_on_white():
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    assert [read_image(encoded(image)).getpixel((x, 0)) for x in range(2)] == [(200, 0, 0), (255, 255, 255)]
    image.putpixel((1, 0), (100, 0, 0, 51))  # a fifth
    assert read_image(encoded(image)).getpixel((1, 0)) == (224, 204, 204)
    grey = Image.merge("LA", (Image.new("L", (1, 1), 40), Image.new("L", (1, 1), 0)))
    assert read_image(encoded(grey)).getpixel((0, 0)) == (255, 255, 255)
    paletted = Image.new("P", (1, 1), 0)
    paletted.putpalette([9, 9, 9])
    assert read_image(encoded(paletted)).getpixel((0, 0)) == (9, 9, 9)
    assert read_image(encoded(paletted, transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr"])
def test_other_modes_become_rgb_by_pillow(mode):
    image = picture(16, 16).convert(mode)
    content = encoded(image, "TIFF" if mode != "1" else "PNG")
    assert torch.equal(decode_image(content, 16), v2.PILToTensor()(image.convert("RGB")))


def test_a_jpeg_of_inks_has_its_colours():
    """As Photoshop writes it: inverted, with Adobe's mark, which Pillow writes as well."""
    content = encoded(Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK"), "JPEG", quality=95)
    found = decode_image(content, 16).float().mean((1, 2))
    assert torch.allclose(found, torch.tensor([200.0, 30, 60]), atol=6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(orientation):
    upright = Image.new("RGB", (24, 16), "black")
    upright.paste("white", (0, 0, 8, 8))  # upper left
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert read_image(encoded(stored, exif=exif)).tobytes() == upright.tobytes()


def test_damaged_exif_harms_no_image():
    content = encoded(Image.new("RGB", (8, 8), "red"), "JPEG", exif=b"Exif\0\0no header of TIFF")
    assert read_image(content).size == (8, 8)


def test_a_reason_names_no_object_in_memory():
    with pytest.raises(Exception, match="cannot identify") as caught:
        read_image(b"no image")
    assert reason_of(caught.value) == "cannot identify image file"
