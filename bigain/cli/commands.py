"""The list of commands; each is in the file of its name."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

__all__ = ["COMMANDS", "Command", "load"]

COMMANDS: Mapping[str, str] = {
    "fit": "Train: --config RECIPE.",
    "test": "Classify or generate: --config RECIPE; --print_config shows every setting of one.",
    "compare": "Run classification, generation and cost for several reducers and write one page.",
    "generate": "Draw the same images without and with a reducer, from a prompt or a class.",
    "classify": "Classify a folder of images without and with a reducer.",
    "cache": "Show or clear the text embeddings, latents and features that are kept on disk.",
    "completion": "Print a script that completes options in bash or zsh.",
    "describe": "Show settings, source and use of a scorer, reducer, adapter, backbone or task.",
    "doctor": "Show versions, devices, and what works on this machine.",
    "export": "Turn a training checkpoint into the safetensors that ship.",
    "flops": "Count operations of any network under any reducers: no weights, no GPU, in seconds.",
    "latency": "Time any network under any reducers on this device: random weights, compiled to one graph.",
    "list": "List scorers, reducers, adapters, backbones and tasks, with the package each comes from.",
    "new-plugin": "Write a package with a scorer, a reducer and their tests to start from.",
    "pair": "Compare two results of classification image by image: difference, McNemar's test.",
    "recipes": "List the recipes that ship with bigain; --output FOLDER copies them, to be edited.",
    "schema": "Print a JSON schema of recipes, for editors.",
}
"""Name and line of help. `new-plugin` is in `new_plugin.py`; `list` is in `list_.py`, beside Python's `list`."""


class Command(Protocol):
    """What the file of a command defines."""

    make_parser: Callable[[], "ArgumentParser"]
    run: Callable[[Sequence[str]], None]


def load(name: str) -> Command:
    """Import the file of one of `COMMANDS`."""
    return cast("Command", import_module(f"bigain.cli.{'list_' if name == 'list' else name.replace('-', '_')}"))
