"""Sparse errors hold what was evaluated and nothing else."""

import pytest
import torch
from safetensors.torch import save_file

from bigain.errors import DataError
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions
from bigain.results.scores import Score

TIMESTEPS = torch.tensor([100, 300, 900])


def pruned(images, classes, seed=0):
    """Errors of which most were never evaluated."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(images, classes, 3, generator=generator)
    dense[torch.rand(dense.shape, generator=generator) < 0.7] = torch.nan
    return dense


def test_what_was_dense_is_dense_again(tmp_path):
    dense, index = pruned(4, 5), torch.tensor([7, 0, 2, 3])
    errors = Errors.of(dense, index, TIMESTEPS)
    assert len(errors) == dense.isfinite().sum()
    assert [errors.image.dtype, errors.label.dtype, errors.step.dtype] == [torch.int32, torch.int32, torch.int16]
    errors.save(tmp_path / "errors.safetensors")
    back = Errors.load(tmp_path / "errors.safetensors")
    assert torch.equal(back.timesteps, TIMESTEPS)
    whole = back.dense(8, 5)
    torch.testing.assert_close(whole[index], dense, rtol=0, atol=0, equal_nan=True)
    assert whole[[1, 4, 5, 6]].isnan().all()


def test_chunks_join_to_the_whole():
    dense = pruned(6, 5)
    parts = [Errors.of(dense[rows], torch.tensor(rows), TIMESTEPS) for rows in ([0, 1], [2, 3], [4, 5])]
    torch.testing.assert_close(Errors.concat(parts).dense(6, 5), dense, rtol=0, atol=0, equal_nan=True)
    with pytest.raises(DataError, match="different timesteps"):
        Errors.concat([parts[0], Errors.of(dense, torch.arange(6))])
    with pytest.raises(DataError, match="no errors to join"):
        Errors.concat([])


def test_means_are_over_what_was_evaluated():
    dense = pruned(6, 5)
    found = Errors.of(dense, torch.arange(6), TIMESTEPS).mean(6, 5)
    torch.testing.assert_close(found, dense.nanmean(dim=-1), equal_nan=True)
    assert Errors.of(dense, torch.arange(6)).mean().shape == (6, 5)


def test_errors_of_a_thousand_classes_are_small():
    dense = torch.full((20, 1000, 100), torch.nan)
    dense[:, :20] = 1.0
    dense[:, :, 0] = 1.0
    stored = sum(tensor.nbytes for tensor in Errors.of(dense, torch.arange(20)).tensors().values())
    assert stored < dense.nbytes / 9


def test_an_infinite_error_is_no_missing_one():
    dense = torch.tensor([[[1.0, torch.inf, torch.nan]]])
    assert Errors.of(dense, torch.tensor([0])).error.tolist() == [1, torch.inf]


def test_other_files_are_refused_in_words(tmp_path):
    path = tmp_path / "errors.safetensors"
    with pytest.raises(DataError, match=r"errors\.safetensors cannot be read"):
        Errors.load(path)
    save_file({"errors": torch.zeros(1, 2, 3)}, path)
    with pytest.raises(DataError, match="missing: image, label, step, error, timesteps"):
        Errors.load(path)
    wrong = Errors.of(pruned(2, 3), torch.arange(2)).tensors()
    save_file({**wrong, "image": wrong["image"].float()}, path)
    with pytest.raises(DataError, match=r"image \[\d+\] \(torch\.float32\)"):
        Errors.load(path)


def test_predictions_count_their_images():
    errors = Errors.of(pruned(2, 3), torch.arange(2))
    assert len(Predictions(("a", "b"), ((0,), (1, 2)), torch.tensor([0, 2]), errors, ("x", "y", "z"))) == 2


def test_a_score_survives_json_and_strange_ones_are_refused():
    import json

    whole = Score("top1", 0.5, 0.4, 0.6, "top-1", "share", "higher", "A note.")
    empty = Score("fid", float("nan"))
    for score in (whole, empty):
        text = json.dumps(score.to_json(), allow_nan=False)
        assert repr(Score.from_json(json.loads(text))) == repr(score)
    assert whole.to_json()["low"] == 0.4
    with pytest.raises(DataError, match="unknown: mean"):
        Score.from_json({"name": "x", "value": 1, "mean": 2})
    with pytest.raises(DataError, match="missing: value"):
        Score.from_json({"name": "x"})
