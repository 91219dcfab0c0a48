"""One self-contained HTML page of a finished comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from bigain.data.dataset import ImageDataset
from bigain.errors import DataError
from bigain.report.gallery import generated_columns, test_gallery
from bigain.report.headline import headline
from bigain.report.merge_maps import Drawing, draw
from bigain.report.palette import Style, method_styles
from bigain.report.plots import plot, points_of
from bigain.report.reading import read_maps, read_samples
from bigain.report.render import page_style, shown_provenance, shown_settings, template
from bigain.report.shipped import shipped_run_beside
from bigain.report.tables import Table, comparison_table, short_label
from bigain.results.predictions import Predictions
from bigain.results.scores import columns_of
from bigain.results.store import read_result
from bigain.results.wording import listed, number, quantity

__all__ = ["write_page"]

_COLUMNS = 16
"""Generated images shown of each method."""

_QUALITIES = ("share", "number")
"""Units of the scores that are plotted against cost."""


@dataclass(frozen=True)
class _Run:
    """A comparison's table, and a plot of each quality with its name."""

    table: Table
    plots: tuple[tuple[str, Markup | None], ...]


@dataclass(frozen=True)
class _Mapped:
    """The merges of one method: one drawing per input, `None` where nothing can be drawn."""

    name: str
    about: str
    drawings: tuple[Drawing | None, ...]


def write_page(folder: Path, images: ImageDataset) -> Path:
    """Write `report.html` into the folder of a finished comparison.

    The page is self-contained, with styles, drawings and pictures inside. Beside a
    comparison of the embedded model it shows the full run that ships with the package.

    Args:
        folder: Has `comparison.json` and a folder per method.
        images: The test set that was classified.

    Returns:
        The path of the page.

    Raises:
        DataError: A file is missing or damaged, or belongs to another test set.
    """
    folder = Path(folder)
    content = read_result(folder / "comparison.json")
    if not content.get("rows"):
        raise DataError(f"{folder / 'comparison.json'} names no methods: there is nothing to report.")
    page = template("page.html.j2").render(**_fields(folder, content, images, shipped_run_beside(content)))
    target = folder / "report.html"
    temporary = folder / ".report.html.tmp"
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(target)


def _fields(
    folder: Path, content: Mapping[str, Any], images: ImageDataset, shipped: Mapping[str, Any] | None
) -> dict[str, Any]:
    rows = content["rows"]
    names = [row["name"] for row in rows]
    styles = method_styles([*names, *(row["name"] for row in (shipped or {}).get("rows", []))])
    places = {name: folder / "rows" / name for name in names}
    generated = any(row.get("generated") for row in rows)
    samples = {name: read_samples(place, _COLUMNS) for name, place in places.items()} if generated else {}
    predictions = {name: Predictions.load(place / "classification") for name, place in places.items()}
    return {
        "title": content.get("title") or "Token reduction compared",
        "css": page_style(),
        "lead": headline(content),
        "subject": _subject(content),
        "rows": rows,
        "names": names,
        "styles": styles,
        "runs": _runs(content, styles, shipped),
        "gallery": test_gallery(images, predictions),
        "generated": max(int(row.get("generated") or 0) for row in rows),
        "columns": generated_columns(samples, images.classes),
        "maps": [found for name in names if (found := _mapped(places[name], name))],
        "settings": shown_settings(content.get("settings", {})),
        "provenance": shown_provenance(content.get("provenance", {})),
        "command": content.get("provenance", {}).get("command", ""),
    }


def _subject(content: Mapping[str, Any]) -> str:
    baseline, *others = content["rows"]
    against = listed([str(row["name"]) for row in others])
    first = f"{against} against {baseline['name']}" if others else str(baseline["name"])
    images = quantity(number(baseline, "images"), "test image")
    drawn = f" and {quantity(number(baseline, 'generated'), 'image')} generated" if baseline.get("generated") else ""
    return f"{first}: {images} classified{drawn} by each."


def _runs(content: Mapping[str, Any], styles: Mapping[str, Style], shipped: Mapping[str, Any] | None) -> list[_Run]:
    runs = [_run(content, "This run", styles, "p0")]
    if shipped and shipped.get("rows"):
        runs.append(_run(shipped, "Shipped run", styles, "p1"))
    return runs


def _run(content: Mapping[str, Any], title: str, styles: Mapping[str, Style], name: str) -> _Run:
    rows, table = content["rows"], comparison_table(content, title)
    plots: list[tuple[str, Markup | None]] = []
    for column in columns_of(rows):
        if column.unit in _QUALITIES:
            unit = ", %" if column.unit == "share" else ""
            axis = f"{short_label(column)}{unit} ({column.better} is better)"
            drawing = plot(points_of(rows, column.name), styles, axis, f"{name}{len(plots)}")
            plots.append((short_label(column), drawing))
    return _Run(table, tuple(plots))


def _mapped(place: Path, name: str) -> _Mapped | None:
    found = read_maps(place)
    if not found:
        return None
    first = found[0]
    site = f" at {first.site}" if first.site else ""
    return _Mapped(name, f"timestep {first.timestep}{site}", tuple(draw(item) for item in found))
