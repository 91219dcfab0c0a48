"""A picture of a sweep: speed-up against tokens, both logarithmic."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bigain.benchmark.break_even import Curve

__all__ = ["draw_speed_ups"]

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c564b")
"""Okabe and Ito's colours, which people with colour blindness can tell apart."""

_INK, _MUTED, _RULE = "#1f2328", "#6e7781", "#e4e7eb"

_SETTINGS = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}

_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 20, 30, 50, 100)


def draw_speed_ups(file: Path, curves: Sequence[Curve], title: str, below: str) -> None:
    """Draw the speed-up of each method against tokens, with a line at 1; floors and the baseline are dashed.

    Args:
        file: A PNG or SVG file.
        curves: What to draw.
        title: Text above the drawing.
        below: Small print under the title.
    """
    with rc_context(_SETTINGS):  # type: ignore[arg-type,unused-ignore]  # keys are literals in newer stubs
        figure = Figure(figsize=(8, 4.6))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0.08, 0.12, 0.62, 0.73))
        _frame(axes, curves)
        _draw(axes, curves)
        figure.text(0.022, 0.945, title, fontsize=12, fontweight="bold", color=_INK)
        figure.text(0.022, 0.9, below, fontsize=8.5, color=_MUTED)
        figure.savefig(file, dpi=200, facecolor="white")


def _frame(axes: Axes, curves: Sequence[Curve]) -> None:
    tokens = sorted({count for curve in curves for count in curve.tokens})
    speeds = [1.0, *(1 / ratio for curve in curves for ratio in curve.ratios)]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(tokens[0] / 1.08, tokens[-1] * 1.08)
    axes.set_ylim(min(speeds) / 1.15, max(speeds) * 1.15)
    axes.xaxis.set_major_locator(FixedLocator(tokens))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_locator(FixedLocator(_ticks(*axes.get_ylim())))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.grid(axis="y", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0, pad=6)
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_color(_RULE)
    axes.set_xlabel("tokens of the largest attention", color=_MUTED, labelpad=8)
    axes.axhline(1, color=_INK, linewidth=1.1, zorder=2)


def _ticks(low: float, high: float) -> list[float]:
    """Choose ticks that do not crowd: fewer where there are many."""
    found = [tick for tick in _TICKS if low <= tick <= high]
    if len(found) >= 9:
        found = [tick for tick in found if tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)]
    return [float(tick) for tick in found] or [1.0]


def _draw(axes: Axes, curves: Sequence[Curve]) -> None:
    methods = [curve.name for curve in curves if curve.kind == "method"]
    ends = [1 / curve.ratios[-1] for curve in curves]
    *heights, line = _apart(axes, [*ends, 1.0])
    for curve, height in zip(curves, heights, strict=True):
        speeds = [1 / ratio for ratio in curve.ratios]
        own = curve.kind == "method"
        colour = _COLOURS[methods.index(curve.name) % len(_COLOURS)] if own else _MUTED
        dashes = {"floor": (0, (5, 2.5)), "baseline": (0, (1, 1.8)), "peer": (0, (6, 2, 1, 2))}.get(curve.kind, "-")
        axes.plot(
            curve.tokens,
            speeds,
            color=colour,
            linestyle=dashes,
            linewidth=2.2 if own else 1.4,
            marker="o",
            markersize=5 if own else 3,
            zorder=4 if own else 3,
            clip_on=False,
        )
        _label(axes, curve, speeds[-1], height, colour, own)
    place = ("axes fraction", "data")
    axes.annotate("no reduction", (1.05, line), xycoords=place, va="center", color=_INK, fontsize=9)


def _label(axes: Axes, curve: Curve, end: float, height: float, colour: str, own: bool) -> None:
    """Write a curve's name beside its end, with a thin line to it where it had to move."""
    axes.annotate(
        curve.name,
        xy=(curve.tokens[-1], end),
        xytext=(1.05, height),
        xycoords="data",
        textcoords=("axes fraction", "data"),
        va="center",
        color=colour,
        fontsize=9.5 if own else 8.5,
        fontweight="bold" if own else "normal",
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        annotation_clip=False,
    )


def _apart(axes: Axes, heights: Sequence[float]) -> list[float]:
    """Move labels apart on the logarithmic axis until none covers another, keeping their order and the frame."""
    low, high = (math.log(value) for value in axes.get_ylim())
    gap = 0.052 * (high - low)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    moved = [math.log(value) for value in heights]
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + gap)
    moved[order[-1]] = min(moved[order[-1]], high)
    for after, before in pairwise(reversed(order)):
        moved[before] = min(moved[before], moved[after] - gap)
    return [math.exp(value) for value in moved]
