"""Images that metrics of generation are tried on."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bigain.metrics.base import GeneratedImages


@pytest.fixture(autouse=True)
def use_own_cache(own_cache):
    """What is kept of a test's real images is its own."""


@pytest.fixture
def images():
    """Make random images: uint8, `[count, 3, 32, 32]`."""

    def make(count, seed, bright=0):
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(0, 200, (count, 3, 32, 32), generator=generator) + bright).to(torch.uint8)

    return make


@pytest.fixture
def drawn():
    """Make the images of a method from chunks of them."""
    return lambda *chunks, prompts=(): GeneratedImages(lambda: chunks, prompts)


@pytest.fixture
def real(tmp_path, images):
    """Sixty images as a parquet file, with the tensor of them."""
    pixels, cells = images(60, 0), []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
        cells.append(file.getvalue())
    pq.write_table(pa.table({"image": cells, "label": [0] * 60}), tmp_path / "real.parquet")
    return tmp_path / "real.parquet", pixels
