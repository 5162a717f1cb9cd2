"""Who of the neighbours is there: said when it changes, with cause and remedy, and never more often than is read.

The core knows each neighbour's state; here is only when a person is told. Not here: dialling, what a state means.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from gossipfl.node.cures import cure
from gossipfl.protocol.neighbours import Bucket, Neighbour

if TYPE_CHECKING:
    from gossipfl.protocol.events import Instant

SECOND: Final = 1_000_000_000

AGAIN_NS: Final = 60 * SECOND
"""The same neighbour is said to be missing again after this, at first; each time after twice as long."""

AGAIN_MAX_NS: Final = 3600 * SECOND

LOST_NS: Final = 5 * SECOND
"""A session that ends is followed by another within a second (each lives ten minutes at most): only then is it lost."""

UNSEEN_NS: Final = 30 * SECOND
"""Who can only dial has this long after our start before it is said to be missing."""

HANDSHAKES: Final = 10
"""Failed handshakes of whoever dials us that are said in a minute; all are counted."""


class Says(Protocol):
    """What of a Log is needed."""

    def say(self, kind: str, **fields: Any) -> None: ...


@dataclass(slots=True)
class _Told:
    """What was said last of one neighbour."""

    here: bool = False
    missing: str = ""
    """the cause that was said"""
    at_ns: int = 0
    gap_ns: int = AGAIN_NS


class Company:
    """The neighbours of one node, as its log tells of them."""

    def __init__(self, log: Says, began_ns: int) -> None:
        self.log = log
        self.began_ns = began_ns
        self.told: dict[str, _Told] = {}
        self.handshakes = Bucket(HANDSHAKES)
        self.unsaid = 0
        self.alarmed: set[str] = set()

    def look(self, neighbours: Iterable[Neighbour], dialable: frozenset[str], now: Instant) -> None:
        """Say what has changed since the last look."""
        for one in neighbours:
            told = self.told.setdefault(one.name, _Told())
            if one.is_here:
                if not told.here:
                    self.log.say("connected", peer=one.name)
                self.told[one.name] = _Told(here=True)
            elif cause := self._cause(one, dialable, now):
                self._missing(one, told, cause, now)

    def _cause(self, one: Neighbour, dialable: frozenset[str], now: Instant) -> str:
        """Why it is missing, if it is missing for long enough to be worth a line."""
        since_ns = now.wall_ns - one.since_wall_ns
        if one.state in ("unreachable", "refused"):
            return one.why or "not reachable"
        if one.state == "silent" and since_ns >= LOST_NS:
            return f"connection lost: {one.why}"
        if one.state == "unseen" and one.name not in dialable and now.mono_ns - self.began_ns >= UNSEEN_NS:
            return f"{one.name} has no address: it must dial, and has not"
        return ""

    def _missing(self, one: Neighbour, told: _Told, cause: str, now: Instant) -> None:
        if told.missing and now.mono_ns - told.at_ns < (told.gap_ns if told.missing == cause else AGAIN_NS):
            return
        told.gap_ns = min(AGAIN_MAX_NS, 2 * told.gap_ns) if told.missing == cause else AGAIN_NS
        told.here, told.missing, told.at_ns = False, cause, now.mono_ns
        self.log.say("unreachable", peer=one.name, cause=cause, remedy=cure(cause))

    def straight(self, alarms: Mapping[str, str]) -> None:
        """Say once of each link that it always pushes one way, and again if it has ceased to meanwhile."""
        for peer, alarm in alarms.items():
            if alarm and peer not in self.alarmed:
                self.log.say("alarm", peer=peer, detail=alarm)
        self.alarmed = {peer for peer, alarm in alarms.items() if alarm}

    def turned_away(self, address: str, claimed: str, why: str, now: Instant) -> None:
        """Somebody dialled us, and no session came of it. `claimed` is who it said it was: not to be believed."""
        if not self.handshakes.take(now.mono_ns, HANDSHAKES):
            self.unsaid += 1
            return
        more = {"unsaid_before": self.unsaid} if self.unsaid else {}
        self.unsaid = 0
        self.log.say("handshake", address=address, claimed=claimed, cause=why, remedy=_for_the_dialled(claimed, why), **more)


def _for_the_dialled(claimed: str, why: str) -> str:
    if claimed and ("closed" in why or "lost" in why):
        return (
            f"{claimed} went away after our answer: its psk.key or federation.json may differ from ours (or it was its "
            f"`gossipfl doctor`, which only looks)"
        )
    if "closed" in why or "lost" in why or "timeout" in why:
        return "no member by its first words: a scan or a health check, or a member whose federation.json is another"
    return cure(why)
