"""What the commands do that are not Lightning's verbs."""

import sys
from collections.abc import Sequence
from typing import Any

__all__ = [
    "compare",
    "completion",
    "describe",
    "doctor",
    "export",
    "flops",
    "latency",
    "list",
    "new_plugin",
    "recipes",
    "schema",
]


def _parsed(command: str, arguments: Sequence[str]) -> tuple[Any, Any]:
    """Parse what a command is given; the parser comes along."""
    from bigain.cli.parsers import PARSERS

    parser = PARSERS[command]()
    return parser.parse_args([*arguments]), parser


def _console() -> Any:
    """Make a console of Rich that tells a closed pipe to who called, as `print` does."""
    from rich.console import Console

    class Told(Console):
        def on_broken_pipe(self) -> None:
            raise

    return Told()


def compare(arguments: Sequence[str]) -> None:
    """Run `bigain compare`: several reducers, one page."""
    from lightning.pytorch import seed_everything

    from bigain.benchmark.compare import run_comparison
    from bigain.benchmark.compare_table import terminal_table

    given, parser = _parsed("compare", arguments)
    console = _console()
    seed_everything(given.comparison.seed, verbose=False)
    plan = parser.instantiate(given).comparison
    content = run_comparison(plan, given.output, given.resume, console, parser.dump(given))
    console.print(terminal_table(content))
    console.print(
        f"Wrote {given.output / 'report.html'} (open it in a browser), table.csv and comparison.json beside it."
    )


def export(arguments: Sequence[str]) -> None:
    """Turn a training checkpoint into half-precision safetensors."""
    from bigain.training.export import export_checkpoint

    given, _ = _parsed("export", arguments)
    print(export_checkpoint(given.checkpoint, given.output, given.prefix))


def flops(arguments: Sequence[str]) -> None:
    """Count the operations of one network evaluation under reducers: no weights, no GPU."""
    from dataclasses import fields

    from bigain.benchmark.flops import COUNTED
    from bigain.benchmark.flops_settings import FlopsSettings, count_methods
    from bigain.benchmark.flops_table import check_writable, parts_note, terminal_table, write_csv

    given, parser = _parsed("flops", arguments)
    given = parser.instantiate(given)
    settings = FlopsSettings(**{item.name: getattr(given, item.name) for item in fields(FlopsSettings)})
    check_writable(given.csv)
    content = count_methods(settings)
    if given.csv is not None:
        write_csv(given.csv, content)
    console = _console()
    console.width = min(100, console.width)
    for line in (content.title, terminal_table(content), parts_note(content), COUNTED):
        console.print(line, highlight=False)


def latency(arguments: Sequence[str]) -> None:
    """Time a network under reducers on this device: random weights, compiled, beside no reduction."""
    from dataclasses import fields

    from bigain.benchmark.flops import COUNTED
    from bigain.benchmark.latency_settings import LatencySettings, measure_methods
    from bigain.benchmark.latency_table import check_absent, notes_below, terminal_table, write_latency

    given, parser = _parsed("latency", arguments)
    given = parser.instantiate(given)
    settings = LatencySettings(**{item.name: getattr(given, item.name) for item in fields(LatencySettings)})
    check_absent(given.output)
    console = _console()
    console.width = min(80, console.width)
    content = measure_methods(settings, lambda line: console.print(line, highlight=False))
    if given.output is not None:
        write_latency(given.output, content)
    for line in (
        "",
        content.title,
        terminal_table(content),
        notes_below(content),
        f"FLOPs {COUNTED[0].lower()}{COUNTED[1:]}",
    ):
        console.print(line, highlight=False)


def list(arguments: Sequence[str]) -> None:  # noqa: A001 named as the command is
    """List scorers, reducers, adapters, backbones and tasks."""
    from bigain.cli.listing import as_json, rows_of, terminal_table

    given, _ = _parsed("list", arguments)
    rows = rows_of(given.kinds)
    if given.json:
        print(as_json(rows))
    else:
        _console().print(terminal_table(rows))


def describe(arguments: Sequence[str]) -> None:
    """Show what one of the things listed is, takes, and comes from."""
    from bigain.cli.describe import describe as find
    from bigain.cli.describe import terminal_text

    given, _ = _parsed("describe", arguments)
    console = _console()
    for part in terminal_text(find(given.name)):
        console.print(part, highlight=False)


def schema(arguments: Sequence[str]) -> None:
    """Print a JSON schema of a command's recipes."""
    import json

    from bigain.cli.schema import recipe_schema

    given, _ = _parsed("schema", arguments)
    print(json.dumps(recipe_schema(given.command), indent=2))


def completion(arguments: Sequence[str]) -> None:
    """Print a script that completes options in a shell."""
    from bigain.cli.completion import completion_script

    given, _ = _parsed("completion", arguments)
    print(completion_script(given.shell))


def doctor(arguments: Sequence[str]) -> None:
    """Show what works on this machine; exit status 1 if something is broken."""
    from bigain.cli.doctor import examine, terminal_line

    given, _ = _parsed("doctor", arguments)
    console, broken, group = _console(), 0, ""
    for finding in examine(given.compile):
        if finding.group != group:
            group = finding.group
            console.print(f"\n[bold]{group}[/bold]")
        console.print(terminal_line(finding), highlight=False)
        broken += finding.state == "broken"
    console.print(f"\n{broken or 'Nothing'} broken.", highlight=False)
    if broken:
        sys.exit(1)


def new_plugin(arguments: Sequence[str]) -> None:
    """Write a package with a scorer, a reducer and their tests."""
    from bigain.cli.scaffold import new_plugin as write
    from bigain.cli.scaffold import next_steps

    given, _ = _parsed("new-plugin", arguments)
    folder = write(given.name, given.folder)
    print(f"Wrote {folder}. To install it, test it, and see it beside the others:\n")
    print("\n".join(f"  {line}" for line in next_steps(folder).splitlines()))
    print(f"\nThen {folder / 'README.md'} says how to compare it with L-GTM.")


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes that ship, or copy them."""
    from bigain.cli.shipped import copy_recipes, terminal_table
    from bigain.cli.shipped import recipes as shipped

    given, _ = _parsed("recipes", arguments)
    if given.output is not None:
        print(f"Wrote {given.output}: {copy_recipes(given.output)} files.")
        return
    _console().print(terminal_table(shipped()), highlight=False)
    print("The first lines of each say how it is run. To edit them: bigain recipes --output recipes")
