"""`bigain export`: from a training checkpoint to the weights that ship."""

from collections.abc import Sequence
from pathlib import Path

from bigain.cli.parser import Parser

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    parser = Parser(prog="bigain export", description="Turn a training checkpoint into half-precision safetensors.")
    parser.add_argument("checkpoint", type=Path, help="A .ckpt file that `bigain fit` wrote.")
    parser.add_argument("output", type=Path, help="The .safetensors file to write.")
    parser.add_argument("--prefix", default="backbone.network.", help="Which part of the LightningModule to take.")
    parser.add_argument("--average", help="Length of the average to take, where the checkpoint has several.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Write the weights and say what was written."""
    given = make_parser().parse_args([*arguments])
    from bigain.training.export import export_checkpoint  # imports torch, which --help does not need

    print(export_checkpoint(given.checkpoint, given.output, given.prefix, given.average))
