"""Quality against cost, as inline SVG."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from bigain.report.palette import Style
from bigain.results.scores import scores_of

__all__ = ["Point", "plot", "points_of"]

# matplotlib writes fixed colours; these are placeholders for the page's own, which follow light and dark.
_INK, _MUTED, _RULE, _METHOD = "#010201", "#010202", "#010203", "#0103{:02x}"

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bigain",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
}


@dataclass(frozen=True)
class Point:
    """One method in a plot, with its interval if it has one."""

    name: str
    cost: float
    value: float
    low: float = math.nan
    high: float = math.nan


def points_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """Return a score of each row against GFLOPs, with its interval if it has one; shares in per cent."""
    points = []
    for row in rows:
        scores = scores_of(row)
        score, cost = scores.get(name), scores.get("gflops")
        if score is not None and cost is not None:
            scale = 100 if score.unit == "share" else 1
            ends = [math.nan if end is None else scale * end for end in (score.low, score.high)]
            points.append(Point(row["name"], cost.value, scale * score.value, *ends))
    return points


def plot(points: Sequence[Point], styles: Mapping[str, Style], axis: str, name: str) -> Markup | None:
    """Plot quality against cost; `None` if there is nothing finite to plot.

    Args:
        points: The methods.
        styles: Colour and shape of each.
        axis: Label of the vertical axis.
        name: Unique on the page: prefixed to the drawing's ids.
    """
    points = [point for point in points if math.isfinite(point.cost) and math.isfinite(point.value)]
    if not points:
        return None
    with rc_context(_SETTINGS):  # type: ignore[arg-type,unused-ignore]  # keys are literals in newer stubs
        figure = Figure(figsize=(4.7, 3.1))
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.13, 0.15, 0.85, 0.82))
        _frame(axes, points, axis)
        for group in _clusters(points, _spread(points)):
            _draw_group(axes, group, styles)
        target = StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return _inline(target.getvalue(), name)


def _spread(points: Sequence[Point]) -> float:
    costs = [point.cost for point in points]
    return (max(costs) - min(costs)) or 0.1 * abs(costs[0]) or 1.0


def _frame(axes: Axes, points: Sequence[Point], label: str) -> None:
    costs, spread = [point.cost for point in points], _spread(points)
    values = [v for p in points for v in (p.low, p.value, p.high) if math.isfinite(v)]
    room = 0.12 * ((max(values) - min(values)) or 0.1 * abs(values[0]) or 1.0)
    axes.set_xlim(min(costs) - 0.3 * spread, max(costs) + 0.3 * spread)
    axes.set_ylim(min(values) - room, max(values) + room)
    axes.set_xlabel("GFLOPs per network evaluation", color=_MUTED)
    axes.set_ylabel(label, color=_MUTED)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0, pad=5)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.locator_params(axis="both", nbins=5)


def _clusters(points: Sequence[Point], spread: float) -> list[list[Point]]:
    """Group points whose costs are so close that their labels would overlap."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda p: p.cost):
        if groups and point.cost - groups[-1][-1].cost < 0.2 * spread:
            groups[-1].append(point)
        else:
            groups.append([point])
    return groups


def _draw_group(axes: Axes, group: Sequence[Point], styles: Mapping[str, Style]) -> None:
    """Draw points of similar cost, with their labels stacked at one side."""
    for point in group:
        _draw_point(axes, point, styles[point.name])
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    costs = [point.cost for point in group]
    # Labels go to the side that has room for them.
    side = 1 if sum(costs) / len(costs) < (left + right) / 2 else -1
    edge = max(costs) if side > 0 else min(costs)
    heights = _apart([point.value for point in group], 0.075 * (top - bottom))
    for point, height in zip(group, heights, strict=True):
        style = styles[point.name]
        anchor = edge + side * 0.05 * (right - left)
        if len(group) > 1:
            axes.plot(
                [anchor], [height], marker=style.marker, color=_METHOD.format(style.colour), markersize=4, clip_on=False
            )
            anchor += side * 0.022 * (right - left)
        align = "left" if side > 0 else "right"
        axes.text(anchor, height, point.name, ha=align, va="center", color=_INK, fontsize=9)


def _draw_point(axes: Axes, point: Point, style: Style) -> None:
    colour = _METHOD.format(style.colour)
    if math.isfinite(point.low) and math.isfinite(point.high):
        axes.plot(
            [point.cost, point.cost], [point.low, point.high], color=colour, linewidth=1.6, solid_capstyle="round"
        )
    axes.plot([point.cost], [point.value], marker=style.marker, color=colour, markersize=7, zorder=4)  # above labels


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move labels apart until they do not overlap, in the same order."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    shift = (sum(moved) - sum(heights)) / len(heights)
    return [height - shift for height in moved]


def _inline(svg: str, name: str) -> Markup:
    """Turn matplotlib's file into markup for the page: unique ids, the page's colours, no external addresses."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    root = r'<svg class="plot" viewBox="\1" aria-hidden="true">'
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', root, svg, count=1)
    svg = svg.replace("xlink:href=", "href=")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace(_INK, "var(--ink)").replace(_MUTED, "var(--muted)").replace(_RULE, "var(--rule)")
    return Markup(re.sub(r"#0103([0-9a-f]{2})", lambda found: f"var(--m{int(found[1], 16)})", svg))
