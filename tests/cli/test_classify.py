"""`bigain classify`: a folder of images without and with a reducer."""

import csv
import html
import json
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from scipy import stats
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import bigain
from bigain.backbones.pixel_dit import PixelDiT
from bigain.backbones.stable_diffusion import StableDiffusion
from bigain.benchmark.classify import confidence
from bigain.cli.main import main
from bigain.data.classes import CIFAR10_CLASSES
from bigain.data.dataset import ImageDataset
from tests.pipelines import save_sd

REDUCER = ["--reducer=lgtm", "--reducer.ratio=0.5"]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def sd(tmp_path_factory):
    return save_sd(tmp_path_factory.mktemp("classify") / "model")


@pytest.fixture
def flat(tmp_path):
    """Nine images without labels, one more than share passes."""
    folder = tmp_path / "flat"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(draw.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def labelled(flat, tmp_path):
    folder = tmp_path / "labelled"
    for number, name in enumerate(["cat", "dog", "dog"]):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (flat / f"{number}.png").rename(folder / name / f"{number}.png")
    return folder


def table_of(folder):
    with (folder / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


def errors_by_hand(backbone, folder, condition, reducer, count=8):
    """Errors `[N, K, M]` by a plain loop over images, classes and timesteps, none of them pruned; and the timesteps."""
    source = ImageDataset.open(folder, backbone.image_size) if any(f.is_dir() for f in folder.iterdir()) else None
    images = source or [{"image": read(file, backbone.image_size)} for file in sorted(folder.iterdir())]
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn((count, *backbone.latent_shape), generator=generator)
    timesteps = torch.tensor([1000 * (2 * step + 1) // (2 * count) for step in range(count)])
    errors = torch.zeros(len(images), len(condition), count)
    with bigain.attach(backbone.network, reducer), torch.no_grad():
        for index in range(len(images)):
            clean = backbone.encode(images[index]["image"][None])
            for label in range(len(condition)):
                for step in range(count):
                    t = timesteps[step : step + 1]
                    noisy = backbone.process.add_noise(clean, noise[step : step + 1], t)
                    predicted = backbone.predict_noise(noisy, t, condition.take([label]))
                    errors[index, label, step] = (predicted - noise[step]).square().mean()
    return errors, timesteps


def by_hand(backbone, folder, condition, reducer, count=8):
    """The best class of each image."""
    return errors_by_hand(backbone, folder, condition, reducer, count)[0].mean(dim=2).argmin(dim=1).tolist()


def read(file, size):
    from bigain.data.decode import decode_image

    return decode_image(file.read_bytes(), size)


@pytest.mark.parametrize("kind", ["prompts", "labels"])
def test_predictions_are_those_of_a_plain_loop(kind, sd, tiny_weights, flat, tmp_path):
    out = tmp_path / "out"
    model, classes = (sd, ["cat", "dog"]) if kind == "prompts" else (tiny_weights, ["3", "5"])
    asked = [f"--model={model}", f"--classes={','.join(classes)}", *REDUCER, "--timesteps=8"]
    main(["classify", str(flat), *asked, "--device=cpu", f"--output={out}"])
    if kind == "prompts":
        backbone = StableDiffusion(sd)
        condition = backbone.embed([f"a photo of a {name}" for name in classes])
    else:
        backbone = PixelDiT(tiny_weights).eval()
        condition = backbone.embed([3, 5])
    rows = table_of(out)
    assert [row["image"] for row in rows] == [f"{number}.png" for number in range(9)]
    for name, reducer in (("none", "identity"), ("lgtm", bigain.build_reducer("lgtm", ratio=0.5))):
        expected = by_hand(backbone, flat, condition, reducer)
        assert [row[name] for row in rows] == [classes[label] for label in expected]
        assert all(0.5 <= float(row[f"{name}_confidence"]) <= 1 for row in rows)
    content = json.loads((out / "result.json").read_text())
    assert content["labelled"] is False
    assert content["evaluations_per_image"] == 2 * 8
    none, lgtm = content["methods"]
    assert none["accuracy"] is None
    assert lgtm["changed"] == sum(row["none"] != row["lgtm"] for row in rows)
    assert none["seconds_per_image"] > 0


def test_timesteps_count_as_they_are_asked_to(tiny_weights, flat, tmp_path, refused):
    """`velocity` is 1 / alpha^2, here of diffusers' own table."""
    out, asked = tmp_path / "out", [f"--model={tiny_weights}", "--classes=3,5", "--timesteps=8", "--device=cpu"]
    main(["classify", str(flat), *asked, "--weights=velocity", f"--output={out}"])
    backbone = PixelDiT(tiny_weights).eval()
    errors, timesteps = errors_by_hand(backbone, flat, backbone.embed([3, 5]), "identity")
    betas = {key: backbone.scheduler[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    weighted = errors / DDIMScheduler(**betas).alphas_cumprod[timesteps]
    rows = table_of(out)
    assert [row["none"] for row in rows] == [["3", "5"][label] for label in weighted.mean(dim=2).argmin(dim=1)]
    found = [float(row["none_confidence"]) for row in rows]
    assert found == pytest.approx([confidence(one) for one in weighted], abs=1e-3)
    assert found != pytest.approx([confidence(one) for one in errors], abs=1e-2)
    assert json.loads((out / "result.json").read_text())["settings"]["timestep_weights"] == "velocity"
    command = ["classify", str(flat), *asked, "--weights=logit_normal", f"--output={tmp_path / 'flow'}"]
    refused(command, "this model predicts noise")


def test_class_folders_are_labels_and_what_was_taken_is_said(sd, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    main(["classify", str(labelled), f"--model={sd}", "--timesteps=4", "--device=cpu", f"--output={out}"])
    said = capsys.readouterr().out
    assert "3 images, labelled by their folders" in said
    rows = table_of(out)
    assert [row["label"] for row in rows] == ["cat", "dog", "dog"]
    (none,) = json.loads((out / "result.json").read_text())["methods"]
    assert none["accuracy"] == pytest.approx(sum(row["label"] == row["none"] for row in rows) / 3)
    assert f"{none['accuracy']:.1%}" in said


def test_a_known_data_set_has_its_own_classes_and_one_of_several_labels_is_right(sd, flat, tmp_path, capsys):
    coco, out = tmp_path / "coco", tmp_path / "out"
    flat.rename(tmp_path / "val2017")
    (coco / "annotations").mkdir(parents=True)
    (tmp_path / "val2017").rename(coco / "val2017")
    labels = [(number, kind, crowd) for number in range(3) for kind, crowd in ((1, 0), (7, 1))]
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(4)],
        "annotations": [{"image_id": image, "category_id": kind, "iscrowd": crowd} for image, kind, crowd in labels],
        "categories": [{"id": 7, "name": "train"}, {"id": 1, "name": "person"}],
    }
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    main(["classify", str(coco), f"--model={sd}", "--timesteps=4", "--device=cpu", f"--output={out}"])
    assert "3 images, with the labels of the data set; left out for having none: 1" in capsys.readouterr().out
    assert [row["label"] for row in table_of(out)] == ["person | train"] * 3
    result = json.loads((out / "result.json").read_text())
    assert result["settings"]["classes"] == ["person", "train"]
    assert result["left_out"] == 1
    assert result["methods"][0]["accuracy"] == 1


def test_classes_may_be_a_list_that_ships(sd, flat, tmp_path):
    out = tmp_path / "out"
    asked = ["--classes=cifar-10", "--limit=1", "--timesteps=4", "--device=cpu"]
    main(["classify", str(flat), f"--model={sd}", *asked, f"--output={out}"])
    assert json.loads((out / "result.json").read_text())["settings"]["classes"] == list(CIFAR10_CLASSES)


def test_confidence_is_that_of_a_paired_test():
    generator = torch.Generator().manual_seed(0)
    errors = 0.3 * torch.rand(3, 10, generator=generator) + torch.tensor([[0.0], [0.1], [2.0]])
    best, second = errors[0], errors[1]
    expected = 1 - stats.ttest_rel(best.double(), second.double(), alternative="less").pvalue
    assert confidence(errors) == pytest.approx(expected, rel=1e-6)
    pruned = errors.clone()
    pruned[1, 3:] = math.nan  # compared at the timesteps that both have
    expected = 1 - stats.ttest_rel(best[:3].double(), second[:3].double(), alternative="less").pvalue
    assert confidence(pruned) == pytest.approx(expected, rel=1e-6)
    assert confidence(errors[:1]) == 1
    assert confidence(torch.ones(2, 4)) == 0.5


def test_operations_are_those_that_a_counter_sees(sd, flat, tmp_path):
    reducer = ["--reducer=tome", "--reducer.ratio=0.5"]
    command = ["classify", str(flat), f"--model={sd}", "--classes=cat,dog", "--timesteps=8", "--limit=1", *reducer]
    main([*command, "--device=cpu", f"--output={tmp_path / 'out'}"])
    found = [one["gflops_per_image"] for one in json.loads((tmp_path / "out" / "result.json").read_text())["methods"]]
    backbone = StableDiffusion(sd)
    condition, noisy = backbone.embed(["a"]), torch.zeros(1, *backbone.latent_shape)
    expected = []
    for name in ("identity", bigain.build_reducer("tome", ratio=0.5)):
        # Products written out, since the counter does not know the CPU's own attention.
        with (
            bigain.attach(backbone.network, name),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            backbone.predict(noisy, torch.tensor([500]), condition)
        expected.append(16 * counter.get_total_flops() / 1e9)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[1] < found[0]


@pytest.mark.gpu
def test_a_gpu_says_how_much_memory_each_method_took(sd, flat, tmp_path, capsys):
    command = ["classify", str(flat), f"--model={sd}", "--classes=cat,dog", *REDUCER, "--timesteps=4", "--dtype=fp32"]
    main([*command, "--device=cuda", "--compile=true", f"--output={tmp_path / 'out'}"])
    for one in json.loads((tmp_path / "out" / "result.json").read_text())["methods"]:
        assert 0 < one["memory_gib"] < 4
        assert one["compilation"]["graphs"] > 1  # blocks by themselves
    assert "GiB" in capsys.readouterr().out


@pytest.mark.parametrize("asked", [[], ["--page"], ["--page.images"]])
def test_a_page_shows_predictions_and_images_only_where_they_are_asked_for(
    sd, flat, tmp_path, monkeypatch, asked, capsys
):
    monkeypatch.setenv("HOME", str(tmp_path))
    flat = flat.rename(tmp_path / "<b>photos")
    (flat / "8.png").rename(flat / "<i>8.png")
    out = tmp_path / "out"
    command = ["classify", str(flat), f"--model={sd}", "--classes=cat,dog", *REDUCER, "--timesteps=4", *asked]
    monkeypatch.setattr("sys.argv", ["bigain", *command])
    main([*command, "--device=cpu", f"--output={out}"])
    assert (out / "page.html").exists() == bool(asked)
    assert str(tmp_path) not in (out / "result.json").read_text()
    if not asked:
        return
    page = (out / "page.html").read_text()
    assert str(tmp_path) not in page
    assert "~/&lt;b&gt;photos" in page
    assert "<b>" not in page
    assert "<i>" not in page
    rows = table_of(out)
    for row in rows:
        assert html.escape(row["image"]) in page
    # What changed comes first.
    order = sorted(rows, key=lambda row: row["none"] == row["lgtm"])
    body = page[page.index('id="images"') :]
    places = [body.index(f"<span>{html.escape(row['image'])}</span>") for row in order]
    assert places == sorted(places)
    assert body.count('class="changed"') == sum(row["none"] != row["lgtm"] for row in rows)
    pictures = page.count("data:image/png")
    assert pictures == (9 if asked == ["--page.images"] else 0)
    assert page.count("<img") == pictures
    assert "page.html" in capsys.readouterr().out


def test_a_page_of_labelled_images_says_what_is_right(sd, labelled, tmp_path):
    out = tmp_path / "out"
    main(["classify", str(labelled), f"--model={sd}", "--timesteps=4", "--device=cpu", "--page", f"--output={out}"])
    page = (out / "page.html").read_text()
    right = sum(row["label"] == row["none"] for row in table_of(out))
    assert (page.count('aria-label="right"'), page.count('aria-label="wrong"')) == (right, 3 - right)
    assert f"{100 * right / 3:.1f}\N{NO-BREAK SPACE}%" in page


REFUSED = {
    "a long prompt": (["FLAT", "--classes=a,b", "--model=SD", f"--prompt={'a ' * 90}{{class}}"], "93 tokens.* sees 77"),
    "a page of what": (["FLAT", "--classes=a,b", "--page.image"], "--page and --page.images, which take no value"),
    "no folder": (["nowhere"], "Nothing at nowhere"),
    "no images": (["EMPTY", "--classes=cat,dog"], "holds no images"),
    "no classes": (["FLAT", "--model=SD"], "say between which classes to decide"),
    "strange class": (["FLAT", "--classes=cat,hut"], "classes are airplane, .*; got 'hut'"),
    "no names": (["FLAT", "--classes=cat,dog", "--model=DIT"], "numbers 0 to 9, since it has no names; got 'cat'"),
    "one class": (["FLAT", "--classes=cat", "--model=SD"], "two names or more"),
    "an empty name": (["FLAT", "--classes=cat,", "--model=SD"], "two names or more"),
    "both": (["BOTH", "--classes=cat,dog", "--model=SD"], "holds 6 images itself and more in cat, dog"),
    "a huge seed": (["FLAT", "--classes=cat,dog", f"--seed={2**64}"], "seed is whole numbers from 0 on"),
    "class twice": (["FLAT", "--classes=cat,cat", "--model=SD"], "none twice"),
    "folder beside": (["LABELLED", "--classes=cat,bird", "--model=SD"], "dog are no classes"),
    "prompt": (["FLAT", "--classes=cat,dog", "--model=SD", "--prompt=a photo"], "names the class as {class}"),
    "model": (["FLAT", "--classes=cat,dog", "--model=EMPTY"], "No model at"),
    "numbers": (["FLAT", "--classes=cat,dog", "--timesteps=2"], "timesteps is 4 or more"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_one_sentence_and_writes_nothing(sd, tiny_weights, labelled, flat, tmp_path, refused, what):
    options, words = REFUSED[what]
    (tmp_path / "empty").mkdir()
    shutil.copytree(labelled, tmp_path / "both")
    shutil.copytree(flat, tmp_path / "both", dirs_exist_ok=True)
    places = {
        "SD": sd,
        "DIT": tiny_weights,
        "EMPTY": tmp_path / "empty",
        "BOTH": tmp_path / "both",
        "FLAT": flat,
        "LABELLED": labelled,
    }
    given = []
    for option in options:
        name, _, value = option.rpartition("=")
        given.append(f"{name}{'=' if name else ''}{places.get(value, value)}")
    refused(["classify", *given, "--device=cpu", f"--output={tmp_path / 'out'}"], words)
    assert not (tmp_path / "out").exists()


def test_a_broken_image_is_named_before_the_work(sd, flat, tmp_path, refused):
    (flat / "4.png").write_bytes(b"nothing")
    command = ["classify", str(flat), f"--model={sd}", "--classes=a,b", f"--output={tmp_path / 'out'}"]
    refused(command, r"1 of 9 images cannot be read: 4\.png")


def test_a_folder_without_images_is_no_class(sd, flat, tmp_path):
    """What an earlier run wrote into the folder, say."""
    (flat / "classified").mkdir()
    main(["classify", str(flat), f"--model={sd}", "--classes=a,b", "--timesteps=4", f"--output={tmp_path / 'out'}"])
    assert len(table_of(tmp_path / "out")) == 9
