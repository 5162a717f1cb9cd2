"""Laws of one node and one link: numbers used once, disk first, who may say what, disks that open, bounds.

Not here: how a world is watched (invariants.py), what moves (conservation.py), healing (recovery.py).
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import numpy as np

from gossipfl.simulator.invariants import Checker
from gossipfl.simulator.witness import Life, LinkRow, Truth, card, digest, is_signed, is_whole, paper, root, slip


class CountedOnce(Checker):
    name = "k-once"
    law = "No two different proposals, and no two different replies, are signed for one (epoch, k) of a link."

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.said: dict[tuple[str, str, str], dict[tuple[int, int], bytes]] = {}

    def sent(self, life: Life, peer: str, kind: str, message: Any) -> None:
        if kind in ("Propose", "Reply") and not self.lies(life.name):
            self.see(life.name, peer, kind, message.manifest)

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        for peer in before:
            link = life.link(peer)
            if link.pending:
                self.see(life.name, peer, "Propose", link.pending.manifest)
            if link.answered:
                self.see(life.name, peer, "Reply", link.answered.manifest)

    def struck(self, kind: str, names: Sequence[str], detail: str) -> None:
        """Who has lost its disk cannot know what it had signed."""
        if kind == "state-lost":
            for at in [at for at in self.said if at[0] == names[0]]:
                del self.said[at]

    def see(self, sender: str, peer: str, kind: str, raw: bytes) -> None:
        held, manifest = self.said.setdefault((sender, peer, kind), {}), paper(raw)
        at, name = (manifest.epoch, manifest.k), digest(raw)
        if held.setdefault(at, name) != name:
            self.broken(sender, f"a second {kind} to {peer} for epoch {at[0]}, k {at[1]}")


class NoWayBack(Checker):
    name = "high-water"
    law = "Epoch, k done and k used of a link never go back, nor does the local round, also not over a crash."
    heeds: ClassVar = {"fed": ("Started",)}

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        for peer, old in before.items():
            new = life.links.get(peer)
            if new is None:
                continue
            if new.epoch < old.epoch:
                self.broken(life.name, f"link with {peer} goes from epoch {old.epoch} to {new.epoch}")
            elif new.epoch == old.epoch and (new.done < old.done or new.high < old.high):
                self.broken(life.name, f"link with {peer}: done {old.done} to {new.done}, used {old.high} to {new.high}")
            if new.high < new.done or (new.pending and new.pending.k > new.high):
                self.broken(life.name, f"link with {peer}: k in use is above the highest that is written down, {new.high}")
        course = life.course
        if course is not None:
            last = self.rounds.get(life.name, 0)
            if course.local_round < last:
                self.broken(life.name, f"local round {last} goes back to {course.local_round}")
            self.rounds[life.name] = course.local_round

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.rounds: dict[str, int] = {}

    def struck(self, kind: str, names: Sequence[str], detail: str) -> None:
        if kind == "state-lost":
            self.rounds.pop(names[0], None)

    def crashed(self, life: Life, before: Any, after: Any) -> None:
        if after.rows.damaged:
            return
        found = after.load()
        if found != life.rows:
            lost = sorted(key for key in life.rows if found.get(key) != life.rows[key])
            self.broken(life.name, f"after a crash the disk no longer holds what was committed: {lost[:3]}")

    def fed(self, life: Life, kind: str, event: Any) -> None:
        if event.rows != life.rows:
            self.broken(life.name, "the node starts on other rows than were committed last")


class DiskFirst(Checker):
    name = "disk-first"
    law = "A proposal, reply, receipt, abort or greeting leaves only after what it says is on disk, and as it is there."

    def sent(self, life: Life, peer: str, kind: str, message: Any) -> None:
        link = life.link(peer)
        if kind == "Propose":
            doubt = link.pending
            if doubt is None or (doubt.manifest, doubt.signature) != (message.manifest, message.signature):
                self.broken(life.name, f"a proposal to {peer} that is not on disk")
            else:
                self.holds(life, doubt.root, doubt.size, f"the payload offered to {peer}")
        elif kind == "Reply":
            said = link.answered
            ours = None if said is None else (said.manifest, said.signature, said.receipt, said.receipt_signature)
            if ours != (message.manifest, message.signature, message.receipt, message.receipt_signature):
                self.broken(life.name, f"a reply to {peer} that is not on disk")
            elif said is not None:
                self.holds(life, said.root, said.size, f"the reply's payload for {peer}")
        elif kind == "Done":
            receipt = slip(message.receipt)
            if (link.epoch, link.done) != (receipt.epoch, receipt.k):
                self.broken(life.name, f"a receipt for k {receipt.k} to {peer}; on disk is {link.done}")
        elif kind == "Abort":
            if link.pending is None or link.pending.abort != message.note:
                self.broken(life.name, f"an abort to {peer} that is not on disk")
        elif kind == "Aborted":
            if link.epoch <= message.epoch:
                self.broken(life.name, f"says to {peer} that epoch {message.epoch} is over; on disk it is not")
        elif kind == "Hello":
            view = message.link
            said_now = (view.epoch, view.done, view.pending, view.doubt, view.last)
            if said_now != link.view():
                self.broken(life.name, f"greets {peer} with {said_now[:3]}; on disk is {link.view()[:3]}")

    def holds(self, life: Life, name: bytes, size: int, what: str) -> None:
        if name in life.rotten:  # what rots after it was read is found by who receives it, or at the next start
            return
        files = life.node.store.files
        if not files.is_durable(name):
            self.broken(life.name, f"{what} is not on disk")
        elif len(content := files.read(name)) != size or root(content) != name:
            self.broken(life.name, f"{what} is not what the manifest says")


class OnlyFromMembers(Checker):
    name = "acceptance"
    law = "What is applied came from a neighbour, was signed by it for this node, fits the study, and is finite."

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.cards: dict[bytes, Any] = {}
        self.draws = random.Random("acceptance")

    def opened(self, life: Life, peer: str, event: Any) -> None:
        encoded = event.certificate.encoded
        name = digest(encoded)
        if name not in self.cards:
            self.cards[name] = card(encoded)
        held = self.cards[name]
        fellow = self.truth.fellows.get(peer)
        if held is None or fellow is None or (held.member, held.identity) != (peer, fellow.identity):
            self.broken(life.name, f"a session with {peer}, which no member's certificate proves")

    def booted(self, life: Life) -> None:
        encoded = life.node.spec.certificate.encoded
        self.cards.setdefault(digest(encoded), card(encoded))

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        for peer, old in before.items():
            new = life.link(peer)
            if new.epoch != old.epoch or new.done == old.done:
                continue
            said = new.answered
            if said is not None and said.k == new.done:
                heard = life.proposals.get(new.last)
                if heard is None or digest(heard[0]) != said.proposal:
                    self.broken(life.name, f"applied a proposal of {peer} that never came")
                else:
                    self.judge(life, peer, old, heard[0], heard[1], "propose")
            elif old.pending is not None:
                reply = life.replies.get(digest(old.pending.manifest))
                if reply is None:
                    self.broken(life.name, f"applied a reply of {peer} that never came")
                else:
                    self.judge(life, peer, old, reply.manifest, reply.signature, "reply")
            else:
                self.broken(life.name, f"k {new.done} with {peer} is done, and nobody had begun it")
            if life.course is not None and life.is_readable(life.course.model):
                model = np.frombuffer(life.read(life.course.model), self.truth.dtype)
                if not np.isfinite(model).all():
                    self.broken(life.name, f"the model is not finite after an exchange with {peer}")

    def judge(self, life: Life, peer: str, old: LinkRow, raw: bytes, signature: bytes, role: str) -> None:
        truth, came = self.truth, paper(raw)
        if peer not in truth.fellows[life.name].neighbours:
            self.broken(life.name, f"an exchange with {peer}, which is no neighbour")
        if (came.federation, came.sender, came.recipient) != (truth.federation, peer, life.name):
            self.broken(life.name, f"applied what {came.sender} says to {came.recipient}, from {peer}")
        if (came.role, came.epoch, came.prev) != (role, old.epoch, old.done) or came.k <= old.done:
            self.broken(life.name, f"applied a {came.role} of epoch {came.epoch}, k {came.k} after {came.prev} from {peer}")
        if (came.mass, came.gamma, came.size) != (truth.mass(peer, came.space), truth.rate(came.space), truth.sizes[came.space]):
            self.broken(life.name, f"applied mass {came.mass}, gamma {came.gamma}, {came.size} bytes from {peer}")
        held = self.cards.get(came.certificate)
        if held is None or held.member != peer:
            self.broken(life.name, f"applied what was signed under a certificate that {peer} never had")
        elif (self.lies(peer) or self.draws.random() < 0.125) and not is_signed("manifest", raw, signature, held.signing):
            self.broken(life.name, f"applied a manifest that {peer} has not signed")
        agreed = old.replicas(came.space)[1]
        if agreed and came.reference != agreed:
            self.broken(life.name, f"applied a delta of {peer} against a reference that was not agreed")


class AlwaysOpens(Checker):
    name = "disk-opens"
    law = "Whatever of the unsynced writes survives, every name in the rows is on disk and sound."

    IMAGES = 3
    SHARE = 0.04
    """Of the commits, and of the processes that ended in order, after which a loss of power is imagined."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.draws = random.Random("images")

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        if self.draws.random() < self.SHARE:
            self.look(life, life.node.store.files.disk)

    def crashed(self, life: Life, before: Any, after: Any) -> None:
        if after.rows.damaged:  # which rows there were nobody can read, and so not which files they name
            return
        in_order = after.files.disk is before.files.disk
        if not in_order or self.draws.random() < self.SHARE:
            self.look(life, before.files.disk)
        self.sound(life, after.files.disk, "the disk that was found")

    def look(self, life: Life, disk: Any) -> None:
        """At the worst image, the one where all was written, and one between; every one where they are few."""
        for survival in (0.0, 1.0, self.draws.random())[: self.IMAGES]:
            self.sound(life, disk.crash(self.draws, survival), f"the disk of which {survival:.0%} survives")

    def sound(self, life: Life, image: Any, which: str) -> None:
        needed = {name for link in life.links.values() for name in link.needs()}
        if life.course:
            needed |= {life.course.model, life.course.statistics}
        there = {file.partition("-")[0]: file for file in image.list()}
        for name in sorted(one.hex() for one in needed - life.rotten):
            if name not in there:
                self.broken(life.name, f"{which} lacks {name[:12]}, which a row names")
            elif not is_whole(there[name], image.read(there[name])):
                self.broken(life.name, f"{which} has other bytes under {name[:12]}")


class WithinBounds(Checker):
    name = "bounds"
    law = "Records, sessions, transfers, queues, certificates, tensors, facts, alarms, waits: within their bounds."
    heeds: ClassVar = {
        "commanded": ("ReceiveBulk", "Wake", "Note"), "fed": ("Trained", "Encoded", "Estimated", "DialFailed"),
    }  # fmt: skip

    RECORD = 65_535
    INCOMING = 16
    BURST = 30
    NOTES_A_MINUTE = 10
    CERTIFICATES = 4
    ALARMS_A_SECOND = 500
    WAIT_S = 60.0
    """Until a neighbour that could not be reached is tried again, at most."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.begun: dict[tuple[str, str], deque[float]] = {}
        self.turns: dict[str, deque[float]] = {}
        self.noted: dict[tuple[str, str], deque[float]] = {}
        self.alarms: dict[str, deque[float]] = {}
        self.count = 0

    def wire(self, sender: str, receiver: str, size: int) -> None:
        if size > self.RECORD:
            self.broken(sender, f"a record of {size} bytes")

    def booted(self, life: Life) -> None:
        for at in [at for at in (*self.begun, *self.noted) if at[0] == life.name]:
            self.begun.pop(at, None)
            self.noted.pop(at, None)
        self.turns[life.name] = deque()

    def commanded(self, life: Life, kind: str, command: Any) -> None:
        if kind == "ReceiveBulk":
            peer = life.conns.get(command.conn)
            if peer is not None and command.size > max(self.truth.sizes.values()):
                self.broken(life.name, f"asks {peer} for {command.size} bytes")
        elif kind == "Wake":
            self.woken(life.name)
        elif kind == "Note" and command.kind == "refusal":
            recent = self.noted.setdefault((life.name, command.fields["peer"]), deque())
            recent.append(self.now_s)
            while recent[0] < self.now_s - 60:
                recent.popleft()
            if len(recent) > 2 * self.NOTES_A_MINUTE + 1:
                self.broken(life.name, f"notes {len(recent)} refusals of {command.fields['peer']} within a minute")

    def woken(self, name: str) -> None:
        """A core that is woken for nothing is woken again at once, and no time passes any more."""
        recent = self.alarms.setdefault(name, deque())
        recent.append(self.now_s)
        while recent[0] < self.now_s - 1:
            recent.popleft()
        if len(recent) > self.ALARMS_A_SECOND:
            self.broken(name, f"sets its alarm {len(recent)} times within a second")

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        neighbours = len(self.truth.fellows[life.name].neighbours)
        if len(command.live) > 40 + 16 * neighbours:
            self.broken(life.name, f"says that it needs {len(command.live)} tensors, with {neighbours} neighbours")
        self.allowed(life, before)
        self.count += 1
        if self.count % 32 == 0:
            self.look(life, neighbours)

    def allowed(self, life: Life, before: dict[str, LinkRow]) -> None:
        """Exchanges that a neighbour began, against its minutes, its savings, and the own turns."""
        for peer, old in before.items():
            new = life.link(peer)
            if new.done == old.done or new.epoch != old.epoch or new.exchanges == old.exchanges:
                continue
            if new.answered is not None and new.answered.k == new.done:
                recent = self.begun.setdefault((life.name, peer), deque())
                recent.append(self.now_s)
                while recent[0] < self.now_s - 60:
                    recent.popleft()
                most = self.truth.per_minute + self.BURST
                if self.lies(peer) and len(recent) > most + self.own(life.name):
                    self.broken(life.name, f"{peer} began {len(recent)} exchanges within a minute")

    def own(self, name: str) -> int:
        turns = self.turns.setdefault(name, deque())
        while turns and turns[0] < self.now_s - 60:
            turns.popleft()
        return len(turns)

    def fed(self, life: Life, kind: str, event: Any) -> None:
        self.turns.setdefault(life.name, deque()).append(self.now_s)
        self.own(life.name)
        if kind == "DialFailed":
            peer = life.node.peer
            wait = (peer.neighbour(event.peer).retry_ns - peer.now.mono_ns) / 1e9
            if wait > self.WAIT_S:
                self.broken(life.name, f"tries {event.peer} again after {wait:.0f} s, where {self.WAIT_S:.0f} s are the most")

    def look(self, life: Life, neighbours: int) -> None:
        peer, files = life.node.peer, life.node.store.files
        held = len(files.names())
        sizes = {
            "sessions": (len(peer.conns), neighbours),
            "jobs that run": (len(peer.hands.ends), 8 + 3 * neighbours),
            "jobs that wait": (len(peer.hands.queue), 8 + 3 * neighbours),
            "candidates": (len(peer.candidates), 2 + 2 * neighbours),
            "tensors": (held, 60 + 24 * neighbours),
            "files": (len(files.disk.list()), 120 + 48 * neighbours),
        }
        for what, (there, most) in sizes.items():
            if there > most:
                self.broken(life.name, f"{there} {what}, where {most} are the most")
        of = Counter(card(value).member for (kind, _), value in life.rows.items() if kind == "certificate")  # type: ignore[union-attr]
        for member, number in of.items():
            if number > self.CERTIFICATES:
                self.broken(life.name, f"{number} certificates of {member} on disk")


class DialsSeldom(Checker):
    name = "dials"
    law = "Within an hour no node dials a neighbour more than 128 times, and 8 times for each exchange with it."
    heeds: ClassVar = {"commanded": ("Dial",)}

    HOUR_S = 3600.0
    PER_HOUR = 128
    PER_EXCHANGE = 8

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.dialled: dict[tuple[str, str], deque[float]] = {}
        self.exchanged: dict[tuple[str, str], deque[float]] = {}

    def booted(self, life: Life) -> None:
        """A new process has forgotten whom it dialled."""
        for peer in self.truth.fellows[life.name].neighbours:
            self.dialled.pop((life.name, peer), None)

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        for peer, old in before.items():
            if life.link(peer).exchanges > old.exchanges:
                self.exchanged.setdefault((life.name, peer), deque()).append(self.now_s)

    def commanded(self, life: Life, kind: str, command: Any) -> None:
        at = (life.name, command.peer)
        dialled, exchanged = self.dialled.setdefault(at, deque()), self.exchanged.setdefault(at, deque())
        dialled.append(self.now_s)
        for times in (dialled, exchanged):
            while times and times[0] < self.now_s - self.HOUR_S:
                times.popleft()
        if len(dialled) > self.PER_HOUR + self.PER_EXCHANGE * (len(exchanged) + 1):
            self.broken(life.name, f"dials {command.peer} {len(dialled)} times within an hour, with {len(exchanged)} exchanges")


class NeverRaises(Checker):
    name = "never-raises"
    law = "Whatever comes in, a core answers with commands, and a node's hands with an event."

    def struck(self, kind: str, names: Sequence[str], detail: str) -> None:
        if kind == "exception":
            self.broken(", ".join(names), detail)


class HonestAgree(Checker):
    name = "honest-agree"
    law = "Honest nodes never accuse each other, nor begin a link anew, but once for each time that a disk has lost something."

    HARMLESS: Final = frozenset({"paused", "slow", "quota", "disk", "stats", "membership-old"})

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.wounds: set[tuple[str, str]] = set()
        """(node, peer): this node's disk has lost something, and their link has not begun anew for it"""
        self.epochs: dict[tuple[str, str], int] = {}
        """(node, peer): the epoch that the node's disk knows; who is behind its peer only follows"""
        self.bases = {truth.x0.hex()} | {root(bytes(8 * one.statistics.size)).hex() for one in truth.fellows.values()}
        self.baseless: set[str] = set()
        """nodes of which the file that every link begins from has rotted, until the next start writes it anew"""

    def booted(self, life: Life) -> None:
        self.baseless.discard(life.name)

    def struck(self, kind: str, names: Sequence[str], detail: str) -> None:
        if kind == "bit-rot" and detail.partition("-")[0] in self.bases:
            self.baseless.add(names[0])
        if kind in ("bit-rot", "state-lost"):
            for peer in self.truth.fellows[names[0]].neighbours:
                self.wounds.add((names[0], peer))
                if kind == "state-lost":
                    self.epochs.pop((names[0], peer), None)

    def excused(self, name: str, peer: str) -> bool:
        wounded = (name, peer) in self.wounds or (peer, name) in self.wounds
        return self.lies(name, peer) or wounded or not self.baseless.isdisjoint((name, peer))

    def sent(self, life: Life, peer: str, kind: str, message: Any) -> None:
        if kind != "Refusal" or message.reason in self.HARMLESS or self.excused(life.name, peer):
            return
        self.broken(life.name, f"refuses {peer}: {message.reason}: {message.detail}")

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        for peer in before:
            new = life.links.get(peer)
            if new is None:
                continue
            known = max(self.epochs.get((life.name, peer), 0), self.epochs.get((peer, life.name), 0))
            self.epochs[life.name, peer] = new.epoch
            if new.epoch > known:
                if not self.excused(life.name, peer):
                    self.broken(life.name, f"the link with {peer} goes to epoch {new.epoch}")
                self.wounds.discard((life.name, peer) if (life.name, peer) in self.wounds else (peer, life.name))


NODE_LAWS: Final = (
    CountedOnce, NoWayBack, DiskFirst, OnlyFromMembers, AlwaysOpens, WithinBounds, DialsSeldom, NeverRaises, HonestAgree,
)  # fmt: skip
