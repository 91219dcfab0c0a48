"""What Wan alone has: timesteps of tokens, image-to-video, VACE, projections fused."""

import pytest
import torch

import bigain
from bigain.adapters.families.wan import WanAdapter
from bigain.errors import SiteError
from bigain.reducers.lgtm import LGTM

FRAME = (1, 2, 2)


@pytest.fixture
def wan(families):
    return families["wan"]


def test_a_default_video_of_81_frames_at_480_by_832(wan):
    adapter, model = WanAdapter(), wan.model()
    assert adapter.configured_shape(model) == (21, 30, 52)
    assert adapter.configured_shape(wan.model(patch_size=(3, 4, 2))) == (7, 15, 52)
    assert WanAdapter(shape=[2, 3, 4]).configured_shape(model) == (2, 3, 4)


def test_each_token_may_have_a_timestep(wan, check_by_hand):
    model, batch = wan.model(), wan.inputs()
    times = batch["timestep"][:, None].repeat(1, 90)
    times[:, :30] = 0  # the first frame is given, as Wan 2.2 animates an image
    batch["timestep"] = times
    moment = WanAdapter().moment(model, (), batch)
    assert moment.timestep.tolist() == [20, 500, 980]
    reducer = bigain.build_reducer("iekvd", factor=FRAME, alpha={"start": 0.2, "end": 1.3})
    with bigain.attach(model, reducer, layers=2):
        check_by_hand(wan, model, batch, reducer, [0, 1])


@pytest.mark.parametrize("parts", [("self",), ("self", "cross", "mlp")], ids="-".join)
def test_image_to_video_attends_to_text_and_image(wan, check_by_hand, noise, parts):
    model = wan.model(image_dim=6, added_kv_proj_dim=24)
    batch, reducer = wan.inputs(), LGTM(0.5, cell=FRAME)
    batch["encoder_hidden_states"] = noise(3, 512, 10).double()
    batch["encoder_hidden_states_image"] = noise(3, 5, 6, seed=7).double()
    with bigain.attach(model, reducer, placement={"parts": parts, "layers": 2}):
        check_by_hand(wan, model, batch, reducer, [0, 1], parts=parts)


@pytest.mark.parametrize("both", [None, 514])
@torch.no_grad()
def test_inputs_have_one_image_or_first_and_last_frame(wan, both):
    model = wan.model(image_dim=6, added_kv_proj_dim=24, pos_embed_seq_len=both)
    given = WanAdapter().inputs(model, 2, (2, 3, 4), torch.device("cpu"), torch.float64)
    assert model(**given).sample.shape == (2, 4, 2, 6, 8)


def test_of_vace_the_main_branch_is_reduced(wan, check_by_hand):
    model, reducer = wan.model(vace_layers=[0, 2], vace_in_channels=5), LGTM(0.5, cell=FRAME)
    batch = WanAdapter().inputs(model, 3, (2, 3, 4), torch.device("cpu"), torch.float64)
    assert batch["control_hidden_states"].shape == (3, 5, 2, 6, 8)
    with bigain.attach(model, reducer, layers=3) as report:
        assert [site.name for site in report.sites] == [f"blocks.{index}.attn1" for index in range(3)]
        check_by_hand(wan, model, batch, reducer, [0, 1, 2], grid=(2, 3, 4))


@torch.no_grad()
def test_fused_projections_merge_but_do_not_shrink_keys(wan):
    model, batch = wan.model(), wan.inputs()
    with bigain.attach(model, LGTM(0.5, cell=FRAME), layers=2):
        expected = model(**batch).sample
    model.fuse_qkv_projections()
    with bigain.attach(model, LGTM(0.5, cell=FRAME), layers=2):
        torch.testing.assert_close(model(**batch).sample, expected)
    with pytest.raises(SiteError, match="at once"):
        bigain.attach(model, "todo", factor=FRAME)


@torch.no_grad()
def test_projections_fused_after_attaching_are_noticed(wan):
    model, batch = wan.model(), wan.inputs()
    with bigain.attach(model, "todo", factor=FRAME):
        model.fuse_qkv_projections()
        with pytest.raises(SiteError, match="fused_projections was replaced"):
            model(**batch)
