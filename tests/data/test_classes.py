"""The lists of class names that ship, against those of other libraries."""

import pytest
from timm.data import ImageNetInfo
from torchvision.models._meta import _COCO_CATEGORIES, _IMAGENET_CATEGORIES

from bigain.cli.list_ import rows_of
from bigain.data.classes import CIFAR10_CLASSES, class_list, class_lists, name_synsets, named_classes, synset_words
from bigain.data.module import ImageData
from bigain.data.prompts import ClassPrompts, fill_prompt
from bigain.errors import SettingError


def test_imagenet_is_timms_in_order_and_named_as_in_torchvision():
    info = ImageNetInfo()
    assert [*synset_words()] == info.label_names() == sorted(synset_words())
    own = {"n02012849": "crane bird, crane"}
    assert [*synset_words().values()] == [own.get(k, info.label_name_to_description(k)) for k in info.label_names()]
    names = [name.replace("maillot, tank", "maillot tank") for name in class_list("imagenet-1k").classes]
    assert names == _IMAGENET_CATEGORIES
    assert len(set(names)) == 1000


def test_imagenet_100_is_a_hundred_of_them():
    names = class_list("imagenet-100").classes
    assert len(set(names)) == 100
    assert set(names) <= {*class_list("imagenet-1k").classes}
    assert names[:3] == ("robin", "Gila monster", "hognose snake")


def test_coco_is_torchvisions():
    assert class_list("coco").classes == tuple(n for n in _COCO_CATEGORIES if n not in ("N/A", "__background__"))


def test_cifar_and_pets_are_in_their_official_order():
    assert class_list("cifar-10").classes == CIFAR10_CLASSES
    for name, count in (("cifar-100", 100), ("oxford-pets", 37)):
        names = class_list(name).classes
        assert len(set(names)) == count
        assert [*names] == sorted(names, key=str.lower)  # as both are numbered


@pytest.mark.parametrize("name", class_lists())
def test_every_list_has_a_card_and_a_prompt(name):
    one = class_list(name)
    assert all((one.title, one.source, one.licence, one.prompt_source))
    assert fill_prompt(one.prompt, one.classes)[0] == one.prompt.replace("{class}", one.classes[0])


def test_the_papers_prompts():
    assert {class_list(name).prompt for name in class_lists()} == {
        "a photo of a {class}",
        "a photo of a {class}, a type of pet",
    }
    assert fill_prompt(class_list("oxford-pets").prompt, ["Bengal"]) == ("a photo of a Bengal, a type of pet",)


def test_a_list_may_be_named_where_names_are_given():
    assert ImageData(classes="coco").classes == class_list("coco").classes
    assert ClassPrompts(classes="oxford-pets").class_prompts[0] == "a photo of a Abyssinian"
    assert named_classes(["a"]) == ("a",)
    with pytest.raises(SettingError, match=r"no list of classes named 'imagenet'; there are cifar-10, .*imagenet-1k"):
        ImageData(classes="imagenet")


def test_synsets_of_one_first_word_are_told_apart():
    words = {"n02012849": "crane", "n99999998": "tench, of another kind"}
    assert name_synsets(["n02012849", "n03126707", "n99999999"], words) == (
        "crane (n02012849)",
        "crane (n03126707)",
        "n99999999",
    )
    assert name_synsets(["n99999998"], words) == ("tench, of another kind",)


def test_a_part_of_imagenet_has_the_names_of_the_whole():
    """Or a folder of one swimsuit alone would be taken for the other by a model of 1,000 labels."""
    whole = dict(zip(synset_words(), class_list("imagenet-1k").classes, strict=True))
    for wnid in ("n03710721", "n03710637", "n02012849", "n03126707", "n01440764"):
        assert name_synsets([wnid]) == (whole[wnid],)
    assert whole["n03710721"] == "maillot, tank suit"


def test_lists_are_listed_and_described_by_nobody():
    assert [row.name for row in rows_of(["classes"])] == [*class_lists()]
    assert not any(row.kind == "classes" for row in rows_of())
