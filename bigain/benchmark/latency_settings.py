"""What `bigain latency` measures: networks of random weights, or one self-attention, at one size or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch

from bigain.adapters.placement import Placement
from bigain.benchmark.methods import methods_of
from bigain.errors import SettingError
from bigain.profiling.modes import Backend, Mode
from bigain.reducers.base import Identity, TokenReducer

__all__ = ["DTYPES", "Beside", "LatencySettings", "Size", "device_of"]

Precision = Literal["fp32", "fp16", "bf16"]

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Types by their names in the options."""

Beside = Literal["floors", "peers", "written_out"]
"""What is timed beside methods: floors that none can beat, other packages, the paper's baseline."""


@dataclass(frozen=True)
class Size:
    """The size of one pass.

    Args:
        shape: Tokens along each axis of the grid; `None`: as configured.
        rows: Rows of the pass.
        channels: C of a self-attention by itself; `None`: the network's.
        heads: Heads of a self-attention by itself; `None`: the network's.
    """

    shape: tuple[int, ...] | None
    rows: int
    channels: int | None = None
    heads: int | None = None


@dataclass(frozen=True)
class LatencySettings:
    """Time passes under reducers, in turn with passes without reduction.

    Args:
        network: A shipped architecture (sd15, sd2, sdxl, sd3, dit_xl_2_256, dit_xl_2_512, flux1,
            wan_1_3b, vit_l_16_384), the embedded model (cifar10_dit), or a folder or file with
            the config.json of a diffusers or timm network. Weights are random.
        reducer: One reducer. No reduction is always timed too.
        reducers: Several: method name to reducer.
        placement: Which blocks, and which parts of them. Default: those of the published
            methods.
        shape: Tokens along each axis of the network's input grid, `[96, 64]`. Default: as
            configured.
        shapes: Several shapes, `[[64, 64], [128, 128]]`: each is measured by itself.
        rows: Rows of one pass: a number, or one for each shape.
        dtype: fp32, fp16 or bf16. Default: fp16 on a GPU, fp32 on a CPU.
        device: auto (a GPU where there is one), cpu, cuda or cuda:1.
        modes: How passes run: eager (as the network is), compiled (without a break, launched
            by the host), graphs (compiled, and replayed as a CUDA graph, so that the device
            alone is timed). Default: graphs on a GPU, compiled on a CPU.
        backend: What compiles: inductor; aot_eager and eager make the graph and no kernels.
        regional: Compile a network region by region (its transformer blocks, and the
            convolutional ones of a U-Net), so that equal regions are compiled once; the rest
            runs as it is. False: each method to one graph, which takes several times longer
            to compile and, launched by the host, saves the checks before each region.
        beside: What is timed beside methods: floors (as many tokens without the work of
            choosing them, and no self-attention at all), peers (tomesd, where it is installed,
            knows the network and works in the same blocks), written_out (the paper's own
            baseline: attention with its logits in memory, without reduction and with the first
            merging method).
        self_attention: Time one self-attention alone instead of a network: norm, projections,
            attention, projection and residual, and the pieces of each reducer by themselves.
            Then `shape` is the attention's own grid.
        channels: C of that self-attention: a number, or one for each shape. Default: that of
            the network's first self-attention that the placement takes.
        heads: Heads of that self-attention; given and by default as channels are.
        repeats: Timed rounds, in each of which every method runs once.
        warmup: Rounds before, not timed.
        timestep: Time a reducer that switches by timestep at this timestep. Default: as if
            rows could be at any.
        seed: Seeds weights, inputs and what reducers draw.

    Raises:
        SettingError: Settings that exclude each other or have no meaning.
    """

    network: str | None = None
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    shape: list[int] | None = None
    shapes: list[list[int]] | None = None
    rows: int | list[int] = 1
    dtype: Precision | None = None
    device: str = "auto"
    modes: list[Mode] | None = None
    backend: Backend = "inductor"
    regional: bool = True
    beside: list[Beside] = field(default_factory=lambda: ["floors", "peers"])
    self_attention: bool = False
    channels: int | list[int] | None = None
    heads: int | list[int] | None = None
    repeats: int = 20
    warmup: int = 3
    timestep: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("repeats", 1), ("warmup", 0)):
            if getattr(self, name) < least:
                raise SettingError(f"{name} is {least} or more; got {getattr(self, name)}.")
        if self.network is None and not (self.self_attention and self.channels and self.heads):
            raise SettingError("Give network: what is timed. With self_attention, channels and heads will do instead.")
        if not self.self_attention and (self.channels is not None or self.heads is not None):
            raise SettingError("channels and heads are those of a self-attention by itself: give self_attention, too.")
        _each_once("modes", self.modes, get_args(Mode))
        _each_once("beside", self.beside, get_args(Beside))
        self._check_device()
        methods_of(self.reducer, self.reducers)
        _ = self.sizes

    def _check_device(self) -> None:
        if device_of(self.device).type != "cuda" and "graphs" in (self.modes or ()):
            raise SettingError(
                "The mode graphs replays CUDA graphs, and the device is a CPU: take modes=[compiled], or eager."
            )

    @property
    def chosen_modes(self) -> tuple[Mode, ...]:
        """The modes, by default those of the device."""
        usual: list[Mode] = ["graphs" if device_of(self.device).type == "cuda" else "compiled"]
        return tuple(self.modes or usual)

    @property
    def chosen_dtype(self) -> str:
        """The name of the type, by default that of the device."""
        return self.dtype or ("fp16" if device_of(self.device).type == "cuda" else "fp32")

    @property
    def sizes(self) -> list[Size]:
        """The size of each pass.

        Raises:
            SettingError: Not as many rows, channels or heads as shapes.
        """
        if self.shape is not None and self.shapes is not None:
            raise SettingError("Give shape or shapes, not both.")
        shapes = [None if one is None else tuple(one) for one in (self.shapes or (self.shape,))]
        rows = _spread("rows", self.rows, len(shapes))
        channels, heads = (
            [None] * len(shapes) if one is None else _spread(name, one, len(shapes))
            for name, one in (("channels", self.channels), ("heads", self.heads))
        )
        wrong = [f"{c} and {h}" for c, h in zip(channels, heads, strict=True) if c and h and c % h]
        if wrong:
            raise SettingError(f"channels are a multiple of heads; got {', '.join(wrong)}.")
        return [Size(*one) for one in zip(shapes, rows, channels, heads, strict=True)]


def _spread(name: str, given: int | list[int], count: int) -> list[int]:
    """Return one number for each shape."""
    values = given if isinstance(given, list) else [given] * count
    if len(values) != count:
        raise SettingError(f"{name} is one number, or one for each of {count} shapes; got {len(values)}: {values}.")
    if min(values) < 1:
        raise SettingError(f"{name} is 1 or more; got {min(values)}.")
    return values


def _each_once(name: str, given: Sequence[str] | None, known: tuple[str, ...]) -> None:
    wrong = given is not None and (not set(given) <= set(known) or len(set(given)) < len(given))
    if wrong or (name == "modes" and given == []):
        raise SettingError(f"{name} are of {', '.join(known)}, each once; got {given}.")


def device_of(name: str) -> torch.device:
    """Return the device of a name.

    Raises:
        SettingError: There is no such device, or it is neither a CPU nor a CUDA device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingError(f"device is auto, cpu, cuda or cuda:N; got {name!r}.")
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise SettingError(f"device={name} was asked for; torch {torch.__version__} sees {found} CUDA devices.")
    return device
