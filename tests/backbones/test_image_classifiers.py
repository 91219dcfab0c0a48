"""Image classifiers from folders: the library's own logits and preprocessing, and which label is which class."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from bigain.backbones.image_classifier import ImageClassifier, model_labels
from bigain.backbones.timm_classifier import TimmClassifier
from bigain.backbones.transformers_classifier import TransformersClassifier
from bigain.data.classes import class_list, synset_words
from bigain.errors import DataError, SettingError
from tests.classifiers import MEAN, NAMES, STD, change_config, save_images, save_timm, save_transformers


@pytest.fixture(scope="module")
def in_timm(tmp_path_factory):
    return save_timm(tmp_path_factory.mktemp("timm") / "vit")


@pytest.fixture(scope="module")
def in_transformers(tmp_path_factory):
    return save_transformers(tmp_path_factory.mktemp("transformers") / "vit")


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = save_images(tmp_path_factory.mktemp("images"), ("cat",), 1)
    return Image.open(folder / "cat" / "0.png").convert("RGB")


def normalised(image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def test_timm_is_prepared_and_run_as_its_configuration_says(in_timm, image):
    """By Pillow: the short side to 32 / 0.8 = 40 pixels, bilinear, and the middle 32 x 32 of them."""
    import timm

    classifier = TimmClassifier(in_timm)
    found = classifier.preparation(image)
    assert image.size == (50, 40)
    expected = normalised(image.resize((50, 40), Image.Resampling.BILINEAR).crop((9, 4, 41, 36)))
    torch.testing.assert_close(found, expected)
    large = image.resize((100, 90))
    resized = large.resize((44, 40), Image.Resampling.BILINEAR).crop((6, 4, 38, 36))
    torch.testing.assert_close(classifier.preparation(large), normalised(resized), atol=0.03, rtol=0)
    own = timm.create_model(f"local-dir:{in_timm}", pretrained=True).eval()
    torch.testing.assert_close(classifier.logits(found[None]), own(found[None]))
    assert (classifier.label_count, classifier.label_names) == (5, (*NAMES[:4], "fox, red fox"))
    assert model_labels(classifier, ["red_fox", "bull"]).tolist() == [4, 2]


@torch.no_grad()
def test_a_file_of_timm_needs_the_architecture_and_its_settings(in_timm, tmp_path):
    weights, shape = in_timm / "model.safetensors", {"img_size": 32, "patch_size": 8, "depth": 3, "embed_dim": 32}
    settings = {**shape, "num_heads": 2, "num_classes": 5}
    classifier = TimmClassifier(weights, "vit_tiny_patch16_224", settings)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(classifier.logits(x), TimmClassifier(in_timm).logits(x))
    assert classifier.preparation(Image.new("RGB", (64, 48))).shape == (3, 32, 32)
    with pytest.raises(SettingError, match="does not say which architecture it has"):
        TimmClassifier(weights)
    with pytest.raises(SettingError, match="got 'vit_tinny'"):
        TimmClassifier(weights, "vit_tinny")
    with pytest.raises(SettingError, match=r"says in its config\.json which architecture"):
        TimmClassifier(in_timm, "vit_tiny_patch16_224")
    with pytest.raises(DataError, match="cannot be loaded"):
        TimmClassifier(weights, "vit_tiny_patch16_224", {**settings, "depth": 4})


def test_a_folder_without_safetensors_is_refused(tmp_path, in_transformers):
    with pytest.raises(DataError, match="No weights at"):
        TimmClassifier(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"config\.json is missing"):
        TimmClassifier(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"model\.safetensors is missing"):
        TimmClassifier(tmp_path)
    with pytest.raises(DataError, match=r"preprocessor_config\.json is missing, which save_pretrained of the image"):
        TransformersClassifier(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(DataError, match="no weights as safetensors"):
        TransformersClassifier(tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("name", ["ViT", "Dinov2"])
def test_transformers_is_prepared_and_run_as_its_folder_says(name, tmp_path, image):
    import transformers

    folder = save_transformers(tmp_path / name, name)
    classifier = TransformersClassifier(folder)
    found = classifier.preparation(image)
    expected = normalised(image.resize((32, 32), Image.Resampling.BILINEAR))
    torch.testing.assert_close(found, expected, atol=0.03, rtol=0)
    kind = getattr(transformers, f"{name}ForImageClassification")
    own, processor = kind.from_pretrained(folder), transformers.AutoImageProcessor.from_pretrained(folder)
    pixels = processor(images=image, return_tensors="pt").pixel_values
    torch.testing.assert_close(found[None], pixels)
    torch.testing.assert_close(classifier.logits(pixels), own.eval()(pixels).logits)
    assert classifier.label_names == NAMES


def test_transformers_is_loaded_without_a_bar(tmp_path, capfd):
    folder = save_transformers(tmp_path / "vit")
    capfd.readouterr()
    TransformersClassifier(folder)
    assert capfd.readouterr().err == ""


def test_other_classes_and_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = save_transformers(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "classifier" not in key}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    with pytest.raises(DataError, match="lacks 2 weights, such as classifier"):
        TransformersClassifier(folder)
    change_config(folder, architectures=["ViTModel"])
    with pytest.raises(DataError, match="holds a ViTModel; accepted: ViTForImageClassification"):
        TransformersClassifier(folder)


@pytest.fixture(scope="module")
def classifier(in_transformers):
    return TransformersClassifier(in_transformers)


def test_classes_are_labels_by_name_synonym_or_number(classifier):
    assert model_labels(classifier, ["Fox", "bull", "tabby_dog", "0"]).tolist() == [4, 2, 1, 0]
    assert model_labels(classifier, ["cow, bull", "hen"], "names").tolist() == [2, 3]


def test_classes_are_labels_by_their_order_or_a_list(classifier, tmp_path):
    assert model_labels(classifier, list("abcde"), "order").tolist() == [0, 1, 2, 3, 4]
    assert model_labels(classifier, ["a", "b"], [3, 1]).tolist() == [3, 1]
    unnamed = TransformersClassifier(save_transformers(tmp_path / "vit", names=None))
    assert unnamed.label_names is None
    assert model_labels(unnamed, list("abcde")).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(SettingError, match="the numbers 0 to 4, since it has no names"):
        model_labels(unnamed, ["cat"], "names")


@pytest.mark.parametrize(
    ("classes", "how", "words"),
    [
        (
            ["wolf"],
            None,
            "The class 'wolf' is no label of the model, whose labels are cat; tabby dog; cow, bull; hen; fox",
        ),
        (["5", "cat"], None, "'5' is no label"),
        (["cow", "bull"], None, r"none twice; got \[2, 2\]"),
        (["a", "b"], "order", "as many classes as the model has labels, 5; the images have 2"),
        (["a", "b"], [1], "for each of the 2 classes"),
        (["a", "b"], [1, 5], "0 to 4"),
        (["a", "b"], [1, 1], "none twice"),
    ],
)
def test_classes_that_are_no_labels_are_refused(classifier, classes, how, words):
    with pytest.raises(SettingError, match=words):
        model_labels(classifier, classes, how)


def test_a_name_of_two_labels_is_refused_and_the_whole_one_is_not(tmp_path):
    names = ("crane, bird", "crane", "kite, bird", "kite, toy", "fox")
    classifier = TransformersClassifier(save_transformers(tmp_path / "vit", names=names))
    assert model_labels(classifier, ["crane", "kite, toy"]).tolist() == [1, 3]
    with pytest.raises(SettingError, match="'kite' names the labels 2 and 3 of the model"):
        model_labels(classifier, ["kite"])


def test_timm_knows_the_names_of_imagenet(tmp_path):
    import timm

    from bigain.backbones.timm_classifier import _names

    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224")
    names = _names(model)
    assert (len(names), names[0]) == (1000, "tench, Tinca tinca, n01440764")
    model.pretrained_cfg["tag"] = "mine"
    assert _names(model) is None


@pytest.mark.parametrize("identifiers", [True, False])
def test_the_classes_of_imagenet_are_the_labels_of_models_that_were_trained_on_it(identifiers):
    from timm.data import ImageNetInfo

    class Labelled(ImageClassifier):
        def logits(self, images):
            raise NotImplementedError

        def identity(self):
            return {}

    info, words = ImageNetInfo("imagenet-1k"), synset_words()  # timm has a list of its own
    assert info.label_names() == list(words)
    model = Labelled()
    model.label_count = 1000
    model.label_names = tuple(
        f"{info.label_name_to_description(wnid)}, {wnid}" if identifiers else text for wnid, text in words.items()
    )
    classes, some = class_list("imagenet-1k").classes, class_list("imagenet-100").classes
    assert model_labels(model, classes).tolist() == list(range(1000))
    assert [classes[label] for label in model_labels(model, some)] == list(some)
    # A dog and a garment, alike but for the case; a skunk is a polecat, too.
    few = ["Cardigan", "cardigan", "polecat", "tub"]
    assert model_labels(model, few).tolist() == [264, 474, 358, 876]
    with pytest.raises(SettingError, match="'crane' names the labels 134 and 517") if identifiers else nullcontext():
        model_labels(model, ["crane"])
