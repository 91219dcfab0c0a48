"""The classifier against a loop that evaluates one row at a time."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn import functional as F

from bigain.adapters.attach import attach
from bigain.diffusion.classifier import DiffusionClassifier
from bigain.diffusion.condition import Condition
from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.diffusion.process import Process
from bigain.errors import NumericalError, SettingError

SHAPE, CLASSES = (2, 4, 4), 6
PROCESS = Process.of({"_class_name": "DDIMScheduler"})
CONDITION = Condition(labels=torch.arange(CLASSES))
LOSSES = {"l2": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


def diffused(clean, noise, step):
    """Ho et al. (2020), equation 4, with alphas computed apart."""
    signal = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)[step].float()
    return signal.sqrt() * clean + (1 - signal).sqrt() * noise


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1).requires_grad_(False)
    embedding = torch.randn(CLASSES, 2, 1, 1)

    def predict(noisy, timesteps, condition):
        return layer(noisy) + embedding[condition.labels] * (1 + timesteps.reshape(-1, 1, 1, 1) / 500)

    return predict


def classifier(predict, stages=Stages((2, 5), (3, 1)), rows=7, loss="l2", seed=0):
    noise_set = NoiseSet.draw(seed, stages.timesteps(1000), SHAPE)
    return DiffusionClassifier(predict, PROCESS, noise_set, stages, CONDITION, loss, rows), noise_set


def slow(predict, clean, noise_set, stages, loss):
    """Errors and prediction for one image: one class, one timestep at a time."""
    errors = {}
    alive = list(range(CLASSES))
    for new, keep in zip(stages.members(), stages.keeps, strict=True):
        for label in alive:
            for index in new:
                step, noise = noise_set.timesteps[index], noise_set.noise[index]
                noisy = diffused(clean, noise, step)
                found = predict(noisy[None], step[None], CONDITION.take([label]))[0]
                errors[label, index] = float(LOSSES[loss](found, noise))
        mean = {c: sum(e for (d, _), e in errors.items() if d == c) / sum(d == c for d, _ in errors) for c in alive}
        alive = sorted(alive, key=mean.get)[:keep]
    return errors, alive[0]


@pytest.mark.parametrize("loss", ["l2", "l1", "huber"])
@pytest.mark.parametrize(
    "stages",
    [
        Stages((2, 5), (3, 1)),
        Stages((4,), (1,)),
        Stages((1, 2, 6), (4, 2, 1)),
        Stages((1, 2, 3), (4, 2, 1)),
        Stages((1, 3), (3, 1), 2),
    ],
)
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

    def counting(noisy, timesteps, condition):
        seen.append((len(noisy), len(timesteps), len(condition)))
        return model(noisy, timesteps, condition)

    classifier(counting, rows=8)[0](torch.randn(3, *SHAPE))
    assert set(seen) == {(8, 8, 8)}


def test_nan_is_named_by_image_class_and_timestep(model):
    def broken(noisy, timesteps, condition):
        bad = (condition.labels == 4) & (timesteps == 700)
        return torch.where(bad.reshape(-1, 1, 1, 1), torch.nan, model(noisy, timesteps, condition))

    stages = Stages((5,), (1,))
    assert 700 in stages.timesteps(1000)
    with pytest.raises(NumericalError, match=r"image cat\.png, class 4, timestep 700"):
        classifier(broken, stages)[0](torch.randn(1, *SHAPE), ["cat.png"])


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"loss": "l3"}, "l2"), ({"rows": 0}, "rows"), ({"stages": Stages((2,), (9,))}, "more classes")],
)
def test_impossible_settings_are_refused(model, settings, expected):
    with pytest.raises(SettingError, match=expected):
        classifier(model, **settings)


@pytest.mark.parametrize("process", ["scaled linear", "cosine", "zero terminal SNR", "flow"])
def test_an_exact_backbone_errs_nowhere(exact, process):
    """Its noise is exact on the process of its own scheduler alone."""
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0} if process == "flow" else None
    form = {"zero terminal SNR": "velocity", "flow": "flow"}.get(process, "noise")
    backbone, stages = exact(0.7, process, scheduler, form), Stages((5,), (1,))
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), backbone.latent_shape)
    condition = backbone.embed([0, 1])
    found = DiffusionClassifier(backbone.predict_noise, backbone.process, noise_set, stages, condition)(
        torch.full((2, 3, 4, 4), 0.7)
    )
    assert found.errors.max() < 1e-5
    linear = DiffusionClassifier(backbone.predict_noise, PROCESS, noise_set, stages, condition)
    assert linear(torch.full((2, 3, 4, 4), 0.7)).errors.max() > 1e-3


@pytest.mark.gpu
def test_a_stage_waits_for_the_device_once(model):
    """torch counts what makes the host wait; text states as large as SDXL's move without waiting."""
    import warnings

    stages, predict = (
        Stages((2, 5), (3, 1)),
        lambda noisy, t, condition: noisy * condition.states.mean((1, 2))[:, None, None, None],
    )
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), SHAPE).to("cuda")
    condition = Condition(states=torch.randn(CLASSES, 77, 2048))
    classify = DiffusionClassifier(predict, PROCESS.to("cuda"), noise_set, stages, condition, rows=8)
    clean = torch.randn(3, *SHAPE).cuda()
    expected = classify(clean)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = classify(clean)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert len(waits) == len(stages.trials), waits
    assert torch.equal(found.prediction, expected.prediction)


def test_errors_stay_float32_where_the_default_type_is_half(model):
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = classifier(model)[0](torch.randn(1, *SHAPE, dtype=torch.float32))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.errors.dtype == torch.float32


class Sharing:
    """A model that multiplies by a nonlinear "plan": made of each row, or of the mean of rows that share it."""

    def __init__(self, model):
        self.model, self.size, self.passes = model, 1, []

    def predict(self, noisy, timesteps, condition):
        self.passes.append((self.size, noisy, timesteps, condition.labels))
        plain = self.model(noisy, timesteps, condition)
        mean = plain.unflatten(0, (-1, self.size)).mean(dim=1)
        return plain * (3 * mean).sin().repeat_interleave(self.size, dim=0)

    @contextmanager
    def share(self, size):
        before, self.size = self.size, size
        try:
            yield
        finally:
            self.size = before


STAGED = [
    Stages((2, 5), (3, 1)),
    Stages((4,), (1,)),
    Stages((1, 2, 6), (4, 2, 1)),
    Stages((2, 4), (6, 1)),
    Stages((1, 3), (3, 1), 2),
]


def sharing_classifier(sharing, stages=STAGED[0], rows=8, share=True):
    noise_set = NoiseSet.draw(0, stages.timesteps(1000), SHAPE)
    share = sharing.share if share else None
    return DiffusionClassifier(sharing.predict, PROCESS, noise_set, stages, CONDITION, "l2", rows, share), noise_set


def slow_sharing(model, clean, noise_set, stages):
    """Errors for one image: the surviving classes at one timestep share the mean of their plans."""
    errors, alive = {}, list(range(CLASSES))
    for new, keep in zip(stages.members(), stages.keeps, strict=True):
        for index in new:
            step, noise = noise_set.timesteps[index], noise_set.noise[index]
            noisy = diffused(clean, noise, step)
            plain = {c: model(noisy[None], step[None], CONDITION.take([c]))[0] for c in alive}
            plan = (3 * sum(plain.values()) / len(alive)).sin()
            for label in alive:
                errors[label, index] = float(F.mse_loss(plain[label] * plan, noise))
        mean = {c: sum(e for (d, _), e in errors.items() if d == c) / sum(d == c for d, _ in errors) for c in alive}
        alive = sorted(alive, key=mean.get)[:keep]
    return errors, alive[0]


@pytest.mark.parametrize("stages", STAGED, ids=str)
@pytest.mark.parametrize("rows", [6, 7, 13, 64])
def test_sharing_agrees_with_the_loop_over_images_and_timesteps(model, stages, rows):
    clean = torch.randn(4, *SHAPE)
    fast, noise_set = sharing_classifier(Sharing(model), stages, rows)
    found = fast(clean)
    alone = sharing_classifier(Sharing(model), stages, rows, share=False)[0](clean)
    assert not torch.allclose(
        found.errors[:, :, stages.members()[0]], alone.errors[:, :, stages.members()[0]], rtol=0.01
    )
    for row, image in enumerate(clean):
        errors, prediction = slow_sharing(model, image, noise_set, stages)
        assert int(found.prediction[row]) == prediction
        assert int(found.errors[row].isfinite().sum()) == len(errors) == stages.evaluations(CLASSES)
        for (label, index), error in errors.items():
            assert float(found.errors[row, label, index]) == pytest.approx(error, rel=1e-5)


@pytest.mark.parametrize("stages", STAGED, ids=str)
@pytest.mark.parametrize("rows", [6, 8, 13, 64])
def test_every_shared_pass_holds_whole_groups_and_no_more_rows(model, stages, rows):
    sharing = Sharing(model)
    sharing_classifier(sharing, stages, rows)[0](torch.randn(3, *SHAPE))
    alive = [CLASSES, *stages.keeps]
    assert [size for size, *_ in sharing.passes] == sorted((size for size, *_ in sharing.passes), reverse=True)
    assert {size for size, *_ in sharing.passes} == set(alive[: len(stages.trials)])
    for size, noisy, timesteps, labels in sharing.passes:
        assert len(noisy) == rows // size * size
        for group in range(0, len(noisy), size):
            own = slice(group, group + size)
            assert (noisy[own] == noisy[group]).all()
            assert (timesteps[own] == timesteps[group]).all()
            assert len(set(labels[own].tolist())) == size
    assert sharing.size == 1


def test_neighbours_and_order_change_nothing_where_plans_are_shared(model):
    clean = torch.randn(5, *SHAPE)
    together = sharing_classifier(Sharing(model))[0](clean)
    backwards = sharing_classifier(Sharing(model))[0](clean.flip(0))
    torch.testing.assert_close(backwards.errors.flip(0), together.errors, equal_nan=True)
    for row in range(5):
        alone = sharing_classifier(Sharing(model))[0](clean[row : row + 1])
        torch.testing.assert_close(alone.errors[0], together.errors[row], equal_nan=True)


def test_without_sharing_every_row_plans_for_itself(model):
    sharing, clean = Sharing(model), torch.randn(3, *SHAPE)
    found = sharing_classifier(sharing, rows=4, share=False)[0](clean)  # fewer rows than classes will do
    assert {(size, len(noisy)) for size, noisy, *_ in sharing.passes} == {(1, 4)}
    by_row, _ = classifier(Sharing(model).predict, rows=4)
    torch.testing.assert_close(by_row(clean).errors, found.errors, equal_nan=True)


def test_a_pass_that_cannot_hold_all_classes_is_refused(model):
    with pytest.raises(SettingError) as caught:
        sharing_classifier(Sharing(model), rows=CLASSES - 1)
    assert str(caught.value) == "Classes that share plans are evaluated together: rows must be 6 or more; got 5."


def test_sharing_ends_where_the_model_fails(model):
    sharing = Sharing(model)
    sharing.model = lambda noisy, timesteps, condition: noisy[:, :, :, :1].view(0)
    with pytest.raises(RuntimeError):
        sharing_classifier(sharing)[0](torch.randn(1, *SHAPE))
    assert sharing.size == 1


@torch.no_grad()
def test_classes_share_the_plans_of_a_real_network(tiny_backbone):
    """One image, timestep and noise at a time, all surviving classes in one group."""
    stages, clean = Stages((2, 4), (3, 1)), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    backbone, classes = tiny_backbone, tiny_backbone.label_count
    noise_set, condition = NoiseSet.draw(0, stages.timesteps(1000), (3, 8, 8)), tiny_backbone.embed(range(classes))

    def grouped(image, index, labels):
        step, noise = noise_set.timesteps[index], noise_set.noise[index]
        noisy = diffused(image, noise, step)
        many = labels * (12 // len(labels))  # as many rows as a pass has, so that rounding is the same
        rows = noisy.expand(len(many), -1, -1, -1), step.expand(len(many)), condition.take(many)
        with report.shared(len(labels)):
            found = (backbone.predict_noise(*rows) - noise).square().flatten(1).mean(dim=1)
        return found[: len(labels)]

    with attach(backbone, "lgtm", ratio=0.5, layers=4) as report:
        settings = (backbone.predict_noise, backbone.process, noise_set, stages, condition, "l2", 12)
        shared, alone = [DiffusionClassifier(*settings, share)(clean) for share in (report.shared, None)]
        for row, image in enumerate(clean):
            first, second = stages.members()
            errors = torch.stack([grouped(image, index, list(range(classes))) for index in first], dim=1)
            torch.testing.assert_close(shared.errors[row][:, list(first)], errors, rtol=1e-4, atol=1e-5)
            alive = errors.mean(dim=1).argsort(stable=True)[:3].tolist()
            errors = torch.stack([grouped(image, index, alive) for index in second], dim=1)
            torch.testing.assert_close(shared.errors[row][alive][:, list(second)], errors, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shared.errors[:, :, list(first)], alone.errors[:, :, list(first)], rtol=1e-3)
