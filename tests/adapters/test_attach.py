"""Attaching and detaching: what is refused, what is reported, and that nothing leaks."""

import copy
import gc
import threading
import weakref
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch

import bigain
from bigain.adapters.families.dit import DiTAdapter
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.tokens import ReducedTokens, TokenSeam
from bigain.adapters.report import SiteReport
from bigain.backbones.pixel_dit import PixelDiT
from bigain.benchmark.flops import FlopCounter
from bigain.diffusion.condition import Condition
from bigain.errors import SettingError, SiteError
from bigain.reducers.base import Reduction
from bigain.reducers.lgtm import LGTM
from tests.comparing import assert_same, assert_same_gradients, reducing_hooks

HOOKS = [
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
]


@pytest.fixture
def before(dit, batch, snapshot):
    return snapshot(dit, batch)


@contextmanager
def passing(model, batch):
    """Be within a forward pass of the model."""
    (begin,), (end,) = model._forward_pre_hooks.values(), model._forward_hooks.values()
    begin(model, (), batch)
    yield
    end(model, (), None)


class StopError(Exception):
    pass


class FailsAtLayer2(LGTM):
    def plan(self, tokens, grid, context=None):
        if context.layer == 2:
            raise StopError
        return super().plan(tokens, grid, context)


def test_detaching_leaves_no_trace(dit, batch, before):
    report = bigain.attach(dit, "tome", ratio=0.5, layers=4)
    with torch.no_grad():
        assert not torch.allclose(dit(**batch).sample, before.output, atol=1e-3)
    report.detach()
    before.check(dit)
    report.detach()  # a second time does nothing
    before.check(dit)


def test_attached_the_weights_and_their_names_are_the_same(dit, before):
    classes = [type(module) for module in dit.modules()]
    with bigain.attach(dit, "tome", ratio=0.5, layers=4):
        assert list(dit.state_dict()) == list(before.state)
        assert [type(module) for module in dit.modules()] == classes


def test_leaving_the_block_with_an_exception_detaches(dit, batch, before):
    def fail():
        with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
            dit(**batch)
            raise StopError

    with pytest.raises(StopError):
        fail()
    before.check(dit)


def test_an_exception_inside_forward_leaves_no_trace(dit, batch, before):
    with pytest.raises(StopError), bigain.attach(dit, FailsAtLayer2(0.5), layers=4):
        dit(**batch)
    before.check(dit)


@torch.no_grad()
def test_after_an_exception_inside_forward_the_reducer_goes_on(dit, batch):
    with bigain.attach(dit, "tome", ratio=0.5, layers=4):
        expected = dit(**batch).sample
        with pytest.raises(IndexError):
            dit(**{**batch, "class_labels": torch.tensor([0, 4, 99])})
        assert_same(dit(**batch).sample, expected)


@torch.no_grad()
def test_a_failed_forward_is_forgotten(dit, batch):
    """Otherwise a block called by itself would take the failed pass's grid, and its tensors would stay alive."""
    large = {**batch, "hidden_states": torch.randn(3, 3, 12, 12), "class_labels": torch.tensor([0, 4, 99])}
    large["timestep"] = torch.tensor([1, 2, 3])
    alive = weakref.ref(large["timestep"])
    with bigain.attach(dit, "lgtm", ratio=0.5):
        with pytest.raises(IndexError):
            dit(**large)
        assert dit.transformer_blocks[0].attn1(torch.randn(2, 64, 16)).shape == (2, 64, 16)
        del large
        gc.collect()
        assert alive() is None


def test_attaching_twice_raises_and_leaves_the_first_at_work(dit, batch, before):
    with torch.no_grad(), bigain.attach(dit, "lgtm", ratio=0.5, layers=2) as report:
        expected = dit(**batch).sample
        with pytest.raises(SiteError, match=r"attached already, at transformer_blocks\.1\.attn1"):
            bigain.attach(dit, "tome", ratio=0.5, layers=[1, 2])
        assert_same(dit(**batch).sample, expected)
        assert len(report.sites) == 2
    before.check(dit)


class Anonymous(TokenSeam):
    """A seam of somebody else's, whose hooks say nothing of where they come from."""

    def install(self, planner, part, proportional):
        module, work = planner.site.block.get_submodule(self.module).net[0], ReducedTokens(planner)
        return [
            module.register_forward_pre_hook(lambda module, args: work.before(module, args)).remove,
            module.register_forward_hook(lambda module, args, output: work.after(module, args, output)).remove,
        ]


def test_attaching_twice_is_refused_whatever_hooks_a_seam_puts_where(dit, batch, before):
    class Own(DiTAdapter):
        def parts(self, block):
            return {"mlp": Anonymous("ff")}

    by_name = {"name": "modules", "attention": "*.attn1", "mlp": "*.ff", "shape": [8, 8]}
    with torch.no_grad(), bigain.attach(dit, "lgtm", ratio=0.5, placement={"parts": "mlp"}, adapter=Own()):
        expected = dit(**batch).sample
        for adapter in (None, by_name):
            with pytest.raises(SiteError, match=r"attached already, at transformer_blocks\.0\.ff"):
                bigain.attach(dit, "tome", ratio=0.5, placement={"parts": ["self", "mlp"]}, adapter=adapter)
        assert_same(dit(**batch).sample, expected)
        bigain.attach(dit, "tome", ratio=0.5, placement={"parts": "self"}).detach()  # another part is free
    before.check(dit)


def test_two_reducers_on_different_layers_detach_in_any_order(dit, batch, before):
    first = bigain.attach(dit, "lgtm", ratio=0.5, layers=[0])
    with torch.no_grad():
        alone = dit(**batch).sample
        second = bigain.attach(dit, "tome", ratio=0.5, layers=[2])
        assert not torch.allclose(dit(**batch).sample, alone, atol=1e-3)
        second.detach()
        assert_same(dit(**batch).sample, alone)
    second = bigain.attach(dit, "tome", ratio=0.5, layers=[2])
    first.detach()
    second.detach()
    before.check(dit)


def test_attaching_again_after_detaching_gives_the_same(dit, batch):
    outputs = []
    for _ in range(2):
        with torch.no_grad(), bigain.attach(dit, "tome", ratio=0.5):
            outputs.append(dit(**batch).sample)
    assert_same(*outputs)


def test_a_copy_of_the_model_is_independent(dit, batch, before):
    other = copy.deepcopy(dit)
    with bigain.attach(other, "lgtm", ratio=0.5):
        before.check(dit)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), object(), None], ids=lambda model: type(model).__name__)
def test_where_nothing_matches_the_known_families_are_named(dit, model):
    with pytest.raises(
        SiteError, match=rf"Nothing to attach to in {type(model).__name__}\. .*known families are: .*dit \(DiT"
    ):
        bigain.attach(model, "lgtm", ratio=0.5)


def test_an_impossible_ratio_is_refused_before_anything_is_touched(dit, before):
    with pytest.raises(SettingError, match=r"at most 48 \(ratio 0\.75\)"):
        bigain.attach(dit, "lgtm", ratio=0.8)
    before.check(dit)


def test_settings_that_do_not_exist_are_refused(dit, before):
    with pytest.raises(SettingError, match=r"'lgtm' cannot be built: .*ration"):
        bigain.attach(dit, "lgtm", ration=0.8)
    before.check(dit)


@pytest.mark.parametrize(
    ("layers", "taken"), [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), ([2], [2]), ((3, 1), [1, 3]), (range(2), [0, 1])]
)
def test_layers_are_indices_or_how_many_of_the_first(dit, layers, taken):
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=layers) as report:
        assert [site.name for site in report.sites] == [f"transformer_blocks.{index}.attn1" for index in taken]
        reduced = [bool(reducing_hooks(block.attn1)) for block in dit.transformer_blocks]
        assert reduced == [index in taken for index in range(4)]


@pytest.mark.parametrize("layers", [0, 5, -1, [4], [0, 4], [-1], []], ids=str)
def test_layers_the_model_does_not_have_are_refused(dit, before, layers):
    with pytest.raises(SiteError, match=r"the model has blocks 0 to 3.*\(1 to 4\)"):
        bigain.attach(dit, "lgtm", ratio=0.5, layers=layers)
    before.check(dit)


def test_the_report_says_what_was_taken(dit):
    with bigain.attach(dit, "tome", ratio=0.5, layers=2) as report:
        assert report.family == "DiT (diffusers DiTTransformer2DModel)"
        assert report.sites == tuple(
            SiteReport(f"transformer_blocks.{index}.attn1", bigain.Grid((8, 8)), 64, 32) for index in range(2)
        )
        head, *rows = str(report).split("\n  transformer")
        first, rows = " ".join(head.split()), ["transformer" + row for row in rows]
        settings = "ratio=0.5, cell=(2, 2), mode='mean', window=None, randomize=True"
        assert first == f"ToMe({settings}) on DiT (diffusers DiTTransformer2DModel): 2 sites"
        assert [row.split() for row in rows] == [
            [f"transformer_blocks.{index}.attn1", "8x8", "64", "->", "32", "tokens"] for index in range(2)
        ]


SPECS = [
    ({"name": "lgtm", "ratio": 0.5}, {}),
    ({"class_path": "bigain.reducers.lgtm.LGTM", "init_args": {"ratio": 0.5}}, {}),
    ({"name": "lgtm"}, {"ratio": 0.5}),
    ("bigain.reducers.lgtm.LGTM", {"ratio": 0.5}),
    (LGTM(0.5), {}),
]


@pytest.mark.parametrize(("spec", "settings"), SPECS, ids=str)
def test_every_way_to_name_a_reducer_does_the_same(dit, batch, spec, settings):
    with torch.no_grad():
        with bigain.attach(dit, "lgtm", ratio=0.5) as report:
            expected, text = dit(**batch).sample, report.reducer.partition("scorer")[0]
        with bigain.attach(dit, spec, **settings) as report:
            assert_same(dit(**batch).sample, expected)
            assert report.reducer.partition("scorer")[0] == text


def test_a_built_reducer_takes_no_settings(dit, before):
    with pytest.raises(SettingError, match=r"built already; it takes no further settings \(ratio\)"):
        bigain.attach(dit, LGTM(0.5), ratio=0.7)
    before.check(dit)


@torch.no_grad()
def test_the_network_inside_a_backbone_is_found():
    backbone = PixelDiT(weights=None, width=32, depth=4, heads=2).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    inputs = torch.randn(2, 3, 32, 32), torch.tensor([100, 800]), Condition(labels=torch.tensor([3, 10]))
    plain = backbone.predict_noise(*inputs)
    with bigain.attach(backbone, "lgtm", ratio=0.7, layers=2) as report:
        assert [(site.before, site.after) for site in report.sites] == [(1024, 308)] * 2
        reduced = backbone.predict_noise(*inputs)
        assert reduced.shape == plain.shape
        assert not torch.allclose(reduced, plain, atol=1e-3)
        with pytest.raises(SiteError, match="attached already"):
            bigain.attach(backbone.network, "lgtm", ratio=0.7)
    assert_same(backbone.predict_noise(*inputs), plain)


@torch.no_grad()
def test_whatever_processor_is_there_does_the_work(dit, batch):
    from diffusers.models.attention_processor import AttnProcessor

    with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
        expected = dit(**batch).sample
    given, lengths = AttnProcessor(), []

    class Watching(AttnProcessor):
        def __call__(self, attn, hidden_states, *args, **kwargs):
            lengths.append(hidden_states.shape[1])
            return given(attn, hidden_states, *args, **kwargs)

    dit.transformer_blocks[0].attn1.set_processor(Watching())
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
        torch.testing.assert_close(dit(**batch).sample, expected, atol=1e-5, rtol=1e-4)
        dit.transformer_blocks[1].attn1.set_processor(Watching())  # while attached
        torch.testing.assert_close(dit(**batch).sample, expected, atol=1e-5, rtol=1e-4)
    assert lengths == [32, 32, 32]


@torch.no_grad()
def test_a_processor_with_parameters_of_its_own_stays_in_the_model(dit, batch, snapshot):
    """As IP-Adapters' processors are."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.full((), 0.5))

        def forward(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
            return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask) * self.scale

    dit.transformer_blocks[1].attn1.set_processor(Learned())
    before = snapshot(dit, batch)
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2):
        assert list(dit.state_dict()) == list(before.state)
        reduced = dit(**batch).sample
    before.check(dit)
    dit.transformer_blocks[1].attn1.set_processor(AttnProcessor2_0())
    dit.transformer_blocks[1].attn1.to_out[0].weight.mul_(0.5)
    dit.transformer_blocks[1].attn1.to_out[0].bias.mul_(0.5)
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2):
        torch.testing.assert_close(dit(**batch).sample, reduced, atol=1e-5, rtol=1e-4)


def test_cross_attention_and_masks_are_refused(dit):
    with bigain.attach(dit, "lgtm", ratio=0.5):
        attn, tokens = dit.transformer_blocks[0].attn1, torch.randn(1, 64, 16)
        with pytest.raises(SiteError, match=r"transformer_blocks\.0\.attn1 is reduced as self-attention"):
            attn(tokens, encoder_hidden_states=tokens)
        with pytest.raises(SiteError, match="encoder states or a mask"):
            attn(tokens, attention_mask=torch.zeros(1, 1, 64))


@pytest.mark.parametrize("name", ["tome", "lgtm"])
@torch.no_grad()
def test_compiles_into_one_graph(tiny_dit, batch, name):
    dit = tiny_dit(num_layers=2)
    torch._dynamo.reset()
    with bigain.attach(dit, name, ratio=0.5, layers=2):
        expected = dit(**batch).sample
        torch._dynamo.utils.counters.clear()
        compiled = torch.compile(dit, fullgraph=True, dynamic=False, backend="aot_eager")
        torch.testing.assert_close(compiled(**batch).sample, expected, atol=1e-5, rtol=1e-4)
        later = {**batch, "timestep": batch["timestep"] - 15}
        torch.testing.assert_close(compiled(**later).sample, dit(**later).sample, atol=1e-5, rtol=1e-4)
        counters = torch._dynamo.utils.counters
        assert not counters["graph_break"]
        assert counters["stats"]["unique_graphs"] == 1  # another timestep compiles nothing anew


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_models(dit, batch, dtype):
    dit.to(dtype)
    batch["hidden_states"] = batch["hidden_states"].to(dtype)
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
        output = dit(**batch).sample
    assert output.dtype == dtype
    assert output.isfinite().all()


def test_gradients_reach_every_parameter_that_they_reach_without(dit, batch):
    def reached():
        dit.zero_grad(set_to_none=True)
        dit(**batch).sample.square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in dit.parameters())
        return {name for name, p in dit.named_parameters() if p.grad is not None and p.grad.any()}

    plain = reached()
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
        assert reached() == plain


def test_a_model_learns_with_a_reducer_attached(dit, batch):
    dit.train()
    target = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(dit.parameters(), lr=0.01)
    losses = []
    with bigain.attach(dit, "tome", ratio=0.5, layers=4):
        for _ in range(15):
            loss = (dit(**batch).sample - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("reentrant", [False, True], ids=["saved", "reentrant"])
@pytest.mark.parametrize("plan_from", ["block", "part"])
@pytest.mark.parametrize("spec", [{"name": "tome", "ratio": 0.5}, {"name": "cached", "reducer": "tome"}], ids=str)
def test_gradient_checkpointing_gives_the_gradients_there_are_without(dit, batch, spec, plan_from, reentrant):
    """Blocks run again in backward, where the timestep, the pass's cache and the random draw are not known."""
    if spec["name"] == "cached":
        spec = {"name": "cached", "reducer": {"name": "tome", "ratio": 0.5}}
    other = {**batch, "timestep": batch["timestep"].flip(0) + 7}

    def gradients():
        dit.zero_grad()
        with bigain.attach(dit, spec, placement={"plan_from": plan_from, "layers": 4}):
            loss = (
                dit(**batch).sample.square().sum() + dit(**other).sample.square().sum()
            )  # two passes, then one backward
            loss.backward()
        return [parameter.grad.clone() for parameter in dit.parameters() if parameter.grad is not None]

    batch["hidden_states"].requires_grad_()  # else checkpoints of the reentrant kind have nothing to do
    expected = gradients()
    run = partial(torch.utils.checkpoint.checkpoint, use_reentrant=reentrant)
    dit.enable_gradient_checkpointing(run)
    assert_same_gradients(gradients(), expected)


def test_blocks_that_run_again_on_an_input_never_seen_are_refused(dit, batch):
    """Checkpointed two by two, the second block's input is made anew in backward."""
    first, second = dit.transformer_blocks[:2]
    with bigain.attach(dit, "tome", ratio=0.5, layers=4):
        held = {}

        def both(tokens):
            return second(first(tokens, **held), **held)

        held.update(timestep=batch["timestep"], class_labels=batch["class_labels"])
        tokens = torch.randn(3, 64, 16, requires_grad=True)
        with passing(dit, batch):
            output = torch.utils.checkpoint.checkpoint(both, tokens, use_reentrant=False)
        with pytest.raises(SiteError, match="run again during backward"):
            output.sum().backward()


def test_a_module_replaced_after_attaching_is_no_silent_end_of_reduction(dit, batch, before):
    report = bigain.attach(dit, "lgtm", ratio=0.5, layers=2)
    replaced = dit.transformer_blocks[1].attn1
    dit.transformer_blocks[1].attn1 = copy.deepcopy(replaced)
    with pytest.raises(SiteError, match=r"transformer_blocks\.1\.attn1 was replaced after a reducer was attached"):
        dit(**batch)
    dit.transformer_blocks[1].attn1 = replaced
    report.detach()
    before.check(dit)


def test_a_plain_processor_that_proportional_attention_stands_in_for_may_not_be_replaced(dit, batch):
    from diffusers.models.attention_processor import AttnProcessor2_0

    where = {"layers": 2, "proportional": True}
    with bigain.attach(dit, "lgtm", ratio=0.5, placement=where):
        dit.transformer_blocks[1].attn1.set_processor(AttnProcessor2_0())
        with pytest.raises(SiteError, match=r"transformer_blocks\.1\.attn1\.processor was replaced"):
            dit(**batch)


def test_what_is_compiled_already_is_refused(dit, before):
    with pytest.raises(SiteError, match="Attach first, then compile"):
        bigain.attach(torch.compile(dit), "lgtm", ratio=0.5)
    dit.transformer_blocks[3].compile()
    with pytest.raises(SiteError, match="Attach first, then compile"):
        bigain.attach(dit, "lgtm", ratio=0.5)


def test_attaching_prints_nothing_and_runs_nothing(dit, capsys):
    ran = []
    dit.register_forward_pre_hook(lambda *_: ran.append("pass"))
    adapter = WatchesInputs()
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2, adapter=adapter):
        assert capsys.readouterr().out == ""
        assert not ran
        assert not adapter.asked


class WatchesInputs(DiTAdapter):
    def __init__(self):
        self.asked = []

    def inputs(self, *given):
        self.asked.append(given)
        return super().inputs(*given)


def test_operations_are_counted_when_asked_and_the_model_is_left_alone(dit, batch):
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=2) as report, torch.no_grad():
        expected = dit(**batch).sample
        found = report.flops()
        counted = FlopCounter(dit.__class__.from_config(dit.config)).count(LGTM(0.5), {"layers": 2})
        assert (found.before, found.after) == (counted.baseline, counted.total)
        assert found.share == pytest.approx(counted.share)
        assert f"{counted.saved:.1%} saved" in str(found)
        assert report.flops() == found
        assert_same(dit(**batch).sample, expected)
    with pytest.raises(SiteError, match="The reducer is detached"):
        report.flops()


def test_operations_of_weighted_attention_are_counted(dit):
    where = {"layers": 2, "proportional": True}
    counter = FlopCounter(dit.__class__.from_config(dit.config))
    with bigain.attach(dit, "lgtm", ratio=0.5, placement=where) as report:
        found, counted = report.flops(), counter.count(LGTM(0.5), where)
        assert (found.before, found.after) == (counted.baseline, counted.total)


def test_many_sites_are_summed_up(tiny_dit):
    with bigain.attach(tiny_dit(num_layers=20), "abm", ratio=0.3, layers=20) as report:
        assert len(report.sites) == 20
        (line,) = [line for line in str(report).splitlines() if "20 x" in line]
        assert line.split() == ["20", "x", "transformer_blocks.*.attn1", "8x8", "64", "->", "46", "tokens"]


def test_what_cannot_be_counted_is_refused_in_words_and_works_all_the_same(dit, batch):
    class ByValue(LGTM):
        def plan(self, tokens, grid, context=None):
            assert tokens.sum().item() < 1e9
            return super().plan(tokens, grid, context)

    with bigain.attach(dit, ByValue(0.5)) as report:
        with pytest.raises(SettingError, match="Operations cannot be counted"):
            report.flops()
        assert dit(**batch).sample.isfinite().all()


@torch.no_grad()
def test_a_compiled_model_notices_that_the_reducer_is_gone(tiny_dit, batch):
    dit = tiny_dit(num_layers=1)
    torch._dynamo.reset()
    plain = dit(**batch).sample
    report = bigain.attach(dit, "lgtm", ratio=0.5, layers=1)
    compiled = torch.compile(dit, backend="eager", fullgraph=True)
    assert not torch.allclose(compiled(**batch).sample, plain, atol=1e-3)
    report.detach()
    torch.testing.assert_close(compiled(**batch).sample, plain)
    bigain.attach(dit, "tome", ratio=0.3, layers=1)
    # Compiled before: dynamo does not look at hooks again, and wraps what is raised where a graph has to be whole.
    with pytest.raises((SiteError, torch._dynamo.exc.Unsupported), match="reached none of the blocks"):
        compiled(**batch)
    torch.compiler.reset()
    expected = dit(**batch).sample
    torch.testing.assert_close(compiled(**batch).sample, expected)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_compiled_with_checkpointing_gradients_are_those_without(tiny_dit, batch):
    dit = tiny_dit(num_layers=2)

    def gradients(model):
        dit.zero_grad()
        model(**batch).sample.square().sum().backward()
        return [parameter.grad.clone() for parameter in dit.parameters() if parameter.grad is not None]

    with bigain.attach(dit, "tome", ratio=0.5, layers=2):
        expected = gradients(dit)
        dit.enable_gradient_checkpointing()
        torch._dynamo.reset()
        for found, wanted in zip(gradients(torch.compile(dit, backend="aot_eager")), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)
        torch._dynamo.reset()
        # In one graph, dynamo has to be told that what a forward pass takes down need not be taken down again.
        with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True):
            found = gradients(torch.compile(dit, backend="aot_eager", fullgraph=True))
        for one, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(one, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "lacking", ["transformer_blocks", "transformer_blocks.1.attn1", "transformer_blocks.1.attn1.to_v"]
)
def test_a_library_of_another_version_is_told_with_the_one_that_was_tested(dit, lacking):
    import diffusers

    parent, _, name = lacking.rpartition(".")
    delattr(dit.get_submodule(parent), name)
    # A reducer of keys and values whose seam looks for their projections.
    with pytest.raises(
        SiteError, match=rf"has no attribute .*{name}.* tested with diffusers .*this is {diffusers.__version__}"
    ):
        bigain.attach(dit, "tome", ratio=0.5, layers=2, adapter=WatchesKeys())
    assert all(len(getattr(module, table)) == 0 for module in dit.modules() for table in HOOKS)


class WatchesKeys(DiTAdapter):
    def sites(self, model):
        return [replace(site, parts={"self": KeysSeam("attn1")}) for site in super().sites(model)]


class KeysSeam(AttentionSeam):
    def install(self, planner, part, proportional):
        undo = super().install(planner, part, proportional)
        for name in self.keys:
            planner.attachment.watch("", planner.site.module(part), name)
        return undo


@torch.no_grad()
def test_parts_of_a_block_called_outside_a_pass_share_its_plan(dit, batch, recording):
    tokens = torch.randn(2, 64, 16)
    with bigain.attach(dit, recording, placement={"parts": ["self", "mlp"], "layers": 1}):
        dit.transformer_blocks[0](tokens, timestep=torch.tensor([5, 6]), class_labels=torch.tensor([1, 2]))
    assert len(recording.calls) == 1


def test_a_second_thread_in_the_same_model_is_told_instead_of_given_the_others_plans(dit, batch):
    told = []

    def second():
        try:
            dit(**batch)
        except SiteError as error:
            told.append(str(error))

    def start(*_):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    with torch.no_grad(), bigain.attach(dit, "tome", ratio=0.5, layers=2):
        expected = dit(**batch).sample
        handle = dit.transformer_blocks[0].register_forward_hook(start)
        assert_same(dit(**batch).sample, expected)
        handle.remove()
        start()  # one after the other is no matter
    assert len(told) == 1
    assert "A second thread runs DiTTransformer2DModel" in told[0]


def test_one_module_in_two_places_is_refused(dit):
    dit.transformer_blocks[1] = dit.transformer_blocks[0]
    with pytest.raises(SiteError, match=r"blocks\.0\.attn1 and transformer_blocks\.1\.attn1 are one module"):
        bigain.attach(dit, "tome", ratio=0.5, layers=2)
    bigain.attach(dit, "tome", ratio=0.5, layers=[1]).detach()


@pytest.mark.parametrize("shape", [64, "88", (), (8, 0), (8.0, 8.0), (True, 8)])
def test_a_shape_that_is_none_is_refused(dit, shape):
    with pytest.raises(SettingError, match="shape is the tokens along each axis"):
        bigain.attach(dit, "tome", ratio=0.5, shape=shape)


def test_the_operations_of_a_model_that_keeps_single_parameters_in_float32_are_counted(dit):
    dit.bfloat16()
    dit.register_parameter("_first", torch.nn.Parameter(torch.zeros(())))
    weights = dict(dit._parameters)
    dit._parameters.clear()
    dit._parameters.update({"_first": weights.pop("_first"), **weights})
    with bigain.attach(dit, "tome", ratio=0.5) as report:
        assert report.flops().saved > 0


def test_the_report_fits_a_hundred_columns(dit):
    with bigain.attach(dit, "cached", reducer={"name": "lgtm", "ratio": 0.5}) as report:
        assert max(map(len, str(report).splitlines())) <= 100


@torch.no_grad()
def test_an_exception_leaves_no_tensors_behind(dit, batch):
    with bigain.attach(dit, "tome", ratio=0.5, placement={"parts": ["self", "mlp"], "layers": 2}):
        for inside in ("attn1.to_out", "ff.net"):
            broken = dit.get_submodule(f"transformer_blocks.1.{inside}.0").register_forward_pre_hook(fail)
            with pytest.raises(StopError):
                dit(**batch)
            broken.remove()
        hooks = [hook for module in dit.modules() for hook in reducing_hooks(module)]
        held = [value for hook in hooks for value in vars(hook.__self__).values()]
        assert not any(isinstance(value, Reduction) for value in held)


def fail(*_):
    raise StopError


def test_hooks_of_the_models_owner_do_not_see_the_count(dit, batch):
    seen = []
    dit.transformer_blocks[0].register_forward_hook(lambda *_: seen.append("pass"))
    with bigain.attach(dit, "tome", ratio=0.5) as report:
        assert report.flops().saved > 0
        assert not seen
        dit(**batch)
    assert seen == ["pass"]


def test_a_block_that_was_compiled_is_refused_by_its_path():
    """Its old code would run on, and the report would name a site where nothing happens."""
    model = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    model.layers[1] = torch.compile(model.layers[1], backend="eager")
    with pytest.raises(SiteError, match=r"layers\.1 is compiled already.*Attach first, then compile"):
        bigain.attach(model, "lgtm", ratio=0.5, cell=2, shape=(32,))


def test_a_preset_of_another_family_names_the_adapter_that_was_given():
    model = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    named = {"name": "modules", "shape": [4, 8]}
    with pytest.raises(SiteError, match="this one has the adapter 'modules'"):
        bigain.attach(model, "lgtm", ratio=0.5, placement="sd", adapter=named)


@pytest.mark.parametrize("seed", ["x", 1.5, None, True])
def test_a_seed_that_is_no_whole_number_is_refused(dit, seed):
    with pytest.raises(SettingError, match="seed is a whole number; got"):
        bigain.attach(dit, "tome", ratio=0.5, seed=seed)


@pytest.mark.parametrize("given", [5, ["self"], torch.nn.Identity()])
def test_a_placement_of_another_type_is_refused(dit, given):
    with pytest.raises(SettingError, match="placement is a Placement, a mapping of its fields, or the name"):
        bigain.attach(dit, "tome", ratio=0.5, placement=given)


@pytest.mark.parametrize("given", ["first", 2.5, [0, "1"], True])
def test_layers_of_another_type_are_refused(dit, given):
    with pytest.raises(SettingError, match="layers of a placement: give int"):
        bigain.attach(dit, "tome", ratio=0.5, layers=given)


class EverySecond(DiTAdapter):
    def sites(self, model):
        return super().sites(model)[::2]


@pytest.mark.parametrize(("layers", "taken"), [(2, [0, 2]), ([2], [2])])
def test_layers_of_a_model_whose_indices_have_gaps(dit, layers, taken):
    with bigain.attach(dit, "tome", ratio=0.5, layers=layers, adapter=EverySecond()) as report:
        assert [row.name for row in report.sites] == [f"transformer_blocks.{index}.attn1" for index in taken]


def test_more_layers_than_a_model_with_gaps_has_are_refused(dit):
    with pytest.raises(SiteError, match=r"how many of the first \(1 to 2\)"):
        bigain.attach(dit, "tome", ratio=0.5, layers=3, adapter=EverySecond())


def test_a_model_patched_by_another_package_is_refused(unet):
    """Its way: blocks get another class with a forward of its own, and the network a `_tome_info`."""
    block = unet.down_blocks[0].attentions[0].transformer_blocks[0]
    plain = type(block)
    patched = type("ToMeBlock", (plain,), {"_parent": plain, "forward": lambda self, tokens, *_, **__: tokens})
    block.__class__, block._tome_info, unet._tome_info = patched, {}, {}
    with pytest.raises(SiteError, match=r"down_blocks\.0\.attentions.*ToMeBlock.*Remove that first"):
        bigain.attach(unet, "tome", ratio=0.5)
    block.__class__ = plain  # as its own removal does, which leaves the mark
    bigain.attach(unet, "tome", ratio=0.5).detach()
