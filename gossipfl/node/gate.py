"""Who may hold a connection: raw connections are counted from accept to session, members keep a slot, floods push out floods.

Every accepted connection is pending until its session is up; pending ones are few, live 10 seconds at most, and when one
too many comes a random one is closed, so that whoever floods mostly closes its own. Not here: sessions, HTTP.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gossipfl.protocol import limits
from gossipfl.protocol.neighbours import Random, choose


@dataclass(frozen=True)
class Caps:
    """The limits of protocol.limits, as values that a test can make small."""

    pending: int = limits.PENDING_HANDSHAKES_MAX
    connections: int = limits.CONNECTIONS_MAX
    per_address: int = limits.ADDRESS_CONNECTIONS_MAX
    per_member: int = limits.SLOTS_PER_MEMBER
    handshake_s: float = limits.HANDSHAKE_S
    idle_s: float = limits.IDLE_S
    rate_bytes_s: float = limits.RATE_BYTES_S
    rate_window_s: float = limits.RATE_WINDOW_S


@dataclass(slots=True, eq=False)
class Guest:
    """One accepted connection."""

    number: int
    address: str
    transport: asyncio.Transport
    timer: asyncio.TimerHandle
    member: str = ""
    """who it is, once its session is up"""


class Gate:
    """All accepted connections of one node. `counts` says how many were closed, and why."""

    def __init__(self, caps: Caps, trusted: Sequence[str], random: Random, call_later: Callable[..., Any]) -> None:
        self.caps = caps
        self.trusted: Final = [ipaddress.ip_network(each) for each in trusted]
        self.random = random
        self.call_later = call_later
        self.guests: dict[asyncio.BaseTransport, Guest] = {}
        self.counts: Counter[str] = Counter()
        self.number = 0

    def enter(self, transport: asyncio.Transport) -> None:
        """A connection was accepted. It may be closed at once, or another one in its place."""
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else "local"
        self.number += 1
        timer = self.call_later(self.caps.handshake_s, self.expel, transport, "handshake timeout")
        self.guests[transport] = Guest(self.number, address, transport, timer)
        if not self.is_trusted(address):
            self.thin([one for one in self.pending() if one.address == address], self.caps.per_address, "address")
        self.thin(self.pending(), self.caps.pending, "pending")
        if len(self.guests) > self.caps.connections:
            self.expel(transport, "connections")

    def is_trusted(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.trusted)

    def pending(self) -> list[Guest]:
        return [guest for guest in self.guests.values() if not guest.member]

    def thin(self, among: list[Guest], limit: int, why: str) -> None:
        """Close random ones until `limit` are left."""
        while len(among) > limit:
            unlucky = choose([f"{guest.number:020d}" for guest in among], self.random)
            guest = next(one for one in among if f"{one.number:020d}" == unlucky)
            among.remove(guest)
            self.expel(guest.transport, why)

    def confirm(self, transport: asyncio.BaseTransport | None, member: str) -> bool:
        """Its session is up: it is `member`'s, and no longer pending. False where that member has slots enough."""
        guest = self.guests.get(transport) if transport else None
        if guest is None:
            return False
        guest.timer.cancel()
        guest.member = member
        same = [one for one in self.guests.values() if one.member == member]
        room = self.caps.per_address if not self.is_trusted(guest.address) else self.caps.connections
        return len(same) <= self.caps.per_member + room

    def expel(self, transport: asyncio.Transport, why: str) -> None:
        """Soon, not now: aiohttp cannot bear that a connection ends while it is being made."""
        self.counts[why] += 1
        self.leave(transport)
        self.call_later(0, transport.abort)

    def leave(self, transport: asyncio.BaseTransport) -> None:
        guest = self.guests.pop(transport, None)
        if guest is not None:
            guest.timer.cancel()
