"""Laws of what moves: each half of an exchange exactly once, sums that only training changes, flows that are opposite.

Every committed model is explained by the one before, the local updates and the halves of exchanges since, each computed
here again from the two replicas. Not here: laws of single nodes (invariants.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from gossipfl.simulator.invariants import Checker
from gossipfl.simulator.recovery import is_barred
from gossipfl.simulator.witness import (
    Life,
    LinkRow,
    Paper,
    Truth,
    Vector,
    digest,
    expected,
    is_near,
    length,
    paper,
    replica,
    root,
    summed,
)

Key = tuple[str, str, int, int, bytes]
"""(lower, higher, epoch, k, digest of the proposal)"""


@dataclass
class Half:
    """One side of an exchange, applied."""

    side: str
    q: Vector
    space: str

    def signed(self, key: Key) -> Vector:
        """What it moved at its side, times the mass there."""
        return self.q if self.side == key[0] else -self.q


@dataclass
class Account:
    """One node's model and statistics as its disk had them last, and what has been added since."""

    names: dict[str, bytes]
    stood: dict[str, Vector]
    moved: dict[str, Vector]
    """local updates since"""
    mixed: dict[str, Vector]
    """halves of exchanges since: on disk, but with a model that cannot be read"""
    learned: dict[str, Vector]
    """local updates that are on disk, since the beginning"""
    peak: dict[str, Vector] = field(default_factory=dict)
    """the largest that each coordinate ever was: what it has rounded is there until statistics are made again"""
    stirred: set[str] = field(default_factory=lambda: {"model", "statistics"})
    """spaces of which something was added since the disk was looked at"""
    trained: Counter[bytes] = field(default_factory=Counter)
    """updates that the hands made and the core has not yet taken"""
    absorbing: dict[int, tuple[bytes, Vector]] = field(default_factory=dict)
    mixing: dict[int, tuple[Vector | None, Vector | None]] = field(default_factory=dict)
    """of exchanges under way: the reference of what is sent; and what the payload that came will make of its own"""
    unread: dict[bytes, Vector] = field(default_factory=dict)
    """replicas that the last exchange made under names whose files had rotted: those of a link that was sent the same before"""


class ExactlyOnce(Checker):
    name = "exactly-once"
    law = "Each half of an exchange enters its model once; the mass-weighted sum moves only through local updates."

    heeds: ClassVar = {"commanded": ("Absorb", "Mix"), "fed": ("Trained", "Mixed", "Absorbed")}

    LOOK = 64
    """Commits between two looks at the whole sum."""

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.accounts: dict[str, Account] = {}
        self.halves: dict[Key, Half] = {}
        """of exchanges that one side has applied"""
        self.orphans: dict[Key, Half] = {}
        """of those that the other side can no longer know of: it has lost its disk, or the link's file on it"""
        self.lost: set[Key] = set()
        """of the orphans, those whose half went with the disk of who had applied it: it may apply it again, which now is once"""
        self.outside: dict[str, Vector] = {}
        """sum of what came from members that lie, and of what a broken disk lost or changed, by space"""
        self.replicas: dict[tuple[str, str], tuple[Vector, Vector]] = {}
        """of the last exchange of each end"""
        self.begun: dict[tuple[str, str], bytes] = {}
        """digest of the proposal that a node has in doubt with a peer"""
        self.forgotten: set[bytes] = set()
        """those of proposals whose signer can no longer know of them; a peer may still have to read one"""
        self.lent: dict[tuple[str, str], Vector] = {}
        """what the exchanges of this epoch have brought to a node's statistics from a peer"""
        self.owed: dict[tuple[str, str], dict[bytes, Vector]] = {}
        """the same of epochs that are over, by the name of what is booked"""
        self.starting: set[str] = set()
        """nodes that have not committed since they were started: such a one may have lost its model, and go on from a replica"""
        self.reach: dict[str, Vector] = {}
        """the largest amount that ever came from outside, of each coordinate: what it has rounded stays when it has gone again"""
        self.count = 0

    def account(self, life: Life) -> Account:
        if life.name not in self.accounts:
            fellow = self.truth.fellows[life.name]
            first = {"model": fellow.begin.astype(self.truth.dtype), "statistics": fellow.statistics.astype("float64")}
            self.accounts[life.name] = Account(dict.fromkeys(first, b""), first, zeros(first), zeros(first), zeros(first))
        return self.accounts[life.name]

    def booted(self, life: Life) -> None:
        self.starting.add(life.name)
        account = self.account(life)
        account.moved = zeros(account.stood)
        account.stirred.update(account.stood)
        account.trained.clear()
        account.absorbing.clear()
        account.mixing.clear()
        account.unread.clear()

    def struck(self, kind: str, names: Sequence[str], detail: str) -> None:
        """Who has lost its disk begins again: what it held for others is gone, and so is what it had begun with them."""
        if kind != "state-lost" or self.lies(names[0]):
            return
        if account := self.accounts.pop(names[0], None):
            fellow = self.truth.fellows[names[0]]
            self.lent = {at: amount for at, amount in self.lent.items() if at[0] != names[0]}
            self.owed = {at: amounts for at, amounts in self.owed.items() if at[0] != names[0]}
            for space, first in (("model", fellow.begin), ("statistics", fellow.statistics)):
                given = account.stood[space] + account.mixed[space] - first - account.learned[space]
                self.adrift(space, -given * self.truth.mass(names[0], space))
        for key in [key for key in self.halves if names[0] in key[:2]]:
            self.orphans[key] = self.halves.pop(key)
        self.lost |= {key for key, half in self.orphans.items() if half.side == names[0]}
        for at in [at for at in self.begun if at[0] == names[0]]:
            self.forgotten.add(self.begun.pop(at))

    def commanded(self, life: Life, kind: str, command: Any) -> None:
        if kind == "Absorb":
            update = np.frombuffer(life.read(command.displacement), self.truth.dtype)
            self.account(life).absorbing[command.job] = (command.displacement, update)
        elif kind == "Mix" and self.truth.codec_of(command.space) == "f64":
            out, into = (
                np.frombuffer(life.read(name)) if life.is_readable(name) else None
                for name in (command.reference_out, command.reference_in)
            )
            deltas = np.frombuffer(life.read(command.incoming))
            due = into + deltas if into is not None and into.size == deltas.size else None
            self.account(life).mixing[command.job] = out, due

    def fed(self, life: Life, kind: str, event: Any) -> None:
        if kind == "Trained":
            self.account(life).trained[event.displacement] += 1
        elif kind == "Mixed":
            account, sent = self.account(life), event.payload or life.jobs[event.job].payload
            out, due = account.mixing.pop(event.job, (None, None))
            own = out + np.frombuffer(life.read(sent)) if out is not None and life.is_readable(sent) else None
            made = {name: one for name, one in ((event.own, own), (event.theirs, due)) if one is not None}
            account.unread = {name: one for name, one in made.items() if not life.is_readable(name)}
            for name in made.keys() - account.unread.keys():
                if not np.array_equal(made[name], np.frombuffer(life.read(name))):
                    self.broken(life.name, "a replica is not its reference and what came, or went")
        elif kind == "Absorbed":
            account = self.account(life)
            name, update = account.absorbing.pop(event.job)
            if account.trained[name] < 1:
                self.broken(life.name, "an update is absorbed that was not trained, or a second time")
            account.trained[name] -= 1
            account.moved["model"] = account.moved["model"] + update
            account.stirred.add("model")

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        if life.course is None or self.lies(life.name):
            return
        account = self.account(life)
        undoable: list[tuple[Key, Half, Vector]] = []
        for peer, old in before.items():
            new = life.links.get(peer)
            self.pay(life, peer, old, new, account)
            if new is None:
                continue
            if new.pending is not None and new.pending != old.pending:
                self.begun[life.name, peer] = digest(new.pending.manifest)
            elif new.pending is None:
                self.begun.pop((life.name, peer), None)
            if new.epoch == old.epoch and new.done > old.done:
                space = self.space(life, new)
                if all(name in account.unread or life.is_readable(name) for name in new.replicas(space)):
                    key, half, moved = self.half(life, peer, old, new)
                    account.mixed[half.space] = account.mixed[half.space] + moved
                    account.stirred.add(half.space)
                    if half.space == "statistics":
                        self.lent[life.name, peer] = self.lent.get((life.name, peer), 0.0) + moved
                    self.enter(life.name, peer, key, half, moved)
            elif new.epoch > old.epoch:
                said = old.answered
                if said is not None and said.open and said.space == "model" and (life.name, peer) in self.replicas:
                    undoable.append(self.again(life, peer, old))
                    account.stirred.add("model")
                for key in [key for key, half in self.halves.items() if half.space == "statistics" and half.side == life.name]:
                    if peer in key[:2] and key[2] == old.epoch:  # given back, with all that the link has brought
                        self.orphans[key] = self.halves.pop(key)
                if not life.rotten.isdisjoint(old.needs()):
                    self.orphan(life.name, peer, old.epoch)
                    if old.pending is not None:
                        self.forgotten.add(digest(old.pending.manifest))
        for space, name in (("model", life.course.model), ("statistics", life.course.statistics)):
            before_name, account.names[space] = account.names[space], name
            if name != before_name:
                account.stirred.add(space)
            if space not in account.stirred or not life.is_readable(name):
                continue
            found = np.frombuffer(life.read(name), self.truth.kind(space))
            expected = self.stands(life.name, account, space)
            for key, half, moved in undoable:
                if half.space == space and self.is_undone(key, moved, found, expected):
                    expected = expected - moved
                    self.take_back(life.name, key, moved, space)
            account.peak[space] = np.maximum(account.peak.get(space, 0.0), np.abs(found))
            if not self.is_explained(account, space, found, expected):
                off = found - expected
                if space == "model" and before_name in life.rotten and life.name in self.starting:
                    self.adrift(space, off * self.truth.mass(life.name, space))
                else:
                    self.broken(life.name, f"the {space} on disk is {length(off):.3g} off what updates and exchanges explain")
            account.learned[space] = account.learned[space] + account.moved[space]
            account.stood[space], account.moved[space], account.mixed[space] = found, np.zeros_like(found), np.zeros_like(found)
            account.stirred.discard(space)
        self.starting.discard(life.name)
        self.count += 1
        if self.count % self.LOOK == 0:
            self.weigh()

    def stands(self, name: str, account: Account, space: str) -> Vector:
        """What its disk must hold now: what it held, moved by updates and exchanges; of statistics the own rows' and what links
        have brought, whatever stood there before."""
        if space == "model":
            return account.stood[space] + account.moved[space] + account.mixed[space]
        brought = [amount for at, amount in self.lent.items() if at[0] == name]
        brought += [amount for at, amounts in self.owed.items() if at[0] == name for amount in amounts.values()]
        return np.asarray(sum(brought, self.truth.fellows[name].statistics))

    def is_explained(self, account: Account, space: str, found: Vector, expected: Vector) -> bool:
        """But for rounding: of what is added now, and of the large amounts of a liar that were once there."""
        size = length(expected) + length(account.stood[space])
        return is_near(found, expected, size + (1e-6 * account.peak[space] if self.truth.caught else 0.0))

    def is_undone(self, key: Key, moved: Vector, found: Vector, expected: Vector) -> bool:
        """Has this node taken its half back? Where it had moved less than a model is judged by, what is nearer says it."""
        nearer = length(found - (expected - moved)) <= length(found - expected)
        return (key in self.halves and nearer) or not is_near(found, expected, length(found))

    def pay(self, life: Life, peer: str, old: LinkRow, new: LinkRow | None, account: Account) -> None:
        """Statistics that came over a link that is over are owed, or, where their booking was lost, out of the vector at once;
        what is no longer owed was given back."""
        at, kept = (life.name, peer), new.owed if new is not None else ()
        owed = self.owed.setdefault(at, {})
        if owed or at in self.lent:
            account.stirred.add("statistics")
        if new is not None and new.epoch > old.epoch and at in self.lent:
            owed[old.given] = self.lent.pop(at)
            if old.given not in kept and old.given not in life.rotten:
                self.broken(life.name, f"forgets what {peer} has brought to its statistics")
        for name in [name for name in owed if name not in kept]:
            back = owed.pop(name)
            account.mixed["statistics"] = account.mixed["statistics"] - back
            self.adrift("statistics", -back)

    def space(self, life: Life, new: LinkRow) -> str:
        """Of the exchange that a link has done last."""
        said = new.answered
        return said.space if said is not None and said.k == new.done else paper(life.replies[new.last].manifest).space

    def half(self, life: Life, peer: str, old: LinkRow, new: LinkRow) -> tuple[Key, Half, Vector]:
        """What exchange `new.done` moves at this node, from the two replicas and the reply that is signed."""
        said = new.answered
        raw = said.manifest if said is not None and said.k == new.done else life.replies[new.last].manifest
        reply = paper(raw)
        made, kind = self.account(life).unread, self.truth.kind(reply.space)
        own, theirs = (made[one] if one in made else np.frombuffer(life.read(one), kind) for one in new.replicas(reply.space))
        self.named(life, peer, old, new, reply)
        return self.reckon(life.name, peer, reply.space, own, theirs, reply.clip, reply.q, (new.epoch, new.done, new.last))

    def named(self, life: Life, peer: str, old: LinkRow, new: LinkRow, reply: Paper) -> None:
        """The replicas stand under the names of what they were made of."""
        me, space, codec = life.name, reply.space, self.truth.codec_of(reply.space)
        before = [name or self.base(space) for name in old.replicas(space)]
        if reply.sender == me:
            mine, theirs = reply.root, paper(life.proposals[new.last][0]).root
        else:
            assert old.pending is not None
            mine, theirs = old.pending.root, reply.root
        if codec.startswith(("topk:", "sign:")):
            gamma, m_me, m_peer = self.truth.rate(space), self.truth.mass(me, space), self.truth.mass(peer, space)
            own, other = before
            before = [expected(own, other, gamma, m_me, m_peer), expected(other, own, gamma, m_peer, m_me)]
        due = tuple(replica(one, part, space, codec) for one, part in zip(before, (mine, theirs), strict=True))
        if new.replicas(space) != due:
            self.broken(me, f"a replica of k {new.done} with {peer} is not made of what both had agreed on")

    def base(self, space: str) -> bytes:
        first = next(iter(self.truth.fellows.values())).statistics
        return self.truth.x0 if space == "model" else root(np.zeros_like(first).tobytes())

    def again(self, life: Life, peer: str, old: LinkRow) -> tuple[Key, Half, Vector]:
        """What the exchange answered last had moved; its replicas stand in the files until the link's names are let go."""
        said = old.answered
        assert said is not None
        own, theirs = self.replicas[life.name, peer]
        return self.reckon(life.name, peer, said.space, own, theirs, said.clip, said.q, (old.epoch, said.k, said.proposal))

    def reckon(
        self, me: str, peer: str, space: str, own: Vector, theirs: Vector, clip: float, q: bytes, at: tuple[int, int, bytes]
    ) -> tuple[Key, Half, Vector]:
        """Section 12, again."""
        self.replicas[me, peer] = (own, theirs)
        low, high = min(me, peer), max(me, peer)
        m_lo, m_hi = self.truth.mass(low, space), self.truth.mass(high, space)
        y_lo, y_hi = (own, theirs) if me == low else (theirs, own)
        s = self.truth.rate(space) * (m_lo * m_hi / (m_lo + m_hi)) * clip
        flow = (y_hi - y_lo) * own.dtype.type(s)
        if digest(summed(y_lo.tobytes()) + summed(y_hi.tobytes()) + summed(flow.tobytes())) != q:
            self.broken(me, f"q of k {at[1]} with {peer} is not what the two replicas give")
        part = flow / own.dtype.type(self.truth.mass(me, space))
        return (low, high, *at), Half(me, flow, space), part if me == low else -part

    def enter(self, me: str, peer: str, key: Key, half: Half, moved: Vector) -> None:
        if self.lies(peer):
            self.adrift(half.space, moved * self.truth.mass(me, half.space))
            return
        other = self.halves.get(key) or self.orphans.get(key)
        if other is None:
            (self.orphans if key[4] in self.forgotten else self.halves)[key] = half
        elif other.side == me and key in self.lost:  # the peer has offered again what it still has in doubt
            self.lost.discard(key)
            self.adrift(other.space, other.signed(key))
            self.close(key)
            self.halves[key] = half
        elif other.side == me:
            self.broken(me, f"k {key[3]} with {peer} is applied twice")
        else:
            if not np.array_equal(other.q, half.q):
                self.broken(me, f"the two sides of k {key[3]} with {peer} have moved different amounts")
            self.close(key)

    def close(self, key: Key) -> Half | None:
        """Nothing of this exchange is open any more; the half that was."""
        return self.halves.pop(key, None) or self.orphans.pop(key, None)

    def orphan(self, me: str, peer: str, epoch: int) -> None:
        """This node's disk has lost a file of the link, and it begins anew: what one side had applied stays alone."""
        for key in [key for key in self.halves if set(key[:2]) == {me, peer} and key[2] == epoch]:
            self.orphans[key] = self.halves.pop(key)

    def take_back(self, me: str, key: Key, moved: Vector, space: str) -> None:
        """The peer has aborted: it has not applied its half."""
        if self.lies(*key[:2]):
            self.adrift(space, -moved * self.truth.mass(me, space))
        elif self.close(key) is None:
            self.broken(me, f"takes back k {key[3]} of {key[0]} and {key[1]}, which both have applied")

    def adrift(self, space: str, amount: Vector) -> None:
        self.outside[space] = self.outside.get(space, np.zeros_like(amount)) + amount
        self.reach[space] = np.maximum(self.reach.get(space, 0.0), np.abs(amount))

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        self.weigh()
        for key, half in self.halves.items():
            low, high, epoch, k, proposal = key
            begun = lives[low if half.side == high else high]
            link = begun.link(half.side)
            waits = link.epoch == epoch and link.pending is not None and digest(link.pending.manifest) == proposal
            if not waits:
                self.broken(half.side, f"k {k} with {begun.name} was applied here and never there")
            elif quiet and not (begun.has_left or lives[half.side].has_left or is_barred(begun, lives[half.side])):
                self.broken(begun.name, f"k {k} with {half.side} is still in doubt after all has healed")

        if quiet and not self.truth.caught and not any(self.owed.values()):
            self.whole(lives)

    def whole(self, lives: dict[str, Life]) -> None:
        """Where all are there and every link has settled, statistics are those that the members brought, and no more."""
        fits = all(life.link(peer).epoch == lives[peer].link(name).epoch for name, life in lives.items() for peer in life.links)
        if not fits or any(life.has_left for life in lives.values()):
            return
        brought = np.sum([self.truth.fellows[name].statistics for name in lives], axis=0)
        stood = np.sum([self.accounts[name].stood["statistics"] for name in lives], axis=0)
        if not is_near(stood, brought, 1e3 * (1 + np.abs(brought))):
            self.broken("", f"statistics are {length(stood - brought):.3g} off what all members have brought")

    def weigh(self) -> None:
        """The whole sum, of models and of statistics."""
        for space in ("model", "statistics"):
            self.balance(space)

    def balance(self, space: str) -> None:
        """In one number a coordinate; what one side has applied and the other has not yet is on its way."""
        names = [name for name in self.accounts if not self.lies(name)]
        if not names:
            return
        stood = due = size = np.zeros(0)
        for name in names:
            mass, account, fellow = self.truth.mass(name, space), self.accounts[name], self.truth.fellows[name]
            first = fellow.begin if space == "model" else fellow.statistics
            stands = account.stood[space].astype("float64") + account.mixed[space]
            stood = mass * stands + (stood if stood.size else 0.0)
            due = mass * (first + account.learned[space]) + (due if due.size else 0.0)
            size = mass * (1 + np.abs(first) + length(account.learned[space])) + (size if size.size else 0.0)
        due = due + self.outside.get(space, 0.0)
        for key, half in (*self.halves.items(), *self.orphans.items()):
            if half.space == space:
                due = due + half.signed(key)
        kind = self.truth.kind(space)
        size = size * 100 + 1e-4 * self.reach.get(space, 0.0) if kind.itemsize == 8 else size
        if not is_near(stood.astype(kind), due.astype(kind), size):
            self.broken("", f"the mass-weighted sum of {space} is {length(stood - due):.3g} off its updates")


def zeros(like: dict[str, Vector]) -> dict[str, Vector]:
    return {space: np.zeros_like(one) for space, one in like.items()}


class OppositeFlows(Checker):
    name = "opposite-flows"
    law = "Where both ends of a link have done the same last exchange, replicas are the same and flows are opposite, bit for bit."

    def __init__(self, truth: Truth) -> None:
        super().__init__(truth)
        self.lives: dict[str, Life] = {}

    def booted(self, life: Life) -> None:
        self.lives[life.name] = life

    def committed(self, life: Life, before: dict[str, LinkRow], command: Any) -> None:
        for peer, old in before.items():
            new = life.links.get(peer)
            if new is not None and (new.epoch, new.done, new.flow) != (old.epoch, old.done, old.flow):
                self.compare(life, peer)

    def compare(self, life: Life, peer: str) -> None:
        other = self.lives.get(peer)
        if other is None or self.lies(life.name, peer):
            return
        mine, theirs = life.link(peer), other.link(life.name)
        if (mine.epoch, mine.done, mine.last) != (theirs.epoch, theirs.done, theirs.last):
            return
        for space in ("model", "statistics"):
            if mine.replicas(space) != theirs.replicas(space)[::-1]:
                self.broken(life.name, f"{life.name} and {peer} hold different replicas after k {mine.done}")
        if not mine.flow and not theirs.flow:
            return
        if not mine.flow or not theirs.flow:
            self.broken(life.name, f"only one of {life.name} and {peer} holds a flow after k {mine.done}")
            return
        if mine.flow in life.rotten or theirs.flow in other.rotten:
            return
        flows = [np.frombuffer(one.read(name), self.truth.dtype) for one, name in ((life, mine.flow), (other, theirs.flow))]
        if not np.array_equal(flows[0], -flows[1]):
            self.broken(life.name, f"the flows of {life.name} and {peer} differ by {length(flows[0] + flows[1]):.3g}")

    def over(self, lives: dict[str, Life], quiet: bool) -> None:
        for name, life in lives.items():
            for peer in life.links:
                if name < peer:
                    self.compare(life, peer)


MOVING_LAWS = (ExactlyOnce, OppositeFlows)
