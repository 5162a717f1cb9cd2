"""Sockets that have not spoken cost a file descriptor, and become connections when they have."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from test_node import until

from gossipfl.node.gate import Caps, Gate
from gossipfl.node.lobby import REQUEST_BYTES, Lobby

HELLO = b"GET /nothing HTTP/1.1\r\nHost: a-name-that-is-long-enough\r\n\r\n"


class Echo(asyncio.Protocol):
    """What a door makes of who has spoken."""

    made = 0

    def __init__(self, house: House) -> None:
        self.house = house

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.house.made += 1
        self.house.lobby.joined(transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.house.lobby.gate.leave(self.transport)


class House:
    """A lobby with its gate."""

    def __init__(self, caps: Caps) -> None:
        self.made = 0
        self.gate = Gate(caps, (), random.Random(1), asyncio.get_running_loop().call_later)
        self.lobby = Lobby(self.gate, lambda: Echo(self))
        self.port = 0


@asynccontextmanager
async def house(caps: Caps = Caps(), host: str = "127.0.0.1") -> AsyncIterator[House]:  # noqa: B008
    built = House(caps)
    built.port = (await built.lobby.listen(host, 0))[1]
    try:
        yield built
    finally:
        built.lobby.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(5):
        with suppress(ConnectionError):
            return await reader.read(1) == b""
    return True


async def test_who_says_nothing_or_little_is_a_guest_and_no_connection_and_who_asks_is_heard() -> None:
    async with house() as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        await until(lambda: len(here.gate.pending()) == 1)
        writer.write(HELLO[: REQUEST_BYTES - 1])
        await writer.drain()
        silent = await asyncio.open_connection("127.0.0.1", here.port)
        await until(lambda: len(here.gate.pending()) == 2)
        assert here.made == 0
        writer.write(HELLO[REQUEST_BYTES - 1 :])
        assert await reader.readexactly(len(HELLO)) == HELLO
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x", "from then on every byte is heard"
        assert here.made == 1 and len(here.gate.pending()) == 2
        writer.close()
        await until(lambda: len(here.gate.pending()) == 1)
        silent[1].close()


async def test_a_guest_stays_the_same_from_socket_to_connection() -> None:
    async with house(Caps(handshake_s=0.3)) as here:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        silent, _ = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(HELLO)
        await reader.readexactly(len(HELLO))
        (joined,) = (one for one in here.gate.guests.values() if isinstance(one.transport, asyncio.Transport))
        assert joined.number == 1 and not joined.at_once
        assert await ended(silent) and await ended(reader), "its time runs from when it was accepted"
        assert here.gate.counts["handshake timeout"] == 2 and not here.gate.guests


@pytest.mark.parametrize("speaks", [False, True])
async def test_of_too_many_at_once_a_few_stay_and_an_honest_one_gets_in_afterwards(speaks: bool) -> None:
    async with house(Caps(per_address=3, pending=3, handshake_s=0.2)) as here:
        wires = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(40)]
        for wire in wires:
            with suppress(ConnectionError):
                wire.sendall(HELLO if speaks else b"G")
        await until(lambda: here.gate.counts["address"] == 37)
        assert len(here.gate.guests) == 3 and here.made <= 3
        await until(lambda: not here.gate.guests)
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(HELLO)
        assert await reader.readexactly(len(HELLO)) == HELLO
        for wire in wires:
            wire.close()


async def test_who_hangs_up_unheard_leaves_nothing_behind() -> None:
    async with house() as here:
        _, writer = await asyncio.open_connection("127.0.0.1", here.port)
        await until(lambda: here.gate.guests)
        writer.close()
        await until(lambda: not here.gate.guests)
        assert here.made == 0 and not here.lobby.joining


async def test_at_the_end_nobody_listens_and_nobody_waits() -> None:
    async with house() as here:
        reader, _ = await asyncio.open_connection("127.0.0.1", here.port)
        await until(lambda: here.gate.guests)
    assert await ended(reader) and not here.gate.guests
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", here.port)


async def test_an_address_that_is_taken_is_said_so_and_nothing_is_left_open() -> None:
    async with house() as here:
        another = Lobby(here.gate, lambda: Echo(here))
        with pytest.raises(OSError):
            await another.listen("127.0.0.1", here.port)
        assert another.listeners == []


@pytest.mark.parametrize("request_", [b"OPTIONS / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.0\n\n"])
async def test_the_shortest_requests_are_heard(request_: bytes) -> None:
    async with house() as here, asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        writer.write(request_)
        assert await reader.readexactly(len(request_)) == request_
        writer.close()


LOOPBACK = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))
ELSEWHERE = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 0, 0, 0))
NO_FAMILY = (socket.AF_X25, socket.SOCK_STREAM, 6, "", ("", 0))


async def test_an_address_that_this_machine_has_not_is_passed_over_if_another_one_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = [NO_FAMILY, ELSEWHERE, LOOPBACK]

    async def names(*_: object, **__: object) -> list[object]:
        return list(found)

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names)
    async with house(host="hospital") as here:
        assert here.lobby.listeners[0].getsockname() == ("127.0.0.1", here.port) and len(here.lobby.listeners) == 1
        found.remove(LOOPBACK)
        another = Lobby(here.gate, lambda: Echo(here))
        with pytest.raises(OSError):
            await another.listen("hospital", 0)
        assert another.listeners == []


async def test_of_many_that_come_together_a_broken_one_leaves_the_others_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    sets, broken = socket.socket.setsockopt, []

    def breaks(wire: socket.socket, level: int, name: int, *value: int) -> None:
        if name == socket.SO_RCVLOWAT and not broken:
            broken.append(wire)
            raise OSError(22, "Invalid argument")
        sets(wire, level, name, *value)

    async with house() as here:
        monkeypatch.setattr(socket.socket, "setsockopt", breaks)
        wires = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(3)]
        for wire in wires:
            wire.sendall(HELLO)
        await until(lambda: here.made == 2)
        assert len(broken) == 1 and len(here.gate.guests) == 2
        for wire in wires:
            wire.close()
