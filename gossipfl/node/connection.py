"""One WebSocket with its session: a reader that feeds the core, a writer that seals what the core says, both bounded.

The reader takes the next record only when the core has dealt with the last message and what was asked of us is written:
so nothing here grows, whatever the other side does. Not here: dialling and accepting, what messages mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from gossipfl.digest import CHUNK, chunk_count
from gossipfl.errors import Misuse, Refused
from gossipfl.node.gate import Caps
from gossipfl.node.websocket import WebSocket
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol import session as ss
from gossipfl.protocol.events import Instant
from gossipfl.store import ROTTED, Incoming, Missing, StateError, Store

OUTBOX: Final = 64
"""Messages waiting to be written before nothing more is read: an honest exchange has two or three."""

BURST: Final = 4
"""Chunks sealed, and then written at once: their records are still in the second-level cache when the kernel copies them."""

CLOSING_S: Final = 2.0
"""Seconds for what waits to be written, and for the other side to close in turn."""

SECOND: Final = 1_000_000_000

LOST: Final = (TimeoutError, ConnectionError, RuntimeError, Misuse, Missing)
"""What ends a connection while something is written."""


class Host(Protocol):
    """What a connection asks of its driver."""

    store: Store
    caps: Caps
    burst: int
    """chunks sealed and written at once"""

    def now(self) -> Instant: ...
    def post(self, event: ev.Event, pinned: bytes = b"") -> asyncio.Future[None]: ...
    def up(self, connection: Connection, event: ev.Opened) -> asyncio.Future[None]: ...
    async def spend(self, size: int) -> None: ...


class Pace:
    """Does a transfer move at least so many bytes a second over a window? One object a direction."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.since_ns: int | None = None
        self.bytes = 0

    def begin(self, now: Instant) -> None:
        self.since_ns, self.bytes = now.mono_ns, 0

    def end(self) -> None:
        self.since_ns = None

    def moved(self, size: int) -> None:
        self.bytes += size

    def is_slow(self, now: Instant) -> bool:
        """Judges at the end of each window, and begins the next."""
        if self.since_ns is None or now.mono_ns - self.since_ns < self.caps.rate_window_s * SECOND:
            return False
        slow = self.bytes < self.caps.rate_bytes_s * self.caps.rate_window_s
        self.begin(now)
        return slow


@dataclass(slots=True)
class Bulk:
    """A payload on its way out."""

    root: bytes
    next: int
    again: bool
    """was it sent before? Then each chunk is looked at first: what is hashed is no more than what is sent, however often a peer
    asks"""


class Connection:
    """One connection, from the first record to the last."""

    def __init__(self, number: int, host: Host, socket: WebSocket, session: ss.Session, peer: str = "") -> None:
        self.id: Final = number
        self.host = host
        self.socket = socket
        self.session = session
        self.peer = peer
        """whom we dialled, or who it is once it is up"""
        self.initiator: Final = bool(peer)
        self.up = False
        self.admitted: Callable[[], bool] = lambda: True
        """asked when the session comes up: is there room for this member?"""
        self.why = ""
        """why it was closed, if by us"""
        self.outbox: deque[ms.Message] = deque()
        self.bulks: deque[Bulk] = deque()
        self.awaited: dict[bytes, Incoming] = {}
        self.inward, self.outward = Pace(host.caps), Pace(host.caps)
        self.work = asyncio.Event()
        self.unheard = 0
        """messages that the core has not dealt with"""
        self.ending = False

    # ---- what the core commands ------------------------------------------------------------------------------------

    def send(self, message: ms.Message) -> None:
        if not self.ending:
            self.outbox.append(message)
            if self.bulks or self.socket.is_choked:
                self.work.set()
                return
            try:
                self.speak()
            except LOST as error:
                self.give_up(error)

    def send_bulk(self, root: bytes, from_chunk: int) -> None:
        """Asked again, a payload starts again where it is asked for: chunks come in order."""
        if not self.ending:
            self.bulks = deque(bulk for bulk in self.bulks if bulk.root != root)
            self.bulks.append(Bulk(root, from_chunk, self.host.store.files.lend(root)))
            self.work.set()

    def receive_bulk(self, root: bytes, size: int) -> None:
        incoming = self.host.store.files.incoming(root, size)
        if incoming.next_chunk == incoming.count:
            self.whole(incoming)
            return
        try:
            self.session.expect(root, size, incoming.next_chunk)
        except Refused as refusal:
            self.close(str(refusal))
            return
        self.awaited[root] = incoming
        self.inward.begin(self.host.now())
        self.send(ms.Fetch(root, incoming.next_chunk))

    def close(self, why: str) -> None:
        """Write what waits, then close."""
        self.why = self.why or why
        if not self.ending:
            asyncio.get_running_loop().call_later(CLOSING_S, self.abort)
        self.ending = True
        self.work.set()

    def is_ready(self) -> bool:
        """Has the core dealt with all that came, and is what was asked of us written, but for an honest rest?"""
        return not self.unheard and len(self.outbox) + len(self.bulks) < OUTBOX

    # ---- life ------------------------------------------------------------------------------------------------------

    async def live(self, group: asyncio.TaskGroup) -> str:
        """Until it is closed, by whichever side; returns why. `group` owns the writer."""
        writer = group.create_task(self.write())
        try:
            why = await self.read()
        except (ConnectionError, RuntimeError) as error:
            why = f"connection lost: {error}"
        finally:
            if self.ending:
                await asyncio.wait({writer}, timeout=CLOSING_S)
            self.ending = True
            writer.cancel()
            self.abort()
        return self.why or why

    def abort(self) -> None:
        self.socket.abort()

    async def read(self) -> str:
        try:
            await self.socket.listen(self.hear, self.is_ready)
            return "the other side closed"
        except Refused as refusal:
            return str(refusal)
        except Missing as lost:
            return f"a payload under way was dropped: {lost}"

    def hear(self, record: memoryview) -> None:
        for heard in self.session.receive(record, self.host.now()):
            if isinstance(heard, ss.Reply):
                self.socket.send(heard.record)
            elif isinstance(heard, ss.Up):
                self.peer = heard.peer
                if not self.admitted():
                    raise Refused("quota", f"{heard.peer} holds more connections than it may")
                self.up = True
                self.await_core(self.host.up(self, ev.Opened(self.id, heard.peer, self.initiator, heard.certificate)))
            elif isinstance(heard, ss.Arrived):
                self.await_core(self.host.post(ev.Received(self.id, heard.message)))
            else:
                self.take(heard)

    def await_core(self, handled: asyncio.Future[None]) -> None:
        """Nothing more is read before the core has dealt with this."""
        self.unheard += 1
        handled.add_done_callback(self.dealt_with)

    def dealt_with(self, handled: asyncio.Future[None]) -> None:
        self.unheard -= 1
        self.socket.go_on()

    def take(self, chunk: ss.Chunk) -> None:
        incoming = self.awaited.get(chunk.root)
        if incoming is None:
            return
        self.inward.moved(len(chunk.data))
        incoming.write(chunk.index, chunk.data)
        if chunk.index == incoming.count - 1:
            del self.awaited[chunk.root]
            if not self.awaited:
                self.inward.end()
            self.whole(incoming)

    def whole(self, incoming: Incoming) -> None:
        root = incoming.finish(pinned=True)
        self.host.post(ev.BulkReceived(self.id, root), pinned=root)

    async def write(self) -> None:
        """Messages first, then chunks; each sealed just before it is written, so that the counters stand in order."""
        try:
            while True:
                await self.work.wait()
                while self.outbox:
                    self.speak()
                    await self.socket.drain()
                self.socket.go_on()
                if self.ending:
                    break
                if self.bulks:
                    await self.push(self.bulks[0])
                else:
                    self.work.clear()
            await asyncio.wait_for(self.socket.close(), timeout=CLOSING_S)
            self.abort()
        except LOST as error:
            self.give_up(error)

    def speak(self) -> None:
        """Write the messages that wait, as long as the transport takes them."""
        while self.outbox and not self.socket.is_choked:
            self.socket.send(self.session.send(self.outbox.popleft()))

    def give_up(self, error: Exception) -> None:
        gone = isinstance(error, Missing)
        self.why = self.why or f"{'a payload that was offered is gone' if gone else 'connection lost while writing'}: {error}"
        self.outbox.clear()
        self.bulks.clear()
        self.abort()
        self.socket.go_on()

    async def push(self, bulk: Bulk) -> None:
        """A burst of chunks of one payload."""
        files = self.host.store.files
        payload, tree = files.read(bulk.root), files.tree(bulk.root)
        last = chunk_count(len(payload))
        if self.outward.since_ns is None:
            self.outward.begin(self.host.now())
        records = []
        for index in range(bulk.next, min(bulk.next + self.host.burst, last)):
            data = payload[index * CHUNK : (index + 1) * CHUNK]
            if bulk.again and not tree.holds(index, data):
                raise StateError(ROTTED)
            await self.host.spend(len(data))
            records.append(self.session.seal_chunk(bulk.root, index, tree.path(index), data))
            self.outward.moved(len(data))
        self.socket.send(*records)
        await self.socket.drain()
        bulk.next += len(records)
        if bulk.next >= last:
            with suppress(ValueError):
                self.bulks.remove(bulk)
        if self.bulks:
            await asyncio.sleep(0)
        else:
            self.outward.end()

    def ails(self, now: Instant) -> str:
        """Why it must be closed now; empty if it need not."""
        if self.session.expired(now):
            return "the session has reached its age; a new one follows"
        if self.inward.is_slow(now) or self.outward.is_slow(now):
            return f"slow: a transfer moved less than {self.host.caps.rate_bytes_s:g} bytes a second"
        return ""

