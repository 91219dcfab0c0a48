"""Attaching and detaching: what is refused, what is reported, and that nothing leaks."""

import copy
import gc
import weakref

import pytest
import torch

import bigain
from bigain.adapters.report import SiteReport
from bigain.backbones.pixel_dit import PixelDiT
from bigain.errors import SettingError, SiteError
from bigain.reducers.lgtm import LGTM

HOOKS = [
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
]


class Snapshot:
    """Everything about a model that attaching could change."""

    def __init__(self, model, batch):
        self.processors = [block.attn1.processor for block in model.transformer_blocks]
        self.forwards = [module.forward for module in model.modules()]
        self.classes = [type(module) for module in model.modules()]
        self.attributes = [set(vars(module)) for module in model.modules()]
        self.state = {key: value.clone() for key, value in model.state_dict().items()}
        self.batch = batch
        with torch.no_grad():
            self.output = model(**batch).sample

    def check(self, model):
        processors = [block.attn1.processor for block in model.transformer_blocks]
        assert all(now is then for now, then in zip(processors, self.processors, strict=True))
        assert [module.forward for module in model.modules()] == self.forwards
        assert [type(module) for module in model.modules()] == self.classes
        assert [set(vars(module)) for module in model.modules()] == self.attributes
        assert all(len(getattr(module, name)) == 0 for module in model.modules() for name in HOOKS)
        state = model.state_dict()
        assert list(state) == list(self.state)
        assert all(torch.equal(state[key], self.state[key]) for key in state)
        with torch.no_grad():
            assert torch.equal(model(**self.batch).sample, self.output)


@pytest.fixture
def before(dit, batch):
    return Snapshot(dit, batch)


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
    with bigain.attach(dit, "tome", ratio=0.5, layers=4):
        assert list(dit.state_dict()) == list(before.state)
        assert [type(module) for module in dit.modules()] == before.classes


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
        assert torch.equal(dit(**batch).sample, expected)


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
        assert torch.equal(dit(**batch).sample, expected)
        assert len(report.sites) == 2
    before.check(dit)


def test_two_reducers_on_different_layers_detach_in_any_order(dit, batch, before):
    first = bigain.attach(dit, "lgtm", ratio=0.5, layers=[0])
    with torch.no_grad():
        alone = dit(**batch).sample
        second = bigain.attach(dit, "tome", ratio=0.5, layers=[2])
        assert not torch.allclose(dit(**batch).sample, alone, atol=1e-3)
        second.detach()
        assert torch.equal(dit(**batch).sample, alone)
    second = bigain.attach(dit, "tome", ratio=0.5, layers=[2])
    first.detach()
    second.detach()
    before.check(dit)


def test_attaching_again_after_detaching_gives_the_same(dit, batch):
    outputs = []
    for _ in range(2):
        with torch.no_grad(), bigain.attach(dit, "tome", ratio=0.5):
            outputs.append(dit(**batch).sample)
    assert torch.equal(*outputs)


def test_a_copy_of_the_model_is_independent(dit, batch, before):
    other = copy.deepcopy(dit)
    with bigain.attach(other, "lgtm", ratio=0.5):
        before.check(dit)


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), object(), None], ids=lambda model: type(model).__name__)
def test_where_nothing_matches_the_known_families_are_named(dit, model):
    with pytest.raises(SiteError, match=rf"Nothing to attach to in {type(model).__name__}\. Known.*: .*dit \(DiT"):
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
        reduced = [type(block.attn1.processor).__name__ == "ReducedProcessor" for block in dit.transformer_blocks]
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
        first, *rows = str(report).splitlines()
        settings = "ratio=0.5, cell=(2, 2), mode='mean', randomize=True"
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
            assert torch.equal(dit(**batch).sample, expected)
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
    inputs = torch.randn(2, 3, 32, 32), torch.tensor([100, 800]), torch.tensor([3, 10])
    plain = backbone.predict_noise(*inputs)
    with bigain.attach(backbone, "lgtm", ratio=0.7, layers=2) as report:
        assert [(site.before, site.after) for site in report.sites] == [(1024, 308)] * 2
        reduced = backbone.predict_noise(*inputs)
        assert reduced.shape == plain.shape
        assert not torch.allclose(reduced, plain, atol=1e-3)
        with pytest.raises(SiteError, match="attached already"):
            bigain.attach(backbone.network, "lgtm", ratio=0.7)
    assert torch.equal(backbone.predict_noise(*inputs), plain)


@torch.no_grad()
def test_whatever_processor_was_there_is_wrapped_and_put_back(dit, batch):
    from diffusers.models.attention_processor import AttnProcessor

    processor = AttnProcessor()
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
        expected = dit(**batch).sample
    dit.transformer_blocks[0].attn1.set_processor(processor)
    with bigain.attach(dit, "lgtm", ratio=0.5, layers=4):
        assert dit.transformer_blocks[0].attn1.processor.inner is processor
        torch.testing.assert_close(dit(**batch).sample, expected, atol=1e-5, rtol=1e-4)
    assert dit.transformer_blocks[0].attn1.processor is processor


def test_a_processor_with_parameters_of_its_own_is_refused(dit, batch):
    """Wrapped, it would vanish from the model's parameters and state."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, attn, hidden_states, **kwargs):
            return AttnProcessor2_0()(attn, hidden_states) * self.scale

    dit.transformer_blocks[1].attn1.set_processor(Learned())
    before = Snapshot(dit, batch)
    with pytest.raises(SiteError, match=r"processor of transformer_blocks\.1\.attn1 is a Learned"):
        bigain.attach(dit, "lgtm", ratio=0.5, layers=2)
    before.check(dit)


def test_cross_attention_and_masks_are_refused(dit):
    with bigain.attach(dit, "lgtm", ratio=0.5):
        attn, tokens = dit.transformer_blocks[0].attn1, torch.randn(1, 64, 16)
        with pytest.raises(SiteError, match=r"transformer_blocks\.0\.attn1 is reduced as self-attention"):
            attn(tokens, encoder_hidden_states=tokens)
        with pytest.raises(SiteError, match="encoder states or a mask"):
            attn(tokens, attention_mask=torch.zeros(1, 1, 64))


@pytest.mark.parametrize("name", ["tome", "lgtm"])
@torch.no_grad()
def test_compiles_into_one_graph(dit, batch, name):
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


def test_gradient_checkpointing_is_refused_where_it_would_give_wrong_gradients(dit, batch):
    """Blocks would run again in backward without knowing the timestep, and merge other tokens."""
    dit.enable_gradient_checkpointing()
    with bigain.attach(dit, "tome", ratio=0.5, layers=4):
        with pytest.raises(SiteError, match="gradient checkpointing"):
            dit(**batch)
        with torch.no_grad():  # nothing is checkpointed here
            assert dit(**batch).sample.isfinite().all()
    dit(**batch).sample.sum().backward()


def test_a_processor_set_after_attaching_is_no_silent_end_of_reduction(dit, batch, before):
    from diffusers.models.attention_processor import AttnProcessor2_0

    report = bigain.attach(dit, "lgtm", ratio=0.5, layers=2)
    dit.transformer_blocks[1].attn1.set_processor(AttnProcessor2_0())
    with pytest.raises(SiteError, match=r"processor of transformer_blocks\.1\.attn1 was set anew"):
        dit(**batch)
    report.detach()
    before.check(dit)
