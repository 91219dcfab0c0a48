"""`bigain cache`: what is kept on disk, and how to remove it."""

from collections.abc import Sequence

from bigain.cli.parser import Parser

__all__ = ["make_parser", "run"]


def make_parser() -> Parser:
    """Make the command's parser."""
    description = (
        "Show where text embeddings, latents and features are kept (BIGAIN_CACHE), and how much room they take."
    )
    parser = Parser(prog="bigain cache", description=description)
    parser.add_argument("--clear", action="store_true", help="Remove them.")
    return parser


def run(arguments: Sequence[str]) -> None:
    """Show or clear the cache."""
    given = make_parser().parse_args([*arguments])
    from bigain.results.cache import cache_folder, cache_size, clear_cache  # imports torch, which --help needs not

    if given.clear:
        print(f"{clear_cache() / 2**20:.1f} MiB removed from {cache_folder()}.")
    else:
        print(f"{cache_size() / 2**20:.1f} MiB in {cache_folder()}.")
