"""What the core of one node holds, and how a decision becomes commands: state, transactions, jobs. It decides nothing.

The lowest storey of `peer.Peer`; above it terms.py (on which terms an exchange is made), greeting.py (sessions), exchange.py
(what moves, exactly once) and peer.py (the course of a study, and the only door). Names, never tensors; no clock, no disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.events import Instant
from gossipfl.protocol.link import Link, encode_row
from gossipfl.protocol.neighbours import Neighbour, Random
from gossipfl.trust.identity import Certificate, verify


class Members(Protocol):
    """The door to the membership document (trust.membership is one; a charter will be another)."""

    @property
    def version(self) -> int: ...
    @property
    def digest(self) -> bytes: ...
    @property
    def federation_id(self) -> bytes: ...
    def neighbours(self, member: str) -> tuple[str, ...]: ...
    def mass(self, member: str) -> float: ...
    def has_left(self, member: str) -> bool: ...
    def admits(self, certificate: Certificate) -> str: ...


PING_NS: Final = 20_000_000_000
TOGETHER_NS: Final = 5_000_000_000
"""When one session must be pinged, so are those whose turn comes within this: a node with many wakes up once, not often."""


@dataclass(frozen=True)
class Settings:
    """What one node is told at the start; nothing has a default that is a secret or a source of randomness."""

    me: str
    members: Members
    certificate: Certificate
    """the one under which `sign` signs"""
    certificates: tuple[Certificate, ...]
    """those that the membership document carries"""
    sign: Callable[[str, bytes], bytes]
    random: Random
    layout: bytes
    codec: str
    model_size: int
    """payload bytes of a model under the codec"""
    statistics_size: int
    """payload bytes of a statistics vector; 0 where the task needs no normalisation"""
    eta: Callable[[int], float]
    """learning rate of a local round"""
    local_rounds: int
    local_steps: int
    exchanges: int
    """begun in each turn, one after the other"""
    ledger: bool
    theta: float
    gamma: float
    leak: float
    cap: float
    clip: float
    """tau in units of one local round's expected displacement; 0 for no clip"""
    release_exchanges: int
    tolerance: float
    inbound_per_minute: float
    resets_per_day: int
    patience_ns: int
    """how long a turn waits for its exchange"""
    turn_ns: int
    """least time between two turns"""
    checkpoint_ns: int
    trains: bool = True
    external: bool = False
    """a user's own loop trains; this node only mixes what is handed in"""
    lockstep: bool = False
    """exchange after each local round with whom the schedule says, and wait for it; see lockstep.py"""
    dialable: frozenset[str] = frozenset()
    """neighbours that have an address"""
    verify: Callable[[str, bytes, bytes, bytes], None] = verify
    """is this a signature (kind, payload, signature, public key)? Raises Refused where it is not"""


@dataclass(slots=True)
class Conn:
    """One session, from Opened to Closed."""

    id: int
    peer: str
    begun_by: str
    view: ms.LinkView
    opened_ns: int
    heard_ns: int
    ping_ns: int
    """when this node must say something, so that the peer knows that it is there"""
    used_ns: int
    """when anything but a ping last went over it, either way"""
    greeted: bool = False
    stage: str = ""
    statistics: bytes = b""
    """digest of the normalisation that the peer uses"""
    inbound: tuple[ms.Manifest, bytes] | None = None
    """the proposal whose payload is on its way, and its digest"""
    reply: tuple[ms.Manifest, ms.Reply] | None = None
    """the reply whose payload is on its way"""
    due: ms.Done | None = None
    """what was applied after this session's greeting was written, and is said once the peer has greeted"""
    again_ns: int | None = None
    """when a proposal that was refused for the moment is offered again"""
    early: ms.Propose | None = None
    """in lockstep: a proposal whose round has not come here yet"""


class Links(dict[str, Link]):
    """What is remembered of each peer; of one that was never met that is nothing."""

    def __missing__(self, peer: str) -> Link:
        return Link(peer)


class Neighbours(dict[str, Neighbour]):
    """What is known of each peer now; asked for, it is made."""

    def __missing__(self, peer: str) -> Neighbour:
        return self.setdefault(peer, Neighbour(peer))


OnEnd = Callable[[Any], None]


@dataclass(slots=True)
class Hands:
    """The jobs that run: which event ends which, and the one-at-a-time queue of those that change a model."""

    number: int = 0
    ends: dict[int, tuple[OnEnd, ev.Job]] = field(default_factory=dict)
    busy: int = 0
    """job that holds the model, 0 for none"""
    queue: deque[tuple[Callable[[int], ev.Job], OnEnd, bytes]] = field(default_factory=deque)
    """(make, end, a name that it needs and that nothing else holds)"""


class Core:
    """State and commands of one node."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.me = settings.me
        self.links = Links()
        self.link = self.links.__getitem__
        """what is remembered of a peer"""
        self.doubtful: set[str] = set()
        """peers with whom an exchange is in doubt"""
        self.needed: dict[str, set[bytes]] = {}
        """what each link needs on disk"""
        self.conns: dict[int, Conn] = {}
        self.by_peer: dict[str, Conn] = {}
        self.neighbours = Neighbours()
        self.neighbour = self.neighbours.__getitem__
        """what is known of a peer now"""
        self.finished: set[str] = set()
        """neighbours that have last said that they have finished"""
        self.certificates: dict[str, dict[bytes, Certificate]] = {}
        """of each member, by digest, in the order in which they came"""
        self.fresh_rows: dict[tuple[str, str], bytes | None] = {}
        self.current: dict[str, bytes] = {"model": b"", "statistics": b""}
        self.base: dict[str, bytes] = {"model": b"", "statistics": b""}
        self.correction = b""
        self.normalisation = b""
        """digest of the frozen statistics in use"""
        self.stage = "statistics"
        self.gradient = 0.0
        self.local_round = 0
        self.trained = False
        self.corrected_now = True
        """does `correction` stand for all flows, with no recomputation under way?"""
        self.turns = 0
        """exchanges that this node wanted and that came to an end, or to nothing"""
        self.paused = False
        self.stopping = False
        self.hands = Hands()
        self.encoding: set[str] = set()
        self.mixing: dict[str, bytes] = {}
        """peers whose exchange is being applied, with the name of the payload that came"""
        self.counts: dict[str, int] = {}
        self.now = Instant(0, 0)
        self.out: list[ev.Command] = []

    # ---- hooks of the course -------------------------------------------------------------------------------------

    def offer(self, conn: Conn) -> None: ...

    def on_greeted(self, peer: str) -> None: ...

    def on_exchanged(self, peer: str, space: str, stage: str, initiated: bool) -> None: ...

    def on_let_go(self, peer: str) -> None: ...

    def on_given_back(self) -> None: ...

    def is_time(self, peer: str) -> bool:
        return True

    def on_candidate(self, conn: Conn, message: ms.Candidate) -> None: ...

    def on_normalisation_differs(self, conn: Conn) -> None: ...

    def state_rows(self) -> list[tuple[str, str, bytes | None]]:
        raise NotImplementedError

    def state_names(self) -> set[bytes]:
        raise NotImplementedError

    # ---- commands ------------------------------------------------------------------------------------------------

    def do(self, command: ev.Command) -> None:
        self.out.append(command)

    def send(self, conn: Conn, message: ms.Message) -> None:
        conn.used_ns = self.now.mono_ns
        self.put_off_ping(conn)
        self.do(ev.Send(conn.id, message))

    def put_off_ping(self, conn: Conn) -> None:
        """Something is being said. Who began a session must speak first: it may let it rest, and then no ping was needed."""
        wait = PING_NS if conn.begun_by == self.me else PING_NS + TOGETHER_NS
        conn.ping_ns = self.now.mono_ns + wait

    def note(self, kind: str, **fields: Any) -> ev.Note:
        return ev.Note(kind, fields)

    def commit(self, *facts: ev.Note, links: tuple[Link, ...] = (), gone: str = "") -> None:
        """One transaction: the links, the model and the course as they are now, with the facts."""
        for link in links:
            self.hold(link)
        rows = [("link", link.peer, encode_row(link)) for link in links] + self.state_rows()
        for (kind, key), value in self.fresh_rows.items():
            rows.append((kind, key, value))
        if gone:
            rows.append(("link", gone, None))
        self.fresh_rows.clear()
        durable = self.state_names()
        for link in links:
            durable |= self.needed[link.peer]
        durable.discard(b"")
        self.do(ev.Commit(tuple(rows), tuple(sorted(durable)), facts, self.live()))

    def live(self) -> frozenset[bytes]:
        """Every name that anything here still needs."""
        names = self.state_names().union(self.mixing.values())
        names.add(self.correction)
        for _, job in self.hands.ends.values():
            names |= ev.names(job)
        for _, _, needs in self.hands.queue:
            names.add(needs)
        for conn in self.conns.values():
            names.update(half[0].root for half in (conn.inbound, conn.reply) if half)
        names.discard(b"")
        return frozenset(names).union(*self.needed.values())

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def start(self, make: Callable[[int], ev.Job], end: OnEnd) -> None:
        """A job beside the others (training, encoding, reading)."""
        self.hands.number += 1
        job = make(self.hands.number)
        self.hands.ends[job.job] = (end, job)
        self.do(job)

    def change(self, make: Callable[[int], ev.Job], end: OnEnd, needs: bytes = b"") -> None:
        """A job that changes a model: one at a time, each made from the state that the one before left."""
        self.hands.queue.append((make, end, needs))
        self.next_change()

    def next_change(self) -> None:
        if self.hands.busy or not self.hands.queue:
            return
        make, end, _ = self.hands.queue.popleft()
        self.start(make, end)
        self.hands.busy = self.hands.number

    def ended(self, event: Any) -> None:
        end, _ = self.hands.ends.pop(event.job)
        if event.job == self.hands.busy:
            self.hands.busy = 0
        end(event)
        self.next_change()

    # ---- who and which -------------------------------------------------------------------------------------------

    def is_at(self, peer: str, stage: str) -> None:
        """The neighbour says where in the study it is."""
        self.neighbour(peer).stage = stage
        (self.finished.add if stage == "finished" else self.finished.discard)(peer)

    def hold(self, link: Link) -> None:
        """From now on this is what is remembered of the peer."""
        self.links[link.peer], self.needed[link.peer] = link, link.names()
        if link.in_doubt:
            self.doubtful.add(link.peer)
        else:
            self.doubtful.discard(link.peer)

    def let_go_of(self, peer: str) -> None:
        del self.links[peer], self.needed[peer]
        self.doubtful.discard(peer)
