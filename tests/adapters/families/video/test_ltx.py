"""What LTX-Video alone has: grids that a call tells, and timesteps of tokens."""

import pytest
import torch

import bigain
from bigain.adapters.families.ltx import LTXAdapter
from bigain.errors import SiteError
from bigain.reducers.lgtm import LGTM

FRAME = (1, 2, 2)


@pytest.fixture
def ltx(families):
    return families["ltx"]


def by_coordinates(batch):
    """Say where the tokens are by seconds and pixels, as LTXConditionPipeline does."""
    frames, height, width = (batch.pop(name) for name in ("num_frames", "height", "width"))
    scale = batch.pop("rope_interpolation_scale")
    axes = torch.meshgrid(*map(torch.arange, (frames, height, width)), indexing="ij")
    coordinates = [axis.flatten() * factor for axis, factor in zip(axes, scale, strict=True)]
    batch["video_coords"] = torch.stack(coordinates).expand(len(batch["timestep"]), -1, -1)
    return batch


def test_a_default_video_of_161_frames_at_512_by_704(ltx):
    assert LTXAdapter().configured_shape(ltx.model()) == (21, 16, 22)
    assert LTXAdapter(shape=[2, 3, 4]).configured_shape(ltx.model()) == (2, 3, 4)


@pytest.mark.parametrize("per_token", [90, 1])
def test_each_token_may_have_a_timestep(ltx, check_by_hand, per_token):
    model, batch = ltx.model(), ltx.inputs()
    batch["timestep"] = batch["timestep"][:, None].repeat(1, per_token)
    if per_token > 1:
        batch["timestep"][:, :30] = 0  # the first frame is given
    assert LTXAdapter().moment(model, (), batch).timestep.tolist() == [20, 500, 980]
    reducer = bigain.build_reducer("iekvd", factor=FRAME, alpha={"start": 0.2, "end": 1.3})
    with bigain.attach(model, reducer, layers=2):
        check_by_hand(ltx, model, batch, reducer, [0, 1])


@torch.no_grad()
def test_calls_by_coordinates_are_served_where_the_adapter_is_told_the_size(ltx):
    model, batch = ltx.model(), ltx.inputs()
    with bigain.attach(model, LGTM(0.5, cell=FRAME), layers=2):
        expected = model(**batch).sample
    told = {"name": "ltx", "shape": [3, 5, 6]}
    with bigain.attach(model, LGTM(0.5, cell=FRAME), layers=2, adapter=told) as report:
        assert report.sites[0].grid.shape == (3, 5, 6)
        torch.testing.assert_close(model(**by_coordinates(batch)).sample, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "said"), [(None, "90 tokens, and nothing says"), ([3, 5, 5], r"\[3, 5, 5\] do not say")]
)
def test_calls_that_do_not_say_how_tokens_lie_are_refused(ltx, shape, said):
    model, batch = ltx.model(), by_coordinates(ltx.inputs())
    adapter = {"name": "ltx", "shape": shape}
    with bigain.attach(model, LGTM(0.5, cell=FRAME), adapter=adapter), pytest.raises(SiteError, match=said):
        model(**batch)
    # Where there are coordinates, the model asks nothing else.
    batch |= {"num_frames": 1, "height": 9, "width": 10}
    with bigain.attach(model, LGTM(0.5, cell=FRAME), adapter=adapter), pytest.raises(SiteError, match=said):
        model(**batch)
