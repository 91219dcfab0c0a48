import multiprocessing
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from bigain.assets import asset
from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.dataset import ImageDataset
from bigain.data.module import ImageData
from bigain.data.sources.base import ImageSource
from bigain.errors import DataError, SettingError


def test_the_embedded_images_are_five_thousand_with_every_class():
    images = ImageData().test_set
    assert len(images) == len(set(images.names)) == 5000
    assert images[7]["image"].shape == (3, 32, 32)
    assert torch.tensor(images.labels)[:, 0].bincount().min() > 400


def test_a_folder_gives_its_classes_in_sorted_order(folder):
    images = ImageDataset.open(folder, 8)
    assert images.classes == ("cat", "dog")
    assert images.labels == ((0,), (0,), (1,), (1,))
    assert images.names[0] == "cat/0.png"
    assert images[0]["image"][:, 4, 4].tolist() == [255, 0, 0]


def test_a_folder_may_use_some_of_the_models_classes(folder):
    assert ImageDataset.open(folder, 8, CIFAR10_CLASSES).labels == ((3,), (3,), (5,), (5,))


def test_resizing_keeps_the_short_side_and_crops_the_middle(tmp_path):
    (tmp_path / "a").mkdir()
    picture = Image.new("RGB", (32, 16))
    picture.paste((255, 255, 255), (8, 0, 24, 16))
    picture.save(tmp_path / "a" / "x.png")
    assert ImageDataset.open(tmp_path, 16)[0]["image"].float().mean() > 250


def test_strange_folders_are_refused(folder):
    with pytest.raises(DataError, match=r"cat, dog are no classes.*lion"):
        ImageDataset.open(folder, 8, ("lion", "tiger"))


def test_a_folder_without_classes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no class folders"):
        ImageDataset.open(tmp_path, 8)


def test_class_folders_without_images_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="hold no images"):
        ImageDataset.open(tmp_path, 8)


def test_nothing_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="No images at"):
        ImageDataset.open(tmp_path / "nowhere", 8)


def test_truncated_and_foreign_files_are_all_named(folder):
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "1.png").write_text("no image")
    images = ImageDataset.open(folder, 8)
    with pytest.raises(DataError, match=r"2 of 4 images cannot be read: cat/0\.png .*dog/1\.png") as error:
        images.check()
    assert "Nothing was run" in str(error.value)
    with pytest.raises(DataError, match=r"dog/1\.png cannot be read"):
        images[3]


def test_broken_images_outside_the_subset_do_no_harm(folder):
    (folder / "dog" / "1.png").write_text("no image")
    data = ImageData(test=folder, image_size=8, limit=3)
    assert data.test_set.names == ("cat/0.png", "cat/1.png", "dog/0.png")
    with pytest.raises(DataError, match=r"1 of 4 images cannot be read: dog/1\.png"):
        ImageData(test=folder, image_size=8).setup("test")


def test_five_of_many_broken_images_are_named(shades, encoded, parquet):
    path = parquet(image=[b"no"] * 300 + [encoded()], label=[0] * 301)
    with pytest.raises(DataError, match=r"300 of 301 images cannot be read: .*row 4 .* and 295 more\. Nothing"):
        ImageDataset.open(path, 8).check()


def test_a_decoders_own_error_is_named_like_any_other(folder):
    """Pillow's reader of .ppm raises ValueError where others raise OSError."""
    (folder / "cat" / "2.ppm").write_bytes(b"P6\n8 8\n255\n" + bytes(10))
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read: cat/2\.ppm"):
        ImageDataset.open(folder, 8).check()


def test_the_fingerprint_is_of_bytes_labels_and_names(parquet, encoded):
    def of(image, label, file):
        return ImageDataset.open(parquet(image=image, label=label, file=file), 8).fingerprint

    first = of([encoded(1), encoded(2)], [0, 1], ["a", "b"])
    assert of([encoded(1), encoded(2)], [0, 1], ["a", "b"]) == first
    others = [
        of([encoded(1), encoded(3)], [0, 1], ["a", "b"]),
        of([encoded(1), encoded(2)], [1, 1], ["a", "b"]),
        of([encoded(1), encoded(2)], [0, 1], ["a", "c"]),
        of([encoded(2), encoded(1)], [0, 1], ["a", "b"]),
    ]
    assert len({first, *others}) == 5


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(folder, limit):
    with pytest.raises(DataError, match="limit is the number of images to read, 1 or more"):
        ImageDataset.open(folder, 8).subset(limit)
    with pytest.raises(DataError, match="limit is the number of images to read, 1 or more"):
        ImageData(test=folder, limit=limit)


def test_another_way_of_choosing_is_refused(folder):
    with pytest.raises(SettingError, match="subset is first or balanced; got 'random'"):
        ImageDataset.open(folder, 8).subset(2, "random")


@pytest.fixture
def uneven(tmp_path):
    """Class a has 20 images, b has 3, c has 10."""
    for name, count in (("a", 20), ("b", 3), ("c", 10)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number:02d}.png")
    return ImageDataset.open(tmp_path, 8)


@pytest.mark.parametrize(("count", "each"), [(6, [2, 2, 2]), (9, [3, 3, 3]), (15, [6, 3, 6]), (32, [19, 3, 10])])
def test_balanced_takes_equal_numbers_as_far_as_they_go(uneven, count, each):
    chosen = uneven.subset(count, "balanced")
    assert torch.tensor(chosen.labels)[:, 0].bincount().tolist() == each
    assert list(chosen.names) == sorted(chosen.names)
    assert [chosen[i]["image"][0, 0, 0] for i in range(count)] == [int(name[2:4]) for name in chosen.names]


def test_first_takes_one_class_only(uneven):
    assert set(uneven.subset(6).labels) == {(0,)}


def test_balanced_is_seeded_nested_and_the_same_everywhere(uneven):
    six = uneven.subset(6, "balanced")
    assert six.names == ("a/04.png", "a/19.png", "b/01.png", "b/02.png", "c/04.png", "c/05.png")
    assert set(six.names) < set(uneven.subset(13, "balanced").names)
    assert six.names != uneven.subset(6, "balanced", seed=1).names


@pytest.mark.parametrize("label", [-1, 10, None])
def test_a_label_out_of_range_is_named(parquet, encoded, label):
    path = parquet(image=[encoded()] * 2, label=[0, label], file=["a", "b"])
    with pytest.raises(DataError, match=f"image b has label {label}; accepted are whole numbers 0 to 9"):
        ImageDataset.open(path, 8, CIFAR10_CLASSES)


def test_a_parquet_file_without_labels_is_refused(parquet, encoded):
    with pytest.raises(DataError, match="missing: label"):
        ImageDataset.open(parquet(image=[encoded()]), 8)


def test_a_foreign_file_is_no_parquet(tmp_path):
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="not a readable parquet"):
        ImageDataset.open(tmp_path / "x.parquet", 8)


def test_an_empty_parquet_file_is_refused(parquet):
    for classes in (None, CIFAR10_CLASSES):
        empty = parquet(image=pa.array([], pa.binary()), label=pa.array([], pa.int64()))
        with pytest.raises(DataError, match="no images found"):
            ImageDataset.open(empty, 8, classes)


def test_rows_may_hold_bytes_as_a_struct_and_names_are_made_unique(parquet, encoded):
    cell = {"bytes": encoded(), "path": "x"}
    images = ImageDataset.open(parquet(image=[cell, cell], label=[0, 1], file=["same", "same"]), 8)
    assert images.names == ("same (row 0)", "same (row 1)")
    assert images.classes == ("class 0", "class 1")
    assert len(images.check()) == 16


def test_a_struct_without_bytes_is_read_by_its_paths(parquet, encoded, tmp_path):
    (tmp_path / "one.png").write_bytes(encoded(9))
    images = ImageDataset.open(parquet(image=[{"path": "one.png"}, {"path": "two.png"}], label=[0, 0]), 8)
    assert images[0]["image"].unique().tolist() == [9]
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read: row 1 .*two\.png"):
        images.check()


def test_a_struct_of_something_else_and_empty_rows_are_refused(parquet, encoded):
    with pytest.raises(DataError, match=r"the column image is struct<width: int64>; accepted are encoded bytes"):
        ImageDataset.open(parquet(image=[{"width": 3}], label=[0]), 8)
    with pytest.raises(DataError, match="the column image is int64"):
        ImageDataset.open(parquet(image=[3], label=[0]), 8)
    with pytest.raises(DataError, match="1 rows hold no image bytes, the first is b"):
        ImageDataset.open(parquet(image=[encoded(), None], label=[0, 0], file=["a", "b"]), 8)
    cells = [{"bytes": encoded(), "path": None}, {"bytes": None, "path": None}]
    with pytest.raises(DataError, match="1 rows hold no image bytes, the first is row 1"):
        ImageDataset.open(parquet(image=cells, label=[0, 0]), 8)


def test_row_groups_are_read_one_at_a_time_in_any_order(shades):
    images = ImageDataset.open(shades(10), 8)
    assert [int(images[i]["image"].max()) for i in (9, 0, 5, 3, 2)] == [9, 0, 5, 3, 2]
    assert len(images._source._rows) == 3


def test_an_open_data_set_reaches_a_process_of_its_own(shades):
    images = ImageDataset.open(shades(5), 8)
    assert images.batch([3])["image"].unique().tolist() == [3]
    again = pickle.loads(pickle.dumps(images))
    assert again.batch([4])["image"].unique().tolist() == [4]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(images.batch, ([2],))["image"].unique().tolist() == [2]


def test_a_batch_is_the_stack_of_its_rows_with_labels_filled_up(folder):
    images = ImageDataset.open(folder, 8)
    batch, rows = images.batch([2, 0]), [images[2], images[0]]
    assert torch.equal(batch["image"], torch.stack([row["image"] for row in rows]))
    assert batch["index"].tolist() == [2, 0]
    assert batch["labels"].tolist() == [[1], [0]]


class Tagged(ImageSource):
    """A source of somebody else: images with none, one and several labels."""

    source, classes, names = "tags", ("sky", "sea", "dog"), ("a", "b", "c", "d")
    labels = ((2,), (), (1, 0), (0,))

    def __init__(self, encoded):
        self._encoded = encoded

    def read(self, row):
        return self._encoded(row)


def test_images_may_have_several_labels_or_none(encoded):
    images = ImageDataset(Tagged(encoded), 8)
    assert images.batch([0, 1, 2])["labels"].tolist() == [[2, -1], [-1, -1], [1, 0]]
    assert images[2]["labels"] == (1, 0)
    assert set(images.subset(3, "balanced").names) == {"a", "c", "d"}
    assert images.subset(2).batch([1])["labels"].tolist() == [[-1]]
    assert len(images.check()) == 16


def test_row_groups_without_statistics_are_looked_through(parquet, encoded, tmp_path):
    table = pa.table({"image": [encoded(), None], "label": [0, 0]})
    pq.write_table(table, tmp_path / "x.parquet", write_statistics=False)
    with pytest.raises(DataError, match="1 rows hold no image bytes, the first is row 1"):
        ImageDataset.open(tmp_path / "x.parquet", 8)
    empty = ImageDataset.open(parquet(image=[b"", encoded()], label=[0, 0]), 8)
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read: row 0 \(cannot identify image"):
        empty.check()


def test_another_size_is_the_same_images(folder):
    images = ImageDataset.open(folder, 8)
    large = images.resized(16)
    assert large[0]["image"].shape == (3, 16, 16)
    assert large.fingerprint == images.fingerprint


def test_the_embedded_parquet_is_where_it_is_said_to_be():
    assert asset("cifar10_test/test.parquet").stat().st_size < 2e6


@pytest.fixture
def broken(folder):
    """The second of four images is truncated, the last is none."""
    whole = (folder / "cat" / "1.png").read_bytes()
    (folder / "cat" / "1.png").write_bytes(whole[: len(whole) // 2])
    (folder / "dog" / "1.png").write_text("no image")
    return folder


def test_broken_images_are_left_out_on_request_counted_and_named(broken, capsys):
    data = ImageData(test=broken, image_size=8, classes=("cat", "dog"), skip_corrupt=True, chunk=2)
    images = data.test_set
    assert images.names == ("cat/0.png", "dog/0.png")
    assert images.skipped == ("cat/1.png", "dog/1.png")
    said = capsys.readouterr().out
    assert "2 of 4 images cannot be read: cat/1.png (" in said
    assert "They are left out." in said
    assert images.batch([0, 1])["labels"].tolist() == [[0], [1]]
    assert images.batch([1])["image"][0, 1].min() == 255  # of the dog, green
    (chunk,) = data.test_dataloader()
    assert chunk["index"].tolist() == [0, 1]
    assert images.resized(16).skipped == images.subset(1).skipped == images.skipped
    with pytest.raises(DataError, match="leave them out: skip_corrupt"):
        ImageData(test=broken, image_size=8).setup("test")


def test_what_is_left_has_the_fingerprint_of_a_folder_without_the_broken_images(broken):
    kept = ImageDataset.open(broken, 8).checked(skip=True, say=lambda line: None)
    (broken / "cat" / "1.png").unlink()
    (broken / "dog" / "1.png").unlink()
    images = ImageDataset.open(broken, 8)
    assert kept.fingerprint == images.fingerprint
    assert kept.names == images.names
    assert images.checked(skip=True) is images


def test_nothing_but_broken_images_is_refused_all_the_same(broken):
    (broken / "cat" / "0.png").write_text("no image")
    (broken / "dog" / "0.png").write_text("no image")
    with pytest.raises(
        DataError, match=r"4 of 4 images cannot be read: .*\. Nothing was run\. Replace or remove them\.$"
    ):
        ImageDataset.open(broken, 8).checked(skip=True)


def test_a_subset_is_chosen_before_broken_images_are_left_out(broken):
    """So the same images are taken whether or not some of them are broken."""
    data = ImageData(test=broken, image_size=8, skip_corrupt=True, limit=2)
    assert data.test_set.names == ("cat/0.png",)
    assert data.test_set.skipped == ("cat/1.png",)


def test_broken_images_are_left_out_of_training_too(broken):
    data = ImageData(train=broken, test=broken, image_size=8, classes=("cat", "dog"), chunk=2, skip_corrupt=True)
    data.setup("fit")
    assert [batch["label"].sort().values.tolist() for batch in data.train_dataloader()] == [[0, 1]]


class FiftyThousand(ImageSource):
    """As many images and classes as ImageNet's validation images, none of them drawn."""

    source, classes = "names alone", tuple(map(str, range(1000)))
    names = tuple(f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001))
    labels = tuple((number * 7 % 1000,) for number in range(50_000))

    def read(self, row):
        raise AssertionError


def test_two_and_ten_thousand_of_imagenet_are_balanced_seeded_and_nested():
    images = ImageDataset(FiftyThousand(), 8)
    small, large = (images.subset(count, "balanced") for count in (2000, 10_000))
    assert set(torch.tensor(small.labels)[:, 0].bincount().tolist()) == {2}
    assert set(torch.tensor(large.labels)[:, 0].bincount().tolist()) == {10}
    assert set(small.names) < set(large.names)
    assert images.subset(2000, "balanced").names == small.names
    assert images.subset(2000, "balanced", seed=1).names != small.names


def test_what_a_model_prepared_is_not_what_the_next_one_sees(folder):
    class Model:
        def __init__(self, preparation=None):
            self.preparation, self.lightning_module = preparation, self

    def seen(data, model):
        data.trainer = model
        data.setup("test")
        return next(iter(data.test_dataloader()))["image"], data.test_set.classes

    data = ImageData(test=folder, image_size=8)
    before, classes = seen(data, Model())
    prepared, named = seen(data, Model(lambda image: torch.zeros(3, 8, 8)))
    assert prepared.is_floating_point()
    assert (classes, named) == (CIFAR10_CLASSES, ("cat", "dog"))
    after, again = seen(data, Model())
    assert torch.equal(before, after)
    assert again == classes


def test_a_choice_of_prepared_images_is_prepared_too(folder):
    images = ImageDataset.open(folder, 8)
    fingerprint = images.fingerprint
    prepared = images.prepared(lambda image: torch.full((1,), 7))
    assert prepared.fingerprint == fingerprint
    for chosen in (prepared.subset(2), prepared.resized(4), prepared.subset(3).checked(skip=True)):
        assert chosen[0]["image"].tolist() == [7]
