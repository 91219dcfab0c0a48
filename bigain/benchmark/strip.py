"""The pictures and settings that `bigain generate` writes."""

import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bigain.benchmark.generate import Generated
from bigain.results.files import whole_folder, write_result
from bigain.results.provenance import provenance
from bigain.results.wording import decimal

__all__ = ["draw_strip", "write_generated"]

_INK, _PAPER, _GAP = (30, 30, 30), (255, 255, 255), 8


def write_generated(place: Path, content: Generated) -> None:
    """Write each image, `strip.png` and `strip.json`; the folder appears whole or not at all."""
    with whole_folder(place) as folder:
        for one in content.drawn:
            for seed, image in zip(content.settings["seeds"], one.images, strict=True):
                _picture(image).save(folder / f"{one.name}_{seed}.png")
        draw_strip(content).save(folder / "strip.png")
        write_result(folder / "strip.json", _as_json(content))


def draw_strip(content: Generated) -> Image.Image:
    """Lay the images out, a row for each method and a column for each seed, with names and times above them."""
    side = max(192, content.drawn[0].images.shape[-1])
    size = max(12, side // 16)
    font, line = ImageFont.load_default(size=size), round(1.6 * size)
    seeds = content.settings["seeds"]
    labels = [[f"{one.name}, {decimal(seconds)} s" for seconds in one.seconds] for one in content.drawn]
    # A long name makes the columns wider: it must not run into the next one.
    column_width = max(side, *(math.ceil(font.getlength(label)) for row in labels for label in row)) + _GAP
    width = len(seeds) * column_width + _GAP
    height = len(content.drawn) * (side + line + _GAP) + line + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, seed in enumerate(seeds):
        pen.text((_GAP + column * column_width, _GAP // 2), f"seed {seed}", fill=_INK, font=font)
    for row, one in enumerate(content.drawn):
        top = line + row * (side + line + _GAP)
        for column, image in enumerate(one.images):
            left = _GAP + column * column_width
            pen.text((left, top), labels[row][column], fill=_INK, font=font)
            # A small image is enlarged without inventing anything between its pixels.
            sheet.paste(_picture(image).resize((side, side), Image.Resampling.NEAREST), (left, top + line))
    return sheet


def _picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).contiguous().to(torch.uint8).numpy())


def _as_json(content: Generated) -> dict[str, Any]:
    return {
        "kind": "generated",
        "prompt": content.prompt,
        "settings": dict(content.settings),
        "methods": [
            {
                "name": one.name,
                "method": one.method,
                "images": [f"{one.name}_{seed}.png" for seed in content.settings["seeds"]],
                "seconds": list(one.seconds),
                "pixel_difference": list(one.difference),
                **one.cost.to_json(),
            }
            for one in content.drawn
        ],
        **provenance(content.device),
    }
