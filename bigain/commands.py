"""The commands that are not Lightning's verbs."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["compare", "export", "flops", "latency", "list"]


def compare(arguments: Sequence[str]) -> None:
    """Run `bigain compare`: several reducers, one page."""
    from jsonargparse import ArgumentParser
    from lightning.pytorch import seed_everything
    from rich.console import Console

    from bigain.compare.run import run_comparison
    from bigain.compare.settings import Comparison
    from bigain.compare.table import terminal_table

    parser = ArgumentParser(prog="bigain compare", description=compare.__doc__)
    parser.add_argument("--config", action="config", help="A YAML recipe, such as recipes/benchmark/cifar10_demo.yaml.")
    parser.add_argument("--output", type=Path, default=Path("results/compare"), help="Folder of the result.")
    parser.add_argument("--resume", action="store_true", help="Finish an interrupted comparison.")
    parser.add_class_arguments(Comparison, "comparison", as_group=True)
    given = parser.parse_args([*arguments])
    console = Console()
    seed_everything(given.comparison.seed, verbose=False)
    plan = parser.instantiate(given).comparison
    content = run_comparison(plan, given.output, given.resume, console, parser.dump(given))
    console.print(terminal_table(content))
    console.print(
        f"Wrote {given.output / 'report.html'} (open it in a browser), table.csv and comparison.json beside it."
    )


def export(arguments: Sequence[str]) -> None:
    """Turn a training checkpoint into half-precision safetensors."""
    from jsonargparse import ArgumentParser

    from bigain.backbones.export import export_checkpoint

    parser = ArgumentParser(prog="bigain export", description=export.__doc__)
    parser.add_argument("checkpoint", type=Path, help="A .ckpt file that `bigain fit` wrote.")
    parser.add_argument("output", type=Path, help="The .safetensors file to write.")
    parser.add_argument("--prefix", default="backbone.network.", help="Which part of the LightningModule to keep.")
    given = parser.parse_args([*arguments])
    print(export_checkpoint(given.checkpoint, given.output, given.prefix))


def flops(arguments: Sequence[str]) -> None:
    """Count the operations of one network evaluation under reducers: no weights, no GPU."""
    from dataclasses import fields

    from jsonargparse import ArgumentParser
    from rich.console import Console

    from bigain.profiling.flops import COUNTED
    from bigain.profiling.flops_plan import FlopsPlan, count_plan
    from bigain.profiling.flops_table import check_writable, terminal_table, told_of_parts, write_csv

    parser = ArgumentParser(prog="bigain flops", description=flops.__doc__)
    parser.add_argument("--config", action="config", help="A YAML recipe, such as recipes/flops/sd2_tables_11_18.yaml.")
    parser.add_class_arguments(FlopsPlan)
    parser.add_argument("--csv", type=Path, default=None, help="File for the table, too.")
    given = parser.instantiate(parser.parse_args([*arguments]))
    plan = FlopsPlan(**{item.name: getattr(given, item.name) for item in fields(FlopsPlan)})
    check_writable(given.csv)
    content = count_plan(plan)
    if given.csv is not None:
        write_csv(given.csv, content)
    console = Console()
    console.width = min(100, console.width)
    for line in (content.title, terminal_table(content), told_of_parts(content), COUNTED):
        console.print(line, highlight=False)


def latency(arguments: Sequence[str]) -> None:
    """Time a network under reducers on this device: random weights, compiled, beside no reduction."""
    from dataclasses import fields

    from jsonargparse import ArgumentParser
    from rich.console import Console

    from bigain.profiling.flops import COUNTED
    from bigain.profiling.latency_plan import LatencyPlan, measure_plan
    from bigain.profiling.latency_table import check_absent, terminal_table, told_below, write_latency

    parser = ArgumentParser(prog="bigain latency", description=latency.__doc__)
    parser.add_argument("--config", action="config", help="A YAML recipe, such as recipes/latency/sd2.yaml.")
    parser.add_class_arguments(LatencyPlan)
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the figures, too.")
    given = parser.instantiate(parser.parse_args([*arguments]))
    plan = LatencyPlan(**{item.name: getattr(given, item.name) for item in fields(LatencyPlan)})
    check_absent(given.output)
    console = Console()
    console.width = min(80, console.width)
    content = measure_plan(plan, lambda told: console.print(told, highlight=False))
    if given.output is not None:
        write_latency(given.output, content)
    for line in (
        "",
        content.title,
        terminal_table(content),
        told_below(content),
        f"FLOPs {COUNTED[0].lower()}{COUNTED[1:]}",
    ):
        console.print(line, highlight=False)


def list(arguments: Sequence[str]) -> None:  # noqa: A001 named as the command is
    """List scorers, reducers, adapters and backbones."""
    from jsonargparse import ArgumentParser
    from rich.console import Console
    from rich.table import Table

    from bigain.registry import KINDS, entries

    parser = ArgumentParser(prog="bigain list", description=list.__doc__)
    parser.add_argument("kinds", nargs="*", default=[], help=f"Any of {', '.join(KINDS)}; all by default.")
    given = parser.parse_args([*arguments])
    table = Table()
    for column in ("kind", "name", "package", "class", "problem"):
        table.add_column(column)
    for kind in given.kinds or KINDS:
        for entry in entries(kind):
            table.add_row(kind, entry.name, entry.package, entry.target, entry.problem)
    Console().print(table)
