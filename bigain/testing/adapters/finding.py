"""Is the model found, and are its blocks listed as they are?"""

from torch import nn

from bigain import registry
from bigain.adapters.base import Adapter
from bigain.adapters.find import match
from bigain.errors import BigainError
from bigain.testing.adapters.bench import Bench, hooked
from bigain.testing.comparing import expect

__all__ = [
    "check_default_layers_are_layers",
    "check_layers_count_in_order_of_execution",
    "check_model_is_found",
    "check_sites_are_modules",
]


def check_model_is_found(bench: Bench) -> None:
    """Users attach without naming the family, so the adapter must not match models of other families."""
    adapter, model = bench.adapter, bench.model
    if adapter.general:
        return
    expect(adapter.matches(model), f"matches() does not know {type(model).__name__}")
    for other in (nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2))):
        expect(not adapter.matches(other), f"matches() takes a {type(other).__name__} of torch for one of its family")
    if _is_registered(type(adapter)):
        found = type(match(model)[2])
        expect(found is type(adapter), f"without naming it, {found.__name__} is found for {type(model).__name__}")


def _is_registered(adapter: type[Adapter]) -> bool:
    def is_it(name: str) -> bool:
        try:
            return registry.get("adapters", name) is adapter
        except BigainError:  # another package's adapter, broken
            return False

    return any(map(is_it, registry.available("adapters")))


def check_sites_are_modules(bench: Bench) -> None:
    """Reports and placements name blocks and their parts by path, and hooks go where the paths lead."""
    expect(bool(bench.sites), "sites() lists no block")
    names = [site.name for site in bench.sites]
    expect(len(set(names)) == len(names), f"blocks are listed twice: {names}")
    for site in bench.sites:
        expect(bench.model.get_submodule(site.name) is site.block, f"{site.name} is not the path of its block")
        expect(bool(site.parts), f"{site.name} has no parts")
        for part in site.parts:
            for name in (site.parts[part].module, *site.parts[part].covers):
                site.block.get_submodule(name)  # raises, saying what is missing


def check_layers_count_in_order_of_execution(bench: Bench) -> None:
    """`layers=12` means the first 12 blocks that run, and rules by layer mean the same in every model."""
    layers = [site.layer for site in bench.sites]
    expect(layers == list(range(len(layers))), f"layers are {layers}, expected 0, 1, 2, ..")
    names = {site.block: site.name for site in bench.sites}
    ran: list[str] = []
    undo = [block.register_forward_pre_hook(lambda block, _: ran.append(names[block])).remove for block in names]
    with hooked(undo):
        bench.run(bench.inputs(1))
    expect(ran == list(names.values()), f"blocks run in the order {ran}, and are listed as {list(names.values())}")


def check_default_layers_are_layers(bench: Bench) -> None:
    """Without a placement a reducer goes to the default blocks: with none, it would do nothing."""
    chosen = bench.adapter.default_layers(bench.sites)
    expect(bool(chosen), "default_layers() names no layer")
    known = [site.layer for site in bench.sites]
    expect(set(chosen) <= set(known), f"default_layers() names {chosen}; there are {known[0]} to {known[-1]}")
    expect(len(set(chosen)) == len(chosen), f"default_layers() names layers twice: {chosen}")
