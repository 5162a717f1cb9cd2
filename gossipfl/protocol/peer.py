"""One node's mind: `Peer.handle(event, now) -> commands`, the only door.

On top of exchange.py (who is connected, what moves exactly once) this is the course of a study at one node: statistics,
training, release, and then answering for as long as it runs. Not here: bytes, tensors, disk, clock, randomness; they are
names and arguments. A run is its list of (now, node, event).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import Any, Final, Literal

import msgspec

from gossipfl.errors import Misuse, Refused
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.core import TOGETHER_NS, Conn, Settings
from gossipfl.protocol.events import Instant
from gossipfl.protocol.greeting import AT_REST, GREETING_NS, IDLE_NS
from gossipfl.protocol.link import Row, begin_anew, decode_link, encode_row
from gossipfl.protocol.lockstep import InStep
from gossipfl.protocol.neighbours import choose
from gossipfl.trust.identity import Certificate

LEAVE_NS: Final = 120_000_000_000
"""Who leaves mixes for at most this long, so that what it learned is shared; then it stops."""

DRAIN_NS: Final = 8_000_000_000
"""A stop waits this long for what is under way; what is still in doubt then is settled after the next start."""

BUSY_NS: Final = 50_000_000
LONELY_NS: Final = 1_000_000_000
"""A node whose neighbours are all busy, or all away, looks again after this at the latest: it must not spin."""

AGREE: Final = 2e-5
"""Relative tolerance between two candidates: both are rounded to six digits, so one step of rounding may lie between."""

CALM: Final = 3
"""Converged estimates in a row before a node freezes: of four nodes two can meet at the exact mean after two exchanges each,
while the others have not; one that stops mixing then leaves those with nobody who asks them."""

HARDLY: Final = 1e-4
"""Share of what its presences still miss by which a reading moves them at least while they are on their way to 1, at any graph
in use: who will see everybody must not stop half way and ask its neighbours."""

GRADIENT_MEMORY: Final = 0.9
"""Weight of the past in the moving average of the gradient norm."""

Turn = Literal["rest", "training", "reading", "waiting", "choosing", "exchanging"]


UNDER_WAY: Final = frozenset({"waiting", "choosing", "exchanging"})
"""A turn that lasts no longer than patience; with an exchange of statistics, than a session may be silent (ADR 40)."""

BULK: Final = (ev.SendBulk, ev.ReceiveBulk)
"""Where this is all that follows from an event, a payload moves, and nothing else is otherwise than before."""


class Course(Row, frozen=True):
    """The node's own durable state: one row, in every transaction."""

    model: bytes
    statistics: bytes
    stage: str
    local_round: int
    released: int
    """exchanges done in the release, with peers that have done training, too"""
    gradient: float
    normalisation: bytes
    """the frozen statistics in use: encoded, with who signed them"""
    certificate: bytes
    signature: bytes
    steps: int
    leaving: bool = False
    """has the operator ordered to leave, and is it not yet done?"""


HEARD_BY: Final[dict[type, str]] = {
    ev.Started: "started", ev.Opened: "opened", ev.DialFailed: "dial_failed", ev.Received: "received",
    ev.BulkReceived: "bulk_received", ev.Closed: "closed", ev.Operator: "ordered", ev.Stopping: "told_to_stop",
}  # fmt: skip
"""Which method hears of an event; all others are ends of jobs."""


class Peer(InStep):
    """The core of a node. Never raises for anything that a peer, the network, the disk or the clock can cause."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        for certificate in settings.certificates:
            self.certificates.setdefault(certificate.member, {})[certificate.digest] = certificate
        self.frozen = b""
        self.frozen_by: tuple[bytes, bytes] = (b"", b"")
        self.estimate: ms.Normalisation | None = None
        self.candidates: dict[bytes, ms.Candidate] = {}
        self.presence: tuple[float, ...] = ()
        self.calm = 0
        """estimates in a row at which the statistics had converged"""
        self.still = 0
        """estimates in a row that hardly came nearer to seeing everybody than the one before"""
        self.prepared = False
        self.released = 0
        self.steps = 0
        self.loss = 0.0
        self.turn: Turn = "rest"
        self.turn_peer = ""
        self.turn_until = 0
        self.turn_next = 0
        self.to_begin = 0
        """exchanges that this turn has still to begin"""
        self.asked: set[str] = set()
        """neighbours that this turn has begun one with, or tried to"""
        self.gave_way = 0
        """proposals of this turn that gave way to a neighbour's, and are made again: at most as many as the turn begins, so that
        nobody keeps it from ending"""
        self.checkpoint_at = 0
        self.saved: tuple[bytes, int] = (b"", 0)
        self.handed: list[ev.Operator] = []
        self.taken = 0
        """displacements done with since the start: part of the model, or failed"""
        self.running = False
        self.stop_by: int | None = None
        self.stopped = False
        self.leaving = False
        self.leave_by: int | None = None
        self.wake: int | None = None
        self.care_at = 0
        """when a session must be looked after next"""

    # ---- the door ------------------------------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: Instant) -> list[ev.Command]:
        """The only door: what to do now that `event` has happened, in order."""
        self.now, self.out = now, []
        if isinstance(event, ev.Received) and isinstance(event.message, ms.Ping) and self.pinged(event.conn):
            return self.out
        if not isinstance(event, ev.Alarm):
            getattr(self, HEARD_BY.get(type(event), "ended"))(event)
        if self.out and isinstance(self.out[0], BULK) and self.is_quiet():
            return self.out
        if self.conns and now.mono_ns >= self.care_at:
            self.keep_alive()
        self.go_on()
        at = self.next_alarm()
        if at != self.wake:
            self.wake = at
            self.do(ev.Wake(at))
        return self.out

    def started(self, event: ev.Started) -> None:
        """Take up where the disk says that this node was."""
        self.base = {"model": event.model, "statistics": event.statistics_base}
        self.current = {"model": event.begin or event.model, "statistics": event.statistics}
        for (kind, _), value in sorted(event.rows.items()):
            if kind == "link":
                self.hold(decode_link(value))
            elif kind == "certificate":
                certificate = Certificate.decode(value)
                self.certificates.setdefault(certificate.member, {})[certificate.digest] = certificate
        course = event.rows.get(("course", self.me))
        if course is not None:
            self.resume(msgspec.msgpack.decode(course, type=Course))
            if self.current["model"] in event.missing:
                self.fall_back(event.missing)
            if bookings(event.rows, event.missing) is not None:
                self.make_good(event)
        elif not self.settings.statistics_size:
            self.stage, self.prepared = self.after_statistics(), True
        self.running = True
        for peer in sorted(self.links):
            self.check_link(self.links[peer], event.missing)
        for peer in self.settings.members.neighbours(self.me):
            self.neighbour(peer).is_now("unseen", self.now.wall_ns)
        self.checkpoint_at = self.now.mono_ns + self.settings.checkpoint_ns
        if self.leaving:
            self.leave()
        self.commit(self.note("start", stage=self.stage, local_round=self.local_round))
        self.recompute_correction()
        if self.frozen:
            self.prepare()
        if self.settings.statistics_size:
            self.start(lambda job: ev.Estimate(job, self.current["statistics"]), self.estimated)

    def resume(self, course: Course) -> None:
        self.current = {"model": course.model, "statistics": course.statistics}
        self.stage, self.local_round, self.released = course.stage, course.local_round, course.released
        self.gradient, self.steps, self.leaving = course.gradient, course.steps, course.leaving
        self.trained = course.gradient > 0
        self.frozen, self.frozen_by = course.normalisation, (course.certificate, course.signature)
        if self.frozen:
            self.normalisation = hashlib.sha256(self.frozen).digest()
            self.hear(self.normalisation, ms.Candidate(self.frozen, *self.frozen_by))
            self.estimate = ms.decode_normalisation(self.frozen)
        self.prepared = not self.settings.statistics_size

    def fall_back(self, missing: frozenset[bytes]) -> None:
        """The file of the own model is gone or damaged: go on from what the neighbour met most often was last sent of it, which
        this node keeps, too. What was learned since is lost."""
        kept = [link for _, link in sorted(self.links.items()) if link.model.own and link.model.own not in missing]
        best = max(kept, key=lambda link: link.exchanges, default=None)
        if best is None:
            raise Misuse("no copy of the model is left: who starts a core asks `is_lost` first")
        self.current["model"] = best.model.own
        detail = (
            "the file of this node's model is missing or damaged on this disk: it goes on from what "
            f"{best.peer} was last sent of it; check the disk"
        )
        self.do(self.note("damaged", detail=detail))

    def make_good(self, event: ev.Started) -> None:
        """The file of the statistics, or of what a link has brought to them, is gone or damaged: go on from this site's own
        and what the other links have brought. What can no longer be given back is out of it at once, in one transaction."""
        self.current["statistics"] = event.statistics
        anew, missing = [], event.missing
        for _, link in sorted(self.links.items()):
            given, owed = b"" if link.given in missing else link.given, tuple(one for one in link.owed if one not in missing)
            if (given, owed) != (link.given, link.owed):
                link = msgspec.structs.replace(link, given=given, owed=owed)
                anew.append(begin_anew(link, link.epoch + 1, self.now.wall_ns // 10**9, None))
        whose = ", ".join(link.peer for link in anew)
        lost = f"of what {whose} has brought to the statistics" if anew else "of the statistics"
        detail = (
            f"a file {lost} is missing or damaged on this disk: they are made again of this site's own rows and of what the "
            "other links have brought; nothing else is lost. Check the disk"
        )
        self.commit(self.note("damaged", detail=detail), links=tuple(anew))

    def check_link(self, link: Any, missing: frozenset[bytes]) -> None:
        """Drop the link of who has left, and while statistics are mixed give back what it brought; begin anew where a file
        that the link needs is gone; give back what a crash has kept from being given back."""
        left, gone = self.settings.members.has_left(link.peer), link.names() & missing
        owed = (*link.owed, link.given) if link.given else link.owed
        if left and owed and not self.frozen:
            self.hold(msgspec.structs.replace(link, given=b"", owed=owed))
            self.give_back(link.peer)
        elif left:
            self.let_go_of(link.peer)
            self.commit(self.note("left", peer=link.peer), gone=link.peer)
        elif gone:
            self.start_anew(
                link, link.epoch + 1, "a file of this link is missing or damaged on this disk", limited=False
            )
        else:
            self.give_back(link.peer)

    def state_rows(self) -> list[tuple[str, str, bytes | None]]:
        course = Course(
            self.current["model"], self.current["statistics"], self.stage, self.local_round, self.released, self.gradient,
            self.frozen, *self.frozen_by, self.steps, self.leaving and not self.stopped,
        )  # fmt: skip
        self.checkpoint_at = self.now.mono_ns + self.settings.checkpoint_ns
        self.saved = (self.current["model"], self.local_round)
        return [("course", self.me, encode_row(course))]

    def state_names(self) -> set[bytes]:
        return {*self.current.values(), *self.base.values()}

    def live(self) -> frozenset[bytes]:
        names = super().live()
        return names.union(handed.displacement for handed in self.handed) if self.handed else names

    # ---- operator ------------------------------------------------------------------------------------------------

    def ordered(self, event: ev.Operator) -> None:
        self.do(self.note("operator", order=event.order))
        if event.order == "pause":
            self.paused = True
        elif event.order == "resume":
            self.paused = False
        elif event.order == "leave":
            self.leave()
        elif event.order == "mix":
            self.handed.append(event)
        elif event.order == "finish" and self.stage == "training":
            self.enter_release()

    def told_to_stop(self, event: ev.Stopping) -> None:
        self.stopping, self.stop_by = True, self.stop_by or self.now.mono_ns + DRAIN_NS

    def leave(self) -> None:
        """Give away what was learned in a last release, within `LEAVE_NS`; at once where there is nothing to give."""
        self.leaving = True
        if self.stage == "training" and self.prepared:
            self.stage = "release"
        if self.stage == "release":
            self.leave_by = self.now.mono_ns + LEAVE_NS
        else:
            self.stopping, self.stop_by = True, self.now.mono_ns + DRAIN_NS
        self.commit(self.note("stage", stage=self.stage, local_round=self.local_round))

    # ---- statistics ----------------------------------------------------------------------------------------------

    def after_statistics(self) -> str:
        return "training" if self.settings.trains else "observing"

    def estimated(self, event: ev.Estimated | ev.Failed) -> None:
        if self.turn == "reading":
            self.turn_over()
        if isinstance(event, ev.Failed):
            return
        converged = bool(event.presence) and all(abs(p - 1) <= self.settings.tolerance for p in event.presence)
        if (
            self.frozen and not converged
        ):  # one who froze first still mixes with those who have not: that says less, not more
            return
        self.still = self.still + 1 if self.hardly_moved(event.presence) else 0
        self.presence, self.estimate = event.presence, event.normalisation
        self.calm = self.calm + 1 if converged else 0
        if not self.frozen and not converged and self.still >= CALM:
            self.estimate = self.what_most_use() or self.estimate
        if self.frozen:
            self.take_smallest()
        elif any(self.fits(candidate) for candidate in self.candidates.values()):
            self.stage = self.after_statistics()
            self.take_smallest()
        needed = CALM if self.settings.members.neighbours(self.me) else 1
        if self.frozen or self.calm < needed or event.normalisation is None:
            return
        raw = ms.encode(event.normalisation)
        mine = ms.Candidate(raw, self.settings.certificate.encoded, self.settings.sign("statistics", raw))
        self.hear(hashlib.sha256(raw).digest(), mine)
        self.stage = self.after_statistics()
        self.take_smallest()

    def hardly_moved(self, presence: tuple[float, ...]) -> bool:
        """Measured by what is still missing, not by the tolerance: beside neighbours that have frozen a reading halves its moves
        for hours before they come to 1e-12, and in the end misses as much as in the beginning."""
        moved = max((abs(p - before) for p, before in zip(presence, self.presence, strict=False)), default=math.inf)
        return moved <= max(self.settings.tolerance, HARDLY * max((abs(p - 1) for p in presence), default=0.0))

    def take_smallest(self) -> None:
        """Use the candidate of the smallest digest within tolerance of the own estimate, and tell everybody."""
        fitting = [name for name in sorted(self.candidates) if self.fits(self.candidates[name])]
        if not fitting or fitting[0] == self.normalisation:
            return
        chosen = self.candidates[fitting[0]]
        self.frozen, self.frozen_by = chosen.normalisation, (chosen.certificate, chosen.signature)
        self.normalisation = fitting[0]
        author = ms.decode_normalisation(chosen.normalisation).author
        self.commit(self.note("statistics", author=author, digest=self.normalisation.hex()))
        for peer in sorted(self.by_peer):
            if self.by_peer[peer].greeted:
                self.send(self.by_peer[peer], chosen)
        self.prepare()

    def what_most_use(self) -> ms.Normalisation | None:
        """What more than half of all neighbours have frozen, all alike. Who has lost its folder, and mixes with some that mix
        with nobody else any more, may never see everybody. One among many cannot say what the statistics are (ADR 34)."""
        neighbours = self.settings.members.neighbours(self.me)
        names = [name for peer in neighbours if (name := self.neighbour(peer).statistics) in self.candidates]
        names = sorted(names, key=names.count, reverse=True)  # who lies is one of the fewer, a hair's breadth beside the others
        used = [ms.decode_normalisation(self.candidates[name].normalisation) for name in names]
        majority = (one for one in used if 2 * sum(alike(one, other) for other in used) > len(neighbours))
        return next((one for one in majority if self.is_of_this_study(one)), None)

    def is_of_this_study(self, said: ms.Normalisation) -> bool:
        """Has it the features of this site's rows, spreads to divide by, and the rows of everybody heard of, this site's too?"""
        mine = self.estimate
        if mine is None or len(said.mean) != len(mine.mean) or not all(spread > 0 for spread in said.spread):
            return False
        return set(mine.members).issubset(said.members)

    def prepare(self) -> None:
        self.prepared = False
        statistics = self.frozen
        self.start(lambda job: ev.Prepare(job, statistics), self.ready)

    def ready(self, event: ev.Prepared | ev.Failed) -> None:
        self.prepared = isinstance(event, ev.Prepared)

    def fits(self, candidate: ms.Candidate) -> bool:
        return self.estimate is not None and alike(ms.decode_normalisation(candidate.normalisation), self.estimate)

    def on_normalisation_differs(self, conn: Conn) -> None:
        if self.frozen:
            self.send(conn, ms.Candidate(self.frozen, *self.frozen_by))

    def on_candidate(self, conn: Conn, message: ms.Candidate) -> None:
        """A peer says what it uses. Smaller than mine and alike: I take it, too. Unlike mine: refused, with who is missing."""
        candidate = ms.decode_normalisation(message.normalisation)
        if candidate.federation != self.settings.members.federation_id:
            raise Refused("recipient", "statistics of another federation")
        author = Certificate.decode(message.certificate)
        if self.settings.members.admits(author) != candidate.author:
            raise Refused("auth", f"statistics by {candidate.author} came under a certificate of {author.member}")
        self.settings.verify("statistics", message.normalisation, message.signature, author.signing)
        name = hashlib.sha256(message.normalisation).digest()
        conn.statistics = self.neighbour(conn.peer).statistics = name
        if self.estimate is None or not self.frozen:
            self.hear(name, message)
            return
        if not alike(candidate, self.estimate):
            mine, theirs = set(self.estimate.members), set(candidate.members)
            missing = ", ".join(sorted(mine ^ theirs)) or "none: the values differ"
            raise Refused(
                "stats",
                f"the normalisation of {candidate.author} is not that of {self.me}; sites in only one of them: {missing}. "
                f"All sites must take part in the statistics stage of one study; begin a new study where one has joined since",
            )
        self.hear(name, message)
        self.take_smallest()

    def hear(self, name: bytes, message: ms.Candidate) -> None:
        """Keep a candidate; where there are more than members could honestly make the oldest goes that no neighbour uses."""
        self.candidates[name] = message
        neighbours = self.settings.members.neighbours(self.me)
        used = {self.neighbour(peer).statistics for peer in neighbours}
        while len(self.candidates) > 2 + 2 * len(neighbours):
            self.candidates.pop(next(one for one in self.candidates if one not in used))

    # ---- turns: train, choose, exchange --------------------------------------------------------------------------

    def go_on(self) -> None:
        """Take the next step of the course, if it is time."""
        if not self.running or self.stopped:
            return
        if self.stopping:
            self.drain()
            return
        mono = self.now.mono_ns
        for peer in self.to_be_dialled():
            if mono >= self.neighbour(peer).retry_ns:
                self.dial(peer)
        if self.leave_by is not None and mono >= self.leave_by and self.stage == "release":
            self.finish()
        if self.turn in UNDER_WAY and mono >= self.turn_until:
            self.to_begin = 0  # patience is for a turn, not for each of its exchanges
            self.turn_over()
        if self.settings.lockstep:
            self.take_early()
        if self.turn == "rest" and mono >= self.checkpoint_at and self.unsaved() and not self.hands.busy:
            self.commit()
        if self.turn == "waiting" and self.has_waited():
            self.turn, self.turn_next = "rest", mono
        if self.turn == "rest" and not self.paused and mono >= self.turn_next:
            self.begin_turn()

    def unsaved(self) -> bool:
        return self.saved != (self.current["model"], self.local_round)

    def begin_turn(self) -> None:
        if self.stage == "statistics":
            self.begin_exchange("statistics")
        elif not self.prepared or not self.corrected_now:
            return
        elif self.settings.lockstep and self.stage in ("training", "release"):
            self.keep_step()
        elif self.to_begin and self.stage != "finished":
            self.begin_exchange("model")
        elif self.stage == "training" and self.settings.external:
            if self.handed:
                handed = self.handed.pop(0)
                self.turn = "training"
                self.trained_one(ev.Trained(0, handed.displacement, handed.steps, handed.gradient, 0.0))
        elif self.stage == "training":
            self.train()
        elif self.stage in ("release", "observing"):
            self.begin_exchange("model")

    def train(self) -> None:
        self.turn = "training"
        eta = self.settings.eta(self.local_round)
        model, correction, number, steps = (
            self.current["model"], self.correction, self.local_round, self.settings.local_steps,
        )  # fmt: skip
        self.start(lambda job: ev.Train(job, model, correction, number, steps, eta), self.trained_one)

    def trained_one(self, event: ev.Trained | ev.Failed) -> None:
        if isinstance(event, ev.Trained) and not math.isfinite(event.gradient):
            event = ev.Failed(event.job, "nonfinite", "the norm of the gradient is not finite: training diverges")
        if isinstance(event, ev.Failed):
            self.taken += 1
            self.do(self.note("training", reason=event.reason, detail=event.detail))
            self.paused = True
            self.turn_over()
            return
        memory = GRADIENT_MEMORY if self.gradient else 0.0
        average = memory * self.gradient + (1 - memory) * event.gradient
        # without a correction it never falls: what clips the exchanges would follow the own optimum to zero (ADR 21)
        self.gradient = average if self.settings.ledger else max(average, self.gradient)
        self.trained, self.loss, self.steps = True, event.loss, self.steps + event.steps
        displacement = event.displacement
        self.change(lambda job: ev.Absorb(job, self.current["model"], displacement), self.absorbed, displacement)

    def absorbed(self, event: ev.Absorbed | ev.Failed) -> None:
        self.taken += 1
        if isinstance(event, ev.Failed):
            self.do(self.note("training", reason=event.reason, detail=event.detail))
            self.paused = True
            self.turn_over()
            return
        self.current["model"] = event.model
        self.local_round += 1
        if self.local_round >= self.settings.local_rounds and not self.settings.external:
            self.enter_release()
        if self.turn == "training":
            self.begin_exchange("model")

    def enter_release(self) -> None:
        self.stage = "release"
        self.commit(self.note("stage", stage="release", local_round=self.local_round))

    def begin_exchange(self, space: ev.Space) -> None:
        """Choose a neighbour uniformly, among those that this turn has not asked if there are any, and exchange with it; one that
        cannot be reached has had its try. Where nobody can be, the turn waits for one that is busy with this node, or is over."""
        if not self.to_begin:
            self.to_begin, self.asked = 1 if self.settings.lockstep else self.settings.exchanges, set()
            self.gave_way = 0
        candidates = self.may_be_asked(space)
        if self.settings.lockstep:
            candidates = [peer for peer in candidates if peer == self.asked_next()]
        peer = choose([peer for peer in candidates if peer not in self.asked] or candidates, self.settings.random)
        if peer is None and self.is_worth_waiting(space):
            self.turn, self.turn_peer = "waiting", ""
            self.turn_until = self.now.mono_ns + self.settings.patience_ns
            return
        if peer is None:
            self.to_begin = 0
            self.turn_over()
            self.turn_next = max(self.turn_next, self.worth_trying())
            return
        self.asked.add(peer)
        self.turn, self.turn_peer, self.turn_until = "choosing", peer, self.now.mono_ns + self.settings.patience_ns
        conn = self.by_peer.get(peer)
        if conn is not None and conn.greeted:
            self.ask(peer)
        elif conn is None:
            self.dial(peer)

    # ---- lockstep --------------------------------------------------------------------------------------------------

    def keep_step(self) -> None:
        """Do the exchange that is owed, or wait for it; else go on to the next round."""
        if self.round_owed() is not None:
            self.begin_exchange("model")
        elif self.stage == "training":
            self.train()
        elif self.stage == "release":
            self.finish()

    # ---- asking ------------------------------------------------------------------------------------------------------

    def worth_trying(self) -> int:
        """When a neighbour may be free again."""
        soonest = self.now.mono_ns + (BUSY_NS if self.by_peer else LONELY_NS)
        for peer in self.settings.members.neighbours(self.me):
            retry = self.neighbour(peer).retry_ns
            soonest = min(soonest, retry) if retry > self.now.mono_ns else soonest
        return soonest

    def dial(self, peer: str) -> None:
        if self.neighbour(peer).state != "dialling":
            self.neighbour(peer).is_now("dialling", self.now.wall_ns)
            self.do(ev.Dial(peer))

    def to_be_dialled(self) -> list[str]:
        """Neighbours without a session where one is owed: an exchange is in doubt, or this node has finished and they have
        not: they may have no way to dial it."""
        owed = self.doubtful.difference(self.by_peer)
        if self.stage == "finished":
            owed.update(set(self.settings.members.neighbours(self.me)).difference(self.finished, self.by_peer))
        if not owed:
            return []
        near = self.settings.dialable
        return [peer for peer in sorted(owed) if peer in near and self.neighbour(peer).state != "dialling"]

    def may_be_asked(self, space: str) -> list[str]:
        busy = self.busy()
        neighbours = self.settings.members.neighbours(self.me)
        return [peer for peer in neighbours if peer not in busy and self.would_ask(peer, space)]

    def would_ask(self, peer: str, space: str) -> bool:
        """May this neighbour be asked once nothing is under way on its link?"""
        neighbour, conn = self.neighbour(peer), self.by_peer.get(peer)
        if self.now.mono_ns < neighbour.retry_ns:
            return False
        if conn is None:
            return peer in self.settings.dialable
        return space != "model" or not conn.greeted or conn.statistics == self.normalisation

    def is_worth_waiting(self, space: str) -> bool:
        """Is a neighbour here that this turn would ask, had it not just begun an exchange itself? That ends soon; what this node
        has begun and has in doubt may not."""
        busy = self.busy()
        return not self.settings.lockstep and any(
            conn.greeted and not self.link(peer).pending and peer in busy and self.would_ask(peer, space)
            for peer, conn in self.by_peer.items()
        )

    def has_waited(self) -> bool:
        """May a neighbour be asked now, or is none worth waiting for any more?"""
        if self.paused:
            return False
        space = "statistics" if self.stage == "statistics" else "model"
        return bool(self.may_be_asked(space)) or not self.is_worth_waiting(space)

    def ask(self, peer: str) -> None:
        space: ev.Space = "statistics" if self.stage == "statistics" else "model"
        if not self.is_idle(peer) or not self.would_ask(peer, space):
            self.turn_over()
            return
        self.turn = "exchanging"
        if space == "statistics":  # one at a time: each moves half of what it found at its beginning, two would go too far
            self.turn_until = self.now.mono_ns + max(self.settings.patience_ns, IDLE_NS)
        self.propose(peer, space)

    def turn_over(self) -> None:
        """An exchange is done, or nothing came of it: the next one of this turn at once, or rest until the next turn."""
        self.turn, self.turn_peer, self.to_begin = "rest", "", max(0, self.to_begin - 1)
        self.turns += 1
        self.turn_next = self.now.mono_ns + (0 if self.to_begin else self.settings.turn_ns)

    def on_given_back(self) -> None:
        self.start(lambda job: ev.Estimate(job, self.current["statistics"]), self.estimated)

    def on_greeted(self, peer: str) -> None:
        if self.turn == "choosing" and self.turn_peer == peer:
            self.ask(peer)

    def on_let_go(self, peer: str) -> None:
        if self.turn in ("choosing", "exchanging") and self.turn_peer == peer:
            self.turn_over()

    def on_exchanged(self, peer: str, space: str, stage: str, initiated: bool) -> None:
        self.is_at(peer, stage)
        if self.settings.lockstep:
            self.turn_next = self.now.mono_ns
        elif self.stage == "training" and self.most_have_finished():
            self.do(
                self.note(
                    "late", detail="most neighbours have finished: this node trains no more and takes their model"
                )
            )
            self.enter_release()
        together = self.leaving or stage in ("release", "finished", "observing")
        if self.stage == "release" and space == "model" and together:
            self.released += 1
            if self.released >= self.settings.release_exchanges and not self.settings.lockstep:
                self.finish()
        mine = self.turn == "exchanging" and self.turn_peer == peer
        if space == "statistics":
            if mine:
                self.turn = "reading"
            self.start(lambda job: ev.Estimate(job, self.current["statistics"]), self.estimated)
        elif mine:
            if not (initiated or self.settings.lockstep) and self.gave_way < self.settings.exchanges:
                self.gave_way, self.to_begin = self.gave_way + 1, self.to_begin + 1
            self.turn_over()

    def most_have_finished(self) -> bool:
        """Training against finished peers, who book no flow, would draw everybody's model to this site's own optimum.
        Most of them must say so: one among many cannot end a study."""
        return 2 * len(self.finished) > len(self.settings.members.neighbours(self.me))

    def finish(self) -> None:
        self.stage = "finished"
        self.commit(self.note("stage", stage="finished", released=self.released))
        if self.leaving:
            self.stopping, self.stop_by = True, self.now.mono_ns + DRAIN_NS

    def dial_failed(self, event: ev.DialFailed) -> None:
        neighbour = self.neighbour(event.peer)
        neighbour.is_now("unreachable", self.now.wall_ns, event.why)
        neighbour.back_off(self.now.mono_ns, self.settings.random)
        self.on_let_go(event.peer)

    def drain(self) -> None:
        """Wait for what changes state, then put everything on disk and say so."""
        assert self.stop_by is not None
        if (self.hands.ends or self.hands.queue) and self.now.mono_ns < self.stop_by:
            return
        self.stopped = True
        self.commit(self.note("stop", stage=self.stage, local_round=self.local_round))
        for conn in list(self.conns.values()):
            self.do(ev.Close(conn.id, "this node stops"))
        self.do(ev.Stopped())

    # ---- time ----------------------------------------------------------------------------------------------------

    def pinged(self, number: int) -> bool:
        """A neighbour that is known to be there says that it is: nothing else follows, and the alarm stands as it was."""
        conn = self.conns.get(number)
        if conn is None or not conn.greeted:
            return False
        conn.heard_ns = self.now.mono_ns
        return True

    def is_quiet(self) -> bool:
        """Is nothing due before the alarm that stands, or because a neighbour may be asked again?"""
        mono = self.now.mono_ns
        return mono < self.care_at and self.turn != "waiting" and (self.wake is None or mono + 1 < self.wake)

    def keep_alive(self) -> None:
        mono = self.now.mono_ns
        due = mono + (TOGETHER_NS if any(conn.ping_ns <= mono for conn in self.conns.values()) else 0)
        for conn in list(self.conns.values()):
            busy = conn.inbound or conn.reply
            if not conn.greeted and mono - conn.opened_ns > GREETING_NS:
                self.let_die(conn, "no greeting came")
            elif not busy and mono - conn.heard_ns > IDLE_NS:
                self.let_die(conn, "nothing heard for 60 s")
            elif conn.ping_ns <= due:
                self.ping_or_rest(conn)
            if conn.again_ns is not None and mono >= conn.again_ns:
                conn.again_ns = None
                self.offer(conn)

    def ping_or_rest(self, conn: Conn) -> None:
        """Who began a session lets it go where it may rest: only that side is known to be able to dial."""
        if conn.begun_by != self.me or self.turn_peer == conn.peer or not self.may_rest(conn):
            self.put_off_ping(conn)
            self.do(ev.Send(conn.id, ms.Ping()))
            return
        self.drop(conn)
        self.neighbour(conn.peer).is_now("resting", self.now.wall_ns, AT_REST)
        self.do(ev.Close(conn.id, AT_REST))

    def let_die(self, conn: Conn, why: str) -> None:
        self.drop(conn)
        self.neighbour(conn.peer).is_now("silent", self.now.wall_ns, why)
        self.do(ev.Close(conn.id, why))

    def next_alarm(self) -> int | None:
        if self.stopped or not self.running:
            return None
        mono = self.now.mono_ns
        times, greeted = [], True
        for conn in self.conns.values():
            times.append(conn.ping_ns)
            if conn.again_ns is not None:
                times.append(conn.again_ns)
            greeted = greeted and conn.greeted
        self.care_at = min(times) if greeted and times else mono
        if not self.stopping and (away := self.to_be_dialled()):
            times += [self.neighbour(peer).retry_ns for peer in away]
        if self.leave_by is not None and self.stage == "release":
            times.append(self.leave_by)
        if self.stop_by is not None:
            times.append(self.stop_by)
        elif self.turn in UNDER_WAY:
            times.append(self.turn_until)
        elif self.turn == "rest":
            if self.unsaved() and not self.hands.busy:
                times.append(self.checkpoint_at)
            if self.wants_turn():
                times.append(max(self.turn_next, mono + 1))
        return max(min(times), mono + 1) if times else None

    def wants_turn(self) -> bool:
        if self.paused or self.stage == "finished":
            return False
        if self.stage != "statistics" and not (self.prepared and self.corrected_now):
            return False
        return not (self.stage == "training" and self.settings.external and not self.handed and not self.to_begin)

    # ---- what an operator may see --------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The node's state as JSON values: stage, progress, and each peer's state, since when, and versions."""
        peers = {
            peer: {
                "state": self.neighbour(peer).state,
                "since_unix": self.neighbour(peer).since_wall_ns // 10**9,
                "why": self.neighbour(peer).why,
                "epoch": self.link(peer).epoch,
                "exchanges": self.link(peer).exchanges,
                "in_doubt": self.link(peer).pending is not None,
                "sent_bytes": self.link(peer).sent,
                "received_bytes": self.link(peer).received,
                "versions": self.neighbour(peer).versions,
            }
            for peer in self.settings.members.neighbours(self.me)
        }
        return {
            "node": self.me,
            "stage": "paused" if self.paused else self.stage,
            "local_round": self.local_round,
            "local_rounds": self.settings.local_rounds,
            "steps": self.steps,
            "released": self.released,
            "exchanges": sum(link.exchanges for link in self.links.values()),
            "loss": self.loss,
            "model": self.current["model"].hex(),
            "statistics": self.normalisation.hex(),
            "statistics_presence": list(self.presence),
            "membership": self.settings.members.version,
            "refusals": dict(sorted(self.counts.items())),
            "peers": peers,
        }


def is_lost(rows: Mapping[tuple[str, str], bytes], me: str, missing: Collection[bytes]) -> bool:
    """Is the state of no use, because of the missing files? So without the model where no link keeps what a neighbour was last
    sent of it: then only an operator can decide to begin anew."""
    if (row := rows.get(("course", me))) is None:
        return False
    course = msgspec.msgpack.decode(row, type=Course)
    copies = {decode_link(value).model.own for (kind, _), value in rows.items() if kind == "link"} - {b""}
    return course.model in missing and copies <= set(missing)


def bookings(rows: Mapping[tuple[str, str], bytes], missing: Collection[bytes]) -> tuple[bytes, ...] | None:
    """Names of what sound links have brought to the statistics, where these must be made again: their vector, or something that
    was brought, is missing. None where nothing is."""
    links = [decode_link(value) for (kind, _), value in sorted(rows.items()) if kind == "link"]
    brought = [name for link in links for name in (link.given, *link.owed) if name]
    stood = [msgspec.msgpack.decode(value, type=Course).statistics for (kind, _), value in rows.items() if kind == "course"]
    if not any(name in missing for name in (*stood, *brought)):
        return None
    return tuple(name for name in brought if name not in missing)


def names_in(rows: Mapping[tuple[str, str], bytes]) -> set[bytes]:
    """Every name of a file that the durable rows of a core need to go on."""
    named: set[bytes] = set()
    for (kind, _), value in rows.items():
        if kind == "link":
            named |= decode_link(value).names()
        elif kind == "course":
            course = msgspec.msgpack.decode(value, type=Course)
            named |= {course.model, course.statistics}
    return named


def alike(a: ms.Normalisation, b: ms.Normalisation) -> bool:
    """Are two candidates of the same members within rounding of each other? Means are compared in units of spread."""
    if a.members != b.members or len(a.mean) != len(b.mean):
        return False
    return all(
        abs(x - y) <= AGREE * max(abs(x), abs(y), s) and abs(s - t) <= AGREE * max(s, t)
        for x, y, s, t in zip(a.mean, b.mean, a.spread, b.spread, strict=True)
    )
