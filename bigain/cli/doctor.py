"""`bigain doctor`: what works on this machine: versions, devices, attention, compiling, adapters, plugins."""

import importlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from packaging.requirements import Requirement
from torch.nn.attention import SDPBackend, sdpa_kernel

from bigain import registry
from bigain.adapters.base import Adapter
from bigain.cli.classes import installed_version
from bigain.cli.parser import Parser
from bigain.cli.terminal import make_console

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["Finding", "examine", "make_parser", "run"]

State = Literal["ok", "absent", "note", "broken"]

_OPTIONAL = ("timm", "transformers", "accelerate", "peft", "torchvision", "triton", "xformers", "flash_attn")
"""Packages that are used if they are installed."""

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}

_SHAPE = (2, 4, 64, 64)
"""Rows, heads, tokens and channels that every backend takes."""


_PROGRAM = """
import torch

def total(values):
    return (values * 2).sin().sum()

given = torch.arange(64.0, device="{device}")
found, expected = torch.compile(total, fullgraph=True)(given), total(given)
if not torch.allclose(found, expected, atol=1e-3):
    raise ValueError(f"gives {{found.item()}} where {{expected.item()}} is right")
"""
"""A program that compiles something small and checks the result."""


@dataclass(frozen=True)
class Finding:
    """The result of looking at one thing.

    Args:
        group: The group it is shown in.
        name: Its name.
        state: `ok`; `absent`: missing, but not needed; `note`: works, perhaps not as tested;
            `broken`: should work, and does not.
        text: What was found, in words.
    """

    group: str
    name: str
    state: State
    text: str


def make_parser() -> Parser:
    """Make the command's parser."""
    description = "Show versions, devices, and what works on this machine; exit status 1 if something is broken."
    parser = Parser(prog="bigain doctor", description=description)
    parser.add_argument("--compile", type=bool, default=True, help="Compile something small; takes some seconds.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Print every finding; exit status 1 if something is broken."""
    given = make_parser().parse_args([*arguments])
    console, broken, group = make_console(), 0, ""
    for finding in examine(given.compile):
        if finding.group != group:
            group = finding.group
            console.print(f"\n[bold]{group}[/bold]")
        console.print(_terminal_line(finding), highlight=False)
        broken += finding.state == "broken"
    console.print(f"\n{broken or 'Nothing'} broken.", highlight=False)
    if broken:
        sys.exit(1)


def examine(compiling: bool = True) -> Iterator[Finding]:
    """Yield every finding, one after another.

    Args:
        compiling: Whether to compile something small, which takes some seconds.
    """
    yield from _versions()
    devices = _devices()
    yield from (Finding("devices", str(device), "ok", text) for device, text in devices.items())
    for device in devices:
        for name, backend in _BACKENDS.items():
            yield _attention(device, name, backend)
    yield from _compilers(devices, compiling)
    yield from _adapters()
    yield from _plugins()


def _terminal_line(finding: Finding) -> "RenderableType":
    """Write a finding as a line, or as several if it is long."""
    from rich.table import Table
    from rich.text import Text

    mark, style = {"ok": ("+", "green"), "absent": ("-", "dim"), "note": ("!", "yellow"), "broken": ("x", "bold red")}[
        finding.state
    ]
    line = Table.grid(padding=(0, 1))
    for width in (1, 24, None):
        line.add_column(width=width, overflow="fold")
    line.add_row(Text(mark, style), Text(finding.name), Text(finding.text, style if mark == "x" else ""))
    return line


def _versions() -> Iterator[Finding]:
    """Compare what is installed with what bigain requires."""
    yield Finding("versions", "bigain", "ok", registry.running_version())
    yield Finding("versions", "Python", "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    try:
        asked = [Requirement(text) for text in requires("bigain") or ()]
    except PackageNotFoundError:
        yield Finding("versions", "metadata", "broken", "bigain is not installed: pip install -e . in its folder")
        return
    needed = [item for item in asked if item.marker is None or item.marker.evaluate({"extra": ""})]
    for item in needed:
        version = installed_version(item.name)
        fits = bool(version) and item.specifier.contains(version, prereleases=True)
        text = version if fits else f"{version or 'not installed'}; bigain needs {item.name}{item.specifier}"
        yield Finding("versions", item.name, "ok" if fits else "broken", text)
    for name in _OPTIONAL:
        version = installed_version(name)
        yield Finding("versions", name, "ok" if version else "absent", version or "not installed; optional")


def _devices() -> dict[torch.device, str]:
    """List the devices; CUDA is not initialised where there is none."""
    found = {torch.device("cpu"): f"{os.cpu_count()} cores, {torch.get_num_threads()} threads in use"}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            has: Any = torch.cuda.get_device_properties(index)
            memory = f"{has.total_memory / 2**30:.0f} GiB"
            found[torch.device("cuda", index)] = f"{has.name}, {memory}, compute capability {has.major}.{has.minor}"
    if torch.backends.mps.is_available():
        found[torch.device("mps")] = "Apple GPU"
    return found


def _attention(device: torch.device, name: str, backend: SDPBackend) -> Finding:
    """Run attention with one backend alone; if it does not run, PyTorch's warnings say why."""
    group = f"attention on {device}"
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            query = torch.zeros(_SHAPE, device=device, dtype=dtype)
            with sdpa_kernel(backend):
                F.scaled_dot_product_attention(query, query, query).sum().item()
        except RuntimeError as error:
            reasons = [re.sub(r"\s*\(Triggered internally.*", "", str(item.message)) for item in caught]
            text = " ".join(dict.fromkeys(reasons)) or f"none in PyTorch for {device.type}: {str(error).split('. ')[0]}"
            # Every machine should run the math backend.
            return Finding(group, name, "broken" if name == "math" else "absent", text)
    return Finding(group, name, "ok", f"runs in {str(dtype).removeprefix('torch.')}")


def _compilers(devices: Iterable[torch.device], compiling: bool) -> Iterator[Finding]:
    # The compilers that torch.compile looks for.
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    compiler = shutil.which(os.environ.get("CXX") or usual)
    text = compiler or "none on the path, so that torch.compile cannot make kernels for the CPU"
    yield Finding("compiling", "C++ compiler", "ok" if compiler else "note", text)
    for device in devices if compiling else ():
        yield _compiled(device, bool(compiler))


def _compiled(device: torch.device, compiler: bool, limit: float = 120) -> Finding:
    """Compile in a process of its own: compilers fail in many ways, and a first run can take minutes."""
    name, start = f"torch.compile, {device}", time.perf_counter()
    # -P: a file in the working directory may shadow a module that compiling needs.
    command = [sys.executable, "-P", "-c", _PROGRAM.format(device=device)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", process_group=0
    )
    try:
        written, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the compiler that it started, too
        process.communicate()
        return Finding("compiling", name, "note", f"was not done after {limit:g} s")
    if process.returncode:
        errors = [line for line in written.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
        reason = errors[-1] if errors else f"its process ended with {process.returncode}"
        return Finding("compiling", name, "broken" if compiler else "note", f"does not work here: {reason}")
    return Finding("compiling", name, "ok", f"works; {time.perf_counter() - start:.0f} s, starting Python included")


def _adapters() -> Iterator[Finding]:
    """Say which adapters can serve models here: their library is installed and has the classes."""
    for entry in registry.entries("adapters"):
        if entry.problem:
            continue  # listed among the plugins
        adapter: type[Adapter] = registry.get("adapters", entry.name)
        yield Finding("adapters", entry.name, *_adapter(adapter))


def _adapter(adapter: type[Adapter]) -> tuple[State, str]:
    library = getattr(adapter, "library", "")
    version = installed_version(library)
    if not version:
        return "absent", f"{library or 'its library'} is not installed"
    try:
        module = importlib.import_module(library)
    except Exception as error:  # whatever a broken library raises
        return "broken", f"{library} {version} cannot be imported: {type(error).__name__}: {error}"
    known = {*dir(module), *dir(getattr(module, "models", None)), *dir(getattr(module, "nn", None))}
    missing = [name for name in adapter.classes if name not in known]
    if len(missing) == len(adapter.classes) > 0:
        return "note", f"{library} {version} has no {', '.join(missing)}"
    lacks = f"; without {', '.join(missing)}" if missing else ""
    plain = version.partition("+")[0]
    if adapter.tested and plain not in re.findall(r"\d+(?:\.\w+)+", adapter.tested):
        return "note", f"{library} {version}; tested with {adapter.tested}{lacks}"
    return ("note" if missing else "ok"), f"{library} {version}{', as tested' if adapter.tested else ''}{lacks}"


def _plugins() -> Iterator[Finding]:
    """List the entries of other packages, and entries and groups that are broken or misspelt."""
    known = {f"bigain.{kind}" for kind in registry.KINDS}
    for group in sorted(group for group in entry_points().groups if group.startswith("bigain.") and group not in known):
        names = ", ".join(sorted(entry_points(group=group).names))
        yield Finding(
            "plugins", group, "broken", f"no such group of entry points ({names}): {', '.join(sorted(known))}"
        )
    for kind in registry.KINDS:
        for entry in registry.entries(kind):
            if entry.problem:
                yield Finding("plugins", f"{kind}/{entry.name}", "broken", entry.problem)
            elif entry.package.partition(" ")[0] != "bigain":
                yield Finding("plugins", f"{kind}/{entry.name}", "ok", entry.package)
