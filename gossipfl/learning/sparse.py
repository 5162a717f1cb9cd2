"""The k largest of a span of numbers, and where they stand, as few bytes of a fixed length. Not payloads (compression).

Places are written as Elias-Fano codes. Of k rising places below n, each has low = floor(log2(n / k)) lower bits, written as they
are, and an upper part, written in unary: bit (upper of i) + i is set for the i-th. That is low + 2 bits a place at most, a
little above the entropy, and the length depends on n and k alone: a size can be checked before a byte is read.

**Source**: Fano, "On the number of bits required to implement an associative memory", 1971; Elias, "Efficient storage and
retrieval by content and address of static files", 1974.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse, Refused

Bytes = NDArray[np.uint8]
Places = NDArray[np.int64]

SPAN: Final = 120 * 1024
"""Numbers among which the largest are chosen: a divisor of the pieces that the workbench walks, of float64 and float32, and of
few enough bytes to stay in cache."""

SAMPLE: Final = 4096
"""Numbers from which a span's threshold is guessed."""

INFINITE: Final = np.uint32(0x7F80_0000)
"""The bits of an infinite float32 without its sign; above it is no number."""


def kept(n: int, millionths: int) -> int:
    """How many of n numbers are sent: so many in a million, rounded up."""
    return -(-n * millionths // 1_000_000)


def low_bits(n: int, k: int) -> int:
    return (n // k).bit_length() - 1


def places_size(n: int, k: int) -> int:
    """Bytes of k places below n.

    >>> places_size(100, 10), places_size(122_880, 12_288), places_size(122_880, 1_229)
    (7, 8064, 1315)
    """
    whole, rest = divmod(low_bits(n, k), 8)
    return whole * k + -(-k * rest // 8) + -(-_upper_bits(n, k) // 8)


def _upper_bits(n: int, k: int) -> int:
    return k + ((n - 1) >> low_bits(n, k))


def largest(numbers: NDArray[np.float32], k: int) -> Places:
    """The places of the k largest magnitudes, rising; of equal ones, the first.

    A threshold from every so-manieth number leaves a few more than k, and only these are looked at closely: the result does
    not depend on the sample. **Raises**: Misuse where a number is not finite.
    """
    sizes = np.bitwise_and(numbers.view(np.uint32), np.uint32(0x7FFF_FFFF))  # their order is that of the magnitudes
    if sizes.max(initial=0) >= INFINITE:
        raise Misuse("a distance to the reference is not finite; check a trained model before encoding")
    n = sizes.size
    some = sizes[:: -(-n // SAMPLE)]
    wanted = min(some.size, int(some.size * k / n * 1.1 + 4 * (some.size * k / n) ** 0.5) + 1)
    found = np.flatnonzero(sizes >= np.partition(some, some.size - wanted)[some.size - wanted])
    if found.size < k:
        found = np.arange(n)
    near = sizes[found]
    bar = np.partition(near, near.size - k)[near.size - k]
    chosen = near > bar
    ties = np.flatnonzero(near == bar)
    chosen[ties[: k - int(np.count_nonzero(chosen))]] = True
    return np.asarray(found[chosen])


def write_places(places: Places, n: int, out: Bytes) -> None:
    """Fill `out`, of `places_size` bytes."""
    k = places.size
    low = low_bits(n, k)
    at = 0
    for shift in range(0, low - 7, 8):
        out[at : at + k] = np.right_shift(places, shift).astype(np.uint8)
        at += k
    rest = low % 8
    if rest:
        part = np.bitwise_and(np.right_shift(places, low - rest), (1 << rest) - 1)
        size = -(-k * rest // 8)
        out[at : at + size] = _packed(part, rest)[:size]
        at += size
    marks = np.zeros(_upper_bits(n, k), np.uint8)
    marks[np.right_shift(places, low) + np.arange(k)] = 1
    out[at:] = np.packbits(marks, bitorder="little")


def read_places(coded: Bytes, n: int, k: int) -> Places:
    """The places, rising. **Raises**: Refused("malformed") unless `coded` is what `write_places` makes of some k places."""
    low = low_bits(n, k)
    at, places = 0, np.zeros(k, np.int64)
    for shift in range(0, low - 7, 8):
        np.bitwise_or(places, np.left_shift(coded[at : at + k].astype(np.int64), shift), out=places)
        at += k
    rest = low % 8
    if rest:
        size = -(-k * rest // 8)
        part = _unpacked(coded[at : at + size], k, rest)
        np.bitwise_or(places, np.left_shift(part, low - rest), out=places)
        at += size
    bits = np.unpackbits(coded[at:], bitorder="little")
    upper = np.flatnonzero(bits.view(np.bool_))
    if upper.size != k or upper[-1] >= _upper_bits(n, k):
        raise Refused("malformed", "the places of a sparse payload are not as many as the layout implies; the peer is faulty")
    np.bitwise_or(places, np.left_shift(upper - np.arange(k), low), out=places)
    if places[-1] >= n or not (places[1:] > places[:-1]).all():
        raise Refused("malformed", "the places of a sparse payload do not rise, or lie outside; the peer is faulty")
    return places


def _packed(values: Places, width: int) -> Bytes:
    """`width` bits each, 1 to 7, the least significant first: eight values are `width` whole bytes."""
    eights = np.zeros((-(-values.size // 8), 8), np.uint64)
    eights.reshape(-1)[: values.size] = values
    words = eights[:, 0].copy()
    for at in range(1, 8):
        np.bitwise_or(words, np.left_shift(eights[:, at], np.uint64(at * width)), out=words)
    return np.ascontiguousarray(words.astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width]).reshape(-1)


def _unpacked(coded: Bytes, count: int, width: int) -> Places:
    """The values of `_packed`. **Raises**: Refused("malformed") for bits behind the last."""
    groups = -(-count // 8)
    room = np.zeros(groups * width, np.uint8)
    room[: coded.size] = coded
    eights = np.zeros((groups, 8), np.uint8)
    eights[:, :width] = room.reshape(groups, width)
    words = eights.reshape(-1).view("<u8")
    values = np.empty((groups, 8), np.int64)
    for at in range(8):
        values[:, at] = np.bitwise_and(np.right_shift(words, np.uint64(at * width)), np.uint64((1 << width) - 1))
    flat = values.reshape(-1)
    if flat[count:].any():
        raise Refused("malformed", "a sparse payload has bits where none belong; the peer is faulty")
    return flat[:count]


def largest_rows(rows: NDArray[Any], k: int) -> NDArray[np.bool_]:
    """`largest` of every row, as a mask: for simulators that send many small models at once. **Shapes**: (E, n) -> (E, n)."""
    sizes = np.abs(rows.astype(np.float32))
    np.fmin(sizes, np.float32(np.inf), out=sizes)  # NaN is the largest, so that a row that has diverged has k as well
    n = rows.shape[1]
    bar = np.partition(sizes, n - k, axis=1)[:, n - k, None]
    mask = sizes > bar
    ties = sizes == bar
    short = k - mask.sum(axis=1, keepdims=True)
    mask |= ties & (np.cumsum(ties, axis=1) <= short)
    return np.asarray(mask)
