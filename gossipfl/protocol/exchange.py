"""What moves over the links of one node, each exchange exactly once.

Proposals and replies, receipts and aborts. Not here: sessions and settling (greeting.py), terms (terms.py), bytes
(session.py), tensors (the workbench), disk (the store), and when to ask whom (peer.py).

An exchange, initiator left and responder right; [..] is one transaction on disk before what follows it:

    Encode, [pending]       -- Propose --------------------->
                            <- Fetch, bulk ----------------->   Mix, [applied, answered]
                            <----------------------- Reply --
    Fetch, bulk, Mix, [applied]   -- Done ------------------>   [receipt]
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from gossipfl.errors import Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import Conn
from gossipfl.protocol.greeting import Greeting
from gossipfl.protocol.link import Answered, Link, Pending, References, begin_anew, closed, digest, judge, stands

HEARD_BY: Final[dict[type, str]] = {
    ms.Hello: "greeted", ms.Refusal: "refused", ms.Propose: "proposed", ms.Fetch: "fetched", ms.Reply: "replied",
    ms.Done: "receipted", ms.Abort: "abort_asked", ms.Aborted: "aborted", ms.Candidate: "on_candidate",
}  # fmt: skip
"""Which method hears of a message."""


class Exchanges(Greeting):
    """All exchanges of one node, on all its links."""

    def received(self, event: ev.Received) -> None:
        conn = self.conns.get(event.conn)
        if conn is None:
            return
        conn.heard_ns = conn.used_ns = self.now.mono_ns
        message = event.message
        try:
            if not (conn.greeted or isinstance(message, ms.Hello | ms.Refusal)):
                raise Refused("malformed", "a message before the greeting; the peer runs another version or is faulty")
            if not isinstance(message, ms.Ping):
                getattr(self, HEARD_BY[type(message)])(conn, message)
        except Refused as refusal:
            self.refuse(conn, refusal)

    # ---- initiator -----------------------------------------------------------------------------------------------

    def busy(self) -> set[str]:
        """Peers on whose link something is under way, so that no new exchange may begin.

        So is a reply that the peer has not yet said to have applied: a proposal that follows an exchange which the peer still
        has in doubt would be out of place there."""
        moving = (peer for peer, conn in self.by_peer.items() if conn.inbound or conn.reply)
        return self.doubtful.union(self.encoding, self.mixing, moving)

    def is_idle(self, peer: str) -> bool:
        return peer not in self.busy()

    def propose(self, peer: str, space: ev.Space) -> None:
        """Begin an exchange: encode the published model of now against the agreed reference."""
        link = self.link(peer)
        k = max(link.high, link.done) + 1
        self.encoding.add(peer)
        model, agreed, codec = self.current[space], self.reference(link, space), self.codec(space)
        seed, gamma = self.seed(link.epoch, k, self.me, peer), self.gamma(space)
        both = agreed.theirs, self.me < peer, self.mass(self.me, space), self.mass(peer, space), gamma
        self.start(
            lambda job: ev.Encode(job, space, model, agreed.own, codec, seed, *both),
            lambda event: self.encoded(event, peer, space, link.epoch, k),
        )

    def encoded(self, event: ev.Encoded | ev.Failed, peer: str, space: ev.Space, epoch: int, k: int) -> None:
        self.encoding.discard(peer)
        link, conn = self.link(peer), self.by_peer.get(peer)
        overtaken = link.epoch != epoch or not self.is_idle(peer) or k <= max(link.high, link.done)
        if isinstance(event, ev.Failed) or overtaken or conn is None or not conn.greeted or conn.inbound:
            self.on_let_go(peer)
            return
        manifest = self.manifest(peer, link, k, "propose", space, event.root, event.size, **self.scalars(space))
        raw = ms.encode(manifest)
        signature, mass_peer = self.settings.sign("manifest", raw), self.mass(peer, space)
        pending = Pending(k, link.done, space, raw, signature, event.root, event.size, mass_peer)
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

    def replied(self, conn: Conn, message: ms.Reply) -> None:
        link = self.link(conn.peer)
        pending = link.pending
        if pending is None or pending.abort or conn.peer in self.mixing or conn.reply:
            return
        reply, asked = ms.decode_manifest(message.manifest), pending.digest
        if reply.answers != asked:
            return
        self.verify(conn, "manifest", reply.certificate, message.manifest, message.signature)
        proposal = ms.decode_manifest(pending.manifest)
        self.check_manifest(conn, link, reply, "reply", proposal.space, proposal.membership, pending.mass_peer, proposal)
        if not (reply.k == pending.k and reply.prev == pending.prev and reply.epoch == link.epoch):
            raise Refused("gap", "the reply's epoch or counters are not those of the proposal")
        is_leak = reply.leak in (1.0, 1 - self.settings.leak) or proposal.membership != self.settings.members.version
        if not (reply.kappa <= proposal.kappa and reply.tau <= proposal.tau and is_leak):
            raise Refused(
                "implausible", "the reply raises kappa or tau or invents a leak; the peer is faulty or hostile"
            )
        receipt = ms.decode_receipt(message.receipt)
        self.verify(conn, "receipt", reply.certificate, message.receipt, message.receipt_signature)
        expected = ms.Receipt(proposal.federation, conn.peer, self.me, proposal.epoch, proposal.k, asked, pending.root)
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
            return self.mix_job(
                job, link, reply, proposal.gradient, reply.kappa, reply.tau, reply.leak, proposal, **known
            )

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
        mine: ms.Manifest | None = None,
        **known: Any,
    ) -> ev.Mix:
        """One half of an exchange, on the models of now and with the scalars that the two manifests sign; `known` is what
        the reply tells the initiator."""
        peer, space = link.peer, came.space
        agreed = self.reference(link, space)
        booked: dict[str, Any]
        if space == "model":
            norm = self.cap_norm(kappa, gradient, came.gradient, peer)
            booked = {"flow": link.flow, "correction": self.correction, "kappa": kappa, "leak": leak, "cap_norm": norm}
        else:  # all that comes, so that it can be given back
            booked = {"flow": link.given, "correction": b"", "kappa": 1.0, "leak": 1.0, "cap_norm": math.inf}
        return ev.Mix(
            job,
            space,  # type: ignore[arg-type]
            lower=self.me < peer,
            incoming=came.root,
            reference_in=agreed.theirs,
            reference_out=agreed.own,
            model=self.current[space],
            codec=mine.codec if mine else self.codec(space),
            seed=self.seed(link.epoch, came.k, self.me, peer),
            mass=mine.mass if mine else self.mass(self.me, space),
            mass_peer=came.mass,
            gamma=mine.gamma if mine else self.gamma(space),
            tau=tau,
            peer=peer,
            **booked,
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
        space, asked = reply.space, pending.digest
        self.apply(event, space)
        link = self.done(link, event, space, pending.k, asked, reply.size)
        receipt = self.receipt(reply, digest(message.manifest))
        facts = (
            self.note("ingress", peer=peer, space=space, epoch=epoch, k=pending.k, role="reply", bytes=reply.size,
                      root=reply.root.hex(), distance=_short(event.distance), clip=_short(event.clip)),
            self.note("receipt", peer=peer, epoch=epoch, k=pending.k, of=asked.hex(),
                      signature=message.receipt_signature.hex()),
        )  # fmt: skip
        self.commit(*facts, links=(link,))
        self.neighbour(peer).answered()
        done = ms.Done(receipt, self.settings.sign("receipt", receipt))
        if conn and conn.greeted:
            self.send(conn, done)
        elif conn:
            conn.due = done
        self.on_exchanged(peer, space, reply.stage, True)

    def done(
        self, link: Link, mixed: ev.Mixed, space: str, k: int, proposal: bytes, size: int, answered: Answered | None = None
    ) -> Link:  # fmt: skip
        """The link after exchange k, at either end; the responder's holds what it has `answered`."""
        agreed = References(mixed.own, mixed.theirs)
        return msgspec.structs.replace(
            link,
            done=k,
            high=max(k, link.high),
            last=proposal,
            pending=None,
            answered=answered,
            model=agreed if space == "model" else link.model,
            statistics=agreed if space == "statistics" else link.statistics,
            flow=mixed.flow if space == "model" else link.flow,
            given=mixed.flow if space == "statistics" else link.given,
            exchanges=link.exchanges + 1,
            sent=link.sent + (answered.size if answered else 0),
            received=link.received + size,
        )

    def apply(self, mixed: ev.Mixed, space: str) -> None:
        self.current[space] = mixed.model
        if space == "model":
            self.correction = mixed.correction

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
        if answered.space == "statistics":  # given back with all that this link has brought
            self.taken_back(conn.peer, note)
            return
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
        if isinstance(event, ev.Failed) or self.link(peer).epoch != note.epoch:
            return
        self.current[space] = event.model
        self.taken_back(peer, note)

    def taken_back(self, peer: str, note: ms.AbortNote) -> None:
        """The exchange that the peer aborted has no effect here any more: the link begins anew, and the peer hears of it."""
        link, conn = self.link(peer), self.by_peer.get(peer)
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
            version, mass = self.settings.members.version, self.mass(conn.peer, manifest.space)
            self.check_manifest(conn, link, manifest, "propose", manifest.space, version, mass)
            if not self.is_time(conn.peer):
                conn.early = message
                return
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
        if not self.neighbour(conn.peer).allow_inbound(self.now.mono_ns, self.settings.inbound_per_minute, self.turns):
            raise Refused(
                "quota",
                f"{conn.peer} begins more than {self.settings.inbound_per_minute:g} exchanges a minute; raise "
                f"inbound_per_minute in the study, or slow that node down",
            )

    def bulk_received(self, event: ev.BulkReceived) -> None:
        conn = self.conns.get(event.conn)
        if conn is None:
            return
        conn.heard_ns = conn.used_ns = self.now.mono_ns
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
        scalars = self.scalars(space)
        gradient = scalars["gradient"]
        kappa = scalars["kappa"] = min(manifest.kappa, scalars["kappa"])
        tau = scalars["tau"] = min(manifest.tau, scalars["tau"])
        leak = scalars["leak"] = 1 - self.settings.leak if kappa else 1.0

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
        found = {"answers": proposal, "clip": event.clip, "cap": event.cap, "q": event.q}
        reply = self.manifest(peer, link, manifest.k, "reply", space, event.payload, event.size, **scalars, **found)
        raw, receipt = ms.encode(reply), self.receipt(manifest, proposal)
        sign = self.settings.sign
        answered = Answered(
            manifest.k, space, proposal, raw, sign("manifest", raw), receipt, sign("receipt", receipt), event.payload,
            event.size, event.clip, reply.gamma, reply.mass, manifest.mass, event.q,
        )  # fmt: skip
        self.apply(event, space)
        link = self.done(link, event, space, manifest.k, proposal, manifest.size, answered)
        facts = (
            self.note("ingress", peer=peer, space=space, epoch=link.epoch, k=manifest.k, role="propose",
                      bytes=manifest.size, root=manifest.root.hex(), distance=_short(event.distance), clip=_short(event.clip)),
            self.note("egress", peer=peer, space=space, epoch=link.epoch, k=manifest.k, role="reply", codec=reply.codec,
                      bytes=event.size, root=event.payload.hex()),
        )  # fmt: skip
        self.neighbour(peer).answered()
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
        self.commit(fact, links=(msgspec.structs.replace(link, answered=closed(answered)),))


def _short(value: float) -> float | str:
    """A number that JSON can hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else str(value)
