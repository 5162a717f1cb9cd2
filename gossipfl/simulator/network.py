"""Many real Peers on one heap of events: virtual clock, virtual network, modelled disks, real crypto. One seed, one history.

What runs is what is deployed: Peer, Session, Workbench, Store; what the deployed driver does around them is done here, too.
Not here: threads, sleep, wall clock, sockets; connections (lines.py), what goes wrong (faults.py) and how (trouble.py).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol import session as ss
from gossipfl.protocol.core import Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.limits import HANDSHAKE_S
from gossipfl.protocol.noise import agree
from gossipfl.protocol.peer import Course, Peer, bookings, is_lost, names_in
from gossipfl.simulator.clock import HOUR, SECOND, Heap, heavy
from gossipfl.simulator.faults import Faults, Strike
from gossipfl.simulator.lines import End, Lines, Way
from gossipfl.simulator.once import Once
from gossipfl.simulator.trouble import Trouble
from gossipfl.store import Crash, Damaged, Missing, StateError, Store
from gossipfl.store.errors import NO_MODEL
from gossipfl.trust.identity import Certificate, NodeKeys
from gossipfl.workbench import Bench, Workbench, made_again

__all__ = ["HOUR", "SECOND", "WALL_START_NS", "End", "Node", "Observer", "Pace", "Spec", "World"]

WALL_START_NS: Final = 1_767_225_600 * SECOND
"""Where the virtual wall clock begins: 2026-01-01 UTC."""

RESTART_S: Final = 10
"""Seconds after which a process that stopped with an error is started again (RestartSec of the deployed unit)."""

OPERATOR_S: Final = 3600
"""Seconds until an operator has moved away a state folder that the node refuses, as its message says."""

REPEATED: Final = frozenset((ms.Propose, ms.Reply, ms.Done, ms.Abort, ms.Aborted, ms.Candidate))
"""Control messages that a retry may say a second time in a session."""


@dataclass(frozen=True)
class Pace:
    """How long computing takes, in virtual time."""

    step_s: float = 0.01
    """one local step"""
    job_s: float = 0.001
    """every other job"""


@dataclass(frozen=True)
class Spec:
    """One node before it is started."""

    settings: Callable[[random.Random], Settings]
    bench: Bench
    keys: NodeKeys
    certificate: Certificate
    psk: bytes
    x0: Any
    """vector; the same at every node"""
    begin: Any = None
    """vector to begin with, where it is not x^0"""
    statistics: Any = field(default_factory=lambda: np.zeros(1))
    speed: float = 1.0
    """steps per step_s"""


class Observer:
    """What watches a world. Every hook does nothing here; none may change the world."""

    def booted(self, world: World, node: Node) -> None:
        """The node has read its disk and is about to be told Started."""

    def fed(self, world: World, node: Node, event: ev.Event, commands: list[ev.Command]) -> None:
        """The core was asked; nothing is carried out yet."""

    def did(self, world: World, node: Node, command: ev.Command) -> None:
        """Carried out; after a Commit its state is on the modelled disk."""

    def stored(self, world: World, node: Node, job: ev.Job, event: ev.Event) -> None:
        """A job was done, and what it made is in the store; the core will hear of it later."""

    def crashed(self, world: World, node: Node, before: Store, after: Store) -> None:
        """The process is gone: the store as it was, and what is found of it at the next start."""

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        """A fault began, or ended (kind + "-end"). "exception": a core raised, which it never may."""

    def wire(self, world: World, sender: str, receiver: str, size: int) -> None:
        """Bytes were put on a line."""


class Node:
    """One node's life over crashes: the disk stays, all else begins anew."""

    def __init__(self, name: str, spec: Spec, world: World) -> None:
        self.name, self.spec, self.world = name, spec, world
        self.store = self.new_store()
        self.alive = False
        """does the process run?"""
        self.powered = True
        """does the machine? Without power nobody is told that a connection is gone"""
        self.gone = False
        """left for good, or not yet joined: nothing starts it"""
        self.rests = False
        """off by its trace of up times: nothing starts it before the next of them"""
        self.stopped = False
        """stopped by order"""
        self.paused = 0
        self.backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.refusing = 0
        self.slow = 1.0
        self.tail = 0.0
        self.line_free = 0
        self.clock = (0, 0, 0)
        """(own monotonic ns at, world's ns, parts in a million fast)"""
        self.wall_off = 0
        self.boots = 0
        self.wake = 0
        self.facts: list[ev.Note] = []
        self.ends: dict[int, End] = {}
        self.lies: dict[bytes, bytes] = {}
        """payloads that a hostile node has offered beside its core"""
        self.denies: set[str] = set()
        """of whom a hostile node refuses the next proposal"""
        self.peer: Peer
        self.bench: Workbench

    # ---- time ------------------------------------------------------------------------------------------------------

    def now(self) -> Instant:
        """What the node's own clocks say."""
        honest = self.world.now()
        local, since, ppm = self.clock
        if not (ppm or local or self.wall_off):
            return honest
        passed = self.world.mono - since
        mono = local + passed + passed * ppm // 1_000_000
        return Instant(mono, honest.wall_ns + mono - honest.mono_ns + self.wall_off)

    def set_clock(self, ppm: int) -> None:
        """From now on the clocks run fast by so many parts in a million; they do not jump."""
        self.clock = (self.now().mono_ns, self.world.mono, ppm)

    def until(self, own_ns: int) -> int:
        """The world's ns until the own monotonic clock shows this."""
        local, since, ppm = self.clock
        passed = -((local - own_ns) * 1_000_000 // (1_000_000 + ppm))
        return max(0, since + passed - self.world.mono)

    def later(self, delay_ns: int, act: Callable[..., None], *what: Any) -> None:
        """In this life only: a crash forgets it; a pause puts it off."""
        world = self.world
        world.at(world.mono + delay_ns, self.do, self.boots, act, *what)

    def do(self, boots: int, act: Callable[..., None], *what: Any) -> None:
        """What the process of this life does; whatever it dies of, the world goes on."""
        if self.boots != boots or not self.alive:
            return
        if self.paused:
            self.backlog.append((self.do, (boots, act, *what)))
            return
        try:
            act(*what)
        except Crash:
            self.world.trouble.crash_saving(self)
        except StateError as error:
            self.give_up(error)
        except Exception as error:
            self.world.raised(self, error)

    def set_alarm(self, at_ns: int | None) -> None:
        self.wake += 1
        if at_ns is not None:
            self.later(self.until(at_ns), self._ring, self.wake)

    def _ring(self, number: int) -> None:
        if self.wake == number:
            self.tell(ev.Alarm())

    def new_store(self) -> Store:
        return Store.modelled() if self.world.keeps else Store.modelled(kept_bytes=0)

    # ---- life ------------------------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Read the disk and tell the core; nothing where it runs already, has left, has not joined or is off by its trace."""
        if self.alive or self.gone or self.rests:
            return
        self.alive, self.powered, self.boots = True, True, self.boots + 1
        self.ends, self.backlog, self.paused, self.stopped = {}, [], 0, False
        self.do(self.boots, self._start)

    def _start(self) -> None:
        files = self.store.files
        rows = self.store.load()
        x0 = files.put(self.spec.x0)
        base = files.put(np.zeros_like(self.spec.statistics))
        begin = b"" if self.spec.begin is None else files.put(self.spec.begin)
        missing = files.missing(names_in(rows))
        if is_lost(rows, self.name, missing):
            self.store.rows.damaged = True  # type: ignore[attr-defined]
            raise Damaged(NO_MODEL)
        own = files.put(made_again(files, self.spec.statistics, bookings(rows, missing) or ()))
        settings = self.spec.settings(self.chance())
        self.peer = Peer(self.world.once.listen(settings) if self.world.once else settings)
        self.bench = Workbench(self.spec.bench, files)
        for observer in self.world.observers:
            observer.booted(self.world, self)
        self.feed(ev.Started(rows, x0, own, base, begin, missing))

    def chance(self) -> random.Random:
        """The random source of the core in this life."""
        return random.Random(f"{self.world.seed}/core/{self.name}/{self.boots}")

    def crash(self, survival: float = 0.5, power: bool = False) -> None:
        """The process is gone, and what its disk had not synced may be. `power`: so is the machine, and nobody is told."""
        self.alive, self.powered = False, not power
        for end in list(self.ends.values()):
            if power:
                end.finish("power lost")
            else:
                end.shut(f"{self.name} crashed")
        before = self.store
        before.files.disk.crash_at = None  # type: ignore[attr-defined]
        self.found(before, before.crash(self.world.stream("survival", self.name), survival))

    def found(self, before: Store, after: Store) -> None:
        self.store = after
        for observer in self.world.observers:
            observer.crashed(self.world, self, before, after)

    def give_up(self, error: StateError) -> None:
        """Exit 73, as the deployed driver: connections closed, nothing lost that was written; started again after a while.

        Damaged rows are refused at every start until the operator has moved the folder away; once all has healed one is there."""
        self.world.counts["exit-73"] += 1
        self.exit(str(error))
        if isinstance(error, Damaged) and self.store.rows.damaged:  # type: ignore[attr-defined]
            wait = RESTART_S if self.world.trouble.healed else OPERATOR_S
            self.world.at(self.world.mono + wait * SECOND, self.begin_afresh)
        else:
            self.world.at(self.world.mono + RESTART_S * SECOND, self.boot)

    def begin_afresh(self) -> None:
        """An operator has moved the state folder away; what is not on disk with the others is lost."""
        if not self.alive and self.store.rows.damaged:  # type: ignore[attr-defined]
            self.world.struck("state-lost", self.name)
            self.store = self.new_store()
            self.boot()

    def exit(self, why: str) -> None:
        """The process ends in order: connections are closed, and the disk keeps all that was written."""
        self.alive = False
        for end in list(self.ends.values()):
            end.shut(why)
        self.found(self.store, self.store.reopened())

    def resume(self) -> None:
        """After a pause: all that came meanwhile, in order."""
        backlog, self.backlog = self.backlog, []
        for act, what in backlog:
            self.world.at(self.world.mono, act, *what)

    # ---- the core --------------------------------------------------------------------------------------------------

    def feed(self, event: ev.Event) -> None:
        """One event from outside; a process that is paused hears of it later, one that is gone never."""
        self.do(self.boots, self.tell, event)

    def tell(self, event: ev.Event) -> None:
        """One event through the only door, and its commands in order."""
        world, observers = self.world, self.world.observers
        world.events += 1
        commands = self.peer.handle(event, self.now())
        for observer in observers:
            observer.fed(world, self, event, commands)
        for command in commands:
            self.carry_out(command)
            for observer in observers:
                observer.did(world, self, command)
        job = getattr(event, "job", None)
        if job is not None and self.alive:
            self.bench.release(job)

    def carry_out(self, command: ev.Command) -> None:
        does = CARRIED.get(type(command))
        if does is None:
            self.work(command)  # type: ignore[arg-type]
        else:
            does(self, command)

    def commit(self, command: ev.Commit) -> None:
        self.facts += command.facts
        self.store.commit(command.rows, command.keep, command.facts, self.now().wall_ns, command.live)
        for fact in command.facts:
            if fact.kind == "ingress" and fact.fields["role"] == "reply":
                self.world.counts["exchange"] += 1

    def over(self, command: ev.Send | ev.SendBulk | ev.ReceiveBulk | ev.Close) -> None:
        """A command about a connection that is gone has no effect."""
        end = self.ends.get(command.conn)
        if end is None:
            return
        if isinstance(command, ev.Send):
            end.write(end.session.send(command.message))
            if type(command.message) in REPEATED:
                end.said = command.message
        elif isinstance(command, ev.SendBulk):
            end.send_bulk(command.root, command.from_chunk)
        elif isinstance(command, ev.ReceiveBulk):
            self.receive_bulk(end, command)
        else:
            end.shut(command.why)

    def stop(self, command: ev.Stopped) -> None:
        self.stopped, self.gone = True, self.peer.leaving
        self.exit("this node stops")

    def work(self, job: ev.Job) -> None:
        """Done now, known when its virtual time has passed."""
        pace = self.world.pace
        event = self.bench.carry_out(job)
        for observer in self.world.observers:
            observer.stored(self.world, self, job, event)
        seconds = job.steps * pace.step_s / self.spec.speed if isinstance(job, ev.Train) else pace.job_s
        if self.slow != 1 or self.tail:
            seconds *= self.slow
            seconds *= heavy(self.world.stream("tail", self.name), self.tail)
        self.later(int(seconds * SECOND), self.tell, event)

    # ---- sessions --------------------------------------------------------------------------------------------------

    def receive_bulk(self, end: End, command: ev.ReceiveBulk) -> None:
        incoming = self.store.files.incoming(command.root, command.size)
        if incoming.next_chunk == incoming.count:
            self.whole(end, incoming)
            return
        try:
            end.session.expect(command.root, command.size, incoming.next_chunk)
        except Refused as refusal:
            end.shut(str(refusal))
            return
        end.incoming[command.root] = incoming
        end.await_pace()
        end.write(end.session.send(ms.Fetch(command.root, incoming.next_chunk)))

    def whole(self, end: End, incoming: Any) -> None:
        files = self.store.files
        root = incoming.finish(pinned=True)

        def arrived() -> None:
            self.tell(ev.BulkReceived(end.id, root))
            if self.store.files is files:
                files.unpin([root])

        self.later(0, arrived)

    def hear(self, end: End, record: bytes) -> None:
        """One record from the network into the session, and what it means into the core."""
        if self.paused:
            self.backlog.append((end.other.arrive, (record,)))
        else:
            self.do(self.boots, self._hear, end, record)

    def _hear(self, end: End, record: bytes) -> None:
        try:
            heard = end.session.receive(record, self.now())
        except Refused as refusal:
            end.shut(str(refusal))
            return
        for one in heard:
            if not end.closed:
                self.meant(end, one)

    def meant(self, end: End, heard: Any) -> None:
        kind = type(heard)
        if kind is ss.Arrived:
            message = heard.message
            if self.lies and isinstance(message, ms.Fetch) and message.root in self.lies:
                self.world.trouble.serve_lie(end, message.root)
            elif self.denies and isinstance(message, ms.Propose) and end.peer in self.denies:
                self.world.trouble.deny(end, message)
            else:
                self.tell(ev.Received(end.id, message))
        elif kind is ss.Chunk:
            self.take(end, heard)
        elif kind is ss.Up:
            end.up = True
            self.tell(ev.Opened(end.id, heard.peer, end.initiator, heard.certificate))
        else:
            end.write(heard.record)

    def take(self, end: End, chunk: ss.Chunk) -> None:
        incoming = end.incoming.get(chunk.root)
        if incoming is None:
            return
        end.moved += len(chunk.data)
        try:
            incoming.write(chunk.index, chunk.data)
            if incoming.next_chunk == incoming.count:
                del end.incoming[chunk.root]
                self.whole(end, incoming)
        except Missing as lost:
            end.shut(f"a payload under way was dropped: {lost}")


CARRIED: Final[Mapping[type, Callable[[Node, Any], None]]] = {
    ev.Send: Node.over,
    ev.SendBulk: Node.over,
    ev.ReceiveBulk: Node.over,
    ev.Close: Node.over,
    ev.Wake: lambda node, command: node.set_alarm(command.at_ns),
    ev.Commit: Node.commit,
    ev.Dial: lambda node, command: node.world.dial(node, command.peer),
    ev.Note: lambda node, command: node.facts.append(command),
    ev.Stopped: Node.stop,
}
"""What carries out which command; all others are jobs."""


class World(Heap):
    """All nodes, the network between them, the clock and the faults, from one seed.

    A world never raises for what a node dies of; a core that raises, which none may, is `struck("exception")`, and raised
    again where no observer is there to see it."""

    def __init__(
        self,
        specs: Mapping[str, Spec],
        seed: int,
        faults: Faults | None = None,
        *,
        lines: Lines | None = None,
        pace: Pace | None = None,
        strikes: Sequence[Strike] = (),
        observers: Sequence[Observer] = (),
        keeps: bool = True,
        once: bool = False,
    ) -> None:
        super().__init__(seed)
        self.keeps = keeps
        """do nodes keep small files in memory? Otherwise each use reads the disk, as large ones are"""
        self.once = Once() if once else None
        """is an agreement, or the check of a signature, that the other end has the answer to not computed a second time?"""
        self.faults, self.lines, self.pace = faults or Faults(), lines or Lines(), pace or Pace()
        self.observers = tuple(observers)
        self.events = self.numbers = 0
        self.instant = Instant(0, WALL_START_NS)
        self.counts: Counter[str] = Counter()
        self.ways: dict[tuple[str, str], Way] = {}
        self.waiting: dict[End, None] = {}
        """ends whose records are held back"""
        self.nodes = {name: Node(name, spec, self) for name, spec in sorted(specs.items())}
        self.trouble = Trouble(self)
        for name, node in self.nodes.items():
            self.at(self.stream("start", name).getrandbits(30), self.boot, node)
        self.trouble.begin()
        for strike in strikes:
            self.at(int(strike.at_s * SECOND), self.strike, strike)

    @staticmethod
    def boot(node: Node) -> None:
        """Its own `boot` of then: who watches a node puts his own in its place before it is started."""
        node.boot()

    def now(self) -> Instant:
        """What a right clock shows."""
        if self.instant.mono_ns != self.mono:
            self.instant = Instant(self.mono, WALL_START_NS + self.mono)
        return self.instant

    def way(self, sender: str, receiver: str) -> Way:
        found = self.ways.get((sender, receiver))
        if found is None:
            found = self.ways[sender, receiver] = Way(self, sender, receiver)
        return found

    # ---- network ---------------------------------------------------------------------------------------------------

    def dial(self, caller: Node, name: str) -> None:
        """After two round trips: a connection with a session at each end, or DialFailed."""
        self.counts["dial"] += 1
        there, back = self.way(caller.name, name), self.way(name, caller.name)
        caller.later(there.latency() + back.latency(), self.connect, caller, self.nodes[name])

    def connect(self, caller: Node, callee: Node) -> None:
        there, back = self.way(caller.name, callee.name), self.way(callee.name, caller.name)
        if there.walls or back.walls or not callee.powered or callee.paused:
            failed = ev.DialFailed(callee.name, f"no answer within {HANDSHAKE_S} s")
            caller.later(HANDSHAKE_S * SECOND, caller.tell, failed)
            return
        if not callee.alive or self.trouble.refuses(there, callee):
            caller.tell(ev.DialFailed(callee.name, "connection refused"))
            return
        try:
            near = self.end(caller, callee, True)
            first = near.session.open(caller.now())
        except Refused as refusal:
            caller.tell(ev.DialFailed(callee.name, str(refusal)))
            return
        far = self.end(callee, caller, False)
        self.join(near, far)
        near.write(first)

    def join(self, near: End, far: End) -> None:
        """The two are a connection."""
        for end, other in ((near, far), (far, near)):
            end.other, end.way = other, self.way(end.node.name, other.node.name)
            end.node.ends[end.id] = end
            if isinstance(end.node, Node):
                end.watch()

    def end(self, node: Node, other: Node, initiator: bool) -> End:
        self.numbers += 1
        spec = node.spec
        members = node.peer.settings.members
        session = ss.Session(
            initiator=initiator,
            federation=members.federation_id,
            keys=spec.keys,
            certificate=spec.certificate.encoded,
            psk=spec.psk,
            ephemeral=self.stream("ephemeral", node.name).randbytes(32),
            admit=members.admits,
            expect=(other.name, other.spec.certificate.noise) if initiator else None,
            started=node.now(),
            agree=self.once.agree if self.once else agree,
        )
        return End(self.numbers, node, initiator, session, other.name)

    def sever(self, end: End, why: str) -> None:
        """Cut: both ends are closed at once, and what was on its way is lost; the far one is told after the latency."""
        other = end.other
        end.finish(why)
        other.finish(why, end.way.latency())

    # ---- faults ----------------------------------------------------------------------------------------------------

    def strike(self, strike: Strike) -> None:
        """This fault, now, whatever its `at_s`."""
        self.trouble.strike(strike)

    def struck(self, kind: str, *names: str, detail: str = "") -> None:
        """Count it, unless it is an end, and tell who watches."""
        if not kind.endswith("-end"):
            self.counts[kind] += 1
        for observer in self.observers:
            observer.struck(self, kind, names, detail)

    def raised(self, node: Node, error: Exception) -> None:
        if not self.observers:
            raise error
        self.struck("exception", node.name, detail=f"{type(error).__name__}: {error}")
        node.exit("exception")
        self.at(self.mono + RESTART_S * SECOND, node.boot)

    def heal(self) -> None:
        """Nothing goes wrong any more: all lines are up, all clocks right, everyone is started who has not left."""
        self.trouble.heal()

    # ---- what an observer outside sees -----------------------------------------------------------------------------

    def model(self, name: str) -> Any:
        """The model of a node: as its core names it now, else as its disk does, else what it begins with."""
        node = self.nodes[name]
        if node.alive:
            return node.store.files.array(node.peer.current["model"], node.spec.bench.dtype)
        row = {} if node.store.rows.damaged else node.store.load()  # type: ignore[attr-defined]
        if ("course", name) in row:
            course = msgspec.msgpack.decode(row["course", name], type=Course)
            return node.store.files.array(course.model, node.spec.bench.dtype)
        return node.spec.x0 if node.spec.begin is None else node.spec.begin
