"""Build diffusers schedulers from a checkpoint's configuration."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, cast

import torch

from bigain.errors import SettingError, first_line

__all__ = ["PROCESS_SETTINGS", "SchedulerSpec", "build_scheduler", "from_configuration"]

SchedulerSpec = str | Mapping[str, Any] | None
"""`None` for the checkpoint's own, a class path, or `{class_path, init_args}`; without a class path, its own class."""

PROCESS_SETTINGS = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "rescale_betas_zero_snr",
        "snr_shift_scale",
        "prediction_type",
        "use_flow_sigmas",
    }
)
"""Scheduler settings that define the forward process: the checkpoint's, which a sampler cannot change."""


def from_configuration(config: Mapping[str, Any]) -> Any:
    """Build the scheduler that a configuration describes.

    Args:
        config: The content of `scheduler_config.json`; `_class_name` is a scheduler of diffusers.

    Raises:
        SettingError: The class is unknown, or does not accept the settings.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise SettingError(
            f"A scheduler configuration names its class under _class_name; this one has {', '.join(map(str, config))}."
        )
    return _build(_diffusers_class(name), config, {})


def build_scheduler(config: Mapping[str, Any], spec: SchedulerSpec = None) -> Any:
    """Build the scheduler to sample with: the checkpoint's own, or another with the checkpoint's process.

    Args:
        config: The checkpoint's scheduler configuration.
        spec: `None`; a class path such as `diffusers.EulerDiscreteScheduler`; or a mapping with
            `class_path`, `init_args` or both. Other settings come from `config`.

    Raises:
        SettingError: Not a scheduler, an unknown setting, or one that would change the process.
    """
    given: dict[str, Any] = {"class_path": spec} if isinstance(spec, str) else {**(spec or {})}
    path = given.pop("class_path", None) or config.get("_class_name")
    settings = dict(given.pop("init_args", None) or {})
    if given:
        raise SettingError(f"A scheduler is given as class_path and init_args; got {', '.join(map(str, given))}.")
    found = _import(str(path)) if "." in str(path) else _diffusers_class(str(path))
    _check(found, settings)
    return _build(found, config, settings)


def _check(scheduler: type[Any], settings: Mapping[str, Any]) -> None:
    names = inspect.signature(scheduler.__init__).parameters
    accepted = [name for name in names if name not in PROCESS_SETTINGS | {"self"}]
    fixed = sorted(PROCESS_SETTINGS & set(settings))
    if fixed:
        raise SettingError(
            f"{scheduler.__name__} got {', '.join(fixed)}: the checkpoint decides on its process, so that it "
            f"classifies and samples with the same one. Accepted are {', '.join(accepted)}."
        )
    unknown = sorted(set(settings) - set(accepted))
    if unknown:
        raise SettingError(
            f"{scheduler.__name__} has no setting {', '.join(unknown)}; accepted are {', '.join(accepted)}."
        )


def _build(scheduler: type[Any], config: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    try:
        # Tables are read on the host; Lightning and `bigain flops` may have set another default device.
        with torch.device("cpu"):
            return scheduler.from_config(dict(config), **settings)
    except (ImportError, NotImplementedError, TypeError, ValueError) as error:
        raise SettingError(
            f"{scheduler.__name__} cannot be built with the settings it was given: {first_line(error)}"
        ) from error


def _diffusers_class(name: str) -> type[Any]:
    import diffusers

    found = getattr(diffusers, name, None) if name.isidentifier() else None
    return _scheduler_class(found, name)


def _import(path: str) -> type[Any]:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingError(f"The scheduler {path} cannot be imported: {error}") from error
    return _scheduler_class(found, path)


def _scheduler_class(found: Any, name: str) -> type[Any]:
    from diffusers import SchedulerMixin

    if not (isinstance(found, type) and issubclass(found, SchedulerMixin)):
        raise SettingError(
            f"{name} is no scheduler; accepted are those of diffusers, such as diffusers.EulerDiscreteScheduler, and "
            "other classes derived from diffusers.SchedulerMixin by their path."
        )
    return cast("type[Any]", found)
