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
from typing import Any, Final, Protocol

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


class Wire(Protocol):
    """What the gate needs of a connection: a transport, or a socket that none has been made of yet."""

    def get_extra_info(self, name: str) -> Any: ...
    def is_closing(self) -> bool: ...
    def abort(self) -> None: ...


@dataclass(slots=True, eq=False)
class Guest:
    """One accepted connection."""

    number: int
    address: str
    transport: Wire
    at_once: bool
    """may it be cut at any moment? aiohttp cannot bear that a connection ends while it is being made"""
    timer: asyncio.TimerHandle | None = None
    member: str = ""
    """who it is, once its session is up"""


class Gate:
    """All accepted connections of one node. `counts` says how many were closed, and why."""

    def __init__(self, caps: Caps, trusted: Sequence[str], random: Random, call_later: Callable[..., Any]) -> None:
        self.caps = caps
        self.trusted: Final = [ipaddress.ip_network(each) for each in trusted]
        self.random = random
        self.call_later = call_later
        self.guests: dict[object, Guest] = {}
        """by their transport"""
        self.counts: Counter[str] = Counter()
        self.number = 0

    def enter(self, transport: Wire, *, at_once: bool = False) -> None:
        """A connection was accepted. It may be closed at once, or another one in its place."""
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if isinstance(peer, tuple) else "local"
        self.number += 1
        guest = self.guests[transport] = Guest(self.number, address, transport, at_once)
        guest.timer = self.call_later(self.caps.handshake_s, self.expel, guest, "handshake timeout")
        if not self.is_trusted(address):
            self.thin([one for one in self.pending() if one.address == address], self.caps.per_address, "address")
        self.thin(self.pending(), self.caps.pending, "pending")
        if len(self.guests) > self.caps.connections:
            self.expel(guest, "connections")

    def move(self, waiting: Wire, transport: asyncio.Transport) -> None:
        """A transport was made of what has entered; it stays the same guest."""
        guest = self.guests.pop(waiting)
        guest.transport, guest.at_once = transport, False
        self.guests[transport] = guest

    def is_trusted(self, address: str) -> bool:
        if not self.trusted:
            return False
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
            numbered = {f"{guest.number:020d}": guest for guest in among}
            guest = numbered[choose(numbered, self.random) or ""]
            among.remove(guest)
            self.expel(guest, why)

    def confirm(self, transport: asyncio.BaseTransport | None, member: str) -> bool:
        """Its session is up: it is `member`'s, and no longer pending. False where that member has slots enough."""
        guest = self.guests.get(transport) if transport else None
        if guest is None:
            return False
        self.still(guest)
        guest.member = member
        same = [one for one in self.guests.values() if one.member == member]
        room = self.caps.per_address if not self.is_trusted(guest.address) else self.caps.connections
        return len(same) <= self.caps.per_member + room

    def expel(self, guest: Guest, why: str) -> None:
        self.counts[why] += 1
        self.leave(guest.transport)
        if guest.at_once:
            guest.transport.abort()
        else:
            self.call_later(0, guest.transport.abort)

    def leave(self, transport: object) -> None:
        guest = self.guests.pop(transport, None)
        if guest is not None:
            self.still(guest)

    def still(self, guest: Guest) -> None:
        if guest.timer is not None:
            guest.timer.cancel()
