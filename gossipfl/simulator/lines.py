"""Lines between simulated nodes: what they are like, and connections that travel over them and may be cut, held or slowed.

A record is on its way for its latency and for as long as the line's bandwidth needs; order is kept on each connection. What
a closed way holds back arrives when the way opens, as TCP would send it again. Not here: who connects when (network.py), what
goes wrong when (trouble.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from gossipfl.digest import chunk_count
from gossipfl.errors import Misuse
from gossipfl.protocol import events as ev
from gossipfl.protocol import session as ss
from gossipfl.protocol.limits import HANDSHAKE_S, RATE_BYTES_S, RATE_WINDOW_S, SESSION_S
from gossipfl.protocol.messages import Message
from gossipfl.simulator.clock import SECOND
from gossipfl.store.errors import ROTTED, Missing, StateError

if TYPE_CHECKING:
    from gossipfl.simulator.network import Node, World
    from gossipfl.store import Incoming

ENDED: Final = "the other side closed"


@dataclass(frozen=True)
class Line:
    """From one node to another."""

    latency_s: float = 0.02
    """Mean seconds that a byte is on its way."""
    jitter: float = 0.5
    """Share by which the latency of each record differs from its mean at most (uniform); order is kept."""
    bandwidth_bytes_s: float = 0.0
    """Bytes a second; all transfers of the sending node share its line, chunk by chunk; 0 is without bound."""
    refuse: float = 0.0
    """Share of dials over this line that are refused."""

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.bandwidth_bytes_s < 0 or not 0 <= self.jitter <= 1 or not 0 <= self.refuse <= 1:
            raise Misuse(f"{self}: latency and bandwidth must not be below 0, jitter and refuse lie between 0 and 1")


@dataclass(frozen=True)
class Lines:
    """All lines of a world: one kind for all, and others between named nodes."""

    usual: Line = Line()
    between: Mapping[tuple[str, str], Line] = field(default_factory=dict)
    """(from, to) -> its line; where the way back is not named, it is the same"""

    def line(self, sender: str, receiver: str) -> Line:
        if not self.between:
            return self.usual
        return self.between.get((sender, receiver)) or self.between.get((receiver, sender)) or self.usual


class Way:
    """From one node to another, over all connections: its line in whole nanoseconds, and its own random stream."""

    __slots__ = ("bandwidth", "draw", "least", "line", "receiver", "sender", "span", "walls")

    def __init__(self, world: World, sender: str, receiver: str) -> None:
        self.sender, self.receiver, self.line = sender, receiver, world.lines.line(sender, receiver)
        latency = int(self.line.latency_s * SECOND)
        half = int(latency * self.line.jitter)
        self.least, self.span = latency - half, 2 * half
        self.bandwidth = self.line.bandwidth_bytes_s
        self.draw = world.stream("line", f"{sender}>{receiver}").getrandbits
        self.walls = 0
        """faults that now close this way"""

    def latency(self) -> int:
        return self.least + (self.span * self.draw(32) >> 32)


class End:
    """One end of a connection: its session, and what it has written that is still on its way."""

    __slots__ = (
        "bulks", "clear_at", "closed", "dead", "drip", "free_at", "held", "id", "incoming", "initiator", "judged", "moved",
        "node", "other", "peer", "said", "session", "stalls", "up", "way",
    )  # fmt: skip

    def __init__(self, number: int, node: Node, initiator: bool, session: Any, peer: str) -> None:
        self.id, self.node, self.initiator, self.session, self.peer = number, node, initiator, session, peer
        self.other: End
        self.way: Way
        self.up = self.closed = False
        self.incoming: dict[bytes, Incoming] = {}
        self.bulks: list[tuple[bytes, int, bool]] = []
        """(payload, next chunk, was it sent before)"""
        self.said: Message | None = None
        """the last control message that a retry would say again"""
        self.clear_at = self.free_at = 0
        self.moved = 0
        """bytes of payload that came since the pace was last judged"""
        self.judged = False
        self.stalls = 0
        self.drip = 0.0
        """bytes a second, where a fault slows this end; 0 where none does"""
        self.dead = False
        """what is written vanishes, and nobody is told"""
        self.held: list[bytes | None] = []

    def __repr__(self) -> str:
        return f"End({self.id}, {self.node.name} to {self.peer}{', closed' if self.closed else ''})"

    # ---- writing ---------------------------------------------------------------------------------------------------

    def write(self, record: bytes | None) -> None:
        """On its way: arrives after the latency, in order, unless the connection is cut before. None is the end."""
        world = self.node.world
        way = self.way
        at = world.mono + way.latency()
        if record is not None:
            for observer in world.observers:
                observer.wire(world, way.sender, way.receiver, len(record))
            if self.drip or way.bandwidth:
                at += self.occupy(len(record)) - world.mono
        if at < self.clear_at:
            at = self.clear_at
        self.clear_at = at
        world.at(at, self.arrive, record)

    def occupy(self, size: int) -> int:
        """The instant at which so many bytes have left, after all that left before."""
        node, mono = self.node, self.node.world.mono
        if self.way.bandwidth:
            node.line_free = max(node.line_free, mono) + int(size * SECOND / self.way.bandwidth)
            self.free_at = node.line_free
        if self.drip:
            self.free_at = max(self.free_at, mono) + int(size * SECOND / self.drip)
        return self.free_at

    def arrive(self, record: bytes | None) -> None:
        """What this end wrote reaches the other."""
        other = self.other
        if self.dead:
            return
        if other.closed:
            if record is not None and not self.closed and other.node.powered:
                self.node.later(other.way.latency(), self.finish, "connection reset by the peer")
            return
        if self.held or self.stalls or self.way.walls:
            self.held.append(record)
            self.node.world.waiting[self] = None
        elif record is None:
            other.finish(ENDED)
        else:
            other.node.hear(other, record)

    def flow(self) -> None:
        """What was held back goes on, if nothing holds it any more."""
        if self.stalls or self.way.walls:
            return
        held, self.held = self.held, []
        world = self.node.world
        world.waiting.pop(self, None)
        for record in held:
            world.at(world.mono, self.arrive, record)

    # ---- payloads --------------------------------------------------------------------------------------------------

    def send_bulk(self, root: bytes, from_chunk: int) -> None:
        """Asked again, a payload starts again where it is asked for."""
        files, idle = self.node.store.files, not self.bulks
        self.bulks = [bulk for bulk in self.bulks if bulk[0] != root]
        self.bulks.append((root, from_chunk, files.lend(root)))
        if idle:
            self.pump()

    def pump(self) -> None:
        """All chunks at once where nothing bounds the line; else the next one when the last has left."""
        files = self.node.store.files
        while self.bulks and not self.closed:
            root, first, again = self.bulks[0]
            try:
                payload, tree = files.read(root), files.tree(root)
            except Missing as lost:
                self.shut(f"a payload that was offered is gone: {lost}")
                return
            for index in range(first, chunk_count(len(payload))):
                chunk = payload[index * ss.CHUNK : (index + 1) * ss.CHUNK]
                if again and not tree.holds(index, chunk):
                    raise StateError(ROTTED)
                self.write(self.session.seal_chunk(root, index, tree.path(index), chunk))
                if self.drip or self.way.bandwidth:
                    self.bulks[0] = (root, index + 1, again)
                    self.node.later(max(0, self.free_at - self.node.world.mono), self.pump)
                    return
            del self.bulks[0]

    def await_pace(self) -> None:
        """As the deployed driver does: a transfer that moves too little in a window is closed."""
        if not self.judged:
            self.judged, self.moved = True, 0
            self.node.later(int(RATE_WINDOW_S * SECOND), self.judge_pace)

    def judge_pace(self) -> None:
        self.judged = False
        if self.closed or not self.incoming:
            return
        if self.moved < RATE_BYTES_S * RATE_WINDOW_S:
            self.shut(f"slow: a transfer moved less than {RATE_BYTES_S:g} bytes a second")
        else:
            self.await_pace()

    # ---- ends ------------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """As the deployed driver does: no session within 10 s, or one that has reached its age, is closed."""
        self.node.later(HANDSHAKE_S * SECOND, self.grown)

    def grown(self) -> None:
        if self.closed:
            return
        if not self.up:
            self.shut(f"no session within {HANDSHAKE_S} s")
        else:
            self.node.later((SESSION_S - HANDSHAKE_S) * SECOND, self.shut, "the session has reached its age")

    def shut(self, why: str) -> None:
        """What waits is written, then it is closed; the other side hears of it when all has arrived."""
        if not self.closed:
            self.finish(why)
            self.write(None)

    def finish(self, why: str, after: int = 0) -> None:
        """This end is closed, and its core, if it lives, told."""
        if self.closed:
            return
        self.closed = True
        node = self.node
        node.ends.pop(self.id, None)
        if not node.alive:
            return
        if self.up:
            node.later(after, node.tell, ev.Closed(self.id, why))
        elif self.initiator:
            node.later(after, node.tell, ev.DialFailed(self.peer, why))
