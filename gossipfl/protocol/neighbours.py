"""Whom I choose next and who is quiet: per neighbour when it may be tried again and since when it is silent.

No sockets, no clock, no randomness of its own: instants and a random source are passed in. Silence never removes a
neighbour; only the membership does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

BACKOFF_FIRST_NS: Final = 500_000_000
BACKOFF_MAX_NS: Final = 60_000_000_000
NOTES: Final = 10
"""Refusals of one neighbour that are noted a minute; all are counted."""

BURST: Final = 30
"""Inbound exchanges that a link may save up."""


class Random(Protocol):
    """What the core asks of a random source (`random.Random` is one)."""

    def random(self) -> float: ...


@dataclass(slots=True)
class Neighbour:
    """What is known of one neighbour now; nothing of it survives a restart."""

    name: str
    retry_ns: int = 0
    backoff_ns: int = 0
    state: str = "unseen"
    """unseen | dialling | connected | unreachable | refused | silent"""
    stage: str = ""
    """of the study, as it last said"""
    since_wall_ns: int = 0
    why: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    credit: float = BURST
    credited_ns: int = 0
    notes: float = NOTES
    noted_ns: int = 0

    def is_now(self, state: str, wall_ns: int, why: str = "") -> None:
        if (state, why) != (self.state, self.why):
            self.state, self.why, self.since_wall_ns = state, why, wall_ns

    def back_off(self, now_ns: int, random: Random) -> None:
        """Twice as long each time, up to a minute, with jitter so that many do not come at once."""
        self.backoff_ns = min(BACKOFF_MAX_NS, max(BACKOFF_FIRST_NS, 2 * self.backoff_ns))
        self.retry_ns = now_ns + int(self.backoff_ns * (0.5 + random.random() / 2))

    def answered(self) -> None:
        self.backoff_ns = self.retry_ns = 0

    def earn(self) -> None:
        """One more inbound exchange for every turn of this node's own, so that a study's pace sets the limit."""
        self.credit = min(BURST, self.credit + 1)

    def may_be_noted(self, now_ns: int) -> bool:
        """May one more refusal of this neighbour's go into the record? Ten a minute: a flood must not push out receipts."""
        self.notes = min(NOTES, self.notes + (now_ns - self.noted_ns) * NOTES / 60e9)
        self.noted_ns = now_ns
        if self.notes < 1:
            return False
        self.notes -= 1
        return True

    def allow_inbound(self, now_ns: int, per_minute: float) -> bool:
        """Token bucket: may this neighbour begin one more exchange now?"""
        self.credit = min(BURST, self.credit + (now_ns - self.credited_ns) * per_minute / 60e9)
        self.credited_ns = now_ns
        if self.credit < 1:
            return False
        self.credit -= 1
        return True


def choose(candidates: Iterable[str], random: Random) -> str | None:
    """One of the candidates, uniformly; None where there is none. One draw."""
    ordered = sorted(candidates)
    if not ordered:
        return None
    return ordered[min(int(random.random() * len(ordered)), len(ordered) - 1)]
