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
"""Refusals between this node and one neighbour that are noted a minute, whoever refuses; its own are all counted."""

HERE: Final = frozenset({"connected", "resting"})
"""States of a neighbour that is there as far as anybody knows: a session that rests is not lost."""

BURST: Final = 30
"""Inbound exchanges that a link may save up."""


class Random(Protocol):
    """What the core asks of a random source (`random.Random` is one)."""

    def random(self) -> float: ...


class Bucket:
    """Tokens that come back at a rate, up to as many as it holds; full at first."""

    def __init__(self, size: float) -> None:
        self.size = self.level = size
        self.at_ns = 0

    def take(self, now_ns: int, per_minute: float) -> bool:
        self.level = min(self.size, self.level + (now_ns - self.at_ns) * per_minute / 60e9)
        self.at_ns = now_ns
        if self.level < 1:
            return False
        self.level -= 1
        return True

    def earn(self, tokens: int) -> None:
        """So many more, whatever the time."""
        self.level = min(self.size, self.level + tokens)


@dataclass(slots=True)
class Neighbour:
    """What is known of one neighbour now; nothing of it survives a restart."""

    name: str
    retry_ns: int = 0
    backoff_ns: int = 0
    state: str = "unseen"
    """unseen | dialling | connected | resting | unreachable | refused | silent"""
    stage: str = ""
    """of the study, as it last said"""
    statistics: bytes = b""
    """digest of the normalisation that it uses, as it last said"""
    since_wall_ns: int = 0
    why: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    inbound: Bucket = field(default_factory=lambda: Bucket(BURST))
    turns: int = 0
    """of this node, when an exchange that the neighbour begins was last asked for"""
    notes: Bucket = field(default_factory=lambda: Bucket(NOTES))

    @property
    def is_here(self) -> bool:
        """Is there a session with it, or was there none needed since the last?"""
        return self.state in HERE

    def is_now(self, state: str, wall_ns: int, why: str = "") -> None:
        if (state, why) != (self.state, self.why):
            self.state, self.why, self.since_wall_ns = state, why, wall_ns

    def back_off(self, now_ns: int, random: Random) -> None:
        """Twice as long each time, up to a minute, with jitter so that many do not come at once."""
        self.backoff_ns = min(BACKOFF_MAX_NS, max(BACKOFF_FIRST_NS, 2 * self.backoff_ns))
        self.retry_ns = now_ns + int(self.backoff_ns * (0.5 + random.random() / 2))

    def greeted(self) -> None:
        """It is there, and may be asked at once; but it may still refuse, and then waiting goes on where it was."""
        self.retry_ns = 0

    def answered(self) -> None:
        """An exchange with it is done."""
        self.backoff_ns = self.retry_ns = 0

    def allow_inbound(self, now_ns: int, per_minute: float, turns: int) -> bool:
        """May this neighbour begin one more exchange now? One for each turn of this node since it last asked, so that the study's
        own pace sets what others may begin, and so many a minute beside."""
        self.inbound.earn(turns - self.turns)
        self.turns = turns
        return self.inbound.take(now_ns, per_minute)

    def may_be_noted(self, now_ns: int) -> bool:
        """May one more refusal, by it or of it, go into the record? A flood must not push out receipts."""
        return self.notes.take(now_ns, NOTES)


def choose(candidates: Iterable[str], random: Random) -> str | None:
    """One of the candidates, uniformly; None where there is none. One draw."""
    ordered = sorted(candidates)
    if not ordered:
        return None
    return ordered[min(int(random.random() * len(ordered)), len(ordered) - 1)]
