"""Weighted timesteps, against a loop that weights what the network itself predicts."""

import pytest
import torch
from torch.distributions import Normal, SigmoidTransform, TransformedDistribution

from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.process import Process
from bigain.diffusion.weights import timestep_weights
from bigain.errors import SettingError

SHAPE, CLASSES = (2, 4, 4), 6
CONDITION = Condition(labels=torch.arange(CLASSES))
FLOW = Process.of({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
VELOCITY = Process.of({"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"})
NUMBERS = (0.0, 0.1, 0.5, 1.0, 4.0, 9.0)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
    embedding = torch.randn(CLASSES, 10, 2, 1, 1)  # which class errs least depends on the timestep

    def predict(noisy, timesteps, condition):
        return layer(noisy) + embedding[condition.labels, timesteps // 100]

    return predict


def densities(t):
    """SD3's timesteps: those whose logit is standard normal."""
    drawn = TransformedDistribution(Normal(torch.zeros((), dtype=torch.float64), 1.0), [SigmoidTransform()])
    return drawn.log_prob(t.double() / 1000).exp()


def target_error(process, predicted, clean, noise, t):
    """Squared error of what the network predicts: a flow, or a velocity (Salimans and Ho, 2022, appendix D)."""
    if process is FLOW:
        return float((predicted - (noise - clean)).square().mean())
    alpha, sigma = process.alpha(t[None]), process.sigma(t[None])
    return float((predicted - (alpha * noise - sigma * clean)).square().mean())


def slow(network, process, clean, noise_set, stages):
    """Each class's weighted error as its stages ended, and the prediction, for one image."""
    errors, alive = {}, list(range(CLASSES))
    for new, keep in zip(stages.members(), stages.keeps, strict=True):
        for label in alive:
            for index in new:
                t, noise = noise_set.timesteps[index], noise_set.noise[index]
                noisy = process.alpha(t[None]) * clean + process.sigma(t[None]) * noise
                predicted = network(noisy[None], t[None], CONDITION.take([label]))[0]
                if isinstance(stages.weights, tuple):
                    found = process.to_noise(predicted[None], noisy[None], t[None])[0]
                    error, weight = float((found - noise).square().mean()), stages.weights[index // stages.noises]
                else:
                    error = target_error(process, predicted, clean, noise, t)
                    weight = float(densities(t)) if stages.weights == "logit_normal" else 1.0
                errors[label, index] = error * weight
        total = {c: sum(e for (d, _), e in errors.items() if d == c) for c in alive}
        alive = sorted(alive, key=total.get)[:keep]
    return alive[0]


@pytest.mark.parametrize(
    ("process", "weights"),
    [(FLOW, "velocity"), (FLOW, "logit_normal"), (VELOCITY, "velocity"), (FLOW, NUMBERS), (VELOCITY, NUMBERS)],
    ids=["flow", "flow as trained", "velocity", "flow by numbers", "velocity by numbers"],
)
@pytest.mark.parametrize(("trials", "keeps", "noises"), [((6,), (1,), 1), ((2, 6), (3, 1), 2), ((3, 6), (4, 1), 1)])
def test_it_predicts_as_the_loop_over_weighted_errors(network, process, weights, trials, keeps, noises):
    def predict_noise(noisy, t, condition):
        return process.to_noise(network(noisy, t, condition), noisy, t)

    stages = Stages(trials, keeps, noises, weights)
    clean = 2 * torch.randn(12, *SHAPE, generator=torch.Generator().manual_seed(1))
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), SHAPE)
    found = DiffusionClassifier(predict_noise, process, noise_set, stages, CONDITION)(clean)
    expected = [slow(network, process, image, noise_set, stages) for image in clean]
    assert found.prediction.tolist() == expected
    plain = Stages(trials, keeps, noises)
    uniform = DiffusionClassifier(predict_noise, process, noise_set, plain, CONDITION)(clean)
    assert not torch.equal(uniform.prediction, found.prediction)
    # What is stored are errors without weights.
    both = uniform.errors.isfinite() & found.errors.isfinite()
    torch.testing.assert_close(found.errors[both], uniform.errors[both])


def test_equal_numbers_are_no_weights(network):
    stages = Stages((2, 4), (3, 1), weights=(0.3,) * 4)
    noise_set, clean = NoiseSet.draw(0, stages.timesteps(1000), SHAPE), torch.randn(5, *SHAPE)
    one, other = (
        DiffusionClassifier(network, VELOCITY, noise_set, given, CONDITION)(clean)
        for given in (stages, Stages((2, 4), (3, 1)))
    )
    assert torch.equal(one.prediction, other.prediction)
    assert timestep_weights(Stages(), FLOW) is None


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("snr", "weights is one of uniform, velocity, logit_normal, or a number for each timestep; got 'snr'"),
        ((1, 2, 3), "a number for each of the 4 timesteps"),
        ((1, 2, -1, 1), "0 or more"),
        ((1, float("nan"), 1, 1), "0 or more"),
        ((1, 0, 1, 0), "not all 0 in the first stage"),
    ],
)
def test_impossible_weights_are_refused(weights, words):
    assert Stages((2, 4), (3, 1)).members()[0] == (1, 3)
    with pytest.raises(SettingError, match=words):
        Stages((2, 4), (3, 1), weights=weights)


def test_weights_that_do_not_fit_the_process_or_the_loss_are_refused(network):
    with pytest.raises(SettingError, match="this model predicts velocity: give uniform or velocity"):
        timestep_weights(Stages(weights="logit_normal"), VELOCITY)
    stages = Stages((4,), (1,), weights="velocity")
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), SHAPE)
    with pytest.raises(SettingError, match="are of squared errors, loss l2; got the loss l1"):
        DiffusionClassifier(network, FLOW, noise_set, stages, CONDITION, "l1")


def test_settings_name_only_what_is_not_as_in_the_paper():
    assert Stages().settings() == {"trials": (5, 20), "keeps": (5, 1)}
    assert Stages((1, 2), (2, 1), 3, "velocity").settings() == {
        "trials": (1, 2), "keeps": (2, 1), "noises": 3, "timestep_weights": "velocity"
    }  # fmt: skip
