"""Known data sets as they are published, in tiny copies: labels, names, and every part that may be missing."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.dataset import ImageDataset
from bigain.data.module import ImageData
from bigain.data.sources.cifar import CifarSource
from bigain.data.sources.coco import CocoSource
from bigain.data.sources.official import is_official
from bigain.data.sources.pets import PetsSource
from bigain.errors import DataError
from tests.data.layouts import draw, write

# Oxford-IIIT Pets


@pytest.fixture
def pets(tmp_path):
    """Three breeds; the second has no image in the test split."""
    names = ["Abyssinian_201", "Abyssinian_1", "american_bulldog_7", "Egyptian_Mau_14", "Egyptian_Mau_2"]
    for shade, name in enumerate(names):
        draw(tmp_path / "pets" / "images" / f"{name}.jpg", 40 * shade)
    write(
        tmp_path / "pets" / "annotations" / "trainval.txt",
        "#Image CLASS-ID\nAbyssinian_1 1 1 1\namerican_bulldog_7 2 2 1\n",
    )
    write(
        tmp_path / "pets" / "annotations" / "test.txt",
        "# image, class, species, breed\nAbyssinian_201 1 1 1\nEgyptian_Mau_14 3 1 2\nEgyptian_Mau_2 3 1 2\n",
    )
    return tmp_path / "pets"


def test_pets_have_the_breeds_of_both_splits(pets):
    source = PetsSource(pets)
    assert source.classes == ("Abyssinian", "american bulldog", "Egyptian Mau")
    assert source.names == ("Abyssinian_201.jpg", "Egyptian_Mau_14.jpg", "Egyptian_Mau_2.jpg")
    assert source.labels == ((0,), (2,), (2,))
    assert source.read(1) == (pets / "images" / "Egyptian_Mau_14.jpg").read_bytes()
    trained = PetsSource(pets, "trainval")
    assert (trained.names, trained.labels) == (("Abyssinian_1.jpg", "american_bulldog_7.jpg"), ((0,), (1,)))


@pytest.mark.parametrize(
    ("missing", "archive"), [("images", r"images\.tar\.gz"), ("annotations", r"annotations\.tar\.gz")]
)
def test_missing_parts_of_pets_are_named(pets, missing, archive):
    (pets / missing).rename(pets / "elsewhere")
    with pytest.raises(DataError, match=rf"Pets: .*{missing}.* is missing; it is in {archive}, at https://www\.robots"):
        ImageDataset.open(pets, 8)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("Abyssinian_1 one 1 1", r"has the line 'Abyssinian_1 one 1 1'; a line is such as"),
        ("Abyssinian_1", "has the line 'Abyssinian_1'"),
        ("Abyssinian_1 0 1 1", "has the line"),
        ("Abyssinian_1 4 1 1", "lists no image of class 3, but of classes after it"),
        ("Bengal_1 1 1 1", "gives class 1 to Bengal and to Abyssinian"),
        ("# nothing", "lists no images"),
    ],
)
def test_damaged_lists_of_pets_are_refused(pets, lines, words):
    write(pets / "annotations" / "test.txt", lines + "\n")
    with pytest.raises(DataError, match=words):
        PetsSource(pets)


# COCO 2017


@pytest.fixture
def coco(tmp_path):
    """Four images: of two categories, of a crowd, of none, of one."""
    for number in (139, 285, 632, 724):
        draw(tmp_path / "coco" / "val2017" / f"{number:012d}.jpg", number % 256)
    content = {
        "images": [{"id": number, "file_name": f"{number:012d}.jpg"} for number in (724, 139, 632, 285)],
        "annotations": [
            {"image_id": 139, "category_id": 90, "iscrowd": 0},
            {"image_id": 139, "category_id": 1, "iscrowd": 0},
            {"image_id": 139, "category_id": 90, "iscrowd": 0},
            {"image_id": 285, "category_id": 13, "iscrowd": 1},
            {"image_id": 724, "category_id": 13, "iscrowd": 0},
        ],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 13, "name": "stop sign"}],
    }
    write(tmp_path / "coco" / "annotations" / "instances_val2017.json", json.dumps(content))
    return tmp_path / "coco"


def test_coco_has_the_set_of_categories_of_each_image(coco):
    source = CocoSource(coco)
    assert source.classes == ("person", "stop sign", "toothbrush")
    assert source.names == ("000000000139.jpg", "000000000285.jpg", "000000000724.jpg")
    assert source.labels == ((0, 2), (1,), (1,))
    assert source.left_out == 1
    assert source.read(2) == (coco / "val2017" / "000000000724.jpg").read_bytes()
    images = ImageDataset.open(coco, 8)
    assert images.batch([0, 1])["labels"].tolist() == [[0, 2], [1, -1]]
    assert images.subset(2).left_out == 1


def test_coco_without_labels_has_every_image(coco):
    images = ImageDataset.open_unlabelled(coco, 8)
    assert images.names == tuple(f"{number:012d}.jpg" for number in (139, 285, 632, 724))
    assert images.left_out == 0
    assert images[2]["image"].shape == (3, 8, 8)
    (coco / "val2017").rename(coco / "elsewhere")
    with pytest.raises(DataError, match=r"val2017 is missing; it is in val2017\.zip"):
        ImageDataset.open_unlabelled(coco, 8)


@pytest.mark.parametrize(
    ("missing", "archive"),
    [("val2017", r"val2017\.zip"), ("annotations/instances_val2017.json", r"annotations_trainval2017\.zip")],
)
def test_missing_parts_of_coco_are_named(coco, missing, archive):
    (coco / missing).rename(coco / "elsewhere")
    with pytest.raises(DataError, match=rf"COCO 2017: .*{missing} is missing; it is in {archive}, at https://cocodata"):
        ImageDataset.open(coco, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "is no table of instances"),
        ('{"images": [], "categories": []}', "is no table of instances: KeyError 'annotations'"),
        ('{"images": [], "categories": [], "annotations": [{"image_id": 1, "category_id": 5}]}', "KeyError 5"),
        ('{"images": [{"id": 1, "file_name": "a"}], "categories": [], "annotations": []}', "annotates none of its 1"),
    ],
)
def test_damaged_tables_of_coco_are_refused(coco, text, words):
    write(coco / "annotations" / "instances_val2017.json", text)
    with pytest.raises(DataError, match=words):
        CocoSource(coco)


# CIFAR


def records(labels):
    """Write records whose picture i has red i, green its row and blue its column."""
    rows, columns = np.mgrid[:32, :32].astype(np.uint8)
    pictures = [np.stack([np.full((32, 32), i, np.uint8), rows, columns]).tobytes() for i in range(len(labels))]
    return b"".join(bytes(label) + picture for label, picture in zip(labels, pictures, strict=True))


@pytest.fixture
def cifar100(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    write(folder / "fine_label_names.txt", "apple\naquarium_fish\nbaby\n")
    (folder / "test.bin").write_bytes(records([(4, 0), (1, 2), (14, 1)]))
    (folder / "train.bin").write_bytes(records([(1, 1)]))
    return folder


@pytest.fixture
def cifar10(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    write(folder / "batches.meta.txt", "\n".join(CIFAR10_CLASSES) + "\n\n")
    (folder / "test_batch.bin").write_bytes(records([(3,), (9,), (0,)]))
    for number in range(1, 6):
        (folder / f"data_batch_{number}.bin").write_bytes(records([(number,), (0,)]))
    return folder


def test_cifar100_has_the_fine_labels(cifar100):
    source = CifarSource(cifar100)
    assert source.classes == ("apple", "aquarium fish", "baby")
    assert source.labels == ((0,), (2,), (1,))
    assert source.names == ("test.bin:00000", "test.bin:00001", "test.bin:00002")
    assert CifarSource(cifar100, "train").labels == ((1,),)
    assert CifarSource(cifar100.parent).labels == source.labels


@pytest.mark.parametrize("version", ["cifar10", "cifar100"])
def test_a_record_is_three_planes(version, request):
    source = CifarSource(request.getfixturevalue(version))
    with Image.open(io.BytesIO(source.read(2))) as image:
        assert (image.format, image.size, image.mode) == ("PNG", (32, 32), "RGB")
        assert image.getpixel((5, 30)) == (2, 30, 5)
        assert image.getpixel((31, 0)) == (2, 0, 31)
    assert len(ImageDataset(source, 32).check()) == 16


def test_cifar10_has_five_files_to_train_on(cifar10):
    source = CifarSource(cifar10)
    assert source.classes == CIFAR10_CLASSES
    assert source.labels == ((3,), (9,), (0,))
    trained = CifarSource(cifar10, "train")
    assert trained.labels == tuple((label,) for number in range(1, 6) for label in (number, 0))
    assert trained.names[2] == "data_batch_2.bin:00000"
    assert ImageDataset(trained, 32)[3]["image"][0].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("folder", "binary"),
    [("cifar-100-python", "cifar-100-binary"), ("cifar-10-batches-py", "cifar-10-batches-bin")],
)
def test_pickles_are_never_opened(tmp_path, folder, binary):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "test").write_bytes(pickle.dumps({}))
    for place in (tmp_path, tmp_path / folder):
        with pytest.raises(DataError, match=rf"a pickle, .* get the binary version \({binary}\), at https://www\.cs"):
            ImageDataset.open(place, 32)


def test_a_binary_version_beside_pickles_is_read(cifar100):
    (cifar100.parent / "cifar-100-python").mkdir()
    assert len(ImageDataset.open(cifar100.parent, 32)) == 3


@pytest.mark.parametrize("missing", ["fine_label_names.txt", "test.bin"])
def test_missing_parts_of_cifar_are_named(cifar100, missing):
    (cifar100 / missing).unlink()
    with pytest.raises(DataError, match=rf"{missing} is missing; it is in the binary version of CIFAR-100, at https"):
        ImageDataset.open(cifar100, 32)


def test_damaged_files_of_cifar_and_a_choice_of_two_are_refused(cifar10, cifar100, tmp_path):
    with pytest.raises(DataError, match=r"holds CIFAR-10 and CIFAR-100: give .*-bin or .*-binary"):
        ImageDataset.open(tmp_path, 32)
    with pytest.raises(DataError, match="is neither CIFAR-10 nor CIFAR-100"):
        CifarSource(tmp_path / "nowhere")
    for content in (b"", bytes(3073)):
        (cifar100 / "test.bin").write_bytes(content)
        with pytest.raises(DataError, match=rf"has {len(content)} bytes, no whole number of records of 3074"):
            CifarSource(cifar100)
    (cifar100 / "test.bin").write_bytes(records([(0, 3)]))
    with pytest.raises(DataError, match=r"has label 3; fine_label_names\.txt names 3 classes"):
        CifarSource(cifar100)
    (cifar100 / "fine_label_names.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"fine_label_names\.txt cannot be read"):
        CifarSource(cifar100)


# Names of classes, and the way to a run


def test_names_of_the_data_set_are_taken_where_none_are_given(pets, tmp_path):
    data = ImageData(test=pets, image_size=8)
    assert data.test_set.classes == ("Abyssinian", "american bulldog", "Egyptian Mau")
    assert data.class_prompts[2] == "a photo of a Egyptian Mau"


def test_given_names_are_other_words_in_the_same_order_or_the_models_order(pets):
    others = ImageData(test=pets, image_size=8, classes=("red cat", "dog", "spotted cat"))
    assert others.test_set.classes == ("red cat", "dog", "spotted cat")
    assert others.test_set.labels == ((0,), (2,), (2,))
    ordered = ("Egyptian Mau", "Bengal", "Abyssinian", "american bulldog")
    assert ImageData(test=pets, image_size=8, classes=ordered).test_set.labels == ((2,), (0,), (0,))
    assert CocoSource.is_at(pets) is False


@pytest.mark.parametrize("kind", ["pets", "coco", "cifar100"])
def test_another_number_of_names_is_refused(kind, request):
    path = request.getfixturevalue(kind)
    with pytest.raises(DataError, match=r"with 3 classes \(.*, but 2 names are given \(cat \.\. dog\)"):
        ImageData(test=path, image_size=8, classes=("cat", "dog")).setup("test")


def test_images_to_train_on_are_another_split_of_the_same_classes(cifar10, pets):
    data = ImageData(train=cifar10, test=cifar10, image_size=32, chunk=4)
    data.setup("fit")
    assert [len(batch["label"]) for batch in data.train_dataloader()] == [4, 4]
    assert sum(len(batch["label"]) for batch in data.val_dataloader()) == 3
    with pytest.raises(DataError, match=r"has 3 classes \(Abyssinian \.\.\), .*cifar-10-batches-bin 10"):
        ImageData(train=pets, test=cifar10, image_size=8).setup("fit")


def test_other_folders_are_read_as_before(folder):
    assert not is_official(folder)
    assert ImageData(test=folder, image_size=8).test_set.classes == CIFAR10_CLASSES
