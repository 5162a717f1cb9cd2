"""Sessions and exchanges of one node: who is connected, what moves over each link, each exchange exactly once.

The base of `peer.Peer`, which adds the course of the study (when to train, whom to ask). Here: greeting and settling, proposals
and replies, receipts and aborts, the queue of jobs that change a model. Not here: bytes (session.py), tensors (the workbench),
disk (the store): the code below holds names, and everything that it decides leaves as a command.

An exchange, initiator left and responder right; [..] is one transaction on disk before what follows it:

    Encode, [pending]       -- Propose --------------------->
                            <- Fetch, bulk ----------------->   Mix, [applied, answered]
                            <----------------------- Reply --
    Fetch, bulk, Mix, [applied]   -- Done ------------------>   [receipt]
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.events import Instant
from gossipfl.protocol.link import (
    Answered,
    Link,
    Pending,
    References,
    begin_anew,
    digest,
    encode_row,
    judge,
    settle,
    stands,
)
from gossipfl.protocol.neighbours import Neighbour, Random
from gossipfl.trust.identity import Certificate, verify

TRANSIENT: Final = frozenset({"paused", "slow", "quota", "disk"})
"""Refusals after which the same proposal is offered again later; after any other it is dropped and its k never used again."""

PING_NS: Final = 20_000_000_000
IDLE_NS: Final = 60_000_000_000
GREETING_NS: Final = 15_000_000_000
CLOCK_TOLERANCE_S: Final = 300
"""A peer's clock further off than this is told to the operator: certificates are judged by it."""

CERTIFICATES_KEPT: Final = 4
"""Of each member: a proposal in doubt may be as old as the longest outage, and certificates last up to thirty days."""

CAPABILITIES: Final = ("resume",)


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
    dialable: frozenset[str] = frozenset()
    """neighbours that have an address"""


@dataclass(slots=True)
class Conn:
    """One session, from Opened to Closed."""

    id: int
    peer: str
    begun_by: str
    view: ms.LinkView
    opened_ns: int
    heard_ns: int
    sent_ns: int
    greeted: bool = False
    stage: str = ""
    statistics: bytes = b""
    """digest of the normalisation that the peer uses"""
    inbound: tuple[ms.Manifest, bytes] | None = None
    """the proposal whose payload is on its way, and its digest"""
    reply: tuple[ms.Manifest, ms.Reply] | None = None
    """the reply whose payload is on its way"""
    again_ns: int | None = None
    """when a proposal that was refused for the moment is offered again"""


OnEnd = Callable[[Any], None]


@dataclass(slots=True)
class Hands:
    """The jobs that run: which event ends which, and the one-at-a-time queue of those that change a model."""

    number: int = 0
    ends: dict[int, tuple[OnEnd, frozenset[bytes]]] = field(default_factory=dict)
    busy: int = 0
    """job that holds the model, 0 for none"""
    queue: deque[tuple[Callable[[int], ev.Job], OnEnd, bytes]] = field(default_factory=deque)
    """(make, end, a name that it needs and that nothing else holds)"""


class Exchanges:
    """All links and sessions of one node. `peer.Peer` is the only door."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.me = settings.me
        self.links: dict[str, Link] = {}
        self.conns: dict[int, Conn] = {}
        self.by_peer: dict[str, Conn] = {}
        self.neighbours: dict[str, Neighbour] = {}
        self.certificates: dict[bytes, Certificate] = {}
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

    def on_greeted(self, peer: str) -> None: ...

    def on_exchanged(self, peer: str, space: str, stage: str, initiated: bool) -> None: ...

    def on_let_go(self, peer: str) -> None: ...

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
        conn.sent_ns = self.now.mono_ns
        self.do(ev.Send(conn.id, message))

    def note(self, kind: str, **fields: Any) -> ev.Note:
        return ev.Note(kind, fields)

    def commit(
        self, *facts: ev.Note, links: tuple[Link, ...] = (), keep: tuple[bytes, ...] = (), gone: str = ""
    ) -> None:
        """One transaction: the links, the model and the course as they are now, with the facts."""
        for link in links:
            self.links[link.peer] = link
        rows = [("link", link.peer, encode_row(link)) for link in links] + self.state_rows()
        rows += [(kind, key, value) for (kind, key), value in self.fresh_rows.items()]
        if gone:
            rows.append(("link", gone, None))
        self.fresh_rows = {}
        durable = {name for link in links for name in link.names()} | self.state_names() | set(keep)
        self.do(ev.Commit(tuple(rows), tuple(sorted(durable - {b""})), facts, self.live()))

    def live(self) -> frozenset[bytes]:
        """Every name that anything here still needs."""
        names = self.state_names() | {self.correction, *self.base.values(), *self.current.values()}
        for link in self.links.values():
            names |= link.names()
        for _, used in self.hands.ends.values():
            names |= used
        names |= {needs for _, _, needs in self.hands.queue} | set(self.mixing.values())
        for conn in self.conns.values():
            names |= {half[0].root for half in (conn.inbound, conn.reply) if half}
        return frozenset(names - {b""})

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def start(self, make: Callable[[int], ev.Job], end: OnEnd) -> None:
        """A job beside the others (training, encoding, reading)."""
        self.hands.number += 1
        job = make(self.hands.number)
        self.hands.ends[job.job] = (end, ev.names(job))
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

    # ---- sessions ------------------------------------------------------------------------------------------------

    def neighbour(self, peer: str) -> Neighbour:
        return self.neighbours.setdefault(peer, Neighbour(peer))

    def link(self, peer: str) -> Link:
        return self.links.get(peer) or Link(peer)

    def opened(self, event: ev.Opened) -> None:
        peer = event.peer
        if peer not in self.settings.members.neighbours(self.me):
            self.do(ev.Close(event.conn, f"{peer} is not a neighbour of {self.me} in this federation's topology"))
            return
        if not self.remember(event.certificate):
            self.do(ev.Close(event.conn, f"{peer} came with a certificate that a newer one of its own has replaced"))
            return
        conn = Conn(
            event.conn,
            peer,
            self.me if event.initiator else peer,
            self.link(peer).view(),
            self.now.mono_ns,
            self.now.mono_ns,
            self.now.mono_ns,
        )
        before = self.by_peer.get(peer)
        if before is not None and before.begun_by == min(self.me, peer) != conn.begun_by:
            self.do(ev.Close(conn.id, "a session with this peer is up already"))
            return
        if before is not None:
            self.drop(before)
            self.do(ev.Close(before.id, "replaced by another session with this peer"))
        self.conns[conn.id] = self.by_peer[peer] = conn
        self.hello(conn)

    def remember(self, certificate: Certificate) -> bool:
        """Keep the newest certificates of each member, under which older manifests may still be signed. False for one
        that is older than the newest seen: its key may have been replaced because it was stolen."""
        held = [known for known in self.certificates.values() if known.member == certificate.member]
        if any(known.counter > certificate.counter for known in held):
            return False
        if certificate.digest not in self.certificates:
            self.certificates[certificate.digest] = certificate
            self.fresh_rows["certificate", certificate.digest.hex()] = certificate.encoded
            for oldest in sorted(held, key=lambda known: known.counter)[: max(0, len(held) + 1 - CERTIFICATES_KEPT)]:
                del self.certificates[oldest.digest]
                self.fresh_rows["certificate", oldest.digest.hex()] = None
        return True

    def hello(self, conn: Conn) -> None:
        members = self.settings.members
        self.send(
            conn,
            ms.Hello(
                members.version,
                members.digest,
                self.settings.layout,
                self.stage,
                self.normalisation,
                conn.view,
                CAPABILITIES,
                max(0, self.now.wall_ns // 10**9),
            ),
        )

    def closed(self, event: ev.Closed) -> None:
        conn = self.conns.get(event.conn)
        if conn is None:
            return
        self.drop(conn)
        self.do(self.note("closed", peer=conn.peer, detail=event.why))
        neighbour = self.neighbour(conn.peer)
        if neighbour.state != "refused":
            neighbour.is_now("silent", self.now.wall_ns, event.why)
        neighbour.back_off(self.now.mono_ns, self.settings.random)

    def drop(self, conn: Conn) -> None:
        self.conns.pop(conn.id, None)
        if self.by_peer.get(conn.peer) is conn:
            del self.by_peer[conn.peer]
        self.on_let_go(conn.peer)

    def refuse(self, conn: Conn, refusal: Refused, k: int = 0) -> None:
        """The one way in which a peer learns that it is refused; k = 0 closes the session."""
        self.counts[refusal.reason] = self.counts.get(refusal.reason, 0) + 1
        self.do(self.note("refusal", peer=conn.peer, k=k, reason=refusal.reason, detail=refusal.detail[:1000], by="me"))
        self.send(conn, ms.Refusal(k, refusal.reason, refusal.detail[:1000]))
        if k == 0:
            self.drop(conn)
            neighbour = self.neighbour(conn.peer)
            neighbour.is_now("refused", self.now.wall_ns, str(refusal))
            neighbour.back_off(self.now.mono_ns, self.settings.random)
            self.do(ev.Close(conn.id, str(refusal)))

    def received(self, event: ev.Received) -> None:
        conn = self.conns.get(event.conn)
        if conn is None:
            return
        conn.heard_ns = self.now.mono_ns
        message = event.message
        try:
            if isinstance(message, ms.Hello):
                self.greeted(conn, message)
            elif isinstance(message, ms.Refusal):
                self.refused(conn, message)
            elif not conn.greeted:
                raise Refused("malformed", "a message before the greeting; the peer runs another version or is faulty")
            elif isinstance(message, ms.Propose):
                self.proposed(conn, message)
            elif isinstance(message, ms.Fetch):
                self.fetched(conn, message)
            elif isinstance(message, ms.Reply):
                self.replied(conn, message)
            elif isinstance(message, ms.Done):
                self.receipted(conn, message)
            elif isinstance(message, ms.Abort):
                self.abort_asked(conn, message)
            elif isinstance(message, ms.Aborted):
                self.aborted(conn, message)
            elif isinstance(message, ms.Candidate):
                self.on_candidate(conn, message)
        except Refused as refusal:
            self.refuse(conn, refusal)

    def greeted(self, conn: Conn, hello: ms.Hello) -> None:
        """Compare what must be alike, settle the link, offer what is in doubt."""
        if conn.greeted:
            raise Refused("malformed", "a second greeting; the peer runs another version or is faulty")
        self.compare(conn, hello)
        conn.stage, conn.statistics = hello.stage, hello.statistics
        neighbour = self.neighbour(conn.peer)
        link = self.link(conn.peer)
        epoch = settle(conn.view, hello.link)
        if epoch is not None and epoch > link.epoch:
            self.start_anew(link, epoch, "the two memories of this link do not fit")
        elif link.answered and link.answered.open and hello.link.done == link.answered.k and epoch is None:
            self.commit(links=(msgspec.structs.replace(link, answered=_closed(link.answered)),))
        conn.greeted = True
        neighbour.answered()
        neighbour.stage = hello.stage
        neighbour.versions = {"membership": str(hello.membership), "stage": hello.stage}
        neighbour.is_now("connected", self.now.wall_ns)
        seconds = hello.wall_s - self.now.wall_ns // 10**9
        if abs(seconds) > CLOCK_TOLERANCE_S:
            neighbour.why = f"its clock is {seconds:+d} s from ours; correct the clock (NTP) at the site that is wrong"
            self.do(self.note("clock", peer=conn.peer, seconds=seconds, detail=neighbour.why))
        if self.normalisation and self.normalisation != conn.statistics:
            self.on_normalisation_differs(conn)
        self.offer(conn)
        self.on_greeted(conn.peer)

    def compare(self, conn: Conn, hello: ms.Hello) -> None:
        members = self.settings.members
        if (hello.membership, hello.membership_digest) != (members.version, members.digest):
            mine, theirs = members.version, hello.membership
            remedy = (
                f"{self.me} must take the newer federation file" if theirs > mine
                else f"{conn.peer} must take the newer federation file" if theirs < mine
                else "two different files carry one version: agree on one and raise its version"
            )  # fmt: skip
            raise Refused(
                "membership-old", f"{self.me} holds federation version {mine}, {conn.peer} {theirs}; {remedy}"
            )
        if hello.layout != self.settings.layout:
            raise Refused(
                "layout",
                f"the model of {conn.peer} has another layout than that of {self.me}; both must run the study's task in the "
                f"same version",
            )

    def start_anew(self, link: Link, epoch: int, why: str, limited: bool = True) -> None:
        fresh = begin_anew(link, epoch, self.now.wall_ns // 10**9, self.settings.resets_per_day if limited else None)
        self.links[link.peer] = fresh
        self.commit(self.note("reset", peer=link.peer, epoch=epoch, detail=why), links=(fresh,))
        self.recompute_correction()
        self.on_let_go(link.peer)

    def recompute_correction(self) -> None:
        def make(job: int) -> ev.Job:
            flows = tuple(link.flow for _, link in sorted(self.links.items()) if link.flow)
            return ev.Correct(job, flows, self.settings.members.mass(self.me))

        self.change(make, self.corrected)

    def corrected(self, event: ev.Corrected | ev.Failed) -> None:
        if isinstance(event, ev.Corrected):
            self.correction = event.correction

    def refused(self, conn: Conn, refusal: ms.Refusal) -> None:
        """The peer refuses: the session (k = 0) or my proposal k."""
        self.do(
            self.note(
                "refusal", peer=conn.peer, k=refusal.k, reason=refusal.reason, detail=refusal.detail, by=conn.peer
            )
        )
        neighbour = self.neighbour(conn.peer)
        if refusal.k == 0:
            self.drop(conn)
            neighbour.is_now("refused", self.now.wall_ns, f"{conn.peer} refuses: {refusal.reason}: {refusal.detail}")
            neighbour.back_off(self.now.mono_ns, self.settings.random)
            self.do(ev.Close(conn.id, f"refused by the peer: {refusal.reason}"))
            return
        link = self.link(conn.peer)
        if link.pending is None or link.pending.k != refusal.k or link.pending.abort:
            return
        neighbour.back_off(self.now.mono_ns, self.settings.random)
        neighbour.why = f"{conn.peer} refuses: {refusal.reason}: {refusal.detail}"
        if refusal.reason in TRANSIENT:
            conn.again_ns = neighbour.retry_ns
        else:
            self.commit(links=(msgspec.structs.replace(link, pending=None),))
        self.on_let_go(conn.peer)

    # ---- initiator -----------------------------------------------------------------------------------------------

    def is_in_doubt(self, peer: str) -> bool:
        """Does an exchange on this link wait for the peer: my proposal, or my reply that it has not yet confirmed?"""
        link = self.link(peer)
        return link.pending is not None or (link.answered is not None and link.answered.open)

    def is_idle(self, peer: str) -> bool:
        """Is nothing under way on this link, so that a new exchange may begin?

        Neither a proposal of mine in doubt, nor a reply that the peer has not yet said to have applied: a proposal that
        follows an exchange which the peer still has in doubt would be out of place there."""
        conn = self.by_peer.get(peer)
        if self.is_in_doubt(peer) or peer in self.encoding or peer in self.mixing:
            return False
        return conn is None or not (conn.inbound or conn.reply)

    def propose(self, peer: str, space: ev.Space) -> None:
        """Begin an exchange: encode the published model of now against the agreed reference."""
        link = self.link(peer)
        k = max(link.high, link.done) + 1
        self.encoding.add(peer)
        model, reference = self.current[space], self.reference(link, space).own
        codec = self.codec(space)
        self.start(
            lambda job: ev.Encode(job, space, model, reference, codec, self.seed(link.epoch, k, self.me, peer)),
            lambda event: self.encoded(event, peer, space, link.epoch, k),
        )

    def encoded(self, event: ev.Encoded | ev.Failed, peer: str, space: ev.Space, epoch: int, k: int) -> None:
        self.encoding.discard(peer)
        link, conn = self.link(peer), self.by_peer.get(peer)
        overtaken = link.epoch != epoch or not self.is_idle(peer) or k <= max(link.high, link.done)
        if isinstance(event, ev.Failed) or overtaken or conn is None or not conn.greeted or conn.inbound:
            self.on_let_go(peer)
            return
        manifest = self.manifest(peer, link, k, "propose", space, event.root, event.size)
        raw = ms.encode(manifest)
        pending = Pending(k, link.done, space, raw, self.settings.sign("manifest", raw), event.root, event.size)
        link = msgspec.structs.replace(link, pending=pending, high=k, sent=link.sent + event.size)
        fact = self.note("egress", peer=peer, space=space, epoch=epoch, k=k, role="propose", codec=manifest.codec,
                         bytes=event.size, root=event.root.hex())  # fmt: skip
        self.commit(fact, links=(link,))
        self.offer(conn)

    def offer(self, conn: Conn) -> None:
        """Say again, in this session, what is in doubt."""
        link = self.link(conn.peer)
        pending = link.pending
        if pending is None:
            return
        if pending.abort:
            self.send(conn, ms.Abort(pending.abort, pending.abort_signature))
        elif conn.peer not in self.mixing:
            self.send(conn, ms.Propose(pending.manifest, pending.signature))

    def reference(self, link: Link, space: str) -> References:
        agreed = link.references(space)
        return References(agreed.own or self.base[space], agreed.theirs or self.base[space])

    def codec(self, space: str) -> str:
        return self.settings.codec if space == "model" else "f64"

    def size(self, space: str) -> int:
        return self.settings.model_size if space == "model" else self.settings.statistics_size

    def mass(self, member: str, space: str) -> float:
        return self.settings.members.mass(member) if space == "model" else 1.0

    def gamma(self, space: str) -> float:
        return self.settings.gamma if space == "model" else 1.0

    def seed(self, epoch: int, k: int, sender: str, recipient: str) -> bytes:
        """What seeds a payload's rounding: public, and never the same twice."""
        return f"{epoch}/{k}/{sender}/{recipient}".encode() + self.settings.members.federation_id

    def books_flow(self) -> bool:
        return self.settings.ledger and self.stage == "training" and self.trained

    def kappa(self, space: str) -> float:
        """theta / (gamma eta H_ref). A node takes part in two exchanges a local round, one begun and one answered, so
        H_ref is half of the local steps."""
        if space != "model" or not self.books_flow():
            return 0.0
        eta = self.settings.eta(self.local_round)
        return self.settings.theta / (self.settings.gamma * eta * self.settings.local_steps / 2)

    def tau(self, space: str) -> float:
        """clip * eta * H * G, anchored to the own training; infinite before there was any.

        eta falls no lower here than half-way through the study: a clip that shrinks with the rate to its end would hold
        back the release, whose purpose is to bring the models together."""
        if space != "model" or not self.settings.clip or not self.gradient:
            return math.inf
        rate = self.settings.eta(min(self.local_round, self.settings.local_rounds // 2))
        return self.settings.clip * rate * self.settings.local_steps * self.gradient

    def manifest(self, peer: str, link: Link, k: int, role: str, space: str, root: bytes, size: int) -> ms.Manifest:
        return ms.Manifest(
            federation=self.settings.members.federation_id,
            membership=self.settings.members.version,
            certificate=self.settings.certificate.digest,
            sender=self.me,
            recipient=peer,
            epoch=link.epoch,
            k=k,
            prev=link.done,
            role=role,
            space=space,
            stage=self.stage,
            codec=self.codec(space),
            reference=self.reference(link, space).own,
            size=size,
            root=root,
            statistics=self.normalisation if space == "model" else b"",
            mass=self.mass(self.me, space),
            gamma=self.gamma(space),
            kappa=self.kappa(space),
            tau=self.tau(space),
            gradient=self.gradient if space == "model" else 0.0,
        )

    def replied(self, conn: Conn, message: ms.Reply) -> None:
        link = self.link(conn.peer)
        pending = link.pending
        if pending is None or pending.abort or conn.peer in self.mixing or conn.reply:
            return
        reply = ms.decode_manifest(message.manifest)
        if reply.answers != pending.digest:
            return
        self.verify(conn, "manifest", reply.certificate, message.manifest, message.signature)
        proposal = ms.decode_manifest(pending.manifest)
        self.check_manifest(conn, link, reply, "reply", proposal.space)
        if not (reply.k == pending.k and reply.prev == pending.prev and reply.epoch == link.epoch):
            raise Refused("gap", "the reply's epoch or counters are not those of the proposal")
        if not (
            reply.kappa <= proposal.kappa and reply.tau <= proposal.tau and reply.leak in (1.0, 1 - self.settings.leak)
        ):
            raise Refused(
                "implausible", "the reply raises kappa or tau or invents a leak; the peer is faulty or hostile"
            )
        receipt = ms.decode_receipt(message.receipt)
        self.verify(conn, "receipt", reply.certificate, message.receipt, message.receipt_signature)
        expected = ms.Receipt(
            proposal.federation, conn.peer, self.me, proposal.epoch, proposal.k, pending.digest, pending.root
        )
        if receipt != expected:
            raise Refused("malformed", "the receipt is not for this proposal")
        conn.reply = (reply, message)
        self.do(ev.ReceiveBulk(conn.id, reply.root, reply.size))

    def mix_reply(self, conn: Conn, reply: ms.Manifest, message: ms.Reply) -> None:
        peer = conn.peer
        link = self.link(peer)
        pending = link.pending
        if pending is None or peer in self.mixing:
            return
        self.mixing[peer] = reply.root
        proposal = ms.decode_manifest(pending.manifest)

        def make(job: int) -> ev.Job:
            known = {"payload": pending.root, "clip": reply.clip, "cap": reply.cap, "q": reply.q}
            return self.mix_job(job, link, reply, proposal.gradient, reply.kappa, reply.tau, reply.leak, **known)

        self.change(make, lambda event: self.mixed_reply(event, peer, reply, message, link.epoch))

    def mix_job(
        self,
        job: int,
        link: Link,
        came: ms.Manifest,
        gradient: float,
        kappa: float,
        tau: float,
        leak: float,
        **known: Any,
    ) -> ev.Mix:
        """One half of an exchange, on the models of now and with the scalars that the two manifests sign; `known` is what
        the reply tells the initiator."""
        peer, space = link.peer, came.space
        agreed = self.reference(link, space)
        return ev.Mix(
            job,
            space,  # type: ignore[arg-type]
            lower=self.me < peer,
            incoming=came.root,
            reference_in=agreed.theirs,
            reference_out=agreed.own,
            model=self.current[space],
            flow=link.flow if space == "model" else b"",
            correction=self.correction,
            codec=self.codec(space),
            seed=self.seed(link.epoch, came.k, self.me, peer),
            mass=self.mass(self.me, space),
            mass_peer=self.mass(peer, space),
            gamma=self.gamma(space),
            kappa=kappa,
            tau=tau,
            leak=leak,
            cap_norm=self.cap_norm(kappa, gradient, came.gradient, peer),
            **known,
        )

    def mixed_reply(
        self, event: ev.Mixed | ev.Failed, peer: str, reply: ms.Manifest, message: ms.Reply, epoch: int
    ) -> None:
        self.mixing.pop(peer, None)
        link, conn = self.link(peer), self.by_peer.get(peer)
        if conn:
            conn.reply = None
        pending = link.pending
        if link.epoch != epoch or pending is None:
            return
        if isinstance(event, ev.Failed):
            self.abort(link, pending, event)
            return
        space = reply.space
        self.apply(event, space)
        link = self.done(link, event, space, pending.k, pending.digest, reply.size)
        receipt = self.receipt(reply, digest(message.manifest))
        facts = (
            self.note("ingress", peer=peer, space=space, epoch=epoch, k=pending.k, role="reply", bytes=reply.size,
                      root=reply.root.hex(), distance=_short(event.distance), clip=_short(event.clip)),
            self.note("receipt", peer=peer, epoch=epoch, k=pending.k, of=pending.digest.hex(),
                      signature=message.receipt_signature.hex()),
        )  # fmt: skip
        self.commit(*facts, links=(link,))
        self.neighbour(peer).answered()
        if conn and conn.greeted:
            self.send(conn, ms.Done(receipt, self.settings.sign("receipt", receipt)))
        self.on_exchanged(peer, space, reply.stage, True)

    def done(self, link: Link, mixed: ev.Mixed, space: str, k: int, proposal: bytes, size: int) -> Link:
        """The link after exchange k, at either end."""
        agreed = References(mixed.own, mixed.theirs)
        return msgspec.structs.replace(
            link,
            done=k,
            high=max(k, link.high),
            last=proposal,
            pending=None,
            answered=None,
            model=agreed if space == "model" else link.model,
            statistics=agreed if space == "statistics" else link.statistics,
            flow=mixed.flow if space == "model" else link.flow,
            exchanges=link.exchanges + 1,
            received=link.received + size,
        )

    def apply(self, mixed: ev.Mixed, space: str) -> None:
        self.current[space] = mixed.model
        if space == "model":
            self.correction = mixed.correction

    def receipt(self, manifest: ms.Manifest, of: bytes) -> bytes:
        return ms.encode(
            ms.Receipt(manifest.federation, self.me, manifest.sender, manifest.epoch, manifest.k, of, manifest.root)
        )

    def cap_norm(self, kappa: float, mine: float, theirs: float, peer: str) -> float:
        """(cap / degree) * min(m_i G_i, m_j G_j): no link holds more flow than training explains."""
        if not kappa or not self.settings.cap or not (mine and theirs):
            return math.inf
        members = self.settings.members
        degree = max(len(members.neighbours(self.me)), len(members.neighbours(peer)))
        return self.settings.cap / degree * min(members.mass(self.me) * mine, members.mass(peer) * theirs)

    # ---- abort ---------------------------------------------------------------------------------------------------

    def abort(self, link: Link, pending: Pending, failed: ev.Failed) -> None:
        """The reply cannot be applied here: nobody shall have applied this exchange."""
        note = ms.encode(
            ms.AbortNote(
                self.settings.members.federation_id,
                self.me,
                link.peer,
                link.epoch,
                pending.k,
                pending.digest,
                failed.reason,
            )
        )
        aborting = msgspec.structs.replace(pending, abort=note, abort_signature=self.settings.sign("abort", note))
        fact = self.note(
            "abort", peer=link.peer, epoch=link.epoch, k=pending.k, reason=failed.reason, detail=failed.detail
        )
        self.counts[failed.reason] = self.counts.get(failed.reason, 0) + 1
        self.commit(fact, links=(msgspec.structs.replace(link, pending=aborting),))
        conn = self.by_peer.get(link.peer)
        if conn and conn.greeted:
            self.offer(conn)
        self.on_let_go(link.peer)

    def abort_asked(self, conn: Conn, message: ms.Abort) -> None:
        note = ms.decode_abort(message.note)
        link = self.link(conn.peer)
        answered = link.answered
        if note.epoch < link.epoch:
            self.send(conn, ms.Aborted(note.epoch, note.k))
            return
        if (note.federation, note.sender, note.recipient) != (self.settings.members.federation_id, conn.peer, self.me):
            raise Refused("recipient", "an abort that is not from this peer to this node")
        if (
            answered is None
            or not answered.open
            or (note.epoch, note.k, note.of) != (link.epoch, answered.k, answered.proposal)
        ):
            raise Refused("replay", "an abort of an exchange that is not the last one answered")
        self.verify_any(conn, "abort", message.note, message.signature)
        if conn.peer in self.mixing:
            return
        begin_anew(link, link.epoch + 1, self.now.wall_ns // 10**9, self.settings.resets_per_day)
        self.mixing[conn.peer] = b""
        agreed, space = self.reference(link, answered.space), answered.space

        def make(job: int) -> ev.Job:
            return ev.Undo(
                job,
                space,  # type: ignore[arg-type]
                lower=self.me < link.peer,
                own=agreed.own,
                theirs=agreed.theirs,
                model=self.current[space],
                mass=answered.mass,
                mass_peer=answered.mass_peer,
                gamma=answered.gamma,
                clip=answered.clip,
                q=answered.q,
            )

        self.change(make, lambda event: self.undone(event, link.peer, space, note))

    def undone(self, event: ev.Undone | ev.Failed, peer: str, space: str, note: ms.AbortNote) -> None:
        self.mixing.pop(peer, None)
        link, conn = self.link(peer), self.by_peer.get(peer)
        if isinstance(event, ev.Failed) or link.epoch != note.epoch:
            return
        self.current[space] = event.model
        self.start_anew(link, note.epoch + 1, f"{peer} aborted exchange {note.k}: {note.reason}", limited=False)
        if conn and conn.greeted:
            self.send(conn, ms.Aborted(note.epoch, note.k))

    def aborted(self, conn: Conn, message: ms.Aborted) -> None:
        link = self.link(conn.peer)
        if link.pending and link.pending.abort and (message.epoch, message.k) == (link.epoch, link.pending.k):
            self.start_anew(link, link.epoch + 1, f"exchange {message.k} was aborted")

    # ---- responder -----------------------------------------------------------------------------------------------

    def proposed(self, conn: Conn, message: ms.Propose) -> None:
        manifest = ms.decode_manifest(message.manifest)
        self.verify(conn, "manifest", manifest.certificate, message.manifest, message.signature)
        link, proposal = self.link(conn.peer), digest(message.manifest)
        self.check_addresses(conn, manifest)
        if conn.peer in self.mixing or conn.inbound:
            return
        if judge(link, manifest.epoch, manifest.k, manifest.prev, proposal) == "again":
            assert link.answered is not None
            self.send_reply(conn, link.answered)
            return
        if link.pending and (link.pending.abort or stands(self.me, conn.peer)):
            return
        try:
            self.check_manifest(conn, link, manifest, "propose", manifest.space)
            self.admit(conn, manifest)
        except Refused as refusal:
            if refusal.reason in ("replay", "gap", "malformed", "recipient", "base"):
                raise
            self.refuse(conn, refusal, manifest.k)
            self.offer(conn)
            return
        conn.inbound = (manifest, proposal)
        self.do(ev.ReceiveBulk(conn.id, manifest.root, manifest.size))

    def admit(self, conn: Conn, manifest: ms.Manifest) -> None:
        """May this exchange begin now?"""
        if self.paused or self.stopping:
            raise Refused("paused", f"{self.me} is paused or stopping; the proposal is offered again later")
        if manifest.space == "model" and manifest.statistics != self.normalisation:
            self.on_normalisation_differs(conn)
            raise Refused(
                "stats",
                f"{self.me} uses other normalisation statistics (or none yet) than {conn.peer}; both take the smaller digest, "
                f"then exchange again",
            )
        if not self.neighbour(conn.peer).allow_inbound(self.now.mono_ns, self.settings.inbound_per_minute):
            raise Refused(
                "quota",
                f"{conn.peer} begins more than {self.settings.inbound_per_minute:g} exchanges a minute; raise "
                f"inbound_per_minute in the study, or slow that node down",
            )

    def check_addresses(self, conn: Conn, manifest: ms.Manifest) -> None:
        if (manifest.sender, manifest.recipient, manifest.federation) != (
            conn.peer,
            self.me,
            self.settings.members.federation_id,
        ):
            raise Refused(
                "recipient", f"a manifest from {manifest.sender} to {manifest.recipient} came from {conn.peer}"
            )

    def check_manifest(self, conn: Conn, link: Link, manifest: ms.Manifest, role: str, space: str) -> None:
        """Everything that must hold of a manifest of either role, before a byte of its payload is asked for."""
        self.check_addresses(conn, manifest)
        if manifest.role != role or manifest.space != space:
            raise Refused("malformed", f"a {manifest.role} about {manifest.space} where a {role} about {space} belongs")
        if manifest.membership != self.settings.members.version:
            raise Refused("membership-old", "signed under another version of the federation file; reconnect")
        if manifest.codec != self.codec(space):
            raise Refused("codec", f"codec {manifest.codec!r}; the study says {self.codec(space)!r}")
        if manifest.size != self.size(space) or not manifest.size:
            raise Refused("size", f"payload of {manifest.size} bytes; layout and codec imply {self.size(space)}")
        if manifest.reference != self.reference(link, space).theirs:
            raise Refused("base", "the delta is against a reference that this node does not hold; reconnect to settle")
        if manifest.mass != self.mass(conn.peer, space) or manifest.gamma != self.gamma(space):
            raise Refused("implausible", "mass or gamma is not what federation file and study say")

    def verify(self, conn: Conn, kind: str, certificate: bytes, payload: bytes, signature: bytes) -> None:
        known = self.certificates.get(certificate)
        if known is None or known.member != conn.peer:
            raise Refused("auth", f"signed under a certificate of {conn.peer} that this node has never seen; reconnect")
        verify(kind, payload, signature, known.signing)

    def bulk_received(self, event: ev.BulkReceived) -> None:
        conn = self.conns.get(event.conn)
        if conn is None:
            return
        conn.heard_ns = self.now.mono_ns
        if conn.inbound and conn.inbound[0].root == event.root:
            (manifest, proposal), conn.inbound = conn.inbound, None
            self.mix_proposal(conn, manifest, proposal)
        elif conn.reply and conn.reply[0].root == event.root:
            self.mix_reply(conn, *conn.reply)

    def mix_proposal(self, conn: Conn, manifest: ms.Manifest, proposal: bytes) -> None:
        peer, space = conn.peer, manifest.space
        link = self.link(peer)
        if peer in self.mixing or link.epoch != manifest.epoch or link.done != manifest.prev:
            return
        self.mixing[peer] = manifest.root
        kappa = min(manifest.kappa, self.kappa(space))
        tau = min(manifest.tau, self.tau(space))
        leak = 1 - self.settings.leak if kappa else 1.0
        gradient = self.gradient if space == "model" else 0.0
        scalars = {"kappa": kappa, "tau": tau, "leak": leak, "gradient": gradient}

        def make(job: int) -> ev.Job:
            return self.mix_job(job, link, manifest, gradient, kappa, tau, leak)

        self.change(make, lambda event: self.mixed_proposal(event, peer, manifest, proposal, scalars))

    def mixed_proposal(
        self,
        event: ev.Mixed | ev.Failed,
        peer: str,
        manifest: ms.Manifest,
        proposal: bytes,
        scalars: dict[str, float],
    ) -> None:
        self.mixing.pop(peer, None)
        link, conn = self.link(peer), self.by_peer.get(peer)
        if link.epoch != manifest.epoch or link.done != manifest.prev:
            return
        if isinstance(event, ev.Failed):
            if conn and conn.greeted:
                self.refuse(conn, Refused(event.reason, event.detail), manifest.k)
            return
        space = manifest.space
        reply = msgspec.structs.replace(
            self.manifest(peer, link, manifest.k, "reply", space, event.payload, event.size),
            answers=proposal,
            clip=event.clip,
            cap=event.cap,
            q=event.q,
            **scalars,
        )
        raw, receipt = ms.encode(reply), self.receipt(manifest, proposal)
        sign = self.settings.sign
        answered = Answered(
            manifest.k, space, proposal, raw, sign("manifest", raw), receipt, sign("receipt", receipt), event.payload,
            event.size, event.clip, reply.gamma, reply.mass, manifest.mass, event.q,
        )  # fmt: skip
        self.apply(event, space)
        link = self.done(link, event, space, manifest.k, proposal, manifest.size)
        link = msgspec.structs.replace(link, answered=answered, sent=link.sent + event.size)
        facts = (
            self.note("ingress", peer=peer, space=space, epoch=link.epoch, k=manifest.k, role="propose",
                      bytes=manifest.size, root=manifest.root.hex(), distance=_short(event.distance), clip=_short(event.clip)),
            self.note("egress", peer=peer, space=space, epoch=link.epoch, k=manifest.k, role="reply", codec=reply.codec,
                      bytes=event.size, root=event.payload.hex()),
        )  # fmt: skip
        self.commit(*facts, links=(link,))
        if conn and conn.greeted:
            self.send_reply(conn, answered)
        self.on_exchanged(peer, space, manifest.stage, False)

    def send_reply(self, conn: Conn, answered: Answered) -> None:
        self.send(
            conn,
            ms.Reply(answered.manifest, answered.signature, answered.receipt, answered.receipt_signature),
        )

    def fetched(self, conn: Conn, message: ms.Fetch) -> None:
        link = self.link(conn.peer)
        offered = [half for half in (link.pending, link.answered) if half and half.root == message.root]
        if not offered:
            raise Refused("malformed", "a payload was asked for that this node has not offered")
        self.do(ev.SendBulk(conn.id, message.root, message.from_chunk))

    def receipted(self, conn: Conn, message: ms.Done) -> None:
        link = self.link(conn.peer)
        answered = link.answered
        receipt = ms.decode_receipt(message.receipt)
        if answered is None or not answered.open or receipt.of != digest(answered.manifest):
            return
        reply = ms.decode_manifest(answered.manifest)
        expected = ms.Receipt(reply.federation, conn.peer, self.me, reply.epoch, reply.k, receipt.of, reply.root)
        if receipt != expected:
            raise Refused("malformed", "the receipt is not for this reply")
        self.verify_any(conn, "receipt", message.receipt, message.signature)
        fact = self.note("receipt", peer=conn.peer, epoch=reply.epoch, k=reply.k, of=receipt.of.hex(),
                         signature=message.signature.hex())  # fmt: skip
        self.commit(fact, links=(msgspec.structs.replace(link, answered=_closed(answered)),))

    def verify_any(self, conn: Conn, kind: str, payload: bytes, signature: bytes) -> None:
        """Verify under any certificate of this peer's, the newest first: a receipt names none."""
        known = [held for held in self.certificates.values() if held.member == conn.peer]
        for held in sorted(known, key=lambda each: -each.counter):
            try:
                verify(kind, payload, signature, held.signing)
            except Refused:
                continue
            return
        raise Refused("auth", f"a {kind} that no certificate of {conn.peer} has signed")


def _closed(answered: Answered) -> Answered:
    return msgspec.structs.replace(answered, open=False)


def _short(value: float) -> float | str:
    """A number that JSON can hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
