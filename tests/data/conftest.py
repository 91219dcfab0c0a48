import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


def png(shade=0, size=(8, 8)):
    """Encode a picture of one shade."""
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Two class folders of two images."""
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 255, 0))):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (12 + number, 8), colour).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def parquet(tmp_path):
    """Write a parquet file: `parquet(image=[..], label=[..], row_group_size=..)`."""

    def write(row_group_size=None, **columns):
        pq.write_table(pa.table(columns), tmp_path / "x.parquet", row_group_size=row_group_size)
        return tmp_path / "x.parquet"

    return write


@pytest.fixture
def shades(parquet):
    """A parquet file whose image i has shade i, three rows a group: `shades(10)`."""
    return lambda count: parquet(
        row_group_size=3,
        image=[png(shade) for shade in range(count)],
        label=[shade % 3 for shade in range(count)],
        file=[f"{shade}.png" for shade in range(count)],
    )


@pytest.fixture
def encoded():
    return png
