"""Sums of vectors: does a file hold what was written, did two computations give the same bits? Not names, not secrets.

A sum notices accidents: a flipped bit, a torn write, another CPU's rounding. It does not hold against somebody who chooses
the bytes; what such a one could gain from is named and proven by gossipfl.digest. At that price it costs a quarter of a
hash, over a piece of a vector that is in cache; a tenth where `numba`, of the extra `fast`, compiles the same formula (ADR 37).
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl import loops
from gossipfl.digest import CHUNK, chunk_count

WORDS: Final = loops.WORDS
"""64-bit words in a chunk."""

WORD: Final = np.dtype("<u8")

Words = NDArray[np.uint64]


@cache
def weights() -> Words:
    """One odd number a word of a chunk: SHA-256 of 0, 1, 2, .. (8 bytes, little endian), read as words, lowest bit set.

    Odd, so that no change of a single word goes unnoticed; without pattern, so that changes of several do not cancel."""
    text = b"".join(hashlib.sha256(number.to_bytes(8, "little")).digest() for number in range(WORDS // 4))
    return np.frombuffer(text, "<u8") | np.uint64(1)


class Sums:
    """The sums of a blob's chunks, taken piece by piece in any order, also in several threads.

        sum of a chunk = sum_i weight_i (word_i ^ word_i >> 29) mod 2^64      words little endian, the last filled with zeros
        digest = SHA-256(size | sum of chunk 0 | sum of chunk 1 | ..)      each 8 bytes, little endian

    Without the fold a word's highest bits would meet only the lowest of its weight: two signs that flip would cancel. By 29,
    so that no two places that mean the same in two floats of a word fall together.
    """

    __slots__ = ("_loops", "size", "sums")

    def __init__(self, size: int) -> None:
        self.size = size
        self.sums = np.zeros(chunk_count(size), WORD)
        self._loops = loops.compiled() if size >= loops.LARGE else None

    def take(self, at: int, piece: NDArray[Any]) -> None:
        """`piece` stands `at` so many bytes from the blob's beginning, which is where a chunk begins."""
        first, (whole, rest) = at // CHUNK, divmod(piece.nbytes, CHUNK)
        if whole:
            words, found = piece.view(np.uint8)[: whole * CHUNK].view(WORD), self.sums[first : first + whole]
            if self._loops is not None and words.flags.aligned:
                self._loops.sum_chunks(words, weights(), found)
            else:
                np.einsum("ij,j->i", _folded(words.reshape(whole, WORDS)), weights(), out=found)
        if rest:
            self.sums[first + whole] = _sum(piece.view(np.uint8)[whole * CHUNK :] if whole else piece)

    def of_chunks(self, at: int, size: int) -> Words:
        """Where the sums of the chunks of so many bytes stand: for who takes them himself."""
        return self.sums[at // CHUNK : at // CHUNK + chunk_count(size)]

    @property
    def digest(self) -> bytes:
        return _digest(self.size, self.sums.tobytes())


def _digest(size: int, sums: bytes) -> bytes:
    return hashlib.sha256(size.to_bytes(8, "little") + sums).digest()


def _sum(chunk: NDArray[Any]) -> int:
    """The sum of one chunk, or of the beginning of one."""
    if chunk.nbytes % 8:
        words = np.zeros(-(-chunk.nbytes // 8), WORD)
        words.view(np.uint8)[: chunk.nbytes] = chunk.view(np.uint8)
    else:
        words = chunk.view(WORD)
    return int(_folded(words).dot(weights()[: words.size]))


def _folded(words: Words) -> Words:
    high = np.right_shift(words, loops.FOLD)
    return np.bitwise_xor(words, high, out=high)


def sum_of(blob: memoryview | bytes | NDArray[Any]) -> bytes:
    """The digest of a whole blob's sums."""
    raw = np.frombuffer(blob, np.uint8)
    if 0 < raw.size <= CHUNK:
        return _digest(raw.size, _sum(raw).to_bytes(8, "little"))
    sums = Sums(raw.size)
    for start in range(0, raw.size, 4 * CHUNK):
        sums.take(start, raw[start : start + 4 * CHUNK])
    return sums.digest


def agreement(y_lo: bytes, y_hi: bytes, q: bytes) -> bytes:
    """One digest of what both ends of an exchange must have computed alike, of the sums of both replicas and of the flow."""
    return hashlib.sha256(y_lo + y_hi + q).digest()
