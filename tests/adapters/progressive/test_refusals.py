"""What cannot be progressive, and what is said then."""

import re

import pytest

import bigain
from bigain.adapters.placement import Placement
from bigain.errors import SettingError, SiteError
from tests.comparing import assert_same

TOME = {"class_path": "bigain.reducers.tome_vit.ToMeViT"}


def refusal(model, *given, **settings):
    with pytest.raises((SiteError, SettingError)) as caught:
        bigain.attach(model, *given, **settings)
    return type(caught.value), str(caught.value)


def test_attaching_twice_is_refused(tiny):
    model, where = tiny(), {"progressive": 3, "layers": [1]}
    with bigain.attach(model, TOME, placement=where):
        for second in ({"progressive": 3}, {"layers": [1]}, {"layers": [1], "parts": "mlp"}, {"layers": [2]}):
            assert re.match(r"A reducer is attached already, at blocks\.", refusal(model, TOME, placement=second)[1])
    with bigain.attach(model, "tome", ratio=0.5, layers=[2]):
        kind, text = refusal(model, TOME, placement=where)
        assert (kind, text) == (SiteError, "A reducer is attached already, at blocks.2.attn. Detach it first.")


def half(**settings):
    return {"name": "tome", "ratio": 0.5, "cell": 2, **settings}


WRONG = [
    (TOME, [4, 3], "progressive names 2 numbers of tokens for 3 blocks; give one each."),
    (
        TOME,
        [4, 7, 0],
        "blocks.1 is given 12 tokens in a row and is to remove 7; the most that ToMeViT can remove there, up to 7, is "
        "6.",
    ),
    (
        {"name": "abm", "ratio": 0.1, "cell": 4},
        4,
        "blocks.0 is given 16 tokens in a row and is to remove 4; the most that ABM can remove there, up to 4, is 3.",
    ),
    (
        {"name": "tome", "ratio": 0.5},
        True,
        "At blocks.0, which is given 16 tokens in a row: ToMe got a cell of 2 axes (2, 2) for a grid of 1 axes (16,); "
        "give one number for all axes, or one an axis.",
    ),
    (
        {"name": "tome", "ratio": 0.5},
        4,
        "At blocks.0, which is given 16 tokens in a row: ToMe got a cell of 2 axes (2, 2) for a grid of 1 axes (16,); "
        "give one number for all axes, or one an axis.",
    ),
    (
        {"name": "tome", "ratio": 0.6, "cell": 2},
        True,
        "At blocks.0, which is given 16 tokens in a row: ToMe with ratio=0.6 would remove 9 of 16 tokens; with cells "
        "of (2,) on a grid of (16,) it can remove at most 8 (ratio 0.5). Lower the ratio or enlarge the cell.",
    ),
    (
        {"name": "pooling", "factor": 2},
        True,
        "Pooling(factor=2, pool='average') shrinks keys and values, which leaves every token in the sequence; "
        "progressive takes a reducer that merges (tome_vit, tome, lgtm, abm).",
    ),
    (
        "identity",
        4,
        "progressive=4 says how many tokens each block removes, in place of the reducer's ratio, and Identity() has "
        "none; give progressive=True, or a reducer with a ratio.",
    ),
]


@pytest.mark.parametrize(("reducer", "progressive", "told"), WRONG, ids=str)
def test_more_than_is_possible_is_refused_in_a_sentence(tiny, images, reducer, progressive, told):
    model, x = tiny(), images()
    plain = model(x)
    assert refusal(model, reducer, placement={"progressive": progressive}) == (SettingError, told)
    assert_same(model(x), plain)


NO_PLACEMENT = [
    ({"progressive": 0}, "progressive is true, a number of tokens (1 or more), or a list"),
    ({"progressive": [0, 0]}, "progressive is true, a number of tokens (1 or more), or a list"),
    ({"progressive": [3, -1]}, "progressive is true, a number of tokens (1 or more), or a list"),
    ({"progressive": "8"}, "progressive is true, a number of tokens (1 or more), or a list"),
    ({"progressive": [True]}, "progressive is true, a number of tokens (1 or more), or a list"),
    ({"progressive": True, "parts": "mlp"}, "A progressive placement merges between self-attention and MLP; leave out"),
    ({"progressive": True, "preset": "sd"}, "The placement 'sd' was published with every token given back."),
    ({"plan_from": "keys"}, "plan_from='keys' is for progressive placements: others merge before keys are made."),
]


@pytest.mark.parametrize(("given", "told"), NO_PLACEMENT, ids=str)
def test_placements_that_cannot_be_progressive_are_refused(given, told):
    with pytest.raises(SettingError, match=re.escape(told)):
        Placement(**given)


def test_a_placement_says_what_is_not_usual_in_its_kind():
    assert str(Placement(progressive=8)) == "progressive=8"
    assert str(Placement(progressive=[8, 4], proportional=False)) == "proportional=False, progressive=(8, 4)"
    assert Placement(progressive=True).weighted
    assert not Placement().weighted


def test_models_that_need_every_token_are_refused(tiny, tiny_dit):
    kind, text = refusal(tiny_dit(), half(), placement={"progressive": True})
    assert kind is SettingError
    assert text.startswith("progressive is for vision transformers, whose tokens may stay merged")
    from timm.models.vision_transformer import Block

    class Own(Block):
        def forward(self, x, **given):
            return super().forward(x, **given)

    assert refusal(tiny(block_fn=Own), TOME, placement={"progressive": 2})[1] == (
        "blocks.0 is a Own; tokens stay merged in Block, ResPostBlock, EvaBlock, EvaBlockPostNorm, with timm's forward."
    )
    kind, text = refusal(tiny(global_pool="prr"), TOME, placement={"progressive": 2})
    assert text.startswith("This model pools with attn_pool, a AttentionPoolPrr, in which merged tokens cannot be wei")
