"""The exactly-once state of one pair: what two peers durably remember of each other, and how two memories are settled.

Pure values and pure functions. Not here: messages on their way (peer.py), tensors (the workbench), disk (the store). A link
is named by the two member ids, never by keys. It has an epoch and one counter k that both sides use; an exchange that was
begun is either done on both sides or, after an abort or a loss, on neither, in a new epoch.
"""

from __future__ import annotations

import hashlib
from typing import Final, Literal

import msgspec

from gossipfl.errors import Refused
from gossipfl.protocol.messages import LinkView

DAY_S: Final = 86_400

FARTHEST: Final = 10_000
"""A counter or an epoch may run ahead of ours by this much: years of refused proposals or lost folders, and never so far
that the next one could not be written."""


class Row(msgspec.Struct, array_like=True, frozen=True):
    """A durable value: immutable, positional."""


class Pending(Row, frozen=True):
    """My own proposal, signed and on disk, in doubt until the reply is applied or refused."""

    k: int
    prev: int
    space: str
    manifest: bytes
    signature: bytes
    root: bytes
    size: int
    mass_peer: float = 1.0
    """the recipient's, by the membership of then: a later one may say otherwise"""
    abort: bytes = b""
    """the signed abort note, once I refuse the reply"""
    abort_signature: bytes = b""

    @property
    def digest(self) -> bytes:
        return digest(self.manifest)


class Answered(Row, frozen=True):
    """The peer's last proposal that I have applied, and the reply that every retry gets again."""

    k: int
    space: str
    proposal: bytes
    """digest of its manifest"""
    manifest: bytes
    signature: bytes
    receipt: bytes
    receipt_signature: bytes
    root: bytes
    size: int
    clip: float
    gamma: float
    mass: float
    mass_peer: float
    q: bytes
    open: bool = True
    """has the peer not yet said that it applied the reply?"""


class References(Row, frozen=True):
    """The two agreed replicas of one space, by name; empty: the space's base."""

    own: bytes = b""
    theirs: bytes = b""


class Link(Row, frozen=True):
    """One side's durable state. Every change is a new value and one row."""

    peer: str
    epoch: int = 0
    done: int = 0
    high: int = 0
    """the highest k that I have ever used or seen in this epoch: never used twice"""
    last: bytes = b""
    """digest of the proposal manifest of the last exchange done"""
    model: References = References()
    statistics: References = References()
    flow: bytes = b""
    """name of Phi; empty for zeros"""
    pending: Pending | None = None
    answered: Answered | None = None
    resets: tuple[int, ...] = ()
    """wall seconds of the resets of the last day"""
    exchanges: int = 0
    sent: int = 0
    """payload bytes"""
    received: int = 0
    given: bytes = b""
    """name of what the exchanges of this epoch have brought to the own statistics; empty for nothing"""
    owed: tuple[bytes, ...] = ()
    """the same of epochs that are over: to be given back"""

    @property
    def in_doubt(self) -> bool:
        """Does an exchange wait for the peer: my proposal, or my reply that it has not yet confirmed?"""
        return self.pending is not None or (self.answered is not None and self.answered.open)

    def references(self, space: str) -> References:
        return self.model if space == "model" else self.statistics

    def view(self) -> LinkView:
        pending = self.pending
        return LinkView(
            self.epoch, self.done, pending.k if pending else 0, pending.digest if pending else b"", self.last
        )

    def names(self) -> set[bytes]:
        """Every name that this link still needs on disk."""
        model, statistics = self.model, self.statistics
        found = {model.own, model.theirs, statistics.own, statistics.theirs, self.flow, self.given, *self.owed}
        if self.pending:
            found.add(self.pending.root)
        if self.answered:  # confirmed or not: a peer whose folder is an older copy asks for the same reply again
            found.add(self.answered.root)
        found.discard(b"")
        return found


def digest(manifest: bytes) -> bytes:
    """The name by which a manifest is answered: SHA-256 of its exact bytes."""
    return hashlib.sha256(manifest).digest()


def settle(a: LinkView, b: LinkView) -> int | None:
    """The epoch in which both sides begin anew, or None where their memories fit together.

    Both sides compute this from the same two views, so it is symmetric: settle(a, b) == settle(b, a). Memories fit when
    both did the same last exchange, or when exactly one has done the proposal that the other holds in doubt. A side in a
    higher epoch that has done nothing in it yet has already begun anew: the other follows. All else, such as a state folder
    restored from an older copy, is a loss: one epoch above both.
    """
    if a.epoch == b.epoch:
        if a.done == b.done and a.last == b.last:
            return None
        if _answered(a, b) or _answered(b, a):
            return None
        return a.epoch + 1
    newer = max(a, b, key=lambda view: view.epoch)
    return newer.epoch if newer.done == 0 else newer.epoch + 1


def _answered(doubtful: LinkView, other: LinkView) -> bool:
    return doubtful.pending > 0 and other.done == doubtful.pending and other.last == doubtful.doubt


def begin_anew(link: Link, epoch: int, wall_s: int, limit: int | None) -> Link:
    """The link in a fresh epoch: no flow, base references, nothing in doubt; what came over it into the statistics is owed.

    Raises Refused("quota") when the link was begun anew `limit` times within a day: each costs a full model. None: no
    limit, where this node has no choice (its own file is gone, or its half is taken back already).
    """
    recent = tuple(at for at in link.resets if wall_s - at < DAY_S)
    if limit is not None and len(recent) >= limit:
        raise Refused(
            "quota",
            f"link with {link.peer} was begun anew {len(recent)} times within a day, {limit} are allowed; a state folder is "
            f"being restored from copies or lost: find out why at that site, the link resumes within a day",
        )
    return Link(
        peer=link.peer,
        epoch=epoch,
        resets=(*recent, wall_s),
        exchanges=link.exchanges,
        sent=link.sent,
        received=link.received,
        owed=(*link.owed, link.given) if link.given else link.owed,
    )


def stands(me: str, peer: str) -> bool:
    """When both have proposed at once: is it mine that stands? The lower member id's does."""
    return me < peer


Verdict = Literal["next", "again"]


def judge(link: Link, epoch: int, k: int, prev: int, proposal: bytes) -> Verdict:
    """What a proposal is to this link: the next exchange, or the one last answered. Raises Refused for all else."""
    if epoch != link.epoch:
        raise Refused("gap", f"proposal in epoch {epoch}, this link is in {link.epoch}; reconnect to settle")
    answered = link.answered
    if answered is not None and k == answered.k == link.done and proposal == answered.proposal:
        return "again"
    if k <= link.done:
        raise Refused("replay", f"proposal {k} is not after {link.done}, the last one done; reconnect to settle")
    if k > link.done + FARTHEST:
        raise Refused("gap", f"proposal {k} is absurdly far after {link.done}; the peer is faulty")
    if prev != link.done:
        raise Refused("gap", f"proposal follows {prev}, this link has done {link.done}; reconnect to settle")
    return "next"


def closed(answered: Answered) -> Answered:
    """The peer has said that it applied the reply, and either side may begin the next exchange."""
    return msgspec.structs.replace(answered, open=False)


encode_row: Final = msgspec.msgpack.Encoder().encode
decode_link: Final = msgspec.msgpack.Decoder(Link).decode
