"""Captions of COCO as prompts, from a tiny copy of its file."""

import json

import pytest

from bigain.data.captions import CaptionPrompts
from bigain.errors import DataError, SettingError

ANNOTATIONS = [
    {"image_id": 724, "id": 9, "caption": "A stop sign. "},
    {"image_id": 139, "id": 8, "caption": "A woman in a room."},
    {"image_id": 139, "id": 5, "caption": "A room with a {class} of chairs."},
    {"image_id": 285, "id": 6, "caption": "A bear."},
]


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps({"annotations": ANNOTATIONS}))
    return tmp_path


def test_one_caption_of_each_photograph_is_a_prompt(coco):
    prompts = CaptionPrompts(coco, first_seed=7, chunk=2)
    assert prompts.class_prompts == ("A room with a {class} of chairs.", "A bear.", "A stop sign.")
    first, second = prompts.test_dataloader()
    assert first["label"].tolist() == [0, 1]
    assert second["seed"].tolist() == [9]
    few = CaptionPrompts(coco / "annotations" / "captions_val2017.json", count=2)
    assert few.class_prompts == prompts.class_prompts[:2]
    assert CaptionPrompts(coco, count=5).batch([3, 4])["label"].tolist() == [0, 1]


def test_missing_and_damaged_captions_are_refused(coco, tmp_path):
    file = coco / "annotations" / "captions_val2017.json"
    with pytest.raises(SettingError, match="count >= 2"):
        CaptionPrompts(coco, count=1)
    for text, words in (
        ("{", "cannot be read"),
        ("[]", "has no captions: TypeError"),
        ('{"annotations": [{"id": 1, "image_id": 1}]}', "has no captions: KeyError 'caption'; captions are in"),
        ('{"annotations": []}', r"has no captions; captions are in annotations_trainval2017\.zip"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            CaptionPrompts(coco)
    file.unlink()
    with pytest.raises(DataError, match=r"captions_val2017\.json is missing; captions are in .*, at https://cocodata"):
        CaptionPrompts(coco)
