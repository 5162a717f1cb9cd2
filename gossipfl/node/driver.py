"""The driver of one node: real clock, sockets, threads and disk around the core; it decides nothing.

One task takes events from a queue, asks `Peer.handle` and carries out what it commands, strictly in order: a Commit is on
disk before the next command. One TaskGroup owns every task, so that no exception is lost. Not here: HTTP (server, client,
admin), what the node is made of (build), what a person is told of it (status), when its model is evaluated (evaluations).
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gossipfl import __version__
from gossipfl.config import NodeConfig
from gossipfl.errors import GossipError
from gossipfl.learning.checks import straight_alarm
from gossipfl.node.client import Client
from gossipfl.node.company import Company
from gossipfl.node.connection import BURST, Connection
from gossipfl.node.evaluations import Evaluations
from gossipfl.node.gate import Caps
from gossipfl.node.logs import Log, progress
from gossipfl.node.status import status_of
from gossipfl.node.systemd import Watchdog
from gossipfl.protocol import events as ev
from gossipfl.protocol import session as ss
from gossipfl.protocol.core import Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Peer
from gossipfl.recorder import Recorder
from gossipfl.store import Store
from gossipfl.trust.identity import Certificate, NodeKeys
from gossipfl.trust.membership import Membership
from gossipfl.workbench import Bench, Workbench

if TYPE_CHECKING:
    from gossipfl.node.server import Door

TICK_S: Final = 0.5
"""Seconds between two looks at what nobody announces: hours, slow transfers, old sessions, the watchdog."""

SETTLE_S: Final = 3.0
"""Seconds for connections to close after the core has stopped."""

LIGHT_BYTES: Final = 64 * 1024
"""Payloads up to this size are mixed where they are, in half a millisecond: handing a job to a thread and its end back costs
as much. Larger ones go to a thread, so that no connection waits."""

PAUSED: Final = ("operator", "paused")
"""The row that says so."""

QUICK_S: Final = 0.005
"""A commit of small tensors is done where it is, too, as long as the last one took no longer: on a slow disk it goes to a
thread, so that no connection waits for it."""


@dataclass(frozen=True)
class Parts:
    """What a node is made of; `build` makes it from a node.toml."""

    config: NodeConfig
    membership: Membership
    keys: NodeKeys
    certificate: Certificate
    psk: bytes
    settings: Settings
    bench: Bench
    store: Store
    started: ev.Started
    log: Log
    entropy: Callable[[int], bytes]
    """random bytes for keys, from the operating system"""
    judge: Callable[[bytes, Any], dict[str, float]] | None = None
    """(encoded normalisation, vector) -> metrics on this site's hold-out"""
    metric: str = ""
    """which of them people look at first"""
    caps: Caps = field(default_factory=Caps)
    recorder: Recorder | None = None


class Alarm:
    """Calls `ring` once it is time, and never early. An alarm is put off at nearly every event: then the timer stays, and is set
    anew when it goes off."""

    def __init__(self, ring: Callable[[], object]) -> None:
        self.ring = ring
        self.due_ns: int | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.timer_ns = 0
        """when the timer goes off"""

    def set(self, at_ns: int | None) -> None:
        """At this instant of the monotonic clock, and no longer when it was to ring before; None: not at all."""
        self.due_ns = at_ns
        if at_ns is None or (self.timer is not None and self.timer_ns <= at_ns):
            return
        if self.timer is not None:
            self.timer.cancel()
        delay = max(0.0, (at_ns - time.monotonic_ns()) / 1e9)
        self.timer, self.timer_ns = asyncio.get_running_loop().call_later(delay, self._look), at_ns

    def _look(self) -> None:
        self.timer = None
        if self.due_ns is None or time.monotonic_ns() < self.due_ns:
            self.set(self.due_ns)
        else:
            self.due_ns = None
            self.ring()


class Driver:
    """One running node. `run` returns when the node has stopped, and raises GossipError where it had to."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.store = parts.store
        self.caps = parts.caps
        self.burst = 1 if parts.config.limits.bandwidth_kib_s else BURST
        self.recorder = parts.recorder
        self.peer = Peer(parts.settings)
        if self.recorder is not None:
            self.recorder.listen(self.peer)
        self.bench = Workbench(parts.bench, parts.store.files)
        self.log = parts.log
        self.watchdog = Watchdog()
        self.client = Client(self)
        self.connections: dict[int, Connection] = {}
        self.certificates: dict[str, Certificate] = {}
        """the newest of each member"""
        self.evaluations = Evaluations(self)
        self.running, self._alone = asyncio.Event(), asyncio.Event()
        self._alone.set()
        self.began_ns = time.monotonic_ns()
        self.company = Company(self.log, self.began_ns)
        self.listening = self.admin = ""
        self.door: Door | None = None
        self.held_by_operator = PAUSED in parts.started.rows
        """an operator's pause outlives the process: only `resume` ends it"""
        self.held = False
        self.after: Callable[[ev.Event], None] = lambda event: None
        """called right after the core has handled an event"""
        self._events: asyncio.Queue[tuple[ev.Event, asyncio.Future[None], bytes]] = asyncio.Queue()
        self._notes: list[ev.Note] = []
        self._numbers = 0
        self._alarm = Alarm(lambda: self.post(ev.Alarm()))
        self._learn, self._hands, self._disk = (
            ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("learn", "hands", "disk")
        )
        self._working: set[asyncio.Task[None]] = set()
        self._over = False
        self._saved_ns, self._budget = time.monotonic_ns(), 0.0
        self._commit_s = math.inf
        """how long the last commit took"""
        self.group: asyncio.TaskGroup
        seen = [Certificate.decode(value) for (kind, _), value in parts.started.rows.items() if kind == "certificate"]
        for certificate in (*parts.settings.certificates, *seen):
            self.know(certificate)

    # ---- life ------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """From Started to Stopped."""
        from gossipfl.node import admin, server

        try:
            async with asyncio.TaskGroup() as self.group:
                closers: list[Callable[[], Awaitable[None]]] = [self.client.close]
                tick = self.group.create_task(self._tick())
                self._hours()  # before the core starts: what was paused begins nothing
                self.post(self.parts.started)
                try:
                    closers += [await admin.serve(self), await server.serve(self)]
                    await self._think()
                finally:
                    tick.cancel()
                    await self._settle()
                    for close in closers:
                        await close()
        except BaseExceptionGroup as group:
            ours = group.subgroup(GossipError)
            if ours is None:
                raise
            raise _first(ours) from group
        finally:
            self._end()

    async def _settle(self) -> None:
        """Nobody waits for the core any more; the last bytes of every connection, then none is left. A job that outlasts
        the drain is not waited for: what it makes is lost, as in a crash."""
        self._over = True
        for task in self._working:
            task.cancel()
        while not self._events.empty():
            _, handled, _ = self._events.get_nowait()
            if not handled.done():
                handled.set_result(None)
        self._alarm.set(None)
        for connection in self.connections.values():
            connection.close("this node stops")
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                await self._alone.wait()
        for connection in list(self.connections.values()):
            connection.abort()

    def _end(self) -> None:
        for pool in (self._disk, self._hands, self._learn):
            pool.shutdown(wait=False, cancel_futures=True)
        self.log.close()
        self.store.close()

    def stop(self) -> None:
        """Drain, checkpoint, end. May be called more than once."""
        self.parts.log.say("stopping", detail="draining; a second signal does not hurry it")
        self.watchdog.say("STOPPING=1")
        self.post(ev.Stopping())

    def now(self) -> Instant:
        return Instant(time.monotonic_ns(), time.time_ns())

    # ---- events ----------------------------------------------------------------------------------------------------

    def post(self, event: ev.Event, pinned: bytes = b"") -> asyncio.Future[None]:
        """One event for the core. Bounded by who posts: each connection waits for its last one, each job has one."""
        handled: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._over:
            handled.set_result(None)
            return handled
        self._events.put_nowait((event, handled, pinned))
        return handled

    async def _think(self) -> None:
        while True:
            event, handled, pinned = await self._events.get()
            stopped = False
            for command in self._ask(event):
                stopped |= isinstance(command, ev.Stopped)
                await self._carry_out(command)
            self.after(event)
            if (job := getattr(event, "job", 0)) != 0:
                self.bench.release(job)
            if pinned:
                self.store.files.unpin([pinned])
            if not handled.done():
                handled.set_result(None)
            if isinstance(event, ev.Started):
                self.running.set()
                self.log.say("started", stage=self.peer.stage, version=__version__, listen=self.listening)
            if stopped:
                await self._flush()
                if self.recorder is not None:
                    self.recorder.end(self.peer)
                return
            self.evaluations.look()

    def _ask(self, event: ev.Event) -> list[ev.Command]:
        recorder = self.recorder
        worked = recorder is not None and not recorder.failure
        commands = self.peer.handle(event, self.now())
        if worked and recorder is not None and recorder.failure:
            self.log.say("recording", detail=recorder.failure)
        return commands

    async def _carry_out(self, command: ev.Command) -> None:
        if isinstance(command, ev.Commit):
            await self._commit(command)
        elif isinstance(command, ev.Note):
            self._note(command)
        elif isinstance(command, ev.Wake):
            self._alarm.set(command.at_ns)
        elif isinstance(command, ev.Dial):
            self.group.create_task(self.client.dial(command.peer))
        elif isinstance(command, ev.Stopped):
            pass
        elif isinstance(command, ev.Send | ev.SendBulk | ev.ReceiveBulk | ev.Close):
            self._speak(command)
        elif self._is_light(command):
            self.post(self.bench.carry_out(command))
        else:
            task = self.group.create_task(self._work(command))
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    def _speak(self, command: ev.Send | ev.SendBulk | ev.ReceiveBulk | ev.Close) -> None:
        connection = self.connections.get(command.conn)
        if connection is None:
            return
        if isinstance(command, ev.Send):
            connection.send(command.message)
        elif isinstance(command, ev.SendBulk):
            connection.send_bulk(command.root, command.from_chunk)
        elif isinstance(command, ev.ReceiveBulk):
            connection.receive_bulk(command.root, command.size)
        else:
            connection.close(command.why)

    async def _commit(self, command: ev.Commit) -> None:
        facts = (*self._notes, *command.facts)
        self._notes = []
        wall = time.time_ns()
        began = time.monotonic()
        if self._is_small() and self._commit_s < QUICK_S:
            self.store.commit(command.rows, command.keep, facts, wall, command.live)
        else:
            await self.writing(self.store.commit, command.rows, command.keep, facts, wall, command.live)
        self._commit_s = time.monotonic() - began
        for fact in command.facts:
            self.log.fact(fact)

    def _note(self, note: ev.Note) -> None:
        self.log.fact(note)
        self._notes.append(note)

    async def _flush(self) -> None:
        """Facts that no commit has taken along."""
        notes, self._notes = self._notes, []
        if notes:
            await self.writing(self.store.rows.apply, (), notes, time.time_ns())

    def _is_light(self, job: ev.Job) -> bool:
        """Is it done sooner than a thread would wake up?"""
        if isinstance(job, ev.Train | ev.Prepare | ev.Estimate):
            return False
        return self._is_small()

    def _is_small(self) -> bool:
        return max(self.peer.settings.model_size, self.peer.settings.statistics_size) <= LIGHT_BYTES

    async def _work(self, job: ev.Job) -> None:
        pool = self._learn if isinstance(job, ev.Train | ev.Prepare) else self._hands
        self.post(await self._in(pool, self.bench.carry_out, job))

    async def _in(self, pool: ThreadPoolExecutor, do: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, do, *arguments)

    async def learning(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """`do` in the learning thread, after what is trained there now."""
        return await self._in(self._learn, do, *arguments)

    async def writing(self, do: Callable[..., Any], *arguments: Any) -> Any:
        """`do` in the disk's thread."""
        return await self._in(self._disk, do, *arguments)

    # ---- connections -----------------------------------------------------------------------------------------------

    def session(self, expect: Certificate | None) -> ss.Session:
        """A fresh session, to `expect` or from whoever dials."""
        parts = self.parts
        return ss.Session(
            initiator=expect is not None,
            federation=parts.membership.federation_id,
            keys=parts.keys,
            certificate=parts.certificate.encoded,
            psk=parts.psk,
            ephemeral=parts.entropy(32),
            admit=parts.membership.admits,
            expect=None if expect is None else (expect.member, expect.noise),
            started=self.now(),
        )

    def connection(self, socket: Any, session: ss.Session, peer: str = "") -> Connection:
        self._numbers += 1
        return Connection(self._numbers, self, socket, session, peer)

    async def serve(self, connection: Connection) -> str:
        """A connection's whole life; why it ended."""
        self.connections[connection.id] = connection
        self._alone.clear()
        why = "cancelled"
        try:
            why = await connection.live(self.group)
        finally:
            self.connections.pop(connection.id, None)
            if not self.connections:
                self._alone.set()
            if connection.up:
                self.post(ev.Closed(connection.id, why))
        return why

    def up(self, connection: Connection, event: ev.Opened) -> asyncio.Future[None]:
        self.know(event.certificate)
        return self.post(event)

    def know(self, certificate: Certificate) -> None:
        """Keep it if it is the newest of its member."""
        held = self.certificates.get(certificate.member)
        if held is None or held.counter < certificate.counter:
            self.certificates[certificate.member] = certificate

    async def spend(self, size: int) -> None:
        """Wait until the bandwidth cap lets `size` bytes of payload go; a second's worth may be saved up."""
        rate = self.parts.config.limits.bandwidth_kib_s * 1024
        while rate:
            now = time.monotonic_ns()
            self._budget = min(rate, self._budget + rate * (now - self._saved_ns) / 1e9)
            self._saved_ns = now
            if self._budget >= min(size, rate):
                self._budget -= size
                return
            await asyncio.sleep(min(1.0, (min(size, rate) - self._budget) / rate))

    # ---- what nobody announces -------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        watchdog = self.watchdog
        await self.running.wait()
        watchdog.say("READY=1")
        while True:
            for connection in list(self.connections.values()):
                if why := connection.ails(self.now()):
                    connection.close(why)
            self._hours()
            await self._flush()
            self.evaluations.look()
            self._tell()
            watchdog.alive()
            await asyncio.sleep(TICK_S)

    def _tell(self) -> None:
        """What a person should hear without asking: who is there, and how far it is."""
        peer = self.peer
        if not peer.stopping:
            around = [peer.neighbour(one) for one in self.parts.membership.neighbours(peer.me)]
            self.company.look(around, peer.settings.dialable, self.now())
            self.company.straight({name: straight_alarm(found.ratio) for name, found in self.bench.straightness.items()})
        if self.log.live:
            self.log.show(progress(status_of(self)))

    async def order(self, order: str) -> None:
        """An operator's: pause, resume, leave, finish, stop. A pause and its end are on disk when this returns."""
        if order == "stop":
            self.stop()
        elif order in ("pause", "resume"):
            self.held_by_operator = order == "pause"
            self._hours()
            await self.group.create_task(self._remember(PAUSED, b"1" if self.held_by_operator else None))
        else:
            self.post(ev.Operator(order))

    async def _remember(self, row: tuple[str, str], value: bytes | None) -> None:
        """A row of the operator's own, on disk."""
        await self.writing(self.store.rows.apply, [(*row, value)], (), time.time_ns())

    def _hours(self) -> None:
        """Pause when the operator or the clock on the wall says so."""
        local = time.localtime()
        allowed = self.parts.config.limits.allows(local.tm_hour * 60 + local.tm_min)
        held = self.held_by_operator or not allowed
        if held != self.held:
            self.held = held
            why = "by the operator" if self.held_by_operator else f"allowed_hours {self.parts.config.limits.allowed_hours}"
            self.log.say("paused" if held else "resumed", detail=why)
            self.post(ev.Operator("pause" if held else "resume"))


def _first(group: BaseExceptionGroup[Any]) -> Any:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
