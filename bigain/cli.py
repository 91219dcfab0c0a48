"""The `bigain` command: Lightning's verbs, and a few of its own."""

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bigain.adapters.base import Part
from bigain.adapters.placement import PRESETS
from bigain.errors import BigainError, DataError, SettingError
from bigain.registry import get

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["main"]

OWN_COMMANDS = {
    "compare": "Run classification, generation and cost for several reducers and write one page.",
    "export": "Turn a training checkpoint into the safetensors that ship.",
    "flops": "Count operations of any network under any reducers: no weights, no GPU, in seconds.",
    "latency": "Time any network under any reducers on this device: random weights, compiled to one graph.",
    "list": "List scorers, reducers, adapters and backbones, with the package each comes from.",
}
"""Commands that are not Lightning's verbs."""

_RESUMING = ("compare", "test")
"""Commands with --resume."""

_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")
"""What Lightning takes for `--ckpt_path` beside a path."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's error is one sentence and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _quieten()
    try:
        if given and given[0] in OWN_COMMANDS:
            from bigain import commands

            getattr(commands, given[0])(_with_class_paths(given[1:]))
        else:
            _lightning(given)
    except Exception as error:
        told = _users_error(error)
        if told is None:
            raise
        print(f"bigain: error: {told}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        goes_on = "; the same command with --resume goes on" if given and given[0] in _RESUMING else ""
        print(f"bigain: interrupted{goes_on}.", file=sys.stderr)
        sys.exit(130)


def _users_error(error: BaseException | None) -> BigainError | None:
    """Find the user's error among the causes of one.

    jsonargparse takes what is raised while a recipe is built for a mismatch of types
    and raises an error of its own, with everything it tried.
    """
    while error is not None and not isinstance(error, BigainError):
        error = error.__cause__ or error.__context__
    return error


def _lightning(arguments: Sequence[str]) -> None:
    from lightning.pytorch import LightningDataModule, LightningModule
    from lightning.pytorch.cli import LightningCLI

    class BigainCLI(LightningCLI):
        """Lightning's command line with the result folder's two options within reach."""

        def add_arguments_to_parser(self, parser: "LightningArgumentParser") -> None:
            parser.add_argument("--output", type=str, default=None, help="Folder of the result.")
            parser.add_argument(
                "--resume", action="store_true", help="Finish what an interrupted run left beside the output folder."
            )

        def before_instantiate_classes(self) -> None:
            config = self.config[self.subcommand] if self.subcommand else self.config
            _refuse_missing_checkpoint(config.get("ckpt_path"))
            for name in ("output", "resume"):
                if config.get(name):
                    _hand_over(config, name)

        def before_test(self) -> None:
            # A result holds the recipe that made it.
            config = self.config[self.subcommand]
            self.model.recipe = self._parser(self.subcommand).dump(config)

    own = "\n".join(f"  {name:<8} {told}" for name, told in OWN_COMMANDS.items())
    BigainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=_with_class_paths(arguments),
        seed_everything_default=0,
        save_config_callback=None,
        parser_kwargs={
            "description": f"Lightning's verbs with recipes, and: {', '.join(OWN_COMMANDS)}.",
            "epilog": own,
        },
    )


def _with_class_paths(arguments: Sequence[str]) -> list[str]:
    """Turn registered names into class paths; `--reducer lgtm` means `--reducer=lgtm`."""
    joined: list[str] = []
    for argument in arguments:
        option = joined[-1] if joined else ""
        if option.startswith("--") and "=" not in option and _kind_of(option) and not argument.startswith("-"):
            joined[-1] = f"{option}={argument}"
        else:
            joined.append(argument)
    return [_with_class_path(argument) for argument in joined]


def _kind_of(option: str) -> str | None:
    """Say what kind of class an option takes: `--model.reducer` takes reducers."""
    names = {"reducer": "reducers", "otherwise": "reducers", "backbone": "backbones", "scorer": "scorers"}
    return names.get(option.removeprefix("--").rpartition(".")[2])


def _with_class_path(argument: str) -> str:
    """Turn `--model.reducer=lgtm` into the class path that jsonargparse wants."""
    option, equals, value = argument.partition("=")
    if option.endswith("placement") and value in PRESETS:
        return f"{option}.preset={value}"
    if option.endswith("placement.parts") and value in get_args(Part):
        return f"{option}=[{value}]"
    kind = _kind_of(option)
    if kind is None or not equals or "." in value or value.startswith(("{", "null")):
        return argument
    found = get(kind, value)
    return f"{option}={found.__module__}.{found.__qualname__}"


def _hand_over(config: Any, name: str) -> None:
    settings = config.model.init_args
    if name not in settings:
        raise SettingError(f"--{name} belongs to evaluation tasks; {config.model.class_path} has no such setting.")
    settings[name] = config[name]


def _refuse_missing_checkpoint(path: str | None) -> None:
    if path is not None and path not in _CHECKPOINT_WORDS and "://" not in path and not Path(path).exists():
        raise DataError(f"No checkpoint at {path}: --ckpt_path is a file or one of {', '.join(_CHECKPOINT_WORDS)}.")


def _quieten() -> None:
    """Drop what is neither about this run nor in the user's hands."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own calls
    advertisement = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    advertisement.addFilter(lambda record: not record.getMessage().startswith("💡"))
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter is intended.*")
    # Images lie decoded in memory: worker processes would slow their loading down.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")


if __name__ == "__main__":
    main()
