"""The cases that are timed of a whole network: no reduction, methods, floors, peers, the paper's own baseline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from bigain.adapters.attach import attach, find_sites
from bigain.adapters.base import Site
from bigain.adapters.placement import Placement
from bigain.benchmark.cost import with_shared_weights
from bigain.benchmark.floors import Sliced, first_merging, removed_share
from bigain.benchmark.flops import FlopCount, FlopCounter
from bigain.benchmark.peers import tomesd_network
from bigain.benchmark.regions import CompiledRegions
from bigain.benchmark.timed_cases import Case, Pass
from bigain.benchmark.written_out import written_out_attention
from bigain.grid import Grid
from bigain.profiling.modes import Backend
from bigain.reducers.base import TokenReducer

__all__ = ["NetworkAt", "network_cases"]


@dataclass(frozen=True)
class NetworkAt:
    """A network and the inputs of one pass.

    Args:
        network: The network, on its device. It is not changed: each case has a copy of its
            modules, and all copies share its weights.
        inputs: Arguments of a pass.
        counter: Counts its operations, and has its adapter and its shape.
        placement: Where reducers work.
        seed: Seeds what they draw.
    """

    network: nn.Module
    inputs: Mapping[str, Any]
    counter: FlopCounter
    placement: Placement
    seed: int

    @property
    def sites(self) -> list[Site]:
        """The blocks that the placement takes."""
        return find_sites(self.network, self.placement)[3]

    @property
    def grids(self) -> list[Grid]:
        """The grid of each of them."""
        return [self.counter.adapter.grid(self.network, self.counter.shape, site) for site in self.sites]

    @contextmanager
    def bare(self, regions: CompiledRegions | None = None) -> Iterator[Pass]:
        """Run the network as it is."""
        network = with_shared_weights(self.network)
        yield self._pass(network, regions, [])

    @contextmanager
    def reduced(self, reducer: TokenReducer, regions: CompiledRegions | None = None) -> Iterator[Pass]:
        """Run it under a reducer."""
        network = with_shared_weights(self.network)
        with attach(network, reducer, placement=self.placement, shape=self.counter.shape, seed=self.seed):
            yield self._pass(network, regions, self._taken(network))

    @contextmanager
    def without_attention(self, regions: CompiledRegions | None = None) -> Iterator[Pass]:
        """Run it without the self-attentions of its sites: each returns its input."""
        network = with_shared_weights(self.network)
        sites = find_sites(network, self.placement)[3]
        for site in sites:
            if "self" in site.parts:
                module: Any = site.module("self")
                module.forward = partial(_given_back, self._returns_tuple(site))
        yield self._pass(network, regions, [site.block for site in sites])

    @contextmanager
    def patched(
        self, patch: Callable[[nn.Module], Callable[[], Any]], regions: CompiledRegions | None = None
    ) -> Iterator[Pass]:
        """Run it as another package changes it."""
        network = with_shared_weights(self.network)
        run = patch(network)
        yield self._pass(network, regions, self._blocks(network), run)

    def _pass(
        self,
        network: nn.Module,
        regions: CompiledRegions | None,
        changed: Sequence[nn.Module],
        patched: Callable[[], Any] | None = None,
    ) -> Pass:
        run = patched or (lambda: network(**self.inputs))
        if regions is None:
            return Pass.whole(run, breaks=patched is not None)

        def compiled(_: Backend) -> Callable[[], Any]:
            regions.compile(network, self._blocks(network), changed, breaks=patched is not None)
            return run

        return Pass(run, compiled)

    def _blocks(self, network: nn.Module) -> list[nn.Module]:
        return [site.block for site in self.counter.adapter.sites(network)]

    def _taken(self, network: nn.Module) -> list[nn.Module]:
        return [site.block for site in find_sites(network, self.placement)[3]]

    def _returns_tuple(self, site: Site) -> bool:
        """Run a pass on the meta device to see whether an attention returns more than its tokens."""
        seen: list[bool] = []
        module = self.counter.network.get_submodule(site.path("self"))
        handle = module.register_forward_hook(lambda _, args, output: seen.append(isinstance(output, tuple)))
        try:
            self.counter.evaluate(1)
        finally:
            handle.remove()
        return seen[0]


def network_cases(
    at: NetworkAt,
    baseline: str,
    reducers: dict[str, TokenReducer],
    counts: Mapping[str, FlopCount],
    beside: Sequence[str],
    regional: Backend | None = None,
) -> list[Case]:
    """List the cases to time of a network.

    Args:
        at: The network at one size.
        baseline: Name of no reduction.
        reducers: The methods.
        counts: Operations of each method.
        beside: What is timed beside them: `floors`, `peers`, `written_out`.
        regional: Backend that compiles region by region; `None` to compile the network as a whole.
    """
    whole, merging = at.counter.baseline, first_merging(reducers)
    regions = None if regional is None else CompiledRegions(regional)
    cases = [Case(baseline, "none", partial(at.bare, regions), "", whole)]
    cases += [
        Case(name, "method", partial(at.reduced, one, regions), repr(one), counts[name].total)
        for name, one in reducers.items()
    ]
    if "floors" in beside:
        cases += _floors(at, merging, regions)
    if "peers" in beside and merging is not None:
        cases += _peers(at, merging[1], regions)
    if "written_out" in beside:
        # Code with attention written out must not serve other cases.
        apart = None if regional is None else CompiledRegions(regional)
        build, around = partial(at.bare, apart), written_out_attention
        cases.append(Case("baseline: written-out attention", "baseline", build, "", whole, around))
        if merging is not None:
            name, one = merging
            title, build = f"baseline: {name}, written out", partial(at.reduced, one, apart)
            cases.append(Case(title, "baseline", build, repr(one), counts[name].total, around))
    return cases


def _floors(at: NetworkAt, merging: tuple[str, TokenReducer] | None, regions: CompiledRegions | None) -> list[Case]:
    cases = []
    if merging is not None:
        sliced = Sliced(merging[1])
        title = f"floor: sliced {removed_share(merging[1], at.grids[0]):.0%}"
        flops = at.counter.count(sliced, at.placement).total
        cases.append(Case(title, "floor", partial(at.reduced, sliced, regions), repr(sliced), flops))
    build = partial(at.without_attention, regions)
    return [*cases, Case("floor: no self-attention", "floor", build, "attention returns its input")]


def _peers(at: NetworkAt, reducer: TokenReducer, regions: CompiledRegions | None) -> list[Case]:
    """Time tomesd with the first method's ratio, if it can work in the same blocks: all up to some coarseness."""
    ratio, downsample = removed_share(reducer, at.grids[0]), max(site.downsample for site in at.sites)
    every = [site.name for site in at.counter.adapter.sites(at.network) if site.downsample <= downsample]
    resolved, taken = find_sites(at.network, at.placement)[2:]
    if [site.name for site in taken] != every or resolved.parts != ("self",):
        return []
    patch = tomesd_network(at.network, ratio, downsample, at.inputs)
    if patch is None:
        return []
    words = f"tomesd.apply_patch(ratio={ratio:g}, max_downsample={downsample}, use_rand=False)"
    return [Case("peer: tomesd", "peer", partial(at.patched, patch, regions), words)]


def _given_back(with_others: bool, *args: Any, **kwargs: Any) -> Any:
    """Return an attention's input tokens and, where it returns both, the text's."""
    names = ("hidden_states", "x", "query")
    tokens: Tensor = args[0] if args else next(kwargs[name] for name in names if name in kwargs)
    text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    return (tokens, text) if with_others else tokens
