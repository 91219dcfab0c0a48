"""A scorer and a reducer for bigain."""

from bigain_template.reducer import NeighbourPairs
from bigain_template.scorer import ChannelRange

__all__ = ["ChannelRange", "NeighbourPairs"]
