"""Where in a model a reducer works: which blocks, and which parts of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args

from bigain.adapters.base import Part, PlanFrom
from bigain.errors import SettingError

__all__ = ["BLOCK_CHOICES", "PRESETS", "Placement", "Preset", "placement_of"]

BLOCK_CHOICES = ("layers", "names", "downsample")
"""Settings of a placement that choose blocks."""

_WHERE = ("parts", *BLOCK_CHOICES)
"""What a preset decides."""


@dataclass(frozen=True)
class Removal:
    """How many tokens the blocks of a progressive placement remove for good.

    Args:
        tokens: A number for each block, or one for all; `None`: as many as the reducer's ratio says.
    """

    tokens: tuple[int, ...] | int | None

    @classmethod
    def of(cls, given: object) -> "Removal":
        """Read a placement's `progressive`.

        Raises:
            SettingError: Neither true, nor a number, nor a list of numbers.
        """
        if given is True:
            return cls(None)
        numbers = tuple(given) if isinstance(given, Sequence) else (given,)
        whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
        if not whole or not numbers or min(numbers) < 0 or max(numbers) < 1:
            raise SettingError(
                "progressive is true, a number of tokens (1 or more), or a list of numbers, not all 0, one for each "
                f"block; got {given!r}."
            )
        return cls(numbers if isinstance(given, Sequence) else numbers[0])

    def of_blocks(self, blocks: int) -> tuple[int | None, ...]:
        """Return the number for each block; `None` for what the ratio says.

        Raises:
            SettingError: Numbers for more or fewer blocks.
        """
        if not isinstance(self.tokens, tuple):
            return (self.tokens,) * blocks
        if len(self.tokens) != blocks:
            raise SettingError(
                f"progressive names {len(self.tokens)} numbers of tokens for {blocks} blocks; give one each."
            )
        return self.tokens


@dataclass(frozen=True)
class Placement:
    """Which blocks a reducer works in, and in which parts of them.

    Blocks must meet every condition that is given; with none, they are those of the
    published methods (U-Nets: full resolution; DiT: the first 12 of 28).

    Args:
        parts: `self` (self-attention), `cross` (queries of cross-attention), `mlp`.
            The parts of one block share one plan.
        layers: Indices of blocks counted from the input, or how many of the first.
        names: Patterns of block paths, such as `down_blocks.*` or `*transformer_blocks.0`.
        downsample: How many times coarser than the model's input grid their grids are; 1 is
            full resolution, `[1, 2]` the two finest.
        plan_from: `block`: plans are made from the block's input, before the norm.
            `part`: from the input of the first part that is reduced. Default: as
            published, `block` in U-Nets and `part` in DiT. `keys`, in progressive
            placements alone and their default: from the mean of the heads' keys.
        proportional: Weight each key by the number of tokens it stands for. Default: in
            progressive placements only. ToMe's authors turn it off for MAE as pretrained.
        min_tokens: A block whose grid has fewer tokens than this is left alone, since planning
            may cost more there than it saves. 0, the default, leaves none alone. If every
            block is left alone, the first pass raises.
        progressive: In vision transformers: merged tokens stay merged through the following
            blocks, which see them as a sequence (a cell is one number), and pooling weights
            each by its size. `True`: every block removes the reducer's ratio of the tokens
            that are left. A number, or one for each block: so many tokens, whatever the
            reducer's ratio; `tome_schedule` makes such a list. The model returns fewer
            tokens; none are restored.
        preset: Name of a published placement, instead of parts, layers, names and
            downsample: `PRESETS`.

    Raises:
        SettingError: An unknown part, preset or source of plans, an empty list, or settings
            that exclude each other.

    References:
        BiGain, Table 6 (parts) and appendix B.4.1 (blocks). Token Merging: Your ViT but
        Faster (Bolya et al., 2023), section 3 (progressive).
    """

    parts: Sequence[Part] = ("self",)
    layers: Sequence[int] | int | None = None
    names: Sequence[str] | str | None = None
    downsample: Sequence[int] | int | None = None
    plan_from: PlanFrom | None = None
    proportional: bool | None = None
    min_tokens: int = 0
    preset: str | None = None
    progressive: bool | int | Sequence[int] = False

    def __post_init__(self) -> None:
        parts = (self.parts,) if isinstance(self.parts, str) else tuple(self.parts)
        if not parts or not set(parts) <= set(get_args(Part)) or len(set(parts)) < len(parts):
            raise SettingError(f"parts are one or more of {', '.join(get_args(Part))}, each once; got {self.parts!r}.")
        object.__setattr__(self, "parts", parts)
        for name, wanted in (("layers", int), ("names", str), ("downsample", int)):
            given = getattr(self, name)
            items = given if isinstance(given, Iterable) and not isinstance(given, str) else (given,)
            wrong = [item for item in items if not isinstance(item, wanted) or isinstance(item, bool)]
            if given is not None and wrong:
                raise SettingError(f"{name} of a placement: give {wanted.__name__}, one or a list; got {given!r}.")
            if isinstance(given, Iterable) and not isinstance(given, str):
                object.__setattr__(self, name, tuple(given))
        self._check_values()
        if self.preset is not None and self.preset not in PRESETS:
            raise SettingError(f"There is no placement {self.preset!r}; there are {', '.join(PRESETS)}.")
        if self.preset is not None and any(getattr(self, name) != getattr(Placement, name) for name in _WHERE):
            raise SettingError(f"preset={self.preset!r} says where to work; give none of {', '.join(_WHERE)} besides.")
        if "self" not in parts and self.proportional:
            raise SettingError(f"proportional weights the keys of self-attention; parts are {', '.join(parts)}.")
        self._check_progressive()

    def _check_values(self) -> None:
        if not isinstance(self.proportional, bool | None):
            raise SettingError(f"proportional is true or false; got {self.proportional!r}.")
        if not isinstance(self.min_tokens, int) or isinstance(self.min_tokens, bool) or self.min_tokens < 0:
            raise SettingError(f"min_tokens is a number of tokens, 0 or more; got {self.min_tokens!r}.")
        if self.plan_from not in (None, *get_args(PlanFrom)):
            raise SettingError(f"plan_from is one of {', '.join(get_args(PlanFrom))}; got {self.plan_from!r}.")

    def _check_progressive(self) -> None:
        removal = self.removal
        if removal is None:
            if self.plan_from == "keys":
                raise SettingError("plan_from='keys' is for progressive placements: others merge before keys are made.")
            return
        if self.preset is not None:
            raise SettingError(f"The placement {self.preset!r} was published with every token given back.")
        if self.parts not in (("self",), ("self", "mlp")):
            raise SettingError(
                f"A progressive placement merges between self-attention and MLP; leave out parts={self.parts!r}."
            )
        object.__setattr__(self, "parts", ("self", "mlp"))
        if isinstance(removal.tokens, tuple):
            object.__setattr__(self, "progressive", removal.tokens)

    @property
    def removal(self) -> "Removal | None":
        """What `progressive` asks of the blocks; `None` where every token is restored."""
        return None if self.progressive is False else Removal.of(self.progressive)

    @property
    def weighted(self) -> bool:
        """Whether keys are weighted: `proportional`, or else true in progressive placements alone."""
        return self.removal is not None if self.proportional is None else self.proportional

    def __str__(self) -> str:
        stays = self.removal is not None
        usual = {item.name: item.default for item in fields(self)}
        usual |= {"parts": ("self", "mlp") if stays else ("self",), "proportional": stays}
        given = {item.name: getattr(self, item.name) for item in fields(self)} | {"proportional": self.weighted}
        shown = [f"{name}={value!r}" for name, value in given.items() if value != usual[name]]
        return ", ".join(shown) or "default"


@dataclass(frozen=True)
class Preset:
    """A published placement, and the models it was published for.

    Args:
        adapter: Name of their adapter.
        placement: The placement.
        source: Where it is published.
        blocks: How many blocks those models have; `None` for any.
    """

    adapter: str
    placement: Placement
    source: str
    blocks: int | None = None


_FULL = Placement(downsample=1)
_TABLE_6 = "BiGain, Table 6"

PRESETS: Mapping[str, Preset] = {
    "sd": Preset("unet", _FULL, "BiGain, Table 11: the self-attentions at full resolution"),
    "sd_encoder": Preset("unet", replace(_FULL, names="down_blocks.*"), "BiGain, appendix B.4.1, as worded"),
    "sd_sa_ca": Preset("unet", replace(_FULL, parts=("self", "cross")), _TABLE_6),
    "sd_sa_mlp": Preset("unet", replace(_FULL, parts=("self", "mlp")), _TABLE_6),
    "sd_sa_ca_mlp": Preset("unet", replace(_FULL, parts=("self", "cross", "mlp")), _TABLE_6),
    "dit_xl_2": Preset("dit", Placement(layers=12), "BiGain, appendix B.4.1: the first 12 of 28 blocks", 28),
    "dit_xl_2_released": Preset(
        "dit", Placement(layers=(*range(1, 6), *range(7, 12))), "the authors' released scripts", 28
    ),
}
"""Placements by name."""


def placement_of(
    given: Placement | str | Mapping[str, Any] | None, layers: Sequence[int] | int | None = None
) -> Placement:
    """Make a placement from a preset's name, a mapping, a placement or, as a shorthand, `layers`.

    Raises:
        SettingError: Both are given, or the mapping has other keys.
    """
    if given is not None and layers is not None:
        raise SettingError("Give layers or a placement, not both: a placement has layers of its own.")
    if isinstance(given, Placement):
        return given
    if isinstance(given, str):
        return Placement(preset=given)
    if given is not None and not isinstance(given, Mapping):
        raise SettingError(
            f"placement is a Placement, a mapping of its fields, or the name of a published one; got {given!r}."
        )
    try:
        return Placement(layers=layers) if given is None else Placement(**given)
    except TypeError as error:
        known = ", ".join(item.name for item in fields(Placement))
        raise SettingError(f"A placement has {known}: {error}") from error
