"""Names of blobs: the root of a hash tree over 60 KiB chunks, or the hash of what made them.

What comes from outside, or from where nobody can repeat it, is named by its content: payloads, x^0, local training. A tree
because a chunk must be checkable on arrival, before the rest has come: RFC 6962's, but for its leaves, the only ones that
hash much, which are BLAKE3's (ADR 20). What follows from named things by exact arithmetic is named by them, without another
look at its bytes (ADR 16).
No I/O, no state.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Final

from blake3 import blake3

CHUNK: Final = 60 * 1024
"""Bytes in every chunk but the last: with path and framing it still fits one Noise record."""

EMPTY: Final = hashlib.sha256(b"").digest()

Buffer = bytes | bytearray | memoryview


def leaf(chunk: Buffer) -> bytes:
    """BLAKE3(chunk). No leaf is ever a node, which another function makes."""
    return blake3(chunk).digest()


def node(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


def chunk_count(size: int) -> int:
    """How many chunks `size` bytes have; none for an empty blob."""
    return -(-size // CHUNK)


class Tree:
    """The hash tree of one blob: `root`, and a `path` for each chunk.

    Levels are kept bottom up; an odd last node moves up unchanged, which is RFC 6962's tree for any number of leaves.

    Source: Laurie, Langley, Kasper, "Certificate Transparency", RFC 6962 (2013), section 2.1.
    """

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.levels: list[list[bytes]] = [list(leaves)]
        while len(self.levels[-1]) > 1:
            below = self.levels[-1]
            above = [node(below[i], below[i + 1]) for i in range(0, len(below) - 1, 2)]
            if len(below) % 2:
                above.append(below[-1])
            self.levels.append(above)

    @classmethod
    def of(cls, blob: Buffer) -> Tree:
        view = memoryview(blob).cast("B") if len(blob) else memoryview(b"")
        return cls([leaf(view[start : start + CHUNK]) for start in range(0, len(view), CHUNK)])

    @property
    def root(self) -> bytes:
        return self.levels[-1][0] if self.levels[-1] else EMPTY

    def holds(self, index: int, chunk: Buffer) -> bool:
        """Is this still chunk `index`?"""
        return self.levels[0][index] == leaf(chunk)

    def path(self, index: int) -> list[bytes]:
        """The siblings from leaf `index` up to the root."""
        siblings = []
        for level in self.levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                siblings.append(level[sibling])
            index //= 2
        return siblings


def name_of(blob: Buffer) -> bytes:
    """The name of a blob: the 32-byte root of its tree."""
    return Tree.of(blob).root


def replica_name(reference: bytes, root: bytes, space: str, codec: str) -> bytes:
    """The name of a replica: what payload `root`, decoded with `codec`, makes of the replica `reference`."""
    return hashlib.sha256(b"\2" + reference + root + f"{space}/{codec}".encode()).digest()


def expected_name(own: bytes, other: bytes, gamma: float, mass: float, mass_other: float) -> bytes:
    """The name of a sparse codec's reference: the replica `own`, moved as an exchange with the replica `other` moves it."""
    return hashlib.sha256(b"\4" + own + other + struct.pack("<3d", gamma, mass, mass_other)).digest()


class Origin:
    """Names vectors that one node has computed by the exact text of what they were computed from; never on the wire. What several
    have in common, the text's beginning, is hashed once."""

    __slots__ = ("_begun",)

    def __init__(self, made_by: str) -> None:
        self._begun = hashlib.sha256(b"\3" + made_by.encode())

    def name(self, rest: str) -> bytes:
        whole = self._begun.copy()
        whole.update(rest.encode())
        return whole.digest()


Memo = dict[int, tuple[int, bytes, bytes]]
"""level -> (place, its node, the path from there on) of the last proof: neighbouring chunks share all but a few of theirs"""


def proves(root: bytes, count: int, index: int, leaf_hash: bytes, path: bytes, memo: Memo | None = None) -> bool:
    """Does `path` show that `leaf_hash` is leaf `index` of the tree of `count` leaves under `root`?

    `path` is that of `Tree.path`, joined. False for an index out of range, for names of another length than 32 bytes, and for a
    path that is too short or too long: exactly one path is accepted. `memo`, one a payload, saves the hashing of what the last
    proof has shown, too; it changes no answer.
    """
    memo = {} if memo is None else memo
    if not 0 <= index < count or len(root) != 32 or len(leaf_hash) != 32:
        return False
    value, last, level = leaf_hash, count - 1, 0
    climbed: Memo = {}
    while last:
        if index % 2 or index < last:
            step = index, value, path
            if memo.get(level) == step:
                break
            climbed[level] = step
            sibling, path = path[:32], path[32:]
            if len(sibling) < 32:
                return False
            value = node(sibling, value) if index % 2 else node(value, sibling)
        index //= 2
        last //= 2
        level += 1
    else:
        if path or value != root:
            return False
    memo.update(climbed)
    return True
