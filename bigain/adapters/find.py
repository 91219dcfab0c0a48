"""Find the network in a model or pipeline, and the adapter that knows it."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from bigain.adapters.base import Adapter
from bigain.errors import SiteError
from bigain.registry import available, build, get

__all__ = ["AdapterSpec", "match"]

AdapterSpec = Adapter | str | Mapping[str, Any]
"""An adapter, its name, or a mapping with its name and settings."""

_INNER = ("transformer", "unet", "network", "vision_model")
"""Where pipelines, bigain's backbones and models of image and text keep the network."""


def match(model: Any, adapter: AdapterSpec | None = None) -> tuple[nn.Module, str, Adapter]:
    """Find the network in `model`, and the name and the adapter of its family.

    Args:
        model: A network, or a pipeline or backbone that holds one.
        adapter: The adapter to take, instead of the one that knows the network.

    Raises:
        SiteError: No adapter knows it, or several do; it is compiled already, or holds several.
    """
    networks = _candidates(model)
    if adapter is not None:
        if not networks:
            raise SiteError(f"{type(model).__name__} is no torch module, and holds none.")
        built: Adapter = build("adapters", adapter)
        return networks[0], _registered_name(built), built
    known, broken = _willing()
    for general in (False, True):
        for network in networks:
            found = [
                name for name, one in known.items() if one.general == general and _matches(one, network, name, broken)
            ]
            if len(found) > 1:
                several = ", ".join(found)
                raise SiteError(
                    f"Several adapters know {type(network).__name__}: {several}. Say which: adapter={found[0]!r}."
                )
            if found:
                return network, found[0], known[found[0]]
    raise _unknown(model, broken)


def _unknown(model: Any, broken: Mapping[str, str]) -> SiteError:
    families = "; ".join(f"{name} ({broken.get(name) or _family(name)})" for name in available("adapters"))
    inner = getattr(model, "module", None)
    hint = f" It holds a {type(inner).__name__} as .module: attach to that." if isinstance(inner, nn.Module) else ""
    return SiteError(
        f"Nothing to attach to in {type(model).__name__}.{hint} Any model goes by naming its attention modules, as in "
        "adapter={'name': 'modules', 'attention': 'layers.*.attn', 'shape': [16, 16]}; known families are: "
        + families
        + "."
    )


def _registered_name(adapter: Adapter) -> str:
    """Return the registered name of an adapter or of the class that it derives from; else its class's name."""
    named: dict[type, str] = {}
    for name in available("adapters"):
        with suppress(Exception):  # a broken plugin, which cannot be the given adapter
            named.setdefault(get("adapters", name), name)
    return next((named[base] for base in type(adapter).__mro__ if base in named), type(adapter).__name__)


def _candidates(model: Any) -> list[nn.Module]:
    """List the modules that could be the network; refuse those in which a reducer would silently do nothing."""
    found = [model, *(getattr(model, name, None) for name in _INNER)]
    networks = [candidate for candidate in found if isinstance(candidate, nn.Module)]
    for network in networks:
        for path, part in network.named_modules():
            if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
                raise SiteError(
                    f"{path or type(model).__name__} is compiled already, and compiled code would go on without the "
                    "reducer. Attach first, then compile: attach(model, ...); model = torch.compile(model)."
                )
            if type(part).__name__.startswith("ToMe") and hasattr(part, "_tome_info"):
                raise SiteError(
                    f"{path or type(model).__name__} is patched by another package for token merging, whose "
                    f"{type(part).__name__} runs a forward of its own. Remove that first: tomesd.remove_patch(model)."
                )
    second = getattr(model, "transformer_2", None)
    if not isinstance(model, nn.Module) and isinstance(second, nn.Module):
        raise SiteError(
            f"{type(model).__name__} has two networks, transformer and transformer_2; attach to each of them: "
            "attach(pipe.transformer, ...) and attach(pipe.transformer_2, ...)."
        )
    return networks


def _willing() -> tuple[dict[str, Adapter], dict[str, str]]:
    """Build the adapters whose library is imported, and note those that raise: the others still serve."""
    known: dict[str, Adapter] = {}
    broken: dict[str, str] = {}
    for name in available("adapters"):
        try:
            adapter: Adapter = build("adapters", name)
            if getattr(adapter, "library", None) in sys.modules:
                known[name] = adapter
        except Exception as error:
            broken[name] = f"broken: {type(error).__name__}: {error}"
    return known, broken


def _matches(adapter: Adapter, network: nn.Module, name: str, broken: dict[str, str]) -> bool:
    try:
        return adapter.matches(network)
    except Exception as error:  # whatever a plugin raises, the others still serve
        broken[name] = f"broken: {type(error).__name__}: {error}"
        return False


def _family(name: str) -> str:
    adapter = get("adapters", name)
    tested = f", tested with {adapter.library} {adapter.tested}" if getattr(adapter, "tested", "") else ""
    return getattr(adapter, "family", "no family stated") + tested
