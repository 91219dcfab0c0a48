"""ImageNet as it is published, in tiny copies: the validation images with their devkit, and class folders."""

import numpy as np
import pytest
from scipy.io import savemat

from bigain.data.classes import class_list, synset_words
from bigain.data.dataset import ImageDataset
from bigain.data.sources.imagenet import ImageNetSource
from bigain.data.sources.official import is_labelled, is_official
from bigain.errors import DataError
from tests.data.layouts import draw, write

SYNSETS = [
    (1, "n02119789", "kit fox, Vulpes macrotis", 0),
    (2, "n01440764", "tench, Tinca tinca", 0),
    (3, "n03126707", "crane", 0),
    (4, "n02012849", "crane", 0),
    (5, "n03710721", "maillot, tank suit", 0),
    (6, "n03710637", "maillot", 0),
    (7, "n00001740", "entity", 3),
]
"""In the devkit's order; the last is a group."""

WNIDS = ["n01440764", "n02012849", "n02119789", "n03126707", "n03710637", "n03710721"]
NAMES = ("tench", "crane (n02012849)", "kit fox", "crane (n03126707)", "maillot", "maillot, tank suit")


def write_devkit(folder):
    """Write the two files of the devkit; the images have classes 2, 1, 2 and 4."""
    write(folder / "ILSVRC2012_validation_ground_truth.txt", "2\n1\n2\n4\n")
    kinds = [
        ("ILSVRC2012_ID", object),
        ("WNID", object),
        ("words", object),
        ("gloss", object),
        ("num_children", object),
    ]
    rows = [(number, wnid, words, "a thing", children) for number, wnid, words, children in SYNSETS]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, kinds)[:, None]})


def write_class_folders(folder, *wnids):
    for shade, wnid in enumerate(wnids):
        draw(folder / wnid / f"{wnid}_{shade}.JPEG", 50 * shade)
    return folder


@pytest.fixture
def imagenet(tmp_path):
    """Three of the four validation images, and no devkit."""
    for number in (1, 2, 4):
        draw(tmp_path / "val" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    return tmp_path / "val"


@pytest.mark.parametrize("place", [".", "data", "ILSVRC2012_devkit_t12/data", "../ILSVRC2012_devkit_t12/data"])
def test_validation_images_have_labels_by_the_order_of_identifiers(imagenet, place):
    write_devkit(imagenet / place)
    source = ImageNetSource(imagenet)
    assert source.classes == NAMES
    assert source.names == tuple(f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 4))
    assert source.labels == ((0,), (2,), (1,))
    assert source.read(1) == (imagenet / "ILSVRC2012_val_00000002.JPEG").read_bytes()
    assert is_labelled(imagenet, named=False)
    assert ImageDataset.open(imagenet.parent, 8).labels == source.labels  # the folder in which val is


@pytest.mark.parametrize("missing", ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"])
def test_validation_images_without_a_devkit_are_refused(imagenet, missing):
    with pytest.raises(DataError, match=r"is missing; it is in ILSVRC2012_devkit_t12\.tar\.gz, at https://image-net"):
        ImageDataset.open(imagenet, 8)
    write_devkit(imagenet)
    (imagenet / missing).unlink()
    with pytest.raises(DataError, match=rf"ImageNet: .*{missing} is missing; it is in ILSVRC2012_devkit_t12"):
        ImageDataset.open(imagenet, 8)


def test_validation_images_with_classes_of_ones_own_are_photos(imagenet):
    assert not is_labelled(imagenet, named=True)


def test_a_damaged_devkit_is_refused(imagenet):
    write_devkit(imagenet)
    write(imagenet / "ILSVRC2012_validation_ground_truth.txt", "2\n1\n")
    with pytest.raises(DataError, match=r"has no class of meta\.mat for ILSVRC2012_val_00000004\.JPEG"):
        ImageNetSource(imagenet)
    write(imagenet / "ILSVRC2012_validation_ground_truth.txt", "7\n1\n2\n4\n")  # a group
    with pytest.raises(DataError, match=r"has no class of meta\.mat for ILSVRC2012_val_00000001\.JPEG"):
        ImageNetSource(imagenet)
    write(imagenet / "meta.mat", "no table")
    with pytest.raises(DataError, match="is not the devkit's table of classes"):
        ImageNetSource(imagenet)


def test_other_names_of_images_and_other_folders_are_no_imagenet(imagenet, tmp_path):
    write_devkit(imagenet)
    for file in imagenet.glob("*.JPEG"):
        file.rename(file.with_name("ILSVRC2012_val_x" + file.name[-7:]))
    with pytest.raises(DataError, match="is named as ILSVRC2012_val_00000001"):
        ImageNetSource(imagenet)
    with pytest.raises(DataError, match="holds neither ILSVRC2012_val_"):
        ImageNetSource(tmp_path / "nowhere")
    write_class_folders(tmp_path / "mixed", "n01440764", "cat")
    assert not is_official(tmp_path / "mixed")


def test_class_folders_have_the_names_of_their_identifiers(tmp_path):
    folder = write_class_folders(tmp_path / "val.X", "n02119789", "n01440764")
    source = ImageNetSource(folder)
    assert source.classes == ("tench", "kit fox")
    assert source.names == ("n01440764/n01440764_1.JPEG", "n02119789/n02119789_0.JPEG")
    assert source.labels == ((0,), (1,))


def test_identifiers_that_nobody_names_are_names(tmp_path):
    folder = write_class_folders(tmp_path, "n99999999", "n01440764")
    assert ImageNetSource(folder).classes == ("tench", "n99999999")
    write(folder / "words.txt", "n99999999\tnever seen\n")
    assert ImageNetSource(folder).classes == ("tench", "never seen")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn02119789 kit fox, Vulpes macrotis\n"),
        ("words.txt", "n00001740\tentity\nn02119789\tkit fox\nn01440764\ttench\n"),
        ("Labels.json", '{"n02119789": "kit fox, Vulpes macrotis", "n01440764": "tench"}'),
    ],
)
@pytest.mark.parametrize("place", [".", ".."])
def test_words_are_read_from_a_file_in_the_folder_or_beside_it(tmp_path, file, text, place):
    folder = write_class_folders(tmp_path / "val.X", *WNIDS[::2][:2])
    write(folder / place / file, text)
    assert ImageNetSource(folder).classes == ("tench", "kit fox")


def test_words_of_the_devkit_come_first_and_a_bad_mapping_is_refused(tmp_path):
    folder = write_class_folders(tmp_path / "val", *WNIDS)
    write(tmp_path / "Labels.json", "[1]")
    with pytest.raises(DataError, match=r"Labels\.json is no mapping of identifiers to words"):
        ImageNetSource(folder)
    write_devkit(tmp_path / "ILSVRC2012_devkit_t12" / "data")
    assert ImageNetSource(folder).classes == NAMES
    assert ImageNetSource(tmp_path).classes == NAMES


def test_given_identifiers_are_the_models_order(tmp_path):
    folder = write_class_folders(tmp_path, "n02119789", "n01440764")
    write(tmp_path / "words.txt", "n02119789\tkit fox\nn01440764\ttench\n")
    images = ImageDataset.open(folder, 8, ("n02119789", "n99999999", "n01440764"))
    assert images.classes == ("n02119789", "n99999999", "n01440764")
    assert images.labels == ((2,), (0,))  # n01440764, n02119789


def test_a_few_classes_have_the_labels_of_the_whole_list(tmp_path):
    folder = write_class_folders(tmp_path, "n03710721", "n02012849")
    images = ImageDataset.open(folder, 8, class_list("imagenet-1k").classes)
    place = [*synset_words()]
    assert images.labels == ((place.index("n02012849"),), (place.index("n03710721"),))
    assert [images.classes[label] for (label,) in images.labels] == ["crane bird", "maillot, tank suit"]
