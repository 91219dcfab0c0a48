"""`bigain classify` on single files, shipped lists of classes, and folders with more than images."""

import csv
import shutil

import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from bigain.cli.main import main
from bigain.data.classes import class_list
from tests.pipelines import save_dit, save_sd

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"sd": save_sd(folder / "sd"), "dit": save_dit(folder / "dit")}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (20, 16), (40 * number, 90, 30)).save(folder / f"{number}.png")
    return folder


def classified(place, model, *options):
    out = place.with_name(f"out_{place.name}")
    main(["classify", str(place), f"--model={model}", *options, "--timesteps=4", "--device=cpu", f"--output={out}"])
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def hugging_face(photos):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])})
    images = [Image.open(file) for file in sorted(photos.iterdir())]
    return Dataset.from_dict({"image": images, "label": [0, 1, 1]}, features=features)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_file_of_datasets_has_its_own_classes(kind, models, photos, tmp_path, capsys):
    data = hugging_face(photos)
    if kind == "parquet":
        place = tmp_path / "photos.parquet"
        data.to_parquet(place)
    else:
        data.save_to_disk(tmp_path / "saved")
        (place,) = (tmp_path / "saved").glob("*.arrow")
    assert [row["label"] for row in classified(place, models["sd"])] == ["cat", "dog", "dog"]
    assert "3 images, with the labels of the data set" in capsys.readouterr().out


def test_a_single_image_is_one_without_a_label(models, photos, capsys):
    (row,) = classified(photos / "1.png", models["sd"], "--classes=cat,dog")
    assert row["image"] == "1.png"
    assert "label" not in row
    assert "1 image, without labels\n" in capsys.readouterr().out


def test_classes_without_names_are_no_prompts(models, photos, tmp_path, refused):
    import pyarrow.parquet as pq

    table = hugging_face(photos).data.table
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "bare.parquet")
    command = ["classify", str(tmp_path / "bare.parquet"), f"--model={models['sd']}", "--device=cpu"]
    refused([*command, f"--output={tmp_path / 'out'}"], "has numbers for classes: name them")
    assert {row["label"] for row in classified(tmp_path / "bare.parquet", models["sd"], "--classes=ox,ant")} == {
        "ox",
        "ant",
    }


def test_a_list_that_ships_names_the_labels_of_a_model_without_names(models, photos):
    """By the names and by the numbers of all labels, the same predictions."""
    names = class_list("imagenet-1k").classes
    by_name = classified(photos, models["dit"], "--classes=imagenet-1k", "--limit=1")
    shutil.rmtree(photos.with_name("out_photos"))
    by_number = classified(photos, models["dit"], f"--classes={','.join(map(str, range(1000)))}", "--limit=1")
    assert [row["none"] for row in by_name] == [names[int(row["none"])] for row in by_number]


def test_a_list_that_ships_fills_prompts(models, photos):
    found = classified(photos, models["sd"], "--classes=cifar-10")
    assert {row["none"] for row in found} <= set(class_list("cifar-10").classes)


def test_files_that_are_no_images_are_counted(models, photos, capsys):
    for name in ("a.HEIC", "b.HEIC", "notes.txt", ".hidden"):
        (photos / name).write_bytes(b"")
    assert len(classified(photos, models["sd"], "--classes=cat,dog")) == 3
    assert "3 images, without labels; not read: 2 .HEIC, 1 .txt" in capsys.readouterr().out


def test_the_table_has_labels_settings_and_what_its_figures_are(models, photos, tmp_path, capsys):
    hugging_face(photos).to_parquet(tmp_path / "photos.parquet")
    classified(tmp_path / "photos.parquet", models["sd"], "--reducer=lgtm", "--reducer.ratio=0.5")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["image", "label", "none", "lgtm"] in lines
    assert ["lgtm:", "LGTM(ratio=0.5)"] in lines
    assert ["row", "1", "dog"] in [line[:3] for line in lines]
    assert any("no probability" in " ".join(line) for line in lines)
