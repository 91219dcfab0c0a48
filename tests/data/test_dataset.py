import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bigain.assets import asset
from bigain.data.dataset import CIFAR10_CLASSES, load_images
from bigain.data.module import LabelledImageData
from bigain.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 255, 0))):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new("RGB", (12 + number, 8), colour).save(tmp_path / name / f"{number}.png")
    return tmp_path


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def png(tmp_path):
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "one.png")
    return (tmp_path / "one.png").read_bytes()


def test_the_embedded_images_are_five_thousand_with_every_class():
    images = LabelledImageData().test_set
    assert images.images.shape == (5000, 3, 32, 32)
    assert images.labels.bincount().min() > 400
    assert len(set(images.names)) == 5000


def test_a_folder_gives_its_classes_in_sorted_order(folder):
    images = load_images(folder, 8)
    assert images.classes == ("cat", "dog")
    assert images.labels.tolist() == [0, 0, 1, 1]
    assert images.names[0] == "cat/0.png"
    assert images.images[0, :, 4, 4].tolist() == [255, 0, 0]


def test_a_folder_may_use_some_of_the_models_classes(folder):
    assert load_images(folder, 8, CIFAR10_CLASSES).labels.tolist() == [3, 3, 5, 5]


def test_resizing_keeps_the_short_side_and_crops_the_middle(tmp_path):
    (tmp_path / "a").mkdir()
    picture = Image.new("RGB", (32, 16))
    picture.paste((255, 255, 255), (8, 0, 24, 16))
    picture.save(tmp_path / "a" / "x.png")
    assert load_images(tmp_path, 16).images.float().mean() > 250


def test_strange_folders_are_refused(folder):
    with pytest.raises(DataError, match=r"cat, dog are no classes.*lion"):
        load_images(folder, 8, ("lion", "tiger"))


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        load_images(tmp_path, 8)


def test_class_folders_without_images_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="hold no images"):
        load_images(tmp_path, 8)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="No images at"):
        load_images(tmp_path / "nowhere", 8)


def test_truncated_and_foreign_files_are_all_named(folder):
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "1.png").write_text("no image")
    with pytest.raises(DataError, match=r"2 of 4 images cannot be read: cat/0\.png .*dog/1\.png") as error:
        load_images(folder, 8)
    assert "Nothing was run" in str(error.value)


def test_a_decoders_own_error_is_told_like_any_other(folder):
    """Pillow's reader of .ppm raises ValueError where others raise OSError."""
    (folder / "cat" / "2.ppm").write_bytes(b"P6\n8 8\n255\n" + bytes(10))
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read: cat/2\.ppm"):
        load_images(folder, 8)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(folder, limit):
    with pytest.raises(DataError, match="limit"):
        load_images(folder, 8, limit=limit)


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_label_out_of_range_is_named(tmp_path, label):
    path = parquet(tmp_path / "x.parquet", image=[png(tmp_path)] * 2, label=[0, label], file=["a", "b"])
    with pytest.raises(DataError, match=f"image b has label {label}; accepted are whole numbers 0 to 9"):
        load_images(path, 8, CIFAR10_CLASSES)


def test_a_parquet_file_without_labels_is_refused(tmp_path):
    path = parquet(tmp_path / "x.parquet", image=[png(tmp_path)])
    with pytest.raises(DataError, match="missing: label"):
        load_images(path, 8)


def test_a_foreign_file_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="not a readable parquet"):
        load_images(tmp_path / "x.parquet", 8)


def test_an_empty_parquet_file_is_refused(tmp_path):
    empty = parquet(tmp_path / "x.parquet", image=pa.array([], pa.binary()), label=pa.array([], pa.int64()))
    with pytest.raises(DataError, match="no images found"):
        load_images(empty, 8)


def test_rows_may_hold_bytes_as_a_struct_and_names_are_made_unique(tmp_path):
    cell = {"bytes": png(tmp_path), "path": "x"}
    path = parquet(tmp_path / "x.parquet", image=[cell, cell], label=[0, 1], file=["same", "same"])
    images = load_images(path, 8)
    assert images.names == ("same (row 0)", "same (row 1)")
    assert images.classes == ("class 0", "class 1")


def test_a_batch_is_the_stack_of_its_rows(folder):
    images = load_images(folder, 8)
    batch, rows = images.__getitems__([2, 0]), [images[2], images[0]]
    for key, value in batch.items():
        assert torch.equal(value, torch.stack([row[key] for row in rows]))


def test_the_embedded_parquet_is_where_it_is_said_to_be():
    assert asset("cifar10_test/test.parquet").stat().st_size < 2e6
