"""What checkers see of a world, decoded anew from its bytes: rows, manifests, names, signatures. No law is stated here.

Nothing of the code that is checked is imported: the form of every document is written a second time, from docs/protocol.md,
and events and commands are known by the names of their types. Two readings of one page must err alike to miss a fault.
"""

from __future__ import annotations

import functools
import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import nacl.bindings
import nacl.exceptions
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

Vector = NDArray[Any]

PIECE: Final = 61_440
"""Bytes under one leaf of a name."""

SECOND: Final = 10**9


class Positional(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One value a place, none more."""


class Doubt(Positional, frozen=True):
    """A node's own proposal that it has not heard the end of."""

    k: int
    prev: int
    space: str
    manifest: bytes
    signature: bytes
    root: bytes
    size: int
    mass_peer: float
    abort: bytes
    abort_signature: bytes


class Said(Positional, frozen=True):
    """A node's last answer on a link."""

    k: int
    space: str
    proposal: bytes
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
    open: bool


class LinkRow(Positional, frozen=True):
    """Section 9 of docs/protocol.md, in its order; then what only the operator reads."""

    peer: str
    epoch: int
    done: int
    high: int
    last: bytes
    model: tuple[bytes, bytes]
    """(own, theirs)"""
    statistics: tuple[bytes, bytes]
    flow: bytes
    pending: Doubt | None
    answered: Said | None
    resets: tuple[int, ...]
    exchanges: int
    sent: int
    received: int
    given: bytes
    owed: tuple[bytes, ...]

    def replicas(self, space: str) -> tuple[bytes, bytes]:
        return self.model if space == "model" else self.statistics

    def view(self) -> tuple[int, int, int, bytes, bytes]:
        """What a greeting says of it."""
        doubt = self.pending
        return self.epoch, self.done, doubt.k if doubt else 0, digest(doubt.manifest) if doubt else b"", self.last

    def needs(self) -> set[bytes]:
        """Names without which it cannot go on."""
        found = {*self.model, *self.statistics, self.flow, self.given, *self.owed}
        found |= {half.root for half in (self.pending, self.answered) if half}
        return found - {b""}


class CourseRow(Positional, frozen=True):
    model: bytes
    statistics: bytes
    stage: str
    local_round: int
    released: int
    gradient: float
    normalisation: bytes
    certificate: bytes
    signature: bytes
    steps: int
    leaving: bool


class Paper(Positional, frozen=True):
    """A manifest: section 7."""

    federation: bytes
    membership: int
    certificate: bytes
    sender: str
    recipient: str
    epoch: int
    k: int
    prev: int
    role: str
    space: str
    stage: str
    codec: str
    reference: bytes
    size: int
    root: bytes
    statistics: bytes
    mass: float
    gamma: float
    kappa: float
    tau: float
    gradient: float
    answers: bytes
    clip: float
    leak: float
    cap: float
    q: bytes


class Slip(Positional, frozen=True):
    """A receipt."""

    federation: bytes
    signer: str
    sender: str
    epoch: int
    k: int
    of: bytes
    root: bytes


_link = msgspec.msgpack.Decoder(LinkRow)
_course = msgspec.msgpack.Decoder(CourseRow)
_paper = msgspec.msgpack.Decoder(Paper)
_slip = msgspec.msgpack.Decoder(Slip)


def digest(document: bytes) -> bytes:
    return hashlib.sha256(document).digest()


def paper(raw: bytes) -> Paper:
    return _paper.decode(raw)


def slip(raw: bytes) -> Slip:
    return _slip.decode(raw)


def root(content: Any) -> bytes:
    """The name of a content: section 1."""
    view = memoryview(content).cast("B") if len(content) else memoryview(b"")
    level = [blake3(view[at : at + PIECE]).digest() for at in range(0, len(view), PIECE)]
    while len(level) > 1:
        pairs = [hashlib.sha256(b"\1" + left + right).digest() for left, right in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(level) - len(level) % 2 :]
    return level[0] if level else digest(b"")


def replica(reference: bytes, payload: bytes, space: str, codec: str) -> bytes:
    """The name of what comes of a reference and a payload: section 1."""
    return digest(b"\2" + reference + payload + f"{space}/{codec}".encode())


def expected(own: bytes, other: bytes, gamma: float, mass: float, mass_other: float) -> bytes:
    """The name of what a sparse payload is against: section 1."""
    return digest(b"\4" + own + other + struct.pack("<3d", gamma, mass, mass_other))


@functools.cache
def weights() -> list[int]:
    words = b"".join(digest(number.to_bytes(8, "little")) for number in range(PIECE // 32))
    return [int.from_bytes(words[at : at + 8], "little") | 1 for at in range(0, len(words), 8)]


def summed(content: Any) -> bytes:
    """The sum of a blob, one word at a time: section 1."""
    return _summed(bytes(content))


@functools.lru_cache(maxsize=4096)  # both ends of an exchange come to the same
def _summed(raw: bytes) -> bytes:
    parts = [len(raw).to_bytes(8, "little")]
    for at in range(0, len(raw), PIECE):
        piece, total = raw[at : at + PIECE], 0
        for place, weight in zip(range(0, len(piece), 8), weights(), strict=False):
            word = int.from_bytes(piece[place : place + 8], "little")
            total += weight * (word ^ word >> 29)
        parts.append((total % 2**64).to_bytes(8, "little"))
    return digest(b"".join(parts))


def is_whole(file: str, content: Any) -> bool:
    """Does a file hold what its own name says, by hash or by sum?"""
    return _is_whole(file, bytes(content))


@functools.lru_cache(maxsize=4096)  # every image of a disk holds the same few blobs
def _is_whole(file: str, raw: bytes) -> bool:
    name, dash, of = file.partition("-")
    return summed(raw).hex().startswith(of) if dash else root(raw).hex() == name


def is_signed(kind: str, document: bytes, signature: bytes, key: bytes) -> bool:
    """Section 3."""
    whole = b"gossipfl/" + kind.encode() + b"/v1\0" + len(document).to_bytes(8, "big") + document
    try:
        return nacl.bindings.crypto_sign_open(signature + whole, key) == whole
    except (nacl.exceptions.BadSignatureError, ValueError, TypeError):
        return False


@dataclass(frozen=True)
class Fellow:
    """One member, as the federation file has it."""

    mass: float
    identity: bytes
    neighbours: tuple[str, ...]
    begin: Vector
    """its first model"""
    statistics: Vector
    """its own statistics vector"""


@dataclass(frozen=True)
class Truth:
    """What all honest members agree on before the first byte."""

    federation: bytes
    x0: bytes
    """name of the first reference of the model space"""
    codec: str
    fellows: Mapping[str, Fellow]
    gamma: float
    leak: float
    dtype: str
    sizes: Mapping[str, int]
    """payload bytes of each space"""
    per_minute: float
    """exchanges that one link may begin"""
    caught: set[str] = field(default_factory=set)
    """members that lie; grows when they begin"""

    def mass(self, name: str, space: str) -> float:
        return self.fellows[name].mass if space == "model" else 1.0

    def rate(self, space: str) -> float:
        return self.gamma if space == "model" else 1.0

    def codec_of(self, space: str) -> str:
        return self.codec if space == "model" else "f64"

    def kind(self, space: str) -> Any:
        return np.dtype(self.dtype if space == "model" else "float64")


@dataclass(frozen=True)
class Card:
    """A certificate that was presented."""

    member: str
    identity: bytes
    signing: bytes
    counter: int


@functools.lru_cache(maxsize=1024)
def card(encoded: bytes) -> Card | None:
    """What a certificate says, if its identity key signed it; None otherwise."""
    body, signature = encoded[:-64], encoded[-64:]
    member, identity, signing, _, _, counter, _, _ = msgspec.msgpack.decode(body)
    return Card(member, identity, signing, counter) if is_signed("certificate", body, signature, identity) else None


@dataclass
class Life:
    """What is known of one node: what stands on its disk, and what it has been told since it was started."""

    name: str
    node: Any
    rows: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """durable: as the last commits left them"""
    links: dict[str, LinkRow] = field(default_factory=dict)
    course: CourseRow | None = None
    conns: dict[int, str] = field(default_factory=dict)
    proposals: dict[bytes, tuple[bytes, bytes]] = field(default_factory=dict)
    """heard: digest -> (manifest, signature)"""
    replies: dict[bytes, Any] = field(default_factory=dict)
    """heard: digest of what is answered -> message"""
    jobs: dict[int, Any] = field(default_factory=dict)
    asked: list[Any] = field(default_factory=list)
    """commits that were commanded and are not known to be done"""
    rotten: set[bytes] = field(default_factory=set)
    """names of files in which a bit has flipped"""

    @property
    def has_left(self) -> bool:
        """Its operator has ordered it to leave."""
        return bool(self.node.peer.leaving or getattr(self.node, "gone", False))

    def link(self, peer: str) -> LinkRow:
        return self.links.get(peer) or LinkRow(peer, 0, 0, 0, b"", (b"", b""), (b"", b""), b"", None, None, (), 0, 0, 0, b"", ())

    def read(self, name: bytes) -> bytes:
        """A tensor's bytes."""
        return bytes(self.node.store.files.read(name))

    def model(self, dtype: str) -> Vector | None:
        """The model of now; of a node that is down, the one on its disk; None where there is none."""
        node = self.node
        name = node.peer.current["model"] if node.alive else self.course.model if self.course else b""
        return np.frombuffer(self.read(name), dtype) if name and self.is_readable(name) else None

    def is_readable(self, *names: bytes) -> bool:
        """Are all these here and sound? They are, but for files in which a bit has flipped."""
        hurt = self.rotten.intersection(names)
        if not hurt:
            return True
        files = self.node.store.files
        if files.missing(hurt):
            return False
        there = {file.partition("-")[0]: file for file in files.disk.list()}
        return all(is_whole(there.get(name.hex(), ""), files.read(name)) for name in hurt)

    def flipped(self, file: str) -> None:
        """A bit has flipped in this file."""
        if not file.endswith(".tmp"):
            self.rotten.add(bytes.fromhex(file.partition("-")[0]))

    def reopened(self) -> None:
        """What was made anew since is sound."""
        if self.rotten:
            disk = self.node.store.files.disk
            there = {file.partition("-")[0]: file for file in disk.list()}
            files = {name: there.get(name.hex()) for name in self.rotten}
            self.rotten = {name for name, file in files.items() if file is None or not is_whole(file, disk.read(file))}

    def take(self, rows: Any) -> tuple[dict[str, LinkRow], CourseRow | None]:
        """Enter a transaction; what stood there before: links that it changes, and the course if it does."""
        links: dict[str, LinkRow] = {}
        course = None
        for kind, key, value in rows:
            if value is None:
                self.rows.pop((kind, key), None)
            else:
                self.rows[kind, key] = value
            if kind == "link":
                links[key] = self.link(key)
                if value is None:
                    self.links.pop(key, None)
                else:
                    self.links[key] = _link.decode(value)
            elif kind == "course" and value is not None:
                course, self.course = self.course, _course.decode(value)
        return links, course

    def reread(self, rows: Mapping[tuple[str, str], bytes]) -> None:
        """The disk was found like this."""
        self.rows = dict(rows)
        self.links = {key: _link.decode(value) for (kind, key), value in rows.items() if kind == "link"}
        courses = [value for (kind, _), value in rows.items() if kind == "course"]
        self.course = _course.decode(courses[0]) if courses else None

    def forget(self) -> None:
        """A new life on the same disk."""
        self.conns, self.proposals, self.replies, self.jobs, self.asked = {}, {}, {}, {}, []

    def after(self, commit: Any) -> dict[tuple[str, str], bytes]:
        """The rows as they would stand after one more transaction."""
        changes = {(kind, key): value for kind, key, value in commit.rows}
        return {at: value for at, value in (self.rows | changes).items() if value is not None}


def is_near(a: Vector, b: Vector, scale: float | Vector) -> bool:
    """But for the rounding of a few operations at this scale, that of all coordinates or of each."""
    slack = (1e-9 if a.dtype.itemsize == 8 else 1e-4) * (1 + scale)
    return bool((np.abs(a - b) <= slack).all())


def length(vector: Vector) -> float:
    wide = vector.astype("float64", copy=False)
    return math.sqrt(float(np.dot(wide, wide)))
