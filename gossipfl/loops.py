"""The walks of an exchange over long float32 vectors, as loops for a compiler: `numba`, where it is installed (extra `fast`).

The same bits as numpy's, one operation at a time, which tests/test_loops.py holds them to; what they mean is said where numpy
does them: gossipfl.sums, learning.compression, learning.mixing. Numpy makes a pass over a piece for each operation and then asks
for the interpreter's lock; a loop here deals with a chunk while it is in the fastest caches, and asks once a piece (ADR 37).
Nothing that was compiled is kept on the disk.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossipfl.digest import CHUNK

LARGE: Final = 16 << 20
"""Bytes of a vector for which it is worth to load a compiler: a second or two and 70 MB, once a process."""

ELEMENTS: Final = CHUNK // 4
WORDS: Final = CHUNK // 8
"""Of a chunk."""

FOLD: Final = np.uint64(29)
_NOTHING: Final = np.uint64(0)
_MOST: Final = np.finfo(np.float32).max

Words = NDArray[np.uint64]
Floats = NDArray[np.float32]


class Loops(NamedTuple):
    """Arrays are contiguous, aligned, and of whole chunks; `book` are the weights of sums, `found..` the sums of their chunks."""

    sum_chunks: Callable[[Words, Words, Words], None]
    """(words, book, found)"""
    differ: Callable[[Floats, Floats, Floats], int]
    """out = y - reference; how many elements are not finite. (y, reference, out)"""
    meet: Callable[..., None]
    """own = out + sent, theirs = into + came, apart = theirs - own. (out, sent, into, came, own, theirs, apart, book, found_own,
    found_theirs)"""
    move: Callable[..., int]
    """q = share (hi - lo), moved = model + q / divisor; how many elements of `moved` are not finite. (lo, hi, model, share,
    divisor, q, moved, book, found_q, found_moved)"""


def compile_loops(inner: Callable[..., Any], outer: Callable[..., Callable[..., Any]]) -> Loops:
    """The loops, each small, so that it becomes vector instructions; `inner` and `outer` make of a function what is called."""

    @inner
    def total(words: Words, book: Words) -> Any:
        found = _NOTHING
        for place in range(words.size):
            word = words[place]
            found += (word ^ word >> FOLD) * book[place]
        return found

    @inner
    def add(one: Floats, other: Floats, out: Floats) -> None:
        for place in range(out.size):
            out[place] = one[place] + other[place]

    @inner
    def subtract(one: Floats, other: Floats, out: Floats) -> Any:
        wild = 0
        for place in range(out.size):
            found = one[place] - other[place]
            out[place] = found
            wild += not abs(found) <= _MOST
        return wild

    @inner
    def carry(lo: Floats, hi: Floats, share: Any, q: Floats) -> None:
        for place in range(q.size):
            q[place] = (hi[place] - lo[place]) * share

    @inner
    def apply(model: Floats, q: Floats, divisor: Any, moved: Floats) -> Any:
        wild = 0
        for place in range(moved.size):
            found = model[place] + q[place] / divisor
            moved[place] = found
            wild += not abs(found) <= _MOST
        return wild

    @outer("void(words, words, found)")
    def sum_chunks(words: Words, book: Words, found: Words) -> None:
        for chunk in range(found.size):
            found[chunk] = total(words[chunk * WORDS : (chunk + 1) * WORDS], book)

    @outer("int64(floats, floats, out)")
    def differ(y: Floats, reference: Floats, out: Floats) -> Any:
        return subtract(y, reference, out)

    @outer("void(floats, floats, floats, floats, out, out, out, words, found, found)")
    def meet(
        out: Floats, sent: Floats, into: Floats, came: Floats, own: Floats, theirs: Floats, apart: Floats,
        book: Words, found_own: Words, found_theirs: Words,
    ) -> None:  # fmt: skip
        for chunk in range(found_own.size):
            at = slice(chunk * ELEMENTS, (chunk + 1) * ELEMENTS)
            mine, peers = own[at], theirs[at]
            add(out[at], sent[at], mine)
            found_own[chunk] = total(mine.view(np.uint64), book)
            add(into[at], came[at], peers)
            found_theirs[chunk] = total(peers.view(np.uint64), book)
            subtract(peers, mine, apart[at])

    @outer("int64(floats, floats, floats, float32, float32, out, out, words, found, found)")
    def move(
        lo: Floats, hi: Floats, model: Floats, share: Any, divisor: Any, q: Floats, moved: Floats,
        book: Words, found_q: Words, found_moved: Words,
    ) -> int:  # fmt: skip
        wild = 0
        for chunk in range(found_q.size):
            at = slice(chunk * ELEMENTS, (chunk + 1) * ELEMENTS)
            flow, after = q[at], moved[at]
            carry(lo[at], hi[at], share, flow)
            found_q[chunk] = total(flow.view(np.uint64), book)
            wild += apply(model[at], flow, divisor, after)
            found_moved[chunk] = total(after.view(np.uint64), book)
        return wild

    return Loops(sum_chunks, differ, meet, move)


@cache
def compiled() -> Loops | None:
    """The loops for this CPU; None where numba is not installed, or is not for the numpy that is."""
    try:
        import numba
    except ImportError:
        return None
    if numba.config.DISABLE_JIT:
        return None
    kinds: dict[str, Any] = {
        "words": numba.types.Array(numba.uint64, 1, "C", readonly=True), "found": numba.uint64[::1],
        "floats": numba.types.Array(numba.float32, 1, "C", readonly=True), "out": numba.float32[::1],
    }  # fmt: skip

    def outer(signature: str) -> Callable[..., Any]:
        made, _, took = signature.removesuffix(")").partition("(")
        types = [kinds.get(name) or getattr(numba, name) for name in took.split(", ")]
        compile_: Callable[..., Any] = numba.njit([getattr(numba, made)(*types)], nogil=True, error_model="numpy")
        return compile_

    return compile_loops(numba.njit(error_model="numpy"), outer)
