"""The checks of reducers alone."""

import dataclasses

import torch

from bigain.errors import SettingError
from bigain.reducers.base import Context, TokenReducer
from bigain.testing.cases import Case
from bigain.testing.comparing import expect, outcome, same, same_outcome
from bigain.testing.planned import planned_for

__all__ = [
    "check_blocks_may_share_a_cache",
    "check_fixed_tokens_are_untouched",
    "check_gradients_flow",
    "check_kind_is_announced",
    "check_length_is_announced",
    "check_no_context_is_an_empty_one",
    "check_one_timestep_serves_all_rows",
    "check_plan_is_frozen",
    "check_plan_serves_any_channels",
    "check_reduced_groups_are_means",
    "check_reducing_undoes_restoring",
    "check_refusals_agree",
    "check_repeated_plan_serves_consecutive_rows",
    "check_settled_reducer_does_the_same",
    "check_shapes_and_types",
    "check_sizes_count_tokens",
    "check_tokens_have_one_place",
    "check_unmerged_tokens_come_back",
]


def check_refusals_agree(reducer: TokenReducer, case: Case) -> None:
    """Costs are computed from `reduced_length` before a run, so it has to refuse whatever `plan` refuses."""
    refused = []
    for call in (
        lambda: reducer.reduced_length(case.grid, case.context()),
        lambda: reducer.plan(case.tokens(), case.grid, case.context()),
    ):
        try:
            call()
            refused.append("")
        except SettingError as error:
            refused.append(str(error))
    early, late = refused
    expect(bool(early) == bool(late), f"reduced_length: {early or 'accepted'}; plan: {late or 'accepted'}")


def check_length_is_announced(reducer: TokenReducer, case: Case) -> None:
    """A length that depends on the tokens would need a host synchronisation, and a new graph for each value."""
    announced = reducer.reduced_length(case.grid, case.context())
    for variant in (0, 1):
        tokens = case.tokens(variant)
        found = reducer.plan(tokens, case.grid, case.context(case.timesteps(variant))).reduce(tokens).shape[1]
        expect(found == announced, f"reduced_length is {announced}, and {found} tokens are left")


def check_shapes_and_types(reducer: TokenReducer, case: Case) -> None:
    """Attention takes `[B, M, C]` in the model's type, and the residual branch needs `[B, N, C]` back."""
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        tokens = case.tokens().to(dtype)
        found = outcome(reducer, tokens, case.grid, case.context())
        length = found["reduced"].shape[1]
        for name, shape, wanted in (
            ("reduced", (case.batch, length, case.channels), dtype),
            ("restored", tokens.shape, dtype),
            ("sizes", (case.batch, length), torch.float32),
        ):
            value = found[name]
            expect(tuple(value.shape) == tuple(shape), f"{name}: shape {list(value.shape)}, expected {list(shape)}")
            expect(value.dtype == wanted, f"{name} of {dtype} tokens is {value.dtype}, expected {wanted}")


def check_kind_is_announced(reducer: TokenReducer, case: Case) -> None:
    """Adapters need to know beforehand whether queries shrink too: some sites cannot shrink keys and values alone."""
    reduction = reducer.plan(case.tokens(), case.grid, case.context())
    known = bool(reducer.kinds) and reducer.kinds <= {"merge", "kv"}
    expect(known, f"kinds holds merge, kv or both; it is {set(reducer.kinds)}")
    whole = reduction.sizes.shape[1] == case.grid.tokens  # nothing shrinks, whatever the kind
    announced = whole or reduction.kind in reducer.kinds
    expect(announced, f"the plan is of kind {reduction.kind!r}, the reducer announces {set(reducer.kinds)}")


def check_plan_is_frozen(reducer: TokenReducer, case: Case) -> None:
    """The parts of a block share one plan: none may change it for the others."""
    reduction = reducer.plan(case.tokens(), case.grid, case.context())
    expect(dataclasses.is_dataclass(reduction), f"{type(reduction).__name__} is no dataclass")
    try:
        reduction.sizes = reduction.sizes + 1
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError(f"{type(reduction).__name__} is not frozen: sizes can be assigned")


def check_tokens_have_one_place(reducer: TokenReducer, case: Case) -> None:
    """A token without a place is lost, and only a soft plan may restore a token from several places."""
    planned = planned_for(reducer, case)
    noise = planned.noise(planned.length, 3, seed=1)
    same(planned.reduction.restore(noise), planned.weights @ noise, "restored noise against its own places")
    named = planned.weights.gather(2, planned.reduction.places()[..., None])[..., 0]
    same(named, planned.weights.amax(dim=2), "the weight of the place that places() names against the largest")


def check_sizes_count_tokens(reducer: TokenReducer, case: Case) -> None:
    """Proportional attention adds log(size) to the logits: a wrong count shifts attention without any error."""
    planned = planned_for(reducer, case)
    counted = planned.group_sums(torch.ones_like(planned.tokens[..., :1]))[..., 0]
    step = 1e-5 if planned.reduction.soft else 0
    same(planned.reduction.sizes, counted, "sizes against the tokens counted at each place", rtol=step, atol=step)
    empty = int((counted == 0).sum())
    padded = planned.reduction.padded
    expect(padded or not empty, f"{empty} places stand for no token, but the plan does not say that it is padded")


def check_reducing_undoes_restoring(reducer: TokenReducer, case: Case) -> None:
    """Equal tokens must merge to themselves, or reducing adds an error beside the loss of merging."""
    planned = planned_for(reducer, case)
    if planned.reduction.soft:  # not an inverse, but the transpose divided by the sizes; equal tokens still come back
        sums = planned.reduction.reduce(planned.tokens) * planned.reduction.sizes[..., None]
        same(sums, planned.group_sums(planned.tokens), "reduce(x) * sizes against the transpose of restore", 1e-4, 1e-5)
        return
    reduced = planned.noise(planned.length, case.channels, seed=2)
    again = planned.reduction.reduce(planned.reduction.restore(reduced))
    same(again * planned.filled(), reduced * planned.filled(), "reduce(restore(y)) against y", 1e-4, 1e-5)


def check_unmerged_tokens_come_back(reducer: TokenReducer, case: Case) -> None:
    """A token that did not merge must come back as it was, or the method changes more than it says."""
    planned = planned_for(reducer, case)
    restored = planned.reduction.restore(planned.reduction.reduce(planned.tokens))
    alone = planned.reduction.sizes.gather(1, planned.places)[..., None] == 1
    alone &= planned.weights.amax(dim=2, keepdim=True) == 1
    same(restored * alone, planned.tokens * alone, "tokens of groups of one against the input")


def check_reduced_groups_are_means(reducer: TokenReducer, case: Case) -> None:
    """A reducer that announces means is used as such: means have equal weights and no rounding of their own."""
    if not reducer.averages:
        return
    planned = planned_for(reducer, case)
    reduced = planned.reduction.reduce(planned.tokens)
    for row, places in enumerate(planned.places.tolist()):
        for place in set(places):
            group = [token for token, other in enumerate(places) if other == place]
            mean = planned.tokens[row, group].double().mean(dim=0).float()
            same(reduced[row, place], mean, f"place {place} of row {row} against the mean of tokens {group}")


def check_plan_serves_any_channels(reducer: TokenReducer, case: Case) -> None:
    """A plan is made from a block's input and applied to queries, keys and values of other widths."""
    planned = planned_for(reducer, case)
    for channels in (1, case.channels + 3):
        tokens = planned.noise(case.grid.tokens, channels, seed=3)
        reduced = planned.reduction.reduce(tokens)
        shapes = [list(reduced.shape), list(planned.reduction.restore(reduced).shape)]
        expected = [[len(tokens), planned.length, channels], list(tokens.shape)]
        expect(shapes == expected, f"tokens of {channels} channels come as {shapes}, expected {expected}")


def check_repeated_plan_serves_consecutive_rows(reducer: TokenReducer, case: Case) -> None:
    """The classes of one image can share its plan, so that the classifier compares them on the same tokens."""
    case = case.with_rows(2)
    tokens, timestep = case.tokens().repeat_interleave(3, dim=0), case.timesteps().repeat_interleave(3)
    expected = outcome(reducer, tokens, case.grid, case.context(timestep))
    reduction = reducer.plan(case.tokens(), case.grid, case.context()).repeat(3)
    reduced = reduction.reduce(tokens)
    found = {"reduced": reduced, "restored": reduction.restore(reduced), "sizes": reduction.sizes}
    for name, value in found.items():
        same(value, expected[name], f"{name} of a plan repeated 3 times against planning on each row 3 times")


def check_fixed_tokens_are_untouched(reducer: TokenReducer, case: Case) -> None:
    """Class, time and text tokens steer the whole image: they neither merge nor decide what does."""
    planned, grid = planned_for(reducer, case), case.grid
    fixed = [*range(grid.prefix), *range(grid.prefix + grid.size, grid.tokens)]
    restored = planned.reduction.restore(planned.reduction.reduce(planned.tokens))
    same(restored[:, fixed], planned.tokens[:, fixed], "restored prefix and suffix against the input")
    sizes = planned.reduction.sizes.gather(1, planned.places)[:, fixed]
    expect(bool((sizes == 1).all()), "a prefix or suffix token shares its place with another token")
    other, body = 50 * planned.tokens + 7, slice(grid.prefix, grid.prefix + grid.size)
    other[:, body] = planned.tokens[:, body]
    found = outcome(reducer, other, grid, case.context())["restored"][:, body]
    same(found, restored[:, body], "the grid's tokens after prefix and suffix have changed")


def check_one_timestep_serves_all_rows(reducer: TokenReducer, case: Case) -> None:
    """Samplers give one timestep for the whole batch, training gives each row its own."""
    timestep = case.timesteps()[0]
    expected = outcome(reducer, case.tokens(), case.grid, case.context(timestep.expand(case.batch)))
    found = outcome(reducer, case.tokens(), case.grid, case.context(timestep))
    same_outcome(found, expected, "one timestep against the same for each row")


def check_no_context_is_an_empty_one(reducer: TokenReducer, case: Case) -> None:
    """Vision transformers have no timesteps: no context means no timestep, at layer 0."""
    outcomes = []
    for context in (None, Context()):
        try:
            outcomes.append(outcome(reducer, case.tokens(), case.grid, context))
        except SettingError:
            outcomes.append({})
    bare, empty = outcomes
    expect(bool(bare) == bool(empty), "of no context and an empty one, one is refused and the other accepted")
    same_outcome(bare, empty, "without a context against an empty one")


def check_blocks_may_share_a_cache(reducer: TokenReducer, case: Case) -> None:
    """What a method caches for other blocks of a forward pass must fit them too."""
    cache: dict[object, object] = {}
    for layer, stage in ((0, "down_blocks.0"), (1, "down_blocks.0"), (7, "up_blocks.2")):
        context = dataclasses.replace(case.context(), layer=layer, stage=stage, cache=cache)
        try:
            announced = reducer.reduced_length(case.grid, context)
        except SettingError:
            continue  # a composite may accept the case's own block and refuse others
        found = reducer.plan(case.tokens(), case.grid, context).sizes.shape[1]
        expect(found == announced, f"at layer {layer} of {stage}: {found} tokens, reduced_length says {announced}")


def check_settled_reducer_does_the_same(reducer: TokenReducer, case: Case) -> None:
    """A sampler settles timesteps beforehand to save work; the image must stay the same."""
    for variant in (0, 1):
        timestep = case.timesteps(variant)[0]
        whole = outcome(reducer, case.tokens(), case.grid, case.context(timestep))
        settled = outcome(reducer.at(float(timestep)), case.tokens(), case.grid, case.context(timestep))
        same(settled["restored"], whole["restored"], f"restored, at({timestep}) against a plan at that timestep")


def check_gradients_flow(reducer: TokenReducer, case: Case) -> None:
    """Training with reduction learns only through reduce and restore; a cut gradient goes unnoticed."""
    planned = planned_for(reducer, case)
    tokens = case.tokens().requires_grad_()
    reduction = reducer.plan(tokens, case.grid, case.context())
    (gradient,) = torch.autograd.grad(reduction.restore(reduction.reduce(tokens)).square().sum(), tokens)
    expect(bool(gradient.isfinite().all()), "the gradient of restore(reduce(x)) is not finite")

    reduced = planned.noise(planned.length, case.channels, seed=4).requires_grad_()
    weight = planned.noise(case.grid.tokens, case.channels, seed=5)
    (gradient,) = torch.autograd.grad((reduction.restore(reduced) * weight).sum(), reduced)
    same(gradient, planned.group_sums(weight), "the gradient of restore against the sum over each group", 1e-4, 1e-5)

    # reduce(restore(y)) = y, so the gradients of reduce, summed over each group, are the incoming gradient.
    equal = reduction.restore(reduced).detach().clone().requires_grad_()
    weight = planned.noise(planned.length, case.channels, seed=6)
    (gradient,) = torch.autograd.grad((reduction.reduce(equal) * weight).sum(), equal)
    if planned.reduction.soft:
        expected = planned.weights @ (weight / planned.reduction.sizes.clamp_min(1e-9)[..., None])
        same(gradient, expected, "the gradient of reduce against the transpose", 1e-3, 1e-4)
        return
    found, filled = planned.group_sums(gradient), planned.filled()
    same(found, weight * filled, "the gradient of reduce, summed over each group", 1e-3, 1e-4)
