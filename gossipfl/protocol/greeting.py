"""Sessions from Opened to Closed: greeting, comparing what must be alike, settling a link, refusing.

Not here: bytes and keys (session.py), what moves over a session (exchange.py).
"""

from __future__ import annotations

from typing import Final

import msgspec

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import PING_NS, TOGETHER_NS, Conn
from gossipfl.protocol.link import FARTHEST, Link, begin_anew, closed, settle
from gossipfl.protocol.terms import Terms
from gossipfl.trust.identity import Certificate

TRANSIENT: Final = frozenset({"paused", "slow", "quota", "disk"})
"""Refusals after which the same proposal is offered again later; after any other it is dropped and its k never used again."""

REST_NS: Final = PING_NS
"""A session over which nothing but pings has gone for so long, where nothing is owed and both have an address, is closed by
who began it at its next ping: at a pace of minutes a handshake an exchange costs less than keeping every session alive."""

AT_REST: Final = "at rest: nothing is under way, and either side may begin another session"

IDLE_NS: Final = 60_000_000_000
GREETING_NS: Final = 15_000_000_000
CLOCK_TOLERANCE_S: Final = 300
"""A peer's clock further off than this is told to the operator: certificates are judged by it."""

CERTIFICATES_KEPT: Final = 4
"""Of each member: a proposal in doubt may be as old as the longest outage, and certificates last up to thirty days."""

CAPABILITIES: Final = ("resume",)


class Greeting(Terms):
    """Who is connected, and whether both sides' memories fit."""

    def opened(self, event: ev.Opened) -> None:
        peer = event.peer
        if peer not in self.settings.members.neighbours(self.me):
            self.turn_away(event, f"{peer} is not a neighbour of {self.me} in this federation's topology")
            return
        if not self.remember(event.certificate):
            self.turn_away(event, f"{peer} came with a certificate that a newer one of its own has replaced")
            return
        conn = Conn(
            event.conn,
            peer,
            self.me if event.initiator else peer,
            self.link(peer).view(),
            self.now.mono_ns,
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

    def turn_away(self, event: ev.Opened, why: str) -> None:
        self.do(ev.Close(event.conn, why))
        if event.peer in self.neighbours and event.peer not in self.by_peer:
            neighbour = self.neighbour(event.peer)
            neighbour.is_now("refused", self.now.wall_ns, why)
            neighbour.back_off(self.now.mono_ns, self.settings.random)
            self.on_let_go(event.peer)

    def remember(self, certificate: Certificate) -> bool:
        """Keep the newest certificates of each member, under which older manifests may still be signed. False for one
        that is older than the newest seen: its key may have been replaced because it was stolen."""
        held = self.certificates.setdefault(certificate.member, {})
        if any(known.counter > certificate.counter for known in held.values()):
            return False
        if certificate.digest not in held:
            before = sorted(held.values(), key=lambda known: known.counter)
            held[certificate.digest] = certificate
            self.fresh_rows["certificate", certificate.digest.hex()] = certificate.encoded
            for oldest in before[: max(0, len(held) - CERTIFICATES_KEPT)]:
                del held[oldest.digest]
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
        if self.may_rest(conn):
            neighbour.is_now("resting", self.now.wall_ns, AT_REST)
            return
        if neighbour.state != "refused":
            neighbour.is_now("silent", self.now.wall_ns, event.why)
        neighbour.back_off(self.now.mono_ns, self.settings.random)

    def drop(self, conn: Conn) -> None:
        self.conns.pop(conn.id, None)
        if self.by_peer.get(conn.peer) is conn:
            del self.by_peer[conn.peer]
        self.on_let_go(conn.peer)

    def may_rest(self, conn: Conn) -> bool:
        """May this session end, because it is quiet, nothing is owed over it, and either side can begin another?"""
        peer = conn.peer
        return (
            conn.greeted
            and self.now.mono_ns - conn.used_ns >= REST_NS - TOGETHER_NS
            and (self.stage == "finished") == (peer in self.finished)
            and peer in self.settings.dialable
            and bool(self.settings.certificate.addresses)
            and not (conn.inbound or conn.reply or conn.early or conn.again_ns)
            and not (peer in self.encoding or peer in self.mixing or self.link(peer).in_doubt)
        )

    def refuse(self, conn: Conn, refusal: Refused, k: int = 0) -> None:
        """The one way in which a peer learns that it is refused; k = 0 closes the session."""
        self.counts[refusal.reason] = self.counts.get(refusal.reason, 0) + 1
        said = ms.Refusal(k, refusal.reason, refusal.detail[:1000])
        self.note_refusal(conn.peer, said, by="me")
        self.send(conn, said)
        if k == 0:
            self.drop(conn)
            neighbour = self.neighbour(conn.peer)
            neighbour.is_now("refused", self.now.wall_ns, str(refusal))
            neighbour.back_off(self.now.mono_ns, self.settings.random)
            self.do(ev.Close(conn.id, str(refusal)))

    def note_refusal(self, peer: str, said: ms.Refusal, by: str) -> None:
        """Into the record, whoever refuses, as often as this neighbour may be noted."""
        if self.neighbour(peer).may_be_noted(self.now.mono_ns):
            self.do(self.note("refusal", peer=peer, k=said.k, reason=said.reason, detail=said.detail, by=by))

    def greeted(self, conn: Conn, hello: ms.Hello) -> None:
        """Compare what must be alike, settle the link, offer what is in doubt."""
        if conn.greeted:
            raise Refused("malformed", "a second greeting; the peer runs another version or is faulty")
        self.compare(conn, hello)
        conn.stage, conn.statistics = hello.stage, hello.statistics
        neighbour = self.neighbour(conn.peer)
        link = self.link(conn.peer)
        epoch = settle(conn.view, hello.link)
        if epoch is not None and epoch > link.epoch + FARTHEST:
            raise Refused("gap", f"epoch {epoch} is absurdly far after {link.epoch}; the peer is faulty")
        if epoch is not None and epoch > link.epoch:
            self.start_anew(link, epoch, "the two memories of this link do not fit")
        elif link.answered and link.answered.open and hello.link.done == link.answered.k and epoch is None:
            self.commit(links=(msgspec.structs.replace(link, answered=closed(link.answered)),))
        conn.greeted = True
        neighbour.greeted()
        neighbour.statistics = hello.statistics
        self.is_at(conn.peer, hello.stage)
        neighbour.versions = {"membership": str(hello.membership), "stage": hello.stage}
        neighbour.is_now("connected", self.now.wall_ns)
        seconds = hello.wall_s - self.now.wall_ns // 10**9
        if abs(seconds) > CLOCK_TOLERANCE_S:
            neighbour.why = f"its clock is {seconds:+d} s from ours; correct the clock (NTP) at the site that is wrong"
            self.do(self.note("clock", peer=conn.peer, seconds=seconds, detail=neighbour.why))
        if self.normalisation and self.normalisation != conn.statistics:
            self.on_normalisation_differs(conn)
        if conn.due is not None:
            self.send(conn, conn.due)
        self.offer(conn)
        self.on_greeted(conn.peer)

    def compare(self, conn: Conn, hello: ms.Hello) -> None:
        members = self.settings.members
        if (hello.membership, hello.membership_digest) != (members.version, members.digest):
            mine, theirs = members.version, hello.membership
            remedy = (
                f"{self.me} must take the newer federation file" if theirs > mine
                else f"{conn.peer} must take the newer federation file" if theirs < mine
                else "two different files carry one version: agree on one and raise its version; if they are the same file, "
                "gossipfl is another version at one of the two: install the same"
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
        self.hold(fresh)
        self.commit(self.note("reset", peer=link.peer, epoch=epoch, detail=why), links=(fresh,))
        self.recompute_correction()
        self.give_back(link.peer)
        self.on_let_go(link.peer)

    def give_back(self, peer: str) -> None:
        """Take out of the own statistics what came over a link that is over: whoever begins anew, or has left, brings its
        own whole again, or none, and the sum over all that are there is that of their own (ADR 26)."""
        if not self.link(peer).owed:
            return
        owed: list[bytes] = []

        def make(job: int) -> ev.Job:
            owed.extend(self.link(peer).owed)
            return ev.GiveBack(job, self.current["statistics"], tuple(owed))

        self.change(make, lambda event: self.given_back(event, peer, len(owed)))

    def given_back(self, event: ev.GivenBack | ev.Failed, peer: str, paid: int) -> None:
        link = self.link(peer)
        if isinstance(event, ev.Failed):
            self.do(self.note("returned", peer=peer, reason=event.reason, detail=event.detail))
            return
        self.current["statistics"] = event.model
        fact = self.note("returned", peer=peer, epoch=link.epoch)
        if self.settings.members.has_left(peer):
            self.let_go_of(peer)
            self.commit(fact, gone=peer)
        else:
            self.commit(fact, links=(msgspec.structs.replace(link, owed=link.owed[paid:]),))
        self.on_given_back()

    def recompute_correction(self) -> None:
        self.corrected_now = False

        def make(job: int) -> ev.Job:
            flows = tuple(link.flow for _, link in sorted(self.links.items()) if link.flow)
            return ev.Correct(job, flows, self.settings.members.mass(self.me))

        self.change(make, self.corrected)

    def corrected(self, event: ev.Corrected | ev.Failed) -> None:
        self.corrected_now = True
        if isinstance(event, ev.Corrected):
            self.correction = event.correction

    def refused(self, conn: Conn, refusal: ms.Refusal) -> None:
        """The peer refuses: the session (k = 0) or my proposal k. What I never proposed leaves no trace."""
        neighbour, link = self.neighbour(conn.peer), self.link(conn.peer)
        why = f"{conn.peer} refuses: {refusal.reason}: {refusal.detail}"
        if refusal.k == 0:
            self.note_refusal(conn.peer, refusal, by=conn.peer)
            self.drop(conn)
            neighbour.is_now("refused", self.now.wall_ns, why)
            neighbour.back_off(self.now.mono_ns, self.settings.random)
            self.do(ev.Close(conn.id, f"refused by the peer: {refusal.reason}"))
            return
        if link.pending is None or link.pending.k != refusal.k or link.pending.abort or conn.again_ns is not None:
            return
        self.note_refusal(conn.peer, refusal, by=conn.peer)
        neighbour.back_off(self.now.mono_ns, self.settings.random)
        neighbour.why = why
        if refusal.reason in TRANSIENT:
            conn.again_ns = neighbour.retry_ns
        else:
            self.commit(links=(msgspec.structs.replace(link, pending=None),))
        self.on_let_go(conn.peer)
