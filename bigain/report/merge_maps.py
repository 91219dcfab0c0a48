"""Merge maps as SVG drawn over the network's input."""

from dataclasses import dataclass

import torch
from markupsafe import Markup
from torch import Tensor

from bigain.report.pictures import data_uri
from bigain.report.reading import Map
from bigain.results.wording import count

__all__ = ["Drawing", "draw"]

_LARGEST = 256
"""Longest side of a picture, in pixels."""

_NEAR = 4.0
"""Merges over a larger distance, in tokens, are drawn faintly, so that they do not hide the others."""


@dataclass(frozen=True)
class Drawing:
    """A merge map to show.

    Args:
        svg: The map over the noisy input.
        clean: Data URI of the clean input.
        tokens: `1,024 → 512 tokens`.
        about: What happened, in words.
    """

    svg: Markup
    clean: str
    tokens: str
    about: str


@dataclass(frozen=True)
class _Merges:
    """Sources and the destination of each, int64 `[S]`, and how far apart they are, float32 `[S]`."""

    source: Tensor
    target: Tensor
    distance: Tensor


def draw(found: Map) -> Drawing | None:
    """Draw a merge map; `None` if its tokens do not fill its grid one to one."""
    height, width = found.shape
    if len(found.place) != height * width:
        return None
    merges = _merges(found)
    tokens = f"{count(len(found.place))} → {count(len(found.representatives))} tokens"
    return Drawing(_svg(found, merges, tokens), data_uri(found.image, _LARGEST), tokens, _about(merges))


def _merges(found: Map) -> _Merges:
    width = found.shape[1]
    every = torch.arange(len(found.place))
    target = found.representatives[found.place]
    source = every[target != every]
    target = target[source]
    rows, columns = source // width - target // width, source % width - target % width
    return _Merges(source, target, torch.hypot(rows.float(), columns.float()))


def _about(merges: _Merges) -> str:
    if not len(merges.source):
        return "Nothing is merged."
    sizes = torch.bincount(merges.target)
    near = int((merges.distance <= _NEAR).sum())
    share = round(100 * near / len(merges.source))
    return (
        f"{count(len(merges.source))} tokens merge into {count(int((sizes > 0).sum()))} destinations, "
        f"at most {int(sizes.max())} into one; {share}\N{NO-BREAK SPACE}% of them over {_NEAR:.0f} tokens or less."
    )


def _svg(found: Map, merges: _Merges, tokens: str) -> Markup:
    height, width = found.shape
    # A token is two units wide, so that every corner and every centre is a whole number.
    parts = [
        f'<svg class="map" viewBox="0 0 {2 * width} {2 * height}" role="img" '
        f'aria-label="Merges drawn over the noisy input: {tokens}. {_about(merges)}">',
        f'<image width="{2 * width}" height="{2 * height}" preserveAspectRatio="none" '
        f'href="{data_uri(found.noisy, _LARGEST)}"/>',
        f'<path class="veil" d="{_cells(merges.source, width)}"/>',
        *_groups(merges, width),
        "</svg>",
    ]
    return Markup("".join(parts))


def _groups(merges: _Merges, width: int) -> list[str]:
    """Draw lines and dot of each destination as one group, so that pointing at it highlights it."""
    near: dict[int, list[str]] = {}
    far: dict[int, list[str]] = {}
    for source, target, distance in zip(
        merges.source.tolist(), merges.target.tolist(), merges.distance.tolist(), strict=True
    ):
        (across, down), (to_across, to_down) = _centre(source, width), _centre(target, width)
        lines = near if distance <= _NEAR else far
        lines.setdefault(target, []).append(f"M{across} {down}L{to_across} {to_down}")
    drawn = []
    for target in sorted(near.keys() | far.keys()):
        across, down = _centre(target, width)
        paths = [
            f'<path class="{name}" d="{"".join(lines[target])}"/>'
            for name, lines in (("f", far), ("l", near))
            if target in lines
        ]
        drawn.append(f'<g>{"".join(paths)}<circle cx="{across}" cy="{down}" r=".62"/></g>')
    return drawn


def _centre(token: int, width: int) -> tuple[int, int]:
    return 2 * (token % width) + 1, 2 * (token // width) + 1


def _cells(tokens: Tensor, width: int) -> str:
    return "".join(f"M{2 * (token % width)} {2 * (token // width)}h2v2h-2z" for token in tokens.tolist())
