"""Data sets of Hugging Face on disk and WebDataset shards, written by their own libraries or by Python's tarfile."""

import io
import json
import pickle
import tarfile

import pytest
import torch
from PIL import Image

from bigain.data.dataset import ImageDataset
from bigain.data.module import ImageData
from bigain.data.sources.hugging_face import HuggingFaceSource
from bigain.data.sources.official import is_labelled, is_official
from bigain.data.sources.webdataset import WebDatasetSource
from bigain.errors import DataError
from tests.data.layouts import write

# Hugging Face


def shaded(*shades):
    return [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in shades]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Save columns as `datasets` does: `saved(image=[..], label=[..])`; images and classes are named so."""
    import datasets

    datasets.disable_progress_bars()

    def save(names=("cat", "dog"), shards=1, features=(), **columns):
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names)), **dict(features)}
        features = datasets.Features({name: kinds[name] for name in columns})
        found = datasets.Dataset.from_dict(columns, features=features)
        place = tmp_path_factory.mktemp("saved")
        found.save_to_disk(place, num_shards=shards)
        return place

    return save


def test_a_saved_data_set_is_as_its_own_library_reads_it(saved):
    import datasets

    place = saved(shards=2, image=shaded(10, 20, 30), label=[1, 0, 1])
    source, usual = HuggingFaceSource(place), datasets.load_from_disk(str(place))
    assert source.classes == tuple(usual.features["label"].names)
    assert [label for (label,) in source.labels] == usual["label"]
    assert source.names == ("row 0", "row 1", "row 2")
    images = ImageDataset.open(place, 8)
    for number in (2, 0, 1):
        assert (
            images[number]["image"].permute(1, 2, 0).tolist()
            == torch.tensor(list(usual[number]["image"].get_flattened_data())).reshape(8, 8, 3).tolist()
        )
    assert is_official(place)
    assert is_labelled(place, named=False)
    assert ImageData(test=place, image_size=8).test_set.classes == ("cat", "dog")


def test_an_open_one_reaches_a_process_of_its_own(saved):
    images = ImageDataset.open(saved(image=shaded(10, 20), label=[1, 0]), 8)
    assert images[1]["image"].max() == 20
    again = pickle.dumps(images)
    assert len(again) < 2000
    assert pickle.loads(again)[1]["image"].max() == 20


def test_one_arrow_file_is_enough(saved):
    (file,) = saved(image=shaded(10, 20), label=[1, 0]).glob("*.arrow")
    data = ImageData(test=file, image_size=8)
    assert data.test_set.labels == ((1,), (0,))
    assert data.test_set.classes == ("cat", "dog")


def test_a_folder_of_splits_gives_the_one_asked_for(tmp_path):
    import datasets

    features = datasets.Features(img=datasets.Image(), fine=datasets.ClassLabel(names=["a", "b"]))
    parts = {
        name: datasets.Dataset.from_dict({"img": shaded(shade), "fine": [1]}, features=features)
        for shade, name in ((10, "train"), (20, "validation"))
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    assert ImageDataset.open(tmp_path / "both", 8)[0]["image"].max() == 20
    assert ImageDataset.open(tmp_path / "both", 8, train=True)[0]["image"].max() == 10
    datasets.DatasetDict(train=parts["train"]).save_to_disk(tmp_path / "one")
    with pytest.raises(
        DataError, match=r"has the splits train, and none named test or validation or val: give .*train"
    ):
        ImageDataset.open(tmp_path / "one", 8)
    (tmp_path / "one" / "train" / "state.json").unlink()
    with pytest.raises(DataError, match=r"state\.json is missing; .*names the split"):
        ImageDataset.open(tmp_path / "one", 8, train=True)


def test_of_several_labels_the_fine_one_is_taken(saved):
    import datasets

    several = {"coarse_label": datasets.ClassLabel(names=["x"]), "fine_label": datasets.ClassLabel(names=["a", "b"])}
    columns = {"image": shaded(10, 20), "coarse_label": [0, 0], "fine_label": [1, 0]}
    assert HuggingFaceSource(saved(features=several, **columns)).classes == ("a", "b")
    several = {"one": datasets.ClassLabel(names=["x"]), "two": datasets.ClassLabel(names=["a", "b"])}
    with pytest.raises(DataError, match="has the columns image, one, two, of which one, two are ClassLabel; one is"):
        HuggingFaceSource(saved(features=several, image=shaded(10), one=[0], two=[1]))


def test_numbers_without_names_and_other_names(saved):
    import datasets

    plain = saved(features={"label": datasets.Value("int64")}, image=shaded(10, 20), label=[2, 0])
    assert HuggingFaceSource(plain).classes == ("class 0", "class 1", "class 2")
    assert ImageDataset.open(plain, 8, ("a", "b", "c", "d")).labels == ((2,), (0,))
    named = saved(image=shaded(10, 20), label=[1, 0])
    assert ImageDataset.open(named, 8, ("dog", "cow", "cat")).labels == ((0,), (2,))
    with pytest.raises(DataError, match=r"with 2 classes .*, but 3 names are given"):
        ImageDataset.open(named, 8, ("x", "y", "z"))


def test_what_is_missing_or_damaged_is_said(saved):
    import datasets

    with pytest.raises(DataError, match="has the columns label, of which none is Image; one is needed"):
        HuggingFaceSource(saved(label=[1]))
    with pytest.raises(DataError, match="has the columns image, of which none is ClassLabel"):
        HuggingFaceSource(saved(image=shaded(10)))
    with pytest.raises(DataError, match="image row 1 has label -1; accepted are whole numbers 0 to 1"):
        HuggingFaceSource(saved(image=shaded(10, 20), label=[1, -1]))
    with pytest.raises(DataError, match="1 rows hold no image, the first is row 1"):
        HuggingFaceSource(saved(image=[*shaded(10), None], label=[1, 0]))
    place = saved(image=shaded(10), label=[1])
    (file,) = place.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="is not a readable arrow file of datasets"):
        HuggingFaceSource(place)
    file.unlink()
    with pytest.raises(DataError, match=r"data-00000-of-00001\.arrow is missing; state\.json names it"):
        HuggingFaceSource(place)
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "holds a JSON list; accepted is an object"),
        ("{}", "names no arrow files"),
    ):
        write(place / "state.json", text)
        with pytest.raises(DataError, match=words):
            HuggingFaceSource(place)
    assert datasets  # wrote all of these


# WebDataset


def pack(place, *members):
    """Write a shard of (name, content) with Python's tarfile."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w") as archive:
        for name, content in members:
            content = content if isinstance(content, bytes) else str(content).encode()
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return place


@pytest.fixture
def shards(tmp_path, encoded):
    """Two shards of three images each, labels 0, 1, 2, 0, 1, 2."""
    for shard in range(2):
        samples = [
            member
            for row in range(3)
            for member in ((f"s{shard}{row}.cls", row), (f"s{shard}{row}.png", encoded(10 * (3 * shard + row))))
        ]
        pack(tmp_path / "wds" / f"shard-{shard:04d}.tar", *samples)
    return tmp_path / "wds"


def test_shards_are_as_their_own_library_reads_them(shards):
    import webdataset

    files = [str(file) for file in sorted(shards.glob("*.tar"))]
    usual = [*webdataset.WebDataset(files, shardshuffle=False, empty_check=False).decode("pil").to_tuple("png", "cls")]
    images = ImageDataset.open(shards, 8)
    assert len(images) == len(usual) == 6
    for number in (4, 0, 5):
        picture, label = usual[number]
        assert tuple(images[number]["image"][:, 3, 3].tolist()) == picture.getpixel((3, 3))
        assert images.labels[number] == (label,)
    assert images.names[4] == "shard-0001.tar/s11.png"
    assert images.classes == ("class 0", "class 1", "class 2")
    assert len(images.check()) == 16
    assert is_labelled(shards, named=False)


def test_shards_that_the_library_writes_are_read(tmp_path):
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number, image in enumerate(shaded(30, 60)):
            key = f"folder.of.dots/{'x' * 120}{number}"  # longer than a tar's header has room for
            writer.write({"__key__": key, "png": image, "json": {"label": 1 - number}})
    images = ImageDataset.open(tmp_path / "a.tar", 8, ("cat", "dog"))
    assert [int(images[row]["image"].max()) for row in (1, 0)] == [60, 30]
    assert images.labels == ((1,), (0,))
    assert pickle.loads(pickle.dumps(images))[1]["image"].max() == 60


def test_names_of_classes_stand_beside_the_shards_or_in_them(shards, tmp_path, encoded):
    write(shards / "classnames.txt", "red fox\nowl\nelk\n")
    assert ImageData(test=shards, image_size=8).test_set.classes == ("red fox", "owl", "elk")
    assert ImageDataset.open(shards, 8, ("elk", "owl", "red fox", "ant")).labels[:2] == ((2,), (1,))
    texts = pack(
        tmp_path / "t.tar", ("a.txt", "owl\n"), ("a.png", encoded()), ("b.json", '{"label": "elk"}'), ("b.jpg", b"")
    )
    assert WebDatasetSource(texts).classes == ("elk", "owl")
    assert WebDatasetSource(texts).labels == ((1,), (0,))
    with pytest.raises(DataError, match="classes that are none of this model's, such as 'elk'"):
        WebDatasetSource(texts, classes=("owl", "ant"))


def test_splits_are_folders_or_words_of_file_names(shards, tmp_path):
    (tmp_path / "set").mkdir()
    shards.rename(tmp_path / "set" / "train")
    with pytest.raises(DataError, match=r"has no shards of the split test, \*\.tar, in itself or in test or val"):
        ImageDataset.open(tmp_path / "set", 8)
    assert len(ImageDataset.open(tmp_path / "set", 8, train=True)) == 6
    (tmp_path / "set" / "train").rename(tmp_path / "flat")
    first, second = sorted((tmp_path / "flat").iterdir())
    first.rename(first.with_name("my-train-00.tar"))
    second.rename(second.with_name("my-validation-00.tar"))
    assert ImageDataset.open(tmp_path / "flat", 8).names[0] == "my-validation-00.tar/s10.png"
    assert ImageDataset.open(tmp_path / "flat", 8, train=True).names[0] == "my-train-00.tar/s00.png"
    (tmp_path / "flat" / "my-validation-00.tar").rename(tmp_path / "flat" / "other.tar")
    with pytest.raises(DataError, match=r"shards of several kinds \(my-train, other\), none named test or validation"):
        ImageDataset.open(tmp_path / "flat", 8)


def test_an_archive_beside_class_folders_is_no_shard(folder):
    pack(folder / "images.tar", ("cat/0.png", b""))
    assert not is_official(folder)
    assert ImageDataset.open(folder, 8).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", b"x")], "a.png has no label: cls, json, txt are missing beside it. An archive of images alone"),
        ([("a.cls", 1)], "holds no images"),
        ([("a.png", b"x"), ("a.jpg", b"x"), ("a.cls", 1)], "two images of one key, a.png and a.jpg"),
        ([("a.png", b"x"), ("a.cls", "one")], "the cls of .*a.png is not the number of the class"),
        ([("a.png", b"x"), ("a.cls", -1)], "a.png has label -1; there are 0 classes"),
        ([("a.png", b"x"), ("a.json", "{}")], "the json of .*a.png is not an object with the class as label: 'label'"),
        ([("a.png", b"x"), ("a.json", '{"label": [1]}')], r"has label \[1\]; accepted are a number and a name"),
        ([("a.png", b"x"), ("a.txt", " ")], "has label ''"),
        ([("a.png", b"x"), ("a.cls", 1), ("b.png", b"x"), ("b.txt", "owl")], "both numbers and names .*1 and owl"),
    ],
)
def test_samples_without_a_sound_label_are_refused(tmp_path, members, words):
    with pytest.raises(DataError, match=words):
        WebDatasetSource(pack(tmp_path / "a.tar", *members))


def test_a_label_out_of_range_and_damaged_shards_are_refused(shards, tmp_path):
    write(shards / "classnames.txt", "red fox\nowl\n")
    with pytest.raises(DataError, match=r"shard-0000\.tar/s02\.png has label 2; there are 2 classes"):
        ImageDataset.open(shards, 8)
    file = shards / "shard-0000.tar"
    whole = file.read_bytes()
    for length in (700, 1024, 2048, 3413):  # in a file, behind one, behind a sample, in a header
        file.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"shard-0000\.tar is no tar file that can be read at any place: "):
            ImageDataset.open(shards, 8)
    file.write_text("no tar")
    with pytest.raises(DataError, match="no tar file"):
        ImageDataset.open(shards, 8)
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(shards / "classnames.txt", "a.cls")
    with pytest.raises(DataError, match=r"it is compressed: unpack it to \.tar"):
        ImageDataset.open(tmp_path / "x.tar.gz", 8)


def test_a_shard_that_shrank_is_named_with_the_image(shards):
    images = ImageDataset.open(shards, 8)
    file = shards / "shard-0001.tar"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"3 of 6 images cannot be read: shard-0001\.tar/s10\.png \(.*ends within it"):
        images.check()


def test_json_of_samples_may_hold_more(tmp_path, encoded):
    about = json.dumps({"label": 0, "filename": "n01440764/x.JPEG", "width": 500})
    found = WebDatasetSource(pack(tmp_path / "a.tar", ("./a.jpeg", encoded()), ("./a.json", about), ("./.b.png", b"")))
    assert found.names == ("a.tar/./a.jpeg",)
    assert found.labels == ((0,),)
