"""Libraries kept quiet while they load a model."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_progress_bars"]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers and diffusers from drawing a bar for each model, and for the shards of a large one."""
    import diffusers.utils.logging
    import transformers.utils.logging

    places = [transformers.utils.logging, diffusers.utils.logging]
    shown = [place for place in places if place.is_progress_bar_enabled()]
    for place in shown:
        place.disable_progress_bar()
    try:
        yield
    finally:
        for place in shown:
            place.enable_progress_bar()
