import pytest
import torch

from bigain.diffusion.noise_set import NoiseSet, Stages
from bigain.errors import SettingError


def test_twenty_timesteps_are_the_published_ones():
    assert Stages((5, 20), (5, 1)).timesteps(1000) == tuple(range(25, 1000, 50))


def test_first_stage_sees_every_fourth_and_the_second_the_rest():
    first, second = Stages((5, 20), (5, 1)).members()
    steps = Stages((5, 20), (5, 1)).timesteps(1000)
    assert [steps[i] for i in first] == [125, 325, 525, 725, 925]
    assert sorted(first + second) == list(range(20))


def test_three_stages_of_imagenet_visit_each_timestep_once():
    members = Stages((5, 20, 100), (50, 10, 1)).members()
    # The 20 of the second stage fall between the 5 of the first: 25 are seen by then.
    assert [len(new) for new in members] == [5, 20, 75]
    assert members[0] == (10, 30, 50, 70, 90)
    assert sorted(sum(members, ())) == list(range(100))


@pytest.mark.parametrize(("classes", "expected"), [(10, 5 * 10 + 15 * 5), (3, 20 * 3)])
def test_evaluations_count_surviving_classes(classes, expected):
    assert Stages((5, 20), (5, 1)).evaluations(classes) == expected


@pytest.mark.parametrize(
    ("trials", "keeps"),
    [((20, 5), (5, 1)), ((5, 20), (1, 5)), ((5,), (5, 1)), ((), ()), ((5, 20), (5, 0)), ((0, 5), (5, 1))],
)
def test_impossible_stages_are_refused(trials, keeps):
    with pytest.raises(SettingError, match="trials"):
        Stages(trials, keeps)


def test_more_timesteps_than_the_schedule_has_are_refused():
    with pytest.raises(SettingError, match="schedule has 10"):
        Stages((20,), (1,)).timesteps(10)


def test_the_set_depends_on_the_seed_alone():
    first = NoiseSet.draw(3, (25, 75), (3, 4, 4))
    torch.manual_seed(99)
    again = NoiseSet.draw(3, (25, 75), (3, 4, 4))
    other = NoiseSet.draw(4, (25, 75), (3, 4, 4))
    assert torch.equal(first.noise, again.noise)
    assert not torch.equal(first.noise, other.noise)


def test_the_default_type_does_not_change_the_set():
    """Lightning's half-precision plugins change torch's default type around every step."""
    expected = NoiseSet.draw(0, (25, 75), (3, 4, 4)).noise
    torch.set_default_dtype(torch.bfloat16)
    try:
        drawn = NoiseSet.draw(0, (25, 75), (3, 4, 4)).noise
    finally:
        torch.set_default_dtype(torch.float32)
    assert drawn.dtype == torch.float32
    assert torch.equal(drawn, expected)


def test_several_noises_at_a_timestep_are_evaluated_together():
    once, twice = Stages((2, 4), (3, 1)), Stages((2, 4), (3, 1), noises=2)
    assert once.timesteps(1000) == (125, 375, 625, 875)
    assert twice.timesteps(1000) == (125, 125, 375, 375, 625, 625, 875, 875)
    assert twice.members() == [(2, 3, 6, 7), (0, 1, 4, 5)]
    assert once.members() == [(1, 3), (0, 2)]
    assert twice.evaluations(10) == 2 * once.evaluations(10)
    noise = NoiseSet.draw(0, twice.timesteps(1000), (2, 3, 3)).noise
    assert not torch.equal(noise[0], noise[1])
    with pytest.raises(SettingError, match="noises is the number"):
        Stages((2, 4), (3, 1), noises=0)
