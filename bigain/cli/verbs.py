"""Lightning's verbs, with recipes: `bigain fit` and `bigain test`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from bigain.cli.main import VERBS
from bigain.cli.parsers import OneLineErrors
from bigain.errors import DataError, SettingError

__all__ = ["run_verb", "verb_parsers"]

_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")
"""What Lightning takes for `--ckpt_path` beside a path."""


class _Parser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with bigain's errors."""


class BigainCLI(LightningCLI):
    """Lightning's command line with the result folder's two options within reach."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
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


class _ParsersAlone(BigainCLI):
    """Makes the parsers, and parses nothing."""

    def __init__(self) -> None:
        super().__init__(**_SETTINGS)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _MadeParsers({verb: self._parser(verb) for verb in VERBS})


class _MadeParsers(Exception):  # noqa: N818 it is no error
    """Leaves Lightning's constructor before anything runs."""

    def __init__(self, parsers: Mapping[str, LightningArgumentParser]) -> None:
        super().__init__()
        self.parsers = parsers


_SETTINGS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "save_config_callback": None,
    "parser_class": _Parser,
    "parser_kwargs": {"prog": "bigain"},
}


def run_verb(arguments: Sequence[str]) -> None:
    """Parse and run one of Lightning's verbs."""
    BigainCLI(**_SETTINGS, args=[*arguments])


def verb_parsers() -> Mapping[str, LightningArgumentParser]:
    """Make the parsers of Lightning's verbs that bigain's tasks have."""
    try:
        _ParsersAlone()
    except _MadeParsers as made:
        return made.parsers
    raise AssertionError("Lightning parses without parse_arguments")


def _hand_over(config: Any, name: str) -> None:
    settings = config.model.init_args
    if name not in settings:
        raise SettingError(f"--{name} belongs to evaluation tasks; {config.model.class_path} has no such setting.")
    settings[name] = config[name]


def _refuse_missing_checkpoint(path: str | None) -> None:
    if path is not None and path not in _CHECKPOINT_WORDS and "://" not in path and not Path(path).exists():
        raise DataError(f"No checkpoint at {path}: --ckpt_path is a file or one of {', '.join(_CHECKPOINT_WORDS)}.")
