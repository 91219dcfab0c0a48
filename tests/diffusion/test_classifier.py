"""The classifier against a loop that evaluates one row at a time."""

import pytest
import torch
from torch.nn import functional as F

from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.schedule import NoiseSchedule
from bigain.errors import NumericalError, SettingError

SHAPE, CLASSES = (2, 4, 4), 6
SCHEDULE = NoiseSchedule()
LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
    embedding = torch.randn(CLASSES, 2, 1, 1)

    def predict(noisy, timesteps, labels):
        return layer(noisy) + embedding[labels] * (1 + timesteps.reshape(-1, 1, 1, 1) / 500)

    return predict


def classifier(predict, stages=Stages((2, 5), (3, 1)), rows=7, loss="l2", seed=0):
    noise_set = NoiseSet.draw(seed, stages.timesteps(1000), SHAPE)
    return DiffusionClassifier(predict, SCHEDULE, noise_set, stages, CLASSES, loss, rows), noise_set


def slow(predict, clean, noise_set, stages, loss):
    """Errors and prediction for one image: one class, one timestep at a time."""
    alphas, errors = SCHEDULE.alphas_cumprod(), {}
    alive = list(range(CLASSES))
    for new, keep in zip(stages.members(), stages.keeps, strict=True):
        for label in alive:
            for index in new:
                step, noise = noise_set.timesteps[index], noise_set.noise[index]
                noisy = alphas[step].sqrt() * clean + (1 - alphas[step]).sqrt() * noise
                found = predict(noisy[None], step[None], torch.tensor([label]))[0]
                errors[label, index] = float(LOSSES[loss](found, noise))
        mean = {c: sum(e for (d, _), e in errors.items() if d == c) / sum(d == c for d, _ in errors) for c in alive}
        alive = sorted(alive, key=mean.get)[:keep]
    return errors, alive[0]


@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
@pytest.mark.parametrize("stages", [Stages((2, 5), (3, 1)), Stages((4,), (1,)), Stages((1, 2, 6), (4, 2, 1))])
def test_it_agrees_with_the_loop(model, loss, stages):
    clean = torch.randn(4, *SHAPE)
    fast, noise_set = classifier(model, stages, loss=loss)
    found = fast(clean)
    for row, image in enumerate(clean):
        errors, prediction = slow(model, image, noise_set, stages, loss)
        assert int(found.prediction[row]) == prediction
        assert int(found.errors[row].isfinite().sum()) == len(errors) == stages.evaluations(CLASSES)
        for (label, index), error in errors.items():
            assert float(found.errors[row, label, index]) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 64, 1000])
def test_the_size_of_a_pass_changes_nothing(model, rows):
    clean = torch.randn(3, *SHAPE)
    expected, found = classifier(model)[0](clean), classifier(model, rows=rows)[0](clean)
    torch.testing.assert_close(found.errors, expected.errors, equal_nan=True)
    assert torch.equal(found.prediction, expected.prediction)


def test_neighbours_and_order_change_nothing(model):
    clean = torch.randn(5, *SHAPE)
    together = classifier(model)[0](clean)
    backwards = classifier(model)[0](clean.flip(0))
    torch.testing.assert_close(backwards.errors.flip(0), together.errors, equal_nan=True)
    for row in range(5):
        alone = classifier(model)[0](clean[row : row + 1])
        torch.testing.assert_close(alone.errors[0], together.errors[row], equal_nan=True)


def test_every_pass_has_the_same_number_of_rows(model):
    seen = []

    def counting(noisy, timesteps, labels):
        seen.append(len(noisy))
        return model(noisy, timesteps, labels)

    classifier(counting, rows=8)[0](torch.randn(3, *SHAPE))
    assert set(seen) == {8}


def test_nan_is_named_by_image_class_and_timestep(model):
    def broken(noisy, timesteps, labels):
        bad = (labels == 4) & (timesteps == 700)
        return torch.where(bad.reshape(-1, 1, 1, 1), torch.nan, model(noisy, timesteps, labels))

    stages = Stages((5,), (1,))
    assert 700 in stages.timesteps(1000)
    with pytest.raises(NumericalError, match=r"image cat\.png, class 4, timestep 700"):
        classifier(broken, stages)[0](torch.randn(1, *SHAPE), ["cat.png"])


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"loss": "l3"}, "l2"), ({"rows": 0}, "rows"), ({"stages": Stages((2,), (9,))}, "more classes")],
)
def test_impossible_settings_are_refused(model, settings, told):
    with pytest.raises(SettingError, match=told):
        classifier(model, **settings)


def test_errors_stay_float32_where_the_default_type_is_half(model):
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = classifier(model)[0](torch.randn(1, *SHAPE, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.errors.dtype == torch.float32
