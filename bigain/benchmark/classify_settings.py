"""The settings of `bigain classify`."""

from dataclasses import dataclass, field

from bigain.adapters.placement import Placement
from bigain.backbones.folder import Dtype
from bigain.benchmark.generate import whole_numbers
from bigain.data.prompts import PROMPT
from bigain.diffusion.noise_set import Weighting
from bigain.errors import SettingError
from bigain.reducers.base import Identity, TokenReducer

__all__ = ["ClassifySettings"]


@dataclass(frozen=True)
class ClassifySettings:
    """How `bigain classify` classifies.

    Args:
        model: `embedded` (a small model of CIFAR-10 that ships with bigain), a folder that a
            diffusers pipeline's `save_pretrained` wrote, or `hub:owner/name[@revision]`.
        classes: Class names with commas between them, such as cat,dog, or a list that ships, such
            as imagenet-1k (`bigain list classes`); for a model that takes labels, its names or
            numbers. Default: the folder's sub-folders, a known data set's own, or such a model's
            classes.
        prompt: The prompt of a class, for models that take prompts; `{class}` is its name.
        reducer: The reducer to compare with none. Default: none alone.
        reducers: Several, each with a name for the results:
            {half: {name: lgtm, ratio: 0.5}, abm: {name: abm, ratio: 0.3}}.
        placement: Which blocks reducers work in. Default: those of the published methods.
        timesteps: Timesteps at which a class that survives to the end is evaluated.
        keep: Classes that survive the first quarter of them.
        weights: How timesteps count in a class's error: uniform, as in the paper; velocity; or
            logit_normal, for flows such as SD3's (see `bigain.diffusion.noise_set.Stages`).
        limit: Use at most so many images.
        skip_corrupt: Leave out images that cannot be read, and say which, instead of refusing to begin.
        rows: Rows of one forward pass. Default: 32, and half as many for as long as memory does not suffice.
        seed: Seeds the noise.
        dtype: Type of the weights. Default: fp32 on a CPU, half precision on a GPU.
        image_size: Side of the images, in pixels. Default: the size of the model's training.
        compile: Compile the network (`torch.compile`, equal blocks once) before anything is timed.
        device: auto (a GPU where there is one), cpu, cuda or cuda:1.

    Raises:
        SettingError: Impossible numbers.
    """

    model: str = "embedded"
    classes: str | None = None
    prompt: str = PROMPT
    reducer: TokenReducer = Identity()
    reducers: dict[str, TokenReducer] = field(default_factory=dict)
    placement: Placement = Placement()
    timesteps: int = 20
    keep: int = 5
    weights: Weighting = "uniform"
    limit: int | None = None
    skip_corrupt: bool = False
    rows: int | None = None
    seed: int = 0
    dtype: Dtype | None = None
    image_size: int | None = None
    compile: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, least in (("timesteps", 4), ("keep", 1), ("rows", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"{name} is {least} or more; got {value}.")
        whole_numbers("seed", str(self.seed))
