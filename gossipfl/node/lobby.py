"""Accepted sockets that have not asked for anything yet: a file descriptor and a line in the gate, and no more.

Most connections of a flood end here: those that say nothing, that drip, or that the gate closes at once because too many
came. Only for one that has sent enough to be a request aiohttp makes its objects, which cost ten times as much. Not here:
who may stay (gate.py), HTTP (server.py).
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gossipfl.node.gate import Gate

BACKLOG: Final = 1024
"""Connections that the kernel holds for us: a flood must not make it drop an honest one."""

REQUEST_BYTES: Final = len(b"GET / HTTP/1.0\n\n")
"""No HTTP request is shorter, a load balancer's question whether anybody is there included: until so much has come the kernel
does not wake us."""

REST_S: Final = 0.02
"""After too many came at once: those of the next moments are then looked at together, and most of them closed unheard. To an
honest peer it is a fraction of a round trip."""

ABSENT: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
"""What the kernel says of an address of a family that it lacks, or that is switched off."""

EXHAUSTED_S: Final = 1.0
"""Where no file descriptor is left, until the next try."""

_RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: close by RST. Nothing has been said that could be lost, and the kernel keeps nothing."""


class Waiting:
    """One such socket; to the gate it is like a transport."""

    def __init__(self, lobby: Lobby, wire: socket.socket, address: Any) -> None:
        self.lobby, self.wire, self.address = lobby, wire, address
        self.joins = self.cut = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.address if name == "peername" else default

    def is_closing(self) -> bool:
        return self.cut

    def abort(self) -> None:
        self.cut = True
        if not self.joins:  # else a transport is being made of it, and is closed when it is there
            self.lobby.loop.remove_reader(self.wire)
            with suppress(OSError):
                self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.wire.close()


class Lobby:
    """The listening sockets of one node, and who waits. `door` makes the protocol of a connection that has spoken."""

    def __init__(self, gate: Gate, door: Callable[[], asyncio.BaseProtocol]) -> None:
        self.gate, self.door = gate, door
        self.loop = asyncio.get_running_loop()
        self.listeners: list[socket.socket] = []
        self.joining: dict[int, Waiting] = {}
        """those that have spoken, by file descriptor, until `joined`"""
        self._tasks: set[asyncio.Task[None]] = set()

    async def listen(self, host: str, port: int) -> tuple[Any, ...]:
        """Begin; returns the first address. Of several, those are passed over that this machine has not: where IPv6 is off, a
        name still means ::1, too. Raises OSError."""
        found = await self.loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        absent: OSError | None = None
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                self.listeners.append(_listener(family, kind, protocol, address))
            except OSError as error:
                if error.errno not in ABSENT:
                    self.close()
                    raise
                absent = absent or error
        if absent is not None and not self.listeners:
            raise absent
        for listener in self.listeners:
            self.loop.add_reader(listener, self.accept, listener)
        bound: tuple[Any, ...] = self.listeners[0].getsockname()
        return bound

    def accept(self, listener: socket.socket) -> None:
        """All that have come. The gate is asked for each before any is listened to."""
        came: list[Waiting] = []
        rest = 0.0
        while len(came) < BACKLOG:
            try:
                wire, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                break
            except OSError:
                rest = EXHAUSTED_S
                break
            wire.setblocking(False)
            waiting = Waiting(self, wire, address)
            came.append(waiting)
            self.gate.enter(waiting, at_once=True)
        for waiting in came:
            if waiting.cut:
                rest = rest or REST_S
            elif self.wakes_at(waiting, REQUEST_BYTES):
                self.loop.add_reader(waiting.wire, self.heard, waiting)
        if rest:
            self.loop.remove_reader(listener)
            self.loop.call_later(rest, self.resume, listener)

    def resume(self, listener: socket.socket) -> None:
        if listener in self.listeners:
            self.loop.add_reader(listener, self.accept, listener)

    def wakes_at(self, waiting: Waiting, size: int) -> bool:
        """Let the kernel wake us once so much has come; it may refuse that of one that is broken, which ends here."""
        try:
            waiting.wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
        except OSError:
            self.dismiss(waiting)
            return False
        return True

    def dismiss(self, waiting: Waiting) -> None:
        self.gate.leave(waiting)
        waiting.abort()

    def heard(self, waiting: Waiting) -> None:
        """It has sent enough to be a request, or it has ended."""
        if not _speaks(waiting.wire):
            self.dismiss(waiting)
            return
        if not self.wakes_at(waiting, 1):
            return
        self.loop.remove_reader(waiting.wire)
        waiting.joins = True
        self.joining[waiting.wire.fileno()] = waiting
        task = self.loop.create_task(self.join(waiting))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def join(self, waiting: Waiting) -> None:
        try:
            await self.loop.connect_accepted_socket(self.door, waiting.wire)
        except OSError:
            self.gate.leave(waiting)

    def joined(self, transport: asyncio.Transport) -> None:
        """The transport of one of them is there."""
        waiting = self.joining.pop(transport.get_extra_info("socket").fileno())
        if waiting.cut:
            self.loop.call_soon(transport.abort)  # soon: aiohttp cannot bear that a connection ends while it is being made
        else:
            self.gate.move(waiting, transport)

    def close(self) -> None:
        for listener in self.listeners:
            self.loop.remove_reader(listener)
            listener.close()
        self.listeners = []
        for guest in list(self.gate.guests.values()):
            if isinstance(guest.transport, Waiting):
                self.gate.expel(guest, "stopping")


def _listener(family: int, kind: int, protocol: int, address: Any) -> socket.socket:
    """One that listens there; else nothing is left open."""
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _speaks(wire: socket.socket) -> bool:
    """Is there something to read, and not only the end?"""
    with suppress(OSError):
        return bool(wire.recv(1, socket.MSG_PEEK))
    return False
