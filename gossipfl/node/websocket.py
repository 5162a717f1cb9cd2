"""One WebSocket after its upgrade: it takes the transport over from aiohttp, which has made the connection and spoken HTTP on it.

aiohttp's own WebSocket copies a record three times on its way and wakes a task for each, and a model is thousands of records:
here each is handed over where the kernel has put it, by the callback that has read it. Not here: dialling, proxies, TLS and the
upgrade (aiohttp), what a frame looks like (frames.py), what a record says (connection.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gossipfl.errors import Refused
from gossipfl.node.frames import BINARY, CLOSE, PING, PONG, Inbox, header
from gossipfl.protocol.limits import RECORD_MAX

CLOSED_WELL: Final = (1000).to_bytes(2, "big")

Hear = Callable[[memoryview], None]


class WebSocket(asyncio.BufferedProtocol):
    """Records in and out, both with back pressure: nothing is read while nobody is ready for it, and `drain` waits for who does
    not read. `upgraded` is aiohttp's object of it; it is kept, because its end is the connection's."""

    def __init__(self, upgraded: Any, transport: asyncio.Transport, *, dialled: bool) -> None:
        self._upgraded, self._transport = upgraded, transport
        self._masks: Final = dialled
        self._before: Final = transport.get_protocol()
        self._inbox = Inbox(masked=not dialled, limit=RECORD_MAX)
        self._hear: Hear | None = None
        self._is_ready: Callable[[], bool] = lambda: False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """the other side has closed, or the connection is lost; an exception where something went wrong"""
        self._relief: asyncio.Future[None] | None = None
        """while the transport holds more than it should"""
        self._held_back = self._closing = self._lost = False
        self._error: Exception | None = None
        transport.set_protocol(self)

    # ---- what a connection asks -----------------------------------------------------------------------------------

    async def listen(self, hear: Hear, is_ready: Callable[[], bool]) -> None:
        """Hand each record over, to be used before `hear` returns, as long as `is_ready`; until the other side, or we, close.

        Raises: what `hear` raises; Refused for what is no WebSocket message of ours; ConnectionError if the connection breaks."""
        self._hear, self._is_ready = hear, is_ready
        self.go_on()
        await asyncio.shield(self._over)

    def go_on(self) -> None:
        """Somebody may be ready again."""
        if self._over.done():
            return
        try:
            while (self._closing or self._is_ready()) and (message := self._inbox.next()) is not None:
                self._take(*message)
            if self._lost and (self._closing or self._is_ready()):
                self._end(self._error)
        except Exception as error:
            self._end(error)
        if self._held_back != self._inbox.is_full:
            self._held_back = not self._held_back
            (self._transport.pause_reading if self._held_back else self._transport.resume_reading)()

    def send(self, *records: bytes) -> None:
        """A message each. Raises: ConnectionError if it is closed."""
        self._write(BINARY, *records)

    @property
    def is_choked(self) -> bool:
        """Does the transport hold more than it should?"""
        return self._relief is not None

    async def drain(self) -> None:
        """Wait until the transport takes more."""
        if self._relief is not None:
            await self._relief

    async def close(self) -> None:
        """Say so, and wait for the other side to say so, too; what still comes is dropped."""
        if not self._closing:
            self._closing = True
            self._write(CLOSE, CLOSED_WELL)
            self.go_on()
            with suppress(Refused, ConnectionError):
                await asyncio.shield(self._over)
        self._transport.close()

    def abort(self) -> None:
        """At once, also where a close waits for a peer that does not read what is still to be written."""
        if not self._lost:
            self._transport.abort()

    async def release(self) -> None:
        """Let aiohttp forget it, when it is over."""
        self.abort()
        await self._upgraded.close()

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _take(self, opcode: int, content: memoryview) -> None:
        if opcode == BINARY:
            if not self._closing and self._hear is not None:
                self._hear(content)
        elif opcode == PING:
            if not (self.is_choked or self._transport.is_closing()):  # who pings and does not read fills no memory of ours
                self._write(PONG, bytes(content))
        elif opcode == CLOSE:
            if not self._closing:
                self._closing = True
                if not self._transport.is_closing():
                    self._write(CLOSE, CLOSED_WELL)
                    self._transport.close()
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        if self._over.done():
            return
        if error is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(error)
            self._over.exception()  # looked at: whoever listens is told, and nobody need

    def _write(self, opcode: int, *contents: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the connection is closed")
        parts: list[bytes] = []
        for content in contents:
            parts += header(opcode, len(content), self._masks), content
        self._transport.write(b"".join(parts))  # `writelines` knows no back pressure in Python 3.12.0-8 and 3.13.0-1

    # ---- what the transport calls ----------------------------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._inbox.room()

    def buffer_updated(self, nbytes: int) -> None:
        """What nobody will hear any more is overwritten by what comes next."""
        if not self._over.done():
            self._inbox.took(nbytes)
            self.go_on()

    def eof_received(self) -> None:
        """Who has ended needs nothing more; were it written first, one that does not read would keep the connection for ever.
        Not at once: TLS is not done with its own farewell."""
        asyncio.get_running_loop().call_soon(self.abort)

    def pause_writing(self) -> None:
        self._relief = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        relief, self._relief = self._relief, None
        if relief is not None and not relief.done():
            relief.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """What came before is still heard."""
        self._lost, self._error = True, exc and ConnectionResetError(str(exc))
        self.resume_writing()
        self.go_on()
        self._before.connection_lost(exc)
