"""Every check of adapters fails on an adapter that is broken in just that way."""

import dataclasses

import pytest
import torch
from torch import nn

from bigain.adapters.families.dit import DiTAdapter
from bigain.adapters.hooks.diffusers import AttentionSeam
from bigain.adapters.hooks.tokens import ReducedTokens, TokenSeam
from bigain.adapters.pass_state import BlockPlanner
from bigain.errors import SiteError
from bigain.grid import Grid
from bigain.testing import ContractError, Specimen, checks_of

CHECKS = {check.name: check for check in checks_of("adapters")}


class TakesEverything(DiTAdapter):
    def matches(self, model):
        return isinstance(model, nn.Module)


class OtherPaths(DiTAdapter):
    def sites(self, model):
        sites = super().sites(model)
        return [dataclasses.replace(site, name=other.name) for site, other in zip(sites, sites[::-1], strict=True)]


class CountsBackwards(DiTAdapter):
    def sites(self, model):
        sites = super().sites(model)[::-1]
        return [dataclasses.replace(site, layer=layer) for layer, site in enumerate(sites)]


class NoDefaults(DiTAdapter):
    def default_layers(self, sites):
        return [len(sites)]


class TwoRows(DiTAdapter):
    def inputs(self, model, rows, shape, device, dtype):
        return super().inputs(model, 2, shape, device, dtype)


class SinglePrecision(DiTAdapter):
    def inputs(self, model, rows, shape, device, dtype):
        return super().inputs(model, rows, shape, device, torch.float32)


class OneSize(DiTAdapter):
    def inputs(self, model, rows, shape, device, dtype):
        if shape != self.configured_shape(model):
            raise SiteError("only the configured size")
        return super().inputs(model, rows, shape, device, dtype)


class KeywordsOnly(DiTAdapter):
    def moment(self, model, args, kwargs):
        return super().moment(model, (), {"hidden_states": torch.zeros(1, 3, 8, 8)} | kwargs)


class PastNoise(DiTAdapter):
    def moment(self, model, args, kwargs):
        moment = super().moment(model, args, kwargs)
        return dataclasses.replace(moment, timestep=2 * moment.timestep)


class ClassToken(DiTAdapter):
    def grid(self, model, shape, site):
        return Grid(shape, prefix=1)


class OtherSides(DiTAdapter):
    def grid(self, model, shape, site):
        return Grid((shape[0] // 2, shape[1] * 2))


class WithSeam(DiTAdapter):
    """The DiT adapter, with another seam for the MLP."""

    def __init__(self, seam):
        self.seam = seam("ff")

    def parts(self, block):
        return {**super().parts(block), "mlp": self.seam}


class BrokenTokens(TokenSeam):
    """An MLP's seam, with hooks of its own."""

    def install(self, planner, part, proportional):
        module = planner.site.block.get_submodule(self.module)
        work = self.Work(planner)
        return [module.register_forward_pre_hook(work.before).remove, module.register_forward_hook(work.after).remove]


class Scaled(BrokenTokens):
    class Work(ReducedTokens):
        def after(self, module, args, output):
            return super().after(module, args, output) * 1.001


class KeepsOrder(BrokenTokens):
    class Work(ReducedTokens):
        def after(self, module, args, output):
            same = self.plan is not None and self.plan.sizes.shape[1] == output.shape[1]
            return output if same else super().after(module, args, output)


class Nothing(TokenSeam):
    def install(self, planner, part, proportional):
        return []


class WholeWork(BrokenTokens):
    class Work(ReducedTokens):
        def before(self, module, args):
            plan = self.planner(args[0])
            return (plan.restore(plan.reduce(args[0])),)


class PlansAlone(TokenSeam):
    def install(self, planner, part, proportional):
        return super().install(BlockPlanner(planner.attachment, planner.site, False), part, proportional)


class FirstRowDecides(BrokenTokens):
    class Work(ReducedTokens):
        def before(self, module, args):
            held = self.planner.attachment
            self.plan = held.reducer.plan(args[0][:1], self.planner.grid).repeat(args[0].shape[0])
            return (self.plan.reduce(args[0]),)


class InFloat32(BrokenTokens):
    class Work(ReducedTokens):
        def after(self, module, args, output):
            return super().after(module, args, output).to(torch.promote_types(output.dtype, torch.float32))


class CoversNothing(DiTAdapter):
    def sites(self, model):
        class Uncounted(AttentionSeam):
            covers = ("norm3",)

        parts = {"self": Uncounted("attn1")}
        return [dataclasses.replace(site, parts=parts) for site in super().sites(model)]


class LeavesAMark(TokenSeam):
    def install(self, planner, part, proportional):
        planner.site.block.reduced = True
        return super().install(planner, part, proportional)


class Anonymous(TokenSeam):
    """Hooks that are made on the spot."""

    def install(self, planner, part, proportional):
        module, work = planner.site.block.get_submodule(self.module), ReducedTokens(planner)
        return [
            module.register_forward_pre_hook(lambda module, args: work.before(module, args)).remove,
            module.register_forward_hook(lambda module, args, output: work.after(module, args, output)).remove,
        ]


class StaysOpen(BrokenTokens):
    class Work(ReducedTokens):
        _open = False

        def before(self, module, args):
            if self._open:
                raise RuntimeError("entered twice")
            self._open = True
            return super().before(module, args)

        def after(self, module, args, output):
            self._open = False
            return super().after(module, args, output)


class AddsABuffer(TokenSeam):
    def install(self, planner, part, proportional):
        module = planner.site.block.get_submodule(self.module)
        module.register_buffer("ratio", torch.ones(()))
        return [*super().install(planner, part, proportional), lambda: delattr(module, "ratio")]


class Detached(BrokenTokens):
    class Work(ReducedTokens):
        def after(self, module, args, output):
            return super().after(module, args, output.detach())


class PlansAgain(BrokenTokens):
    class Work(ReducedTokens):
        def before(self, module, args):
            self.plan = self.planner._make(args[0])
            return (self.plan.reduce(args[0]),)


class ReadsValues(BrokenTokens):
    class Work(ReducedTokens):
        def after(self, module, args, output):
            return super().after(module, args, output) * (1 if output.sum().item() else 0)


class TakesAttentionForAnMLP(DiTAdapter):
    """Shortens and restores whatever the kind of a plan, and looks at no sizes."""

    def parts(self, block):
        class Everything(AttentionSeam):
            def install(self, planner, part, proportional):
                module, work = planner.site.block.attn1, self.Work(planner)
                return [
                    module.register_forward_pre_hook(work.before).remove,
                    module.register_forward_hook(work.after).remove,
                ]

            class Work(ReducedTokens):
                def before(self, module, args):
                    self.plan = self.planner(args[0])
                    return (self.plan.reduce(args[0]),)

                def after(self, module, args, output):
                    return self.plan.restore(output)

        return {"self": Everything("attn1")}


BROKEN = [
    ("check_model_is_found", TakesEverything(), "takes a Linear of torch"),
    ("check_sites_are_modules", OtherPaths(), r"blocks\.2 is not the path of its block"),
    ("check_layers_count_in_order_of_execution", CountsBackwards(), "blocks run in the order"),
    ("check_default_layers_are_layers", NoDefaults(), r"names \[3\]; there are 0 to 2"),
    ("check_inputs_run", TwoRows(), r"for 1 rows the output has shape \[2, "),
    ("check_inputs_are_as_asked", SinglePrecision(), "hidden_states is torch.float32, asked for torch.bfloat16"),
    ("check_other_shapes_run", OneSize(), "only the configured size"),
    (
        "check_moment_is_read",
        KeywordsOnly(),
        r"with 3 arguments by position, moment\(\) reads the shape \(8, 8\), expected \(16, 16\)",
    ),
    ("check_moment_is_read", PastNoise(), "timesteps are 0 to 1556, expected within 0 to 1000"),
    ("check_grids_count_tokens", ClassToken(), "is given 64 tokens, its grid .* has 65"),
    ("check_grids_lie_as_the_input_does", OtherSides(), "changes most, expected"),
    ("check_work_is_done_on_fewer_tokens", WithSeam(WholeWork), "the report says 32 fewer"),
    ("check_identity_changes_nothing", WithSeam(Scaled), "identity in mlp, planned from the block: output 0 is off"),
    ("check_order_of_tokens_does_not_matter", WithSeam(KeepsOrder), "tokens in another order in mlp: output 0 is off"),
    ("check_reducers_change_every_site", WithSeam(Nothing), r"in mlp of .*blocks\.0 leaves its output as it was"),
    ("check_plans_are_made_once_a_block", WithSeam(PlansAlone), r"plans are made for layers \[0, 0, 1, 1, 2, 2\]"),
    ("check_rows_are_independent", WithSeam(FirstRowDecides), r"on rows \[1\] against the whole batch: output 0"),
    ("check_half_precision", WithSeam(InFloat32), "must have the same dtype"),
    ("check_worth_is_counted", CoversNothing(), "covers names no work"),
    ("check_queries_stay_whole", TakesAttentionForAnMLP(), "was restored, though only keys and values were reduced"),
    ("check_padding_is_left_out", TakesAttentionForAnMLP(), "with places of size 0 behind the merged tokens"),
    ("check_sizes_weight_keys", TakesAttentionForAnMLP(), r"size of tensor a \(63\) must match"),
    ("check_detaching_restores", WithSeam(LeavesAMark), r"these differ: transformer_blocks\.0\.reduced"),
    ("check_exceptions_leave_nothing", WithSeam(StaysOpen), "entered twice"),
    ("check_copies_are_independent", WithSeam(Anonymous), "copied"),
    ("check_pickles", WithSeam(Anonymous), "pickle"),
    ("check_saving_and_loading", WithSeam(AddsABuffer), "weights have other names"),
    ("check_gradients_flow", WithSeam(Detached), r"leaves without a gradient: transformer_blocks\.0\.ff"),
    ("check_gradient_checkpointing", WithSeam(PlansAgain), "cached, with checkpointing against without"),
    ("check_compiles_to_one_graph", WithSeam(ReadsValues), "data-dependent"),
]


def dit():
    from diffusers import DiTTransformer2DModel

    shape = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 3, "in_channels": 3, "sample_size": 8}
    return DiTTransformer2DModel(**shape, patch_size=1, num_embeds_ada_norm=10, norm_type="ada_norm_zero")


@pytest.mark.parametrize(("name", "adapter", "seen"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_adapter_is_found_out(name, adapter, seen):
    with pytest.raises(ContractError, match=seen):
        CHECKS[name](Specimen(dit, adapter))


def test_every_check_is_shown_to_fail():
    assert {name for name, _, _ in BROKEN} == set(CHECKS)
