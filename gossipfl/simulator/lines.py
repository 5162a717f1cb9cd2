"""What the lines between simulated nodes are like: latency, jitter, bandwidth, refusals. Values only; network.py enacts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gossipfl.errors import Misuse


@dataclass(frozen=True)
class Line:
    """From one node to another."""

    latency_s: float = 0.02
    """Mean seconds that a byte is on its way."""
    jitter: float = 0.5
    """Share by which the latency of each record differs from its mean at most (uniform); order is kept."""
    bandwidth_bytes_s: float = 0.0
    """Bytes a second, shared by all that one node sends to the other; 0 is without bound."""
    refuse: float = 0.0
    """Share of dials over this line that are refused."""

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.bandwidth_bytes_s < 0 or not 0 <= self.jitter <= 1 or not 0 <= self.refuse <= 1:
            raise Misuse(f"{self}: latency and bandwidth must not be below 0, jitter and refuse lie between 0 and 1")


@dataclass(frozen=True)
class Lines:
    """All lines of a world: one kind for all, and others between named nodes."""

    usual: Line = Line()
    between: Mapping[tuple[str, str], Line] = field(default_factory=dict)
    """(from, to) -> its line; where the way back is not named, it is the same"""

    def line(self, sender: str, receiver: str) -> Line:
        if not self.between:
            return self.usual
        return self.between.get((sender, receiver)) or self.between.get((receiver, sender)) or self.usual
