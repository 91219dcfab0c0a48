"""Two stored classifications: their difference, and what is no pair."""

import json

import pytest
import torch

from bigain.benchmark.pair import compare_pair
from bigain.cli.main import main
from bigain.errors import DataError, SettingError
from bigain.metrics.intervals import paired_difference
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions
from bigain.results.store import write_result

CLASSES = ("cat", "dog", "cow")
TRUTH = [(0,), (1,), (2,), (0,), (1, 2), (2,)]
FIRST, SECOND = [0, 1, 2, 0, 2, 0], [0, 2, 2, 1, 1, 1]
SETTINGS = {"kind": "classification", "data": "abc", "noise_seed": 0, "trials": [2], "keeps": [1], "method": "none"}


@pytest.fixture
def save(tmp_path):
    """Store a result: `save(name, predicted, labels=.., names=.., classes=.., timesteps=.., **settings)`."""

    def saved(name, predicted, labels=TRUTH, names=None, classes=CLASSES, timesteps=(250, 750), **settings):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        errors = Errors.of(
            torch.rand(len(predicted), len(classes), 2), torch.arange(len(predicted)), torch.tensor(timesteps)
        )
        names = names or tuple(f"{i}.png" for i in range(len(predicted)))
        Predictions(names, tuple(labels), torch.tensor(predicted), errors, classes).save(folder)
        write_result(folder / "result.json", {"scores": [], "settings": {**SETTINGS, **settings}})
        return folder

    return saved


def test_a_pair_is_counted_image_by_image(save, capsys):
    first, second = save("first", FIRST), save("second", SECOND, method="lgtm", rows=3)
    found = compare_pair(first, second)
    # Right: 0 to 4 under the first, 0, 2 and 4 under the second; 4 as another of its two labels.
    assert (found.images, found.first_alone, found.second_alone, found.changed) == (6, 2, 0, 4)
    assert [score.value for score in found.scores] == pytest.approx([5 / 6, 3 / 6])
    expected = paired_difference(torch.tensor([1, 1, 1, 1, 1, 0]).bool(), torch.tensor([1, 0, 1, 0, 1, 0]).bool())
    assert (found.difference.value, found.difference.low) == pytest.approx((expected.value, expected.low))
    assert found.p == pytest.approx(2 * 0.25)
    assert found.differences == {"method": ("none", "lgtm")}
    main(["pair", str(first), str(second)])
    shown = capsys.readouterr().out
    for part in (
        "p = 0.5\n",
        "only the first is right: 2; only the second: 0",
        "differ, right or wrong: 4",
        "none | l",
    ):
        assert part in shown


def test_a_row_of_a_comparison_is_named_by_its_folder(save, tmp_path):
    save("rows/none/classification", FIRST)
    save("rows/lgtm/classification", FIRST)
    found = compare_pair(tmp_path / "rows" / "none", tmp_path / "rows" / "lgtm")
    assert (found.changed, found.p, found.differences) == (0, 1, {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"noise_seed": 1}, "their noise seed differ, 0 and 1"),
        ({"trials": [1, 2], "keeps": [2, 1]}, r"their stages \(trials\) differ"),
        ({"keeps": [2]}, r"their stages \(keeps\) differ, \[1\] and \[2\]"),
        ({"noises": 2}, "their noises a timestep differ, none and 2"),
        ({"data": "abd"}, "their images differ"),
        ({"names": ("a", "b", "c", "d", "e", "f")}, "one has 6 images, the other 6, and these, their order or"),
        ({"labels": [*TRUTH[:-1], (0,)]}, "their order or their labels differ"),
        ({"classes": ("cat", "dog", "cow", "hen")}, "cat, dog, cow, and cat, dog, cow, hen, as classes"),
        ({"timesteps": (100, 300)}, "their timesteps differ"),
    ],
)
def test_what_does_not_share_images_noise_stages_and_classes_is_refused(save, change, words):
    with pytest.raises(SettingError, match=words):
        compare_pair(save("first", FIRST), save("second", SECOND, **change))


def test_what_is_no_classification_is_refused(save, tmp_path, capsys):
    first, other = save("first", FIRST), tmp_path / "other"
    with pytest.raises(DataError, match="cannot be read"):
        compare_pair(first, other)
    other.mkdir()
    write_result(other / "result.json", {"settings": {"kind": "generation"}})
    with pytest.raises(DataError, match="a result of generation; a pair is of two classifications"):
        compare_pair(first, other)
    (other / "result.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(SystemExit, match="2"):
        main(["pair", str(first), str(other)])
    assert "has format 99" in capsys.readouterr().err
