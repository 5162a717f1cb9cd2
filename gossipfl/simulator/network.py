"""Many real Peers on one heap of events: virtual clock, virtual network, modelled disks, real crypto. One seed, one history.

What runs is what is deployed: Peer, Session, Workbench, Store. Not here: threads, sleep, wall clock, sockets, and what a fault
or a line is (faults.py, lines.py). Enacted so far: latency, connection cuts, refused dials, crashes with restarts.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from gossipfl.digest import chunk_count
from gossipfl.errors import Misuse, Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol import session as ss
from gossipfl.protocol.core import Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Peer
from gossipfl.simulator.faults import CLASSES, Faults, Strike
from gossipfl.simulator.lines import Lines
from gossipfl.store import Store
from gossipfl.trust.identity import Certificate, NodeKeys
from gossipfl.workbench import Bench, Workbench

SECOND: Final = 1_000_000_000
HOUR: Final = 3600 * SECOND
WALL_START_NS: Final = 1_767_225_600 * SECOND
"""Where the virtual wall clock begins: 2026-01-01 UTC."""


@dataclass(frozen=True)
class Pace:
    """How long things take, in virtual time."""

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


ENACTED: Final = frozenset({"cut", "refused", "crash"})
"""classes of faults and kinds of strikes that a World enacts so far"""


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
        self.store = Store.modelled()
        self.alive = False
        self.boots = 0
        self.wake = 0
        self.facts: list[ev.Note] = []
        self.ends: dict[int, End] = {}
        self.peer: Peer
        self.bench: Workbench
        self.stopped = False

    def boot(self) -> None:
        self.alive, self.boots = True, self.boots + 1
        self.ends = {}
        files = self.store.files
        rows = self.store.load()
        x0, own = files.put(self.spec.x0), files.put(self.spec.statistics)
        base = files.put(np.zeros_like(self.spec.statistics))
        begin = b"" if self.spec.begin is None else files.put(self.spec.begin)
        settings = self.spec.settings(random.Random(self.world.rng.getrandbits(64)))
        self.peer = Peer(settings)
        self.bench = Workbench(self.spec.bench, files)
        named = {name for (kind, _), value in rows.items() if kind == "link" for name in _link_names(value)}
        for observer in self.world.observers:
            observer.booted(self.world, self)
        self.feed(ev.Started(rows, x0, own, base, begin, files.missing(named)))

    def crash(self) -> None:
        self.alive = False
        for end in list(self.ends.values()):
            self.world.sever(end, f"{self.name} crashed")
        before, survival = self.store, self.world.faults.survival
        self.store = before.crash(self.world.rng, self.world.rng.random() if survival is None else survival)
        for observer in self.world.observers:
            observer.crashed(self.world, self, before, self.store)

    def feed(self, event: ev.Event) -> None:
        """One event through the only door, and its commands in order."""
        world = self.world
        world.events += 1
        commands = self.peer.handle(event, world.now())
        for observer in world.observers:
            observer.fed(world, self, event, commands)
        for command in commands:
            self.carry_out(command)
            for observer in world.observers:
                observer.did(world, self, command)
        job = getattr(event, "job", None)
        if job is not None:
            self.bench.release(job)

    def carry_out(self, command: ev.Command) -> None:
        world = self.world
        if isinstance(command, ev.Commit):
            for fact in command.facts:
                world.counts["exchange"] += fact.kind == "ingress" and fact.fields["role"] == "reply"
            self.facts += command.facts
            self.store.commit(command.rows, command.keep, command.facts, world.now().wall_ns, command.live)
        elif isinstance(command, ev.Send):
            if end := self.ends.get(command.conn):
                end.write(end.session.send(command.message))
        elif isinstance(command, ev.SendBulk):
            self.send_bulk(command)
        elif isinstance(command, ev.ReceiveBulk):
            self.receive_bulk(command)
        elif isinstance(command, ev.Close):
            if end := self.ends.get(command.conn):
                world.sever(end, command.why)
        elif isinstance(command, ev.Dial):
            world.dial(self, command.peer)
        elif isinstance(command, ev.Wake):
            self.set_alarm(command.at_ns)
        elif isinstance(command, ev.Note):
            self.facts.append(command)
        elif isinstance(command, ev.Stopped):
            self.stopped, self.alive = True, False
        else:
            self.work(command)

    def work(self, job: ev.Job) -> None:
        """Done now, known when its virtual time has passed."""
        pace = self.world.pace
        event = self.bench.carry_out(job)
        for observer in self.world.observers:
            observer.stored(self.world, self, job, event)
        seconds = job.steps * pace.step_s / self.spec.speed if isinstance(job, ev.Train) else pace.job_s
        self.later(int(seconds * SECOND), lambda: self.feed(event))

    def later(self, delay_ns: int, act: Callable[[], None]) -> None:
        """In this life only: a crash forgets it."""
        boots = self.boots
        self.world.at(self.world.mono + delay_ns, lambda: act() if self.alive and self.boots == boots else None)

    def set_alarm(self, at_ns: int | None) -> None:
        self.wake += 1
        number = self.wake
        if at_ns is not None:
            delay = max(0, at_ns - self.world.mono)
            self.later(delay, lambda: self.feed(ev.Alarm()) if self.wake == number else None)

    def send_bulk(self, command: ev.SendBulk) -> None:
        end = self.ends.get(command.conn)
        if end is None:
            return
        payload, tree = self.store.files.read(command.root), self.store.files.tree(command.root)
        for index in range(command.from_chunk, chunk_count(len(payload))):
            start = index * ss.CHUNK
            end.write(end.session.seal_chunk(command.root, index, tree.path(index), payload[start : start + ss.CHUNK]))

    def receive_bulk(self, command: ev.ReceiveBulk) -> None:
        end = self.ends.get(command.conn)
        if end is None:
            return
        incoming = self.store.files.incoming(command.root, command.size)
        end.incoming = incoming
        if incoming.next_chunk == incoming.count:
            self.bulk_done(end)
            return
        end.session.expect(command.root, command.size, incoming.next_chunk)
        end.write(end.session.send(ms.Fetch(command.root, incoming.next_chunk)))

    def bulk_done(self, end: End) -> None:
        root = end.incoming.finish(pinned=True)
        end.incoming = None

        def tell() -> None:
            self.feed(ev.BulkReceived(end.id, root))
            self.store.files.unpin([root])

        self.later(0, tell)

    def hear(self, end: End, record: bytes) -> None:
        """One record from the network into the session, and what it means into the core."""
        try:
            for heard in end.session.receive(record, self.world.now()):
                self.meant(end, heard)
        except Refused as refusal:
            self.world.sever(end, str(refusal))

    def meant(self, end: End, heard: Any) -> None:
        if isinstance(heard, ss.Reply):
            end.write(heard.record)
        elif isinstance(heard, ss.Up):
            end.up = True
            self.feed(ev.Opened(end.id, heard.peer, end.initiator, heard.certificate))
        elif isinstance(heard, ss.Arrived):
            self.feed(ev.Received(end.id, heard.message))
        elif isinstance(heard, ss.Chunk) and end.incoming is not None:
            end.incoming.write(heard.index, heard.data)
            if end.incoming.next_chunk == end.incoming.count:
                self.bulk_done(end)


class End:
    """One end of a connection."""

    def __init__(self, number: int, node: Node, initiator: bool, session: Any, peer: str) -> None:
        self.id, self.node, self.initiator, self.session, self.peer = number, node, initiator, session, peer
        self.other: End
        self.up = self.closed = False
        self.incoming: Any = None
        self.clear_at = 0

    def write(self, record: bytes) -> None:
        """On its way: arrives after the latency, in order, unless the connection is cut before."""
        world = self.node.world
        other = self.other
        self.clear_at = max(self.clear_at, world.mono + world.latency(self.node.name, other.node.name))
        for observer in world.observers:
            observer.wire(world, self.node.name, other.node.name, len(record))
        world.at(self.clear_at, lambda: None if other.closed else other.node.hear(other, record))


class World:
    """All nodes, the network between them, the clock and the faults, from one seed."""

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
    ) -> None:
        self.rng = random.Random(seed)
        self.faults, self.lines, self.pace = faults or Faults(), lines or Lines(), pace or Pace()
        self.observers = tuple(observers)
        later = sorted(name for name in CLASSES if name not in ENACTED and not self.faults.are_off(name))
        if later:
            raise Misuse(f"faults not yet enacted by the simulator: {', '.join(later)}; leave them off")
        self.mono = self.events = self.numbers = 0
        self.heap: list[tuple[int, int, Callable[[], None]]] = []
        self.order = 0
        self.counts: Counter[str] = Counter()
        self.nodes = {name: Node(name, spec, self) for name, spec in sorted(specs.items())}
        for node in self.nodes.values():
            self.at(int(self.rng.random() * SECOND), self.boot(node))
            self.trouble(node, self.faults.cut_per_hour, self.cut)
            self.trouble(node, self.faults.crash_per_hour, self.crash)
        for strike in strikes:
            self.at(int(strike.at_s * SECOND), partial(self.strike, strike))

    @staticmethod
    def boot(node: Node) -> Callable[[], None]:
        return lambda: node.boot()

    def now(self) -> Instant:
        return Instant(self.mono, WALL_START_NS + self.mono)

    def at(self, when_ns: int, act: Callable[[], None]) -> None:
        self.order += 1
        heapq.heappush(self.heap, (when_ns, self.order, act))

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Up to `seconds` more of virtual time, or until `until` holds (asked once a virtual second)."""
        end, ask = self.mono + int(seconds * SECOND), self.mono
        while self.heap and self.heap[0][0] <= end:
            self.mono, _, act = heapq.heappop(self.heap)
            act()
            if self.mono >= ask:
                ask = self.mono + SECOND
                if until():
                    return
        self.mono = end

    def latency(self, sender: str, receiver: str) -> int:
        line = self.lines.line(sender, receiver)
        return int(line.latency_s * (1 + line.jitter * (2 * self.rng.random() - 1)) * SECOND)

    # ---- network -------------------------------------------------------------------------------------------------

    def dial(self, caller: Node, name: str) -> None:
        """After a round trip: a connection with a session at each end, or DialFailed."""
        callee = self.nodes[name]
        self.counts["dial"] += 1
        caller.later(2 * self.latency(caller.name, name), lambda: self.connect(caller, callee))

    def connect(self, caller: Node, callee: Node) -> None:
        if not callee.alive or (self.troubled() and self.rng.random() < self.faults.refused_dials):
            self.struck("refused", caller.name, callee.name)
            caller.feed(ev.DialFailed(callee.name, "connection refused"))
            return
        try:
            near = self.end(caller, callee, True)
            first = near.session.open(self.now())
        except Refused as refusal:
            caller.feed(ev.DialFailed(callee.name, str(refusal)))
            return
        far = self.end(callee, caller, False)
        near.other, far.other = far, near
        for end in (near, far):
            end.node.ends[end.id] = end
        near.write(first)

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
            ephemeral=self.rng.randbytes(32),
            admit=members.admits,
            expect=(other.name, other.spec.certificate.noise) if initiator else None,
            started=self.now(),
        )
        return End(self.numbers, node, initiator, session, other.name)

    def sever(self, end: End, why: str) -> None:
        """Both ends are closed; each that lives is told, the far one after the latency."""
        for side in (end, end.other):
            if side.closed:
                continue
            side.closed = True
            side.node.ends.pop(side.id, None)
            told: ev.Event | None = ev.Closed(side.id, why) if side.up else None
            if told is None and side.initiator:
                told = ev.DialFailed(side.peer, why)
            if side.node.alive and told is not None:
                side.node.later(0 if side is end else self.latency(end.node.name, side.node.name), partial(side.node.feed, told))

    # ---- faults --------------------------------------------------------------------------------------------------

    def troubled(self) -> bool:
        return self.mono < self.faults.until_hours * HOUR

    def trouble(self, node: Node, per_hour: float, strike: Callable[[Node], None]) -> None:
        """A Poisson stream of one fault at one node, until trouble ends."""
        if per_hour <= 0:
            return
        delay = int(self.rng.expovariate(per_hour) * HOUR)

        def happen() -> None:
            if self.troubled():
                strike(node)
                self.trouble(node, per_hour, strike)

        self.at(self.mono + delay, happen)

    def strike(self, strike: Strike) -> None:
        """This fault, now, whatever its `at_s`."""
        if strike.kind not in ENACTED:
            raise Misuse(f"the simulator does not yet enact {strike.kind!r}")
        for name in strike.nodes or tuple(self.nodes):
            node = self.nodes[name]
            if strike.kind == "crash":
                self.crash(node, strike.seconds)
            for end in list(node.ends.values()) if strike.kind == "cut" else []:
                self.struck("cut", name, end.other.node.name)
                self.sever(end, "cut")

    def struck(self, kind: str, *names: str, detail: str = "") -> None:
        self.counts[kind] += 1
        for observer in self.observers:
            observer.struck(self, kind, names, detail)

    def cut(self, node: Node) -> None:
        if node.ends:
            end = node.ends[self.rng.choice(sorted(node.ends))]
            self.struck("cut", node.name, end.peer)
            self.sever(end, "cut")

    def crash(self, node: Node, seconds: float | None = None) -> None:
        if not node.alive or node.stopped:
            return
        self.struck("crash", node.name)
        node.crash()
        down = self.rng.expovariate(1 / self.faults.down_s) if seconds is None else seconds
        self.at(self.mono + int(down * SECOND), self.boot(node))

    def heal(self) -> None:
        """Nothing goes wrong any more, and everybody is up again."""
        self.faults = Faults()

    # ---- what an observer outside sees ---------------------------------------------------------------------------

    def model(self, name: str) -> Any:
        """The model of a node, as its core names it now; what it begins with, before it has started."""
        node = self.nodes[name]
        if not node.boots:
            return node.spec.x0 if node.spec.begin is None else node.spec.begin
        return node.store.files.array(node.peer.current["model"], node.spec.bench.dtype)


def _link_names(value: bytes) -> frozenset[bytes]:
    from gossipfl.protocol.link import decode_link

    return decode_link(value).names()
