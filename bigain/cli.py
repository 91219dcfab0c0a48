"""The `bigain` command: Lightning's verbs, and a few of its own."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bigain.errors import BigainError

if TYPE_CHECKING:
    from lightning.pytorch.cli import LightningArgumentParser

__all__ = ["main"]

_OWN = {
    "compare": "Run classification, generation and cost for several reducers and write one page.",
    "export": "Turn a training checkpoint into the safetensors that ship.",
    "list": "List scorers, reducers, adapters and backbones, with the package each comes from.",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors of the user's are one sentence and exit status 2."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given and given[0] in _OWN:
            from bigain import commands

            getattr(commands, given[0])(given[1:])
        else:
            _lightning(given)
    except BigainError as error:
        print(f"bigain: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("bigain: interrupted; the same command with --resume goes on.", file=sys.stderr)
        sys.exit(130)


def _lightning(arguments: list[str]) -> None:
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
            for name in ("output", "resume"):
                if config.get(name):
                    config.model.init_args[name] = config[name]

    BigainCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        args=arguments,
        seed_everything_default=0,
        save_config_callback=None,
        parser_kwargs={verb: {"description": _verb(verb)} for verb in ("fit", "validate", "test", "predict")},
    )


def _verb(verb: str) -> str:
    return f"bigain {verb}: see recipes/ for configurations. Own commands: {', '.join(_OWN)}."


if __name__ == "__main__":
    main()
