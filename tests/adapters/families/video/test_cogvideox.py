"""What CogVideoX alone has: models without rotary positions, patches of frames, text that stays."""

import pytest
import torch

import bigain
from bigain.adapters.families.cogvideox import CogVideoXAdapter
from bigain.errors import SiteError
from bigain.reducers.base import Reduction, TokenReducer
from bigain.reducers.lgtm import LGTM
from tests.comparing import assert_same

FRAME = (1, 2, 2)


@pytest.fixture
def cogvideox(families):
    return families["cogvideox"]


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"sample_frames": 49, "sample_height": 60, "sample_width": 90}, (13, 30, 45)),
        # 81 frames become 21 of latents, which 1.5 fills up to 22.
        ({"sample_frames": 81, "sample_height": 96, "sample_width": 170, "patch_size_t": 2}, (11, 48, 85)),
    ],
    ids=["1.0", "1.5"],
)
def test_the_configured_video(cogvideox, changes, shape):
    model = cogvideox.model(**changes, num_layers=1)
    assert CogVideoXAdapter().configured_shape(model) == shape


@pytest.mark.parametrize("spec", [{"name": "lgtm", "ratio": 0.5, "cell": FRAME}, {"name": "todo", "factor": FRAME}])
def test_positions_may_be_added_to_the_tokens_instead(cogvideox, check_by_hand, spec):
    model, reducer = cogvideox.model(use_rotary_positional_embeddings=False), bigain.build_reducer(spec)
    with bigain.attach(model, reducer, layers=2):
        check_by_hand(cogvideox, model, cogvideox.inputs(rotary=False), reducer, [0, 1])


def test_patches_of_two_frames(cogvideox, check_by_hand):
    model, batch = cogvideox.model(patch_size_t=2), cogvideox.inputs(2, (3, 5, 6), patch_frames=2)
    reducer = LGTM(0.5, cell=FRAME)
    with bigain.attach(model, reducer, placement={"parts": ("self", "mlp"), "layers": 2}):
        check_by_hand(cogvideox, model, batch, reducer, [0, 1], parts=("self", "mlp"))


@torch.no_grad()
def test_inputs_have_the_offset_of_image_to_video(cogvideox):
    model = cogvideox.model(patch_size_t=2, ofs_embed_dim=8)
    given = CogVideoXAdapter().inputs(model, 2, (2, 3, 4), torch.device("cpu"), torch.float64)
    assert model(**given).sample.shape == (2, 4, 4, 6, 8)


class Blank(Reduction):
    """Every reduced token is zero: what is restored says nothing of what was there."""

    def __init__(self, tokens):
        self.sizes = torch.full((len(tokens), 2), tokens.shape[1] / 2)
        self.length = tokens.shape[1]

    def reduce(self, tokens):
        return torch.zeros_like(tokens[:, :2])

    def restore(self, reduced):
        return torch.zeros_like(reduced[:, :1]).expand(-1, self.length, -1)


class Blanking(TokenReducer):
    def plan(self, tokens, grid, context=None):
        grid.check(tokens)
        return Blank(tokens)

    def reduced_length(self, grid, context=None):
        return 2


@torch.no_grad()
def test_text_passes_the_mlp_as_if_nothing_were_attached(cogvideox):
    model, batch, text, video = cogvideox.model(num_layers=1), cogvideox.inputs(), [], []
    hook = model.transformer_blocks[0].register_forward_hook(
        lambda *call: (video.append(call[2][0]), text.append(call[2][1]), None)[2]
    )
    model(**batch)
    with bigain.attach(model, Blanking(), placement={"parts": "mlp", "layers": 1}):
        model(**batch)
    hook.remove()
    assert_same(*text)
    assert not torch.allclose(*video, atol=1e-2)


@torch.no_grad()
def test_projections_fused_after_attaching_are_noticed(cogvideox):
    model, batch = cogvideox.model(), cogvideox.inputs()
    with bigain.attach(model, "todo", factor=FRAME):
        model.fuse_qkv_projections()
        with pytest.raises(SiteError, match="fused_projections was replaced"):
            model(**batch)
