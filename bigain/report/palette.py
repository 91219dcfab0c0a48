"""One colour and one shape per method, the same in every table, plot and picture."""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Style", "method_styles"]

# The colours themselves (Okabe and Ito's) are in page.css, where dark pages change them.
_COLOURS = 7

# Path in a box of -6 .. 6, and matplotlib's name for the same shape.
_SHAPES = (
    ("M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0z", "o"),
    ("M-4.5 -4.5h9v9h-9z", "s"),
    ("M0 -5.5L5.5 4.5H-5.5z", "^"),
    ("M0 -6L6 0L0 6L-6 0z", "D"),
    ("M0 5.5L5.5 -4.5H-5.5z", "v"),
    ("M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z", "P"),
    ("M-5.5 0L3.5 -5.5V5.5z", "<"),
    ("M5.5 0L-3.5 -5.5V5.5z", ">"),
)


@dataclass(frozen=True)
class Style:
    """How a method is drawn. Shape and colour both differ, so that colour is never needed alone.

    Args:
        colour: Number of the CSS variable `--m0`, `--m1`, ...
        shape: Path in a box of -6 to 6.
        marker: The shape's name in matplotlib.
    """

    colour: int
    shape: str
    marker: str

    @property
    def swatch(self) -> Markup:
        """A small inline mark for running text."""
        return Markup(
            f'<svg class="swatch" viewBox="-7 -7 14 14" aria-hidden="true">'
            f'<path d="{self.shape}" fill="var(--m{self.colour})"/></svg>'
        )


def method_styles(names: Iterable[str]) -> dict[str, Style]:
    """Give each name a style, in the order of first appearance."""
    styles: dict[str, Style] = {}
    for name in names:
        if name not in styles:
            shape, marker = _SHAPES[len(styles) % len(_SHAPES)]
            styles[name] = Style(len(styles) % _COLOURS, shape, marker)
    return styles
