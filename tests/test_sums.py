"""Laws of sums: any accident that a disk or another CPU may have shows, and how a vector was walked does not."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest

from gossipfl import loops
from gossipfl.digest import CHUNK, Origin, replica_name
from gossipfl.sums import WORDS, Sums, agreement, sum_of, weights

SIZES = [0, 1, 7, 8, 40_000, CHUNK - 1, CHUNK, CHUNK + 1, 4 * CHUNK, 9 * CHUNK + 12]


def by_the_book(blob: bytes) -> bytes:
    """The formula of docs/protocol.md, section 1, in Python's own numbers."""
    text = b"".join(hashlib.sha256(n.to_bytes(8, "little")).digest() for n in range(WORDS // 4))
    book = [int.from_bytes(text[at : at + 8], "little") | 1 for at in range(0, len(text), 8)]
    found = [len(blob)]
    for start in range(0, len(blob), CHUNK):
        chunk = blob[start : min(start + CHUNK, len(blob))]
        words = [int.from_bytes(chunk[at : at + 8], "little") for at in range(0, len(chunk), 8)]
        found.append(sum(w * (word ^ word >> 29) for w, word in zip(book, words, strict=False)) % 2**64)
    return hashlib.sha256(b"".join(one.to_bytes(8, "little") for one in found)).digest()


@pytest.mark.parametrize("size", SIZES)
def test_a_sum_is_what_the_protocol_document_says(size: int) -> None:
    blob = random.Random(size).randbytes(size)
    assert sum_of(blob) == by_the_book(blob)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("chunks", [1, 2, 4])
def test_pieces_in_any_order_give_the_sum_of_the_whole(dtype: str, chunks: int) -> None:
    vector = np.random.default_rng(1).standard_normal(50_000).astype(dtype)
    step = chunks * CHUNK // vector.itemsize
    sums = Sums(vector.nbytes)
    for start in sorted(range(0, vector.size, step), reverse=True):
        sums.take(start * vector.itemsize, vector[start : start + step])
    assert sums.digest == sum_of(vector) == sum_of(vector.tobytes())


def test_a_large_blob_has_the_same_sum_whether_a_compiler_is_here_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba", reason="numba is not installed; it comes with gossipfl[fast]")
    blob = np.random.default_rng(7).integers(0, 256, loops.LARGE + 5 * CHUNK + 13, np.uint8)
    odd = np.empty(blob.size + 3, np.uint8)[3:]  # no word of it begins where a word may
    odd[:] = blob
    blob.flags.writeable = False
    assert loops.compiled() is not None
    found = sum_of(blob), sum_of(odd), sum_of(blob.tobytes())
    monkeypatch.setattr(loops, "compiled", lambda: None)
    assert set(found) == {sum_of(blob)}


def test_every_flipped_bit_and_every_two_of_them_show() -> None:
    blob = random.Random(2).randbytes(20)
    number, bits = int.from_bytes(blob), range(8 * len(blob))
    changed = {number ^ (1 << one | 1 << two) for one in bits for two in bits}
    assert len({sum_of(one.to_bytes(len(blob))) for one in {number} | changed}) == 1 + len(changed)
    assert (weights() % np.uint64(2) == 1).all(), "so that no change of one word vanishes"
    assert len(set(weights().tolist())) == WORDS


def test_changes_that_cancel_in_a_plain_sum_show() -> None:
    """Another rounding moves elements up and down by one last place; pages and sectors get swapped, or lost."""
    vector = np.random.default_rng(3).standard_normal(40_000).astype(np.float32)
    bits, rng = vector.view(np.uint32), np.random.default_rng(4)
    seen = {sum_of(vector)}
    for _ in range(200):
        other = bits.copy()
        up, down = rng.choice(bits.size, (2, 50), replace=False)
        other[up] += 1
        other[down] -= 1
        seen.add(sum_of(other))
    for place in range(32):  # the same bit of many floats: signs of zeros, the last place of all
        for which in (slice(None), slice(0, 2), slice(0, 4), slice(0, None, 2), slice(1, None, 2), slice(5, 20_000)):
            other = bits.copy()
            other[which] ^= np.uint32(1 << place)
            seen.add(sum_of(other))
    for size in (512, 4096, CHUNK):
        raw = bits.view(np.uint8)
        swapped, lost = raw.copy(), raw.copy()
        swapped[:size], swapped[size : 2 * size] = raw[size : 2 * size], raw[:size]
        lost[:size] = 0
        seen |= {sum_of(swapped), sum_of(lost)}
    assert len(seen) == 1 + 200 + 32 * 6 + 6


def test_a_length_shows_where_the_content_is_zeros() -> None:
    assert len({sum_of(bytes(size)) for size in range(20)}) == 20


def test_the_digest_of_an_exchange_depends_on_each_of_the_three_in_its_place() -> None:
    lo, hi, q = (sum_of(bytes([one])) for one in (1, 2, 3))
    assert len({agreement(*three) for three in ((lo, hi, q), (hi, lo, q), (lo, q, hi), (lo, hi, hi))}) == 4


def test_a_replicas_name_tells_all_that_it_is_made_of() -> None:
    one, two = bytes(32), bytes([1]) * 32
    made = {
        replica_name(reference, root, space, codec)
        for reference, root in ((one, two), (two, one), (one, one))
        for space in ("model", "statistics")
        for codec in ("f32", "bf16")
    }
    assert len(made) == 12
    assert Origin("x").name("") not in made
    assert Origin("x").name("") != Origin("y").name("")
