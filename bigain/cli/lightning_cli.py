"""Lightning's command line for recipes, as `bigain fit` and `bigain test` run it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from bigain.cli.parser import Parser
from bigain.errors import DataError, SettingError
from bigain.results.wording import score_line

__all__ = ["VerbParser", "run_verb", "verb_parser"]

_VERBS = ("fit", "test")
"""Lightning's verbs that bigain's tasks support."""

_CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")
"""Words that Lightning takes for `--ckpt_path` beside a path."""


class VerbParser(Parser, LightningArgumentParser):
    """Lightning's parser with bigain's errors."""


class BigainCLI(LightningCLI):
    """Lightning's command line, with `--output` and `--resume` as options of their own."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Name the verbs, and the arguments of the trainer's method that no option sets."""
        return {verb: set(known) for verb, known in LightningCLI.subcommands().items() if verb in _VERBS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--output", type=str, default=None, help="Folder of the result.")
        parser.add_argument(
            "--resume", action="store_true", help="Finish what an interrupted run left beside the output folder."
        )

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand] if self.subcommand else self.config
        _refuse_missing_checkpoint(config.get("ckpt_path"))
        if config.get("weights_only") is None:
            config["weights_only"] = True  # a checkpoint is never unpickled
        for name in ("output", "resume"):
            if config.get(name):
                _set_in_task(config, name)

    def before_test(self) -> None:
        # The result stores the recipe that made it.
        config = self.config[self.subcommand]
        self.model.recipe = self._parser(self.subcommand).dump(config)

    def after_test(self) -> None:
        # Lightning's table has room for the bare figures alone.
        for score in getattr(self.model, "scores", ()):
            print(score_line(score))


class _MadeParsers(BaseException):
    """Raised to leave Lightning's constructor before anything is parsed."""

    def __init__(self, parsers: dict[str, Any]) -> None:
        super().__init__()
        self.parsers = parsers


class _ParsersAlone(BigainCLI):
    """Makes the parsers, and parses nothing."""

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _MadeParsers({verb: self._parser(verb) for verb in _VERBS})


_SETTINGS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "save_config_callback": None,
    "parser_class": VerbParser,
    "parser_kwargs": {"prog": "bigain"},
}


def run_verb(verb: str, arguments: Sequence[str]) -> None:
    """Parse and run one of Lightning's verbs."""
    BigainCLI(**_SETTINGS, args=[verb, *arguments])


def verb_parser(verb: str) -> VerbParser:
    """Return the parser of one of Lightning's verbs."""
    return _verb_parsers()[verb]


def _verb_parsers() -> dict[str, VerbParser]:
    try:
        _ParsersAlone(**_SETTINGS)
    except _MadeParsers as made:
        return made.parsers
    raise AssertionError("Lightning parses without parse_arguments")


def _set_in_task(config: Any, name: str) -> None:
    """Set `--output` or `--resume` in the task's own settings."""
    settings = config.model.init_args
    if name not in settings:
        raise SettingError(f"--{name} belongs to evaluation tasks; {config.model.class_path} has no such setting.")
    settings[name] = config[name]


def _refuse_missing_checkpoint(path: str | None) -> None:
    if path is not None and path not in _CHECKPOINT_WORDS and "://" not in path and not Path(path).exists():
        raise DataError(f"No checkpoint at {path}: --ckpt_path is a file or one of {', '.join(_CHECKPOINT_WORDS)}.")
