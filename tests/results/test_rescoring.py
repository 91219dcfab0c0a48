"""Stored errors scored anew, against running the classifier."""

import pytest
import torch

from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.process import Process
from bigain.diffusion.weights import timestep_weights
from bigain.errors import DataError
from bigain.results.errors import Errors
from bigain.results.predictions import Predictions
from bigain.results.rescoring import rescored

SHAPE, CLASSES = (2, 4, 4), tuple("abcdef")
PROCESS = Process.of({"_class_name": "FlowMatchEulerDiscreteScheduler"})
CONDITION = Condition(labels=torch.arange(6))


@pytest.fixture(scope="module")
def classified():
    """Classify 12 images with a random network: `classified(stages, noise)`, noise for all pairs of the stages."""
    torch.manual_seed(0)
    layer, embedding = torch.nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False), torch.randn(6, 2, 1, 1)
    clean = torch.randn(12, *SHAPE)

    def predict(noisy, t, condition):
        return layer(noisy) + embedding[condition.labels] * (1 + t.reshape(-1, 1, 1, 1) / 500)

    def run(stages, noise=None):
        drawn = NoiseSet.draw(0, stages.timesteps(1000), SHAPE)
        drawn = drawn if noise is None else NoiseSet(drawn.timesteps, noise, 0)
        found = DiffusionClassifier(predict, PROCESS, drawn, stages, CONDITION)(clean)
        errors = Errors.of(found.errors, torch.arange(12), drawn.timesteps, timestep_weights(stages, PROCESS))
        names = tuple(f"{image}.png" for image in range(12))
        return Predictions(names, ((0,),) * 12, found.prediction, errors, CLASSES), drawn.noise

    return run


OTHERS = [
    Stages((6,), (1,), 2, "velocity"),
    Stages((2, 6), (3, 1), 2, "logit_normal"),
    Stages((3, 6), (4, 1), 2, (1.0, 0.0, 2.0, 0.5, 3.0, 0.1)),
    Stages((1, 2, 6), (4, 2, 1), 2),
]


@pytest.mark.parametrize("stages", OTHERS, ids=str)
def test_all_errors_suffice_for_any_pruning_and_any_weights(classified, stages, tmp_path):
    whole, noise = classified(Stages((6,), (1,), 2))
    whole.save(tmp_path)
    found, (expected, _) = rescored(Predictions.load(tmp_path), stages, PROCESS), classified(stages, noise)
    assert torch.equal(found.predicted, expected.predicted)
    torch.testing.assert_close(found.errors.dense(12, 6), expected.errors.dense(12, 6), equal_nan=True)
    torch.testing.assert_close(found.errors.mean(12, 6), expected.errors.mean(12, 6), equal_nan=True)
    assert torch.equal(found.ranks(), expected.ranks())
    assert torch.equal(found.ranks().argmin(dim=1), found.predicted)


def test_one_of_several_noises_and_fewer_timesteps(classified):
    whole, noise = classified(Stages((6,), (1,), 2))
    once = rescored(whole, Stages((6,), (1,)), PROCESS)
    assert torch.equal(once.predicted, classified(Stages((6,), (1,)), noise[::2])[0].predicted)
    few = Stages((2,), (1,))  # 250 and 750, the second and fifth of six
    assert torch.equal(rescored(whole, few, PROCESS).predicted, classified(few, noise[[2, 8]])[0].predicted)


def test_weights_are_stored_and_means_follow_them(classified, tmp_path):
    stages = Stages((2, 4), (3, 1), weights=(1.0, 3.0, 0.0, 2.0))
    found, _ = classified(stages)
    found.save(tmp_path)
    again = Predictions.load(tmp_path)
    dense, weights = found.errors.dense(12, 6), torch.tensor(stages.weights)
    expected = (dense.nan_to_num() * weights).sum(-1) / (dense.isfinite() * weights).sum(-1)
    torch.testing.assert_close(again.errors.mean(12, 6), expected)
    assert torch.equal(again.ranks().argmin(dim=1), found.predicted)
    with pytest.raises(DataError, match="differently weighted"):
        Errors.concat([found.errors, classified(Stages((2, 4), (3, 1)))[0].errors])


def test_what_was_not_evaluated_is_named(classified):
    pruned, _ = classified(Stages((2, 6), (3, 1)))
    fewer = rescored(pruned, Stages((2, 6), (2, 1)), PROCESS)
    assert len(fewer.errors) < len(pruned.errors)
    with pytest.raises(DataError, match=r"^0\.png: a class that these stages keep was pruned"):
        rescored(pruned, Stages((2, 6), (4, 1)), PROCESS)
    with pytest.raises(DataError, match="need 1 noise at timestep 125; stored are 0 there, and the timesteps 83, 250"):
        rescored(pruned, Stages((4,), (1,)), PROCESS)
    with pytest.raises(DataError, match="need 2 noises at timestep 83; stored are 1 there"):
        rescored(pruned, Stages((2, 6), (3, 1), 2), PROCESS)
