"""Every check of reducers fails on a reducer that is broken in just that way, and on none that is sound."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch

from bigain.errors import SettingError
from bigain.grid import Grid
from bigain.reducers.base import Context, Reduction, TokenReducer
from bigain.reducers.lgtm import LGTM
from bigain.reducers.scheduled import Rule, Scheduled
from bigain.testing import CASES, Case, ContractError, check_reducer, checks_of

CHECKS = {check.name: check for check in checks_of("reducers")}


@dataclass(frozen=True)
class Grouped(Reduction):
    place: torch.Tensor
    sizes: torch.Tensor

    def reduce(self, tokens):
        return (self.total(tokens.float()) / self.sizes.clamp(min=1)[..., None]).to(tokens.dtype)

    def total(self, tokens):
        index = self.place[..., None].expand(-1, -1, tokens.shape[-1])
        return tokens.new_zeros(len(tokens), self.sizes.shape[1], tokens.shape[-1]).scatter_add(1, index, tokens)

    def restore(self, reduced):
        return reduced.gather(1, self.place[..., None].expand(-1, -1, reduced.shape[-1]))


class Runs(TokenReducer):
    """Sound: merges every `factor` tokens that follow one another on the grid."""

    reduction = Grouped
    averages = True

    def __init__(self, factor: int = 2):
        if factor < 1:
            raise SettingError("factor is at least 1")
        self.factor = factor

    def reduced_length(self, grid, context=None):
        return grid.prefix + -(-grid.size // self.factor) + grid.suffix

    def plan(self, tokens, grid, context=None):
        grid.check(tokens)
        length = self.reduced_length(grid)
        place = self.groups(tokens, grid, context or Context())
        before, after = torch.arange(grid.prefix, device=tokens.device), torch.arange(grid.suffix, device=tokens.device)
        rows = len(tokens)
        place = torch.cat(
            [before.expand(rows, -1), place + grid.prefix, after.expand(rows, -1) + length - grid.suffix], dim=1
        )
        return self.finish(place, length)

    def groups(self, tokens, grid, context):
        """Number the group of each token on the grid, `[B, N_grid]`."""
        return (torch.arange(grid.size, device=tokens.device) // self.factor).expand(len(tokens), -1)

    def finish(self, place, length):
        ones = torch.ones_like(place, dtype=torch.float32)
        sizes = ones.new_zeros(len(place), length).scatter_add(1, place, ones)
        return self.reduction(place, sizes)


def ordered(score, factor):
    """Groups of tokens that follow one another by score, `[B, N]`: a decision that depends on the tokens."""
    return score.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True) // factor


class ByScore(Runs):
    """Sound: groups by the sum of channels."""

    def groups(self, tokens, grid, context):
        return ordered(grid.body(tokens).float().sum(dim=-1), self.factor)


class Padded(Runs):
    """Sound: says that one place stands for nothing."""

    @dataclass(frozen=True)
    class Reduction(Grouped):
        padded: bool = True

    reduction = Reduction

    def reduced_length(self, grid, context=None):
        return super().reduced_length(grid) + (0 if grid.suffix else 1)


class UnsaidPadding(Padded):
    reduction = Grouped


class RefusesLate(Runs):
    def plan(self, tokens, grid, context=None):
        if grid.axes == 3:
            raise SettingError("no video")
        return super().plan(tokens, grid, context)


class RefusesAll(Runs):
    def plan(self, tokens, grid, context=None):
        raise SettingError("no")

    reduced_length = plan


class LengthFromTokens(Runs):
    def plan(self, tokens, grid, context=None):
        return Runs(3 if tokens.sum() > 0 else self.factor).plan(tokens, grid)


class OnePlanForAll(Runs):
    """Shortens more from layer 4 on, and keeps the first plan for all."""

    def reduced_length(self, grid, context=None):
        return super().reduced_length(grid) if context is None or context.layer < 4 else grid.tokens

    def plan(self, tokens, grid, context=None):
        context = context or Context()
        if context.layer >= 4:
            return context.cache.get("plan") or Runs(1).plan(tokens, grid)
        return context.cache.setdefault("plan", Runs(self.factor).plan(tokens, grid))


def reduction_with(**changes):
    """Make a reducer whose reduction differs in the methods or fields given."""
    changed = dataclasses.dataclass(frozen=True)(type("Changed", (Grouped,), changes))
    return type("Changed", (Runs,), {"reduction": changed})()


def reduce_with(function):
    return reduction_with(reduce=lambda self, tokens: function(self, tokens, Grouped.reduce(self, tokens)))


def restore_with(function):
    return reduction_with(restore=lambda self, reduced: function(self, reduced, Grouped.restore(self, reduced)))


class Announces(Runs):
    kinds = frozenset({"both"})


@dataclass
class Thawed(Reduction):
    place: torch.Tensor
    sizes: torch.Tensor
    reduce, restore, total = Grouped.reduce, Grouped.restore, Grouped.total


class Unfrozen(Runs):
    reduction = Thawed


def plainly(**members):
    """Make a reducer that differs in the methods given."""
    return type("Changed", (Runs,), members)()


def tiled(self, times):
    return dataclasses.replace(self, place=self.place.repeat(times, 1), sizes=self.sizes.repeat(times, 1))


class Tiled(ByScore):
    reduction = dataclass(frozen=True)(type("Changed", (Grouped,), {"repeat": tiled}))


def wrong_sizes(self, place, length):
    plan = Runs.finish(self, place, length)
    return dataclasses.replace(plan, sizes=plan.sizes.mean(dim=1, keepdim=True).expand(-1, length))


def merges_prefix(self, tokens, grid, context=None):
    grid.check(tokens)
    whole = Grid((grid.tokens,))
    length = self.reduced_length(grid)
    return self.finish(Runs.groups(self, tokens, whole, context).clamp(max=length - 1), length)


def sees_prefix(self, tokens, grid, context):
    return ordered((grid.body(tokens) - tokens.mean(dim=1, keepdim=True)).abs().sum(dim=-1), self.factor)


def from_first_row(self, tokens, grid, context):
    place = Runs.groups(self, tokens, grid, context)
    return place if context.timestep is None else place + 0 * context.timestep[0]


def bare_differs(self, tokens, grid, context=None):
    plan = Runs.plan(self, tokens, grid, context)
    return plan if context else dataclasses.replace(plan, place=plan.place.roll(1, 1))


def first_in_group(self, tokens, mean):
    index = torch.arange(tokens.shape[1], device=tokens.device).flip(0).expand(len(tokens), -1)
    first = torch.zeros_like(self.sizes, dtype=torch.int64).scatter(1, self.place.flip(1), index)
    return tokens.gather(1, first[..., None].expand(-1, -1, tokens.shape[-1]))


def drop_last(tokens):
    return torch.cat([tokens[:, :-1], 0 * tokens[:, -1:]], dim=1)


def for_planned_channels(self, tokens, mean):
    return mean * torch.ones(8, device=tokens.device)


def overwrites(self, reduced, restored):
    reduced.mul_(2)
    return restored


class KeepsFirstPlan(Runs):
    kept = None

    def plan(self, tokens, grid, context=None):
        self.kept = self.kept or super().plan(tokens, grid, context)
        return self.kept if self.kept.place.shape == tokens.shape[:2] else super().plan(tokens, grid, context)


def by(score):
    """Make a reducer that groups by a score of the grid's tokens."""
    return plainly(groups=lambda self, tokens, grid, context: ordered(score(grid.body(tokens)), self.factor))


def channel_product(body):
    return (body.float() @ body.new_ones(body.shape[-1], 1, dtype=torch.float32))[..., 0].float()


BROKEN = [
    ("check_refusals_agree", RefusesLate(), "reduced_length: accepted; plan: no video"),
    ("check_length_is_announced", LengthFromTokens(), "reduced_length is 18, and 12 tokens are left"),
    ("check_shapes_and_types", reduce_with(lambda _, x, y: y.float()), "reduced of torch.float16 tokens is"),
    ("check_shapes_and_types", restore_with(lambda _, y, x: x[:, 1:]), r"restored: shape \[3, 35, 8\]"),
    ("check_kind_is_announced", reduction_with(kind="kv"), "kind 'kv', the reducer announces {'merge'}"),
    ("check_kind_is_announced", Announces(), "it is {'both'}"),
    ("check_plan_is_frozen", Unfrozen(), "not frozen"),
    ("check_tokens_have_one_place", restore_with(lambda _, y, x: drop_last(x)), "gives 0 to token 35 of row 0"),
    ("check_tokens_have_one_place", restore_with(lambda _, y, x: (x + x.roll(1, 1)) / 2), "which is not one of them"),
    ("check_tokens_have_one_place", restore_with(lambda _, y, x: x.round()), "restored noise against its own places"),
    ("check_sizes_count_tokens", plainly(finish=wrong_sizes), "sizes against the tokens counted"),
    ("check_sizes_count_tokens", UnsaidPadding(), "3 places stand for no token"),
    ("check_reducing_undoes_restoring", reduce_with(lambda plan, x, y: plan.total(x)), r"against y: .* differ"),
    ("check_unmerged_tokens_come_back", reduce_with(lambda _, x, y: y * 1.01), "tokens of groups of one against"),
    ("check_reduced_groups_are_means", reduce_with(first_in_group), r"place 0 of row 0 against the mean of .*\[0, 1\]"),
    ("check_plan_serves_any_channels", reduce_with(for_planned_channels), "tokens of 1 channels come as"),
    ("check_plan_serves_any_channels", reduce_with(lambda _, x, y: y[..., :8]), "tokens of 11 channels come as"),
    ("check_repeated_plan_serves_consecutive_rows", Tiled(), "repeated 3 times"),
    ("check_fixed_tokens_are_untouched", plainly(plan=merges_prefix), "prefix and suffix"),
    ("check_fixed_tokens_are_untouched", plainly(groups=sees_prefix), "after prefix and suffix have changed"),
    ("check_one_timestep_serves_all_rows", plainly(groups=from_first_row), "IndexError"),
    ("check_no_context_is_an_empty_one", plainly(plan=bare_differs), "without a context against an empty one"),
    ("check_blocks_may_share_a_cache", OnePlanForAll(), "at layer 7 of up_blocks.2: 18 tokens, reduced_length says 36"),
    ("check_settled_reducer_does_the_same", plainly(at=lambda self, t: Runs(3)), "against a plan at that timestep"),
    ("check_gradients_flow", reduce_with(lambda _, x, y: y.detach()), "does not require grad"),
    ("check_gradients_flow", restore_with(lambda _, y, x: x.detach()), "does not require grad"),
    ("check_gradients_flow", reduce_with(lambda _, x, y: y.detach() + 0.1 * (y - y.detach())), "gradient of reduce"),
    ("check_gradients_flow", restore_with(lambda _, y, x: x / 2 + x.detach() / 2), "gradient of restore"),
    ("check_inputs_are_not_written_to", restore_with(overwrites), "the reduced tokens have changed"),
    ("check_no_state_between_calls", KeepsFirstPlan(), "its attributes changed"),
    ("check_half_precision", by(lambda body: (3 * body).cumsum(dim=-1)[..., -1]), "of torch.float16 tokens"),
    ("check_autocast_changes_nothing", by(channel_product), "under autocast"),
    ("check_finite_on_flat_tokens", reduce_with(lambda _, x, y: y / y.norm() * y.norm()), "all tokens 0"),
    ("check_finite_on_huge_tokens", reduce_with(lambda p, x, y: p.total(x) / p.sizes[..., None].half()), "NaN or inf"),
    ("check_neighbour_invariance", by(lambda body: (body.float() - body.float().mean(0)).sum(dim=-1)), "beside other"),
    ("check_no_host_synchronisation", LengthFromTokens(), "reads values on the host"),
    ("check_compiles_to_one_graph", LengthFromTokens(), "Unsupported"),
]


@pytest.mark.parametrize(("name", "reducer", "seen"), BROKEN)
def test_a_broken_reducer_is_caught(name, reducer, seen):
    with pytest.raises(ContractError, match=seen) as caught:
        CHECKS[name](reducer)
    (failure,) = caught.value.failures
    assert failure.name == name


def test_every_check_has_something_that_it_catches():
    """What reducers share with scorers is caught in test_broken_scorers.py, too."""
    shared = {check.name for check in checks_of("scorers")}
    assert set(CHECKS) - shared <= {name for name, _, _ in BROKEN} <= set(CHECKS)


@pytest.mark.parametrize("reducer", [Runs(), Runs(5), ByScore(3), Padded()], ids=repr)
def test_a_sound_reducer_passes(reducer):
    check_reducer(reducer)


def test_what_refuses_every_case_is_caught_once():
    """Nothing would be checked, and all would seem well."""
    with pytest.raises(ContractError, match="every grid is refused") as caught:
        check_reducer(RefusesAll())
    assert [failure.name for failure in caught.value.failures] == ["check_accepts_a_case"]
    with pytest.raises(ContractError, match="every grid is refused"):
        CHECKS["check_pickles"](RefusesAll())


def test_a_refused_case_is_left_out():
    class ImagesOnly(Runs):
        def reduced_length(self, grid, context=None):
            if grid.axes != 2:
                raise SettingError("images only")
            return super().reduced_length(grid)

    CHECKS["check_refusals_agree"](ImagesOnly())
    CHECKS["check_sizes_count_tokens"](ImagesOnly())
    with pytest.raises(ContractError, match="every grid is refused"):
        check_reducer(ImagesOnly(), [Case(Grid((13,)))])


def test_one_case_is_enough_where_checks_are_slow():
    """And it has prefix and suffix where one is accepted that does."""
    seen = []
    once = dataclasses.replace(CHECKS["check_pickles"], function=lambda subject, case: seen.append(case), once=True)
    once(Runs())
    assert seen == [CASES[1]]


def test_a_block_that_a_composite_refuses_is_left_out():
    """On two tokens in a row, L-GTM has no cell; at layer 4, where the case is, nothing is asked of it."""
    reducer = Scheduled([Rule(LGTM(0.5, cell=2), layers=[0, 1])])
    CHECKS["check_blocks_may_share_a_cache"](reducer, [Case(Grid((1, 2)), batch=1, layer=4)])
