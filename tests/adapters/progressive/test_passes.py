"""What passes with merged tokens keep: lengths, sources of plans, gradients, graphs, types, the model as it was."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch

import bigain
from bigain.adapters.progressive.steps import tome_schedule
from bigain.errors import SettingError
from bigain.reducers.base import TokenReducer
from bigain.reducers.tome import ToMe
from bigain.reducers.tome_vit import ToMeViT
from bigain.testing.adapters.reductions import Recording
from tests.comparing import assert_same

TOME = {"class_path": "bigain.reducers.tome_vit.ToMeViT"}


@torch.no_grad()
def test_every_block_removes_the_reducers_share_of_what_is_left(tiny, images):
    model, x, lengths = tiny("mean"), images(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: lengths.append(output.shape[1]))
    reducer = ToMe(0.3, randomize=False, cell=3)
    with bigain.attach(model, reducer, placement={"progressive": True}) as report:
        model(x)
    assert lengths == [13, 10, 8]  # 16 - 4, 12 - 3, 9 - 2 and a class token
    assert [(site.name, site.before, site.after) for site in report.sites] == [
        ("blocks.0", 17, 13),
        ("blocks.1", 13, 10),
        ("blocks.2", 10, 8),
    ]
    assert [site.grid for site in report.sites] == [bigain.Grid((n,), prefix=1) for n in (16, 12, 9)]
    assert " ".join(str(report).split()).startswith(f"{reducer!r}, progressive=True, on ViT (timm")


@torch.no_grad()
def test_images_of_other_sizes_lose_as_many_tokens(tiny, images):
    model = tiny("mean", dynamic_img_size=True)
    for size, after in (((48, 32), 15), ((32, 32), 7), ((16, 64), 7)):
        x = images(2, size)
        found = model.patch_embed(x)
        assert found.shape[1] * found.shape[2] == after + 9
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        for size, after in (((48, 32), 15), ((32, 32), 7), ((16, 64), 7)):
            assert model.forward_features(images(2, size)).shape == (2, after + 1, 32)
        with pytest.raises(
            SettingError, match=r"^At blocks\.0, which is given 4 tokens in a row: .* can remove at most 2"
        ):
            model(images(2, (16, 16)))


@pytest.mark.parametrize("source", [None, "keys", "block", "part"])
@torch.no_grad()
def test_plans_come_from_keys_unless_told(tiny, images, source):
    model, x, seen = tiny("registers"), images(), {}
    block, reducer = model.blocks[1], Recording(ToMeViT())
    block.register_forward_pre_hook(lambda _, args: seen.update(block=args[0]))
    block.norm2.register_forward_pre_hook(lambda _, args: seen.update(part=args[0]))
    block.attn.k_norm.register_forward_hook(lambda *given: seen.update(keys=given[2].mean(dim=1)))
    where = {"progressive": True, "layers": [0, 1], "plan_from": source}
    with bigain.attach(model, reducer, placement=where):
        model(x)
    first, second = reducer.calls
    assert (first.grid, second.grid) == (bigain.Grid((16,), prefix=5), bigain.Grid((8,), prefix=5))
    assert (first.context.layer, second.context.layer) == (0, 1)
    torch.testing.assert_close(second.tokens, seen[source or "keys"])


def test_identity_changes_nothing(tiny, images, output_of):
    for form in ("mean", "eva", "SiglipVisionModel", "Dinov2ForImageClassification"):
        model, x = tiny(form), images()
        plain = output_of(model, x)
        with bigain.attach(model, "identity", placement={"progressive": True}) as report:
            assert_same(output_of(model, x), plain)
            assert all(site.before == site.after for site in report.sites)


@torch.no_grad()
def test_reducers_that_do_not_average_keep_their_rule(tiny, images):
    model, x, seen = tiny(), images(), {}
    reducer = ToMe(0.25, randomize=False, cell=2, mode="prune")
    model.blocks[0].norm2.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
    with bigain.attach(model, reducer, placement={"progressive": True, "layers": 1, "plan_from": "part"}):
        model.blocks[0].norm2.register_forward_pre_hook(lambda _, args: seen.update(after=args[0]))
        model(x)
    plan = reducer.plan(seen["before"], bigain.Grid((16,), prefix=1))
    assert torch.equal(seen["after"], plan.reduce(seen["before"]))


@pytest.mark.parametrize("form", ["mean", "rope_each_head", "attention_pool", "SiglipForImageClassification"])
def test_it_compiles_to_one_graph(tiny, images, output_of, form):
    model, x = tiny(form), images()
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}), torch.no_grad():
        expected = output_of(model, x)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(output_of(compiled, x), expected)
        torch.testing.assert_close(output_of(compiled, images(seed=2)), output_of(model, images(seed=2)))


@torch.no_grad()
def test_hidden_states_are_shorter_from_block_to_block(tiny, images):
    model, x = tiny("ViTForImageClassification"), images()
    model(x, output_hidden_states=True)  # transformers puts its hooks in before
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        states, seen = model(x, output_hidden_states=True).hidden_states, []
        model.vit.layernorm.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        model(x)
    assert [state.shape[1] for state in states] == [17, 13, 10, 8]
    torch.testing.assert_close(states[-1], seen[0])


@torch.no_grad()
def test_rows_do_not_depend_on_each_other_and_may_share_plans(tiny, images):
    model, x = tiny("eva"), images()
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}) as report:
        whole = model(x)
        for row in range(3):
            torch.testing.assert_close(model(x[row : row + 1])[0], whole[row])
        with report.shared(2):
            torch.testing.assert_close(model(x[[0, 0, 2, 2]]), whole[[0, 0, 2, 2]])
            assert not torch.allclose(model(x[[0, 1]]), whole[[0, 1]], atol=1e-3)


@pytest.mark.parametrize("form", ["mean", "rope_halves", "CLIPForImageClassification"])
@torch.no_grad()
def test_half_precision_stays_half_precision(tiny, images, output_of, form):
    for dtype in (torch.float16, torch.bfloat16):
        model = tiny(form).to(dtype)
        with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
            found = output_of(model, images().to(dtype))
        assert found.dtype == dtype
        assert found.isfinite().all()


@pytest.mark.parametrize("form", ["mean", "CLIPForImageClassification"])
@torch.no_grad()
def test_detaching_leaves_nothing_behind_also_after_an_exception(tiny, images, output_of, blocks_of, form):
    model, x = tiny(form), images()
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    look = lambda: {  # noqa: E731
        name: (set(vars(module)), [len(getattr(module, hook)) for hook in hooks])
        for name, module in model.named_modules()
    }
    before, plain = look(), output_of(model, x)
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        expected = output_of(model, x)
        assert look() != before
        (*_, (_, _, second)) = blocks_of(model)
        broken = second.register_forward_hook(lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(x)
        broken.remove()
        assert_same(output_of(model, x), expected)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert_same(output_of(other, x), expected)
    assert look() == before
    assert_same(output_of(model, x), plain)


def test_blocks_with_norms_behind_their_branches_merge_before_the_mlp(tiny, images):
    from timm.models.vision_transformer import ResPostBlock

    model, x, seen = tiny(block_fn=ResPostBlock, init_values=1.0), images(), []
    with bigain.attach(model, TOME, placement={"progressive": [8, 0, 0]}):
        model.blocks[0].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model.blocks[0].register_forward_hook(lambda module, args, output: seen.append(output))
        model(x)
    short, output = seen
    assert short.shape == output.shape == (3, 9, 32)
    block = model.blocks[0]
    torch.testing.assert_close(output, short + block.norm2(block.mlp(short)))


def test_the_schedule_is_tomes(tiny):
    assert tome_schedule(12, 8) == [8] * 12
    assert tome_schedule(5, 8, -1) == [16, 12, 8, 4, 0]
    assert tome_schedule(5, 8, 1) == [0, 4, 8, 12, 16]
    assert tome_schedule(4, 10, -0.5) == [15, 11, 8, 5]  # 15, 11.67, 8.33, 5
    assert tome_schedule(1, 7, -1) == [7]
    for wrong in ((0, 8), (12, -1), (12, 8, 2), (12, 0.5), (True, 8)):
        with pytest.raises(SettingError, match=r"^tome_schedule takes 1 block or more, 0 tokens or more, and an infle"):
            tome_schedule(*wrong)
    model = tiny()
    with bigain.attach(model, TOME, placement={"progressive": tome_schedule(3, 3, -1)}) as report:
        assert [site.before - site.after for site in report.sites] == [6, 3, 0]


@dataclass(frozen=True)
class Frozen(TokenReducer):
    """ToMe for vision transformers, as an author may write it whose settings cannot change."""

    ratio: float = 0.25

    def plan(self, tokens, grid, context=None):
        return ToMeViT(self.ratio).plan(tokens, grid, context)

    def reduced_length(self, grid, context=None):
        return ToMeViT(self.ratio).reduced_length(grid, context)

    @property
    def averages(self):
        return True


def test_a_frozen_reducer_merges_as_any_and_stays_as_it_is(tiny, images):
    model, x, reducer = tiny(), images(2), Frozen()
    with bigain.attach(model, TOME, placement={"progressive": [4, 3, 2]}):
        expected = model(x)
    with bigain.attach(model, reducer, placement={"progressive": [4, 3, 2]}) as report:
        assert_same(model(x), expected)
        assert [row.after for row in report.sites] == [13, 10, 8]
    assert reducer == Frozen(0.25)
