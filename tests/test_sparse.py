"""Sparse payloads: exactly the largest deltas, in a length that the layout implies, and a parser of exactly that language."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gossipfl.errors import Misuse, Refused
from gossipfl.learning import mixing, sparse
from gossipfl.learning.compression import decode, decoded_rows, encode, is_codec, millionths, payload_size

some_places = st.integers(1, 3000).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1, max_size=300))
)
floats = st.floats(-(2.0**100), 2.0**100, width=32)


def changed(codec: str, y: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """The replica; the payload goes through on its way."""
    return decode(codec, encode(codec, y, ref, n_parameters=y.size), ref, n_parameters=y.size)


@settings(max_examples=200, deadline=None)
@given(some_places)
def test_any_places_come_back_from_as_many_bytes_as_was_said(given):
    n, chosen = given
    places = np.array(sorted(chosen))
    coded = np.full(sparse.places_size(n, places.size), 0xAA, np.uint8)
    sparse.write_places(places, n, coded)
    assert (sparse.read_places(coded, n, places.size) == places).all()
    assert coded.size <= 2 + places.size * (2 + sparse.low_bits(n, places.size) + 1 / 8) + n / places.size / 4 + 1


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_T13_every_byte_string_is_one_set_of_places_written_in_its_one_way_or_is_refused(data):
    n = data.draw(st.integers(1, 600))
    k = data.draw(st.integers(1, n))
    coded = np.zeros(sparse.places_size(n, k), np.uint8)
    sparse.write_places(np.array(sorted(data.draw(st.permutations(range(n)))[:k])), n, coded)
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, coded.size - 1), st.integers(0, 255)), max_size=3)):
        coded[at] = value
    try:
        places = sparse.read_places(coded, n, k)
    except Refused as refusal:
        assert refusal.reason == "malformed"
        return
    assert places[0] >= 0 and places[-1] < n and (np.diff(places) > 0).all()
    again = np.empty_like(coded)
    sparse.write_places(places, n, again)
    assert (again == coded).all()


def test_T13_no_set_of_places_has_two_spellings():
    """Of all byte strings exactly n over k are accepted: no set has two codes."""
    for n, k, many in ((5, 3, 10), (7, 3, 35)):
        size = sparse.places_size(n, k)
        assert size <= 2
        accepted = 0
        for number in range(256**size):
            try:
                sparse.read_places(np.frombuffer(number.to_bytes(size, "little"), np.uint8), n, k)
                accepted += 1
            except Refused:
                pass
        assert accepted == many


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, st.integers(1, 300), elements=st.one_of(floats, st.sampled_from([0.0, -0.0, 1.0, -1.0]))), st.data())
def test_the_largest_are_the_largest_and_of_equal_ones_the_first(numbers, data):
    k = data.draw(st.integers(1, numbers.size))
    expected = np.sort(np.lexsort((np.arange(numbers.size), -np.abs(numbers)))[:k])
    assert (sparse.largest(numbers, k) == expected).all()
    assert (np.flatnonzero(sparse.largest_rows(numbers[None], k)[0]) == expected).all()


@pytest.mark.parametrize("period", [1, 29, 30, 31, 64])
def test_the_largest_are_found_also_where_every_sampled_number_misleads(period):
    numbers = np.random.default_rng(0).standard_normal(sparse.SPAN).astype(np.float32) * 1e-3
    numbers[::period] *= 1e3
    for k in (1, 1229, 12_288, 100_000):
        expected = np.sort(np.argsort(-np.abs(numbers), kind="stable")[:k])
        assert (sparse.largest(numbers, k) == expected).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 2, 31, sparse.SPAN, 2 * sparse.SPAN + 1, 5 * sparse.SPAN + 777])
def test_a_replica_has_the_largest_deltas_of_each_span_and_the_reference_elsewhere(dtype, size):
    rng = np.random.default_rng(size)
    ref = rng.standard_normal(size).astype(dtype)
    y = (ref + rng.standard_normal(size) ** 3).astype(dtype)
    replica = changed("topk:0.025", y, ref)
    for start in range(0, size, sparse.SPAN):
        part = slice(start, min(start + sparse.SPAN, size))
        delta = (y - ref)[part].astype(np.float32)
        sent = sparse.largest(delta, sparse.kept(delta.size, 25_000))
        rest = np.ones(delta.size, bool)
        rest[sent] = False
        assert (replica[part][rest] == ref[part][rest]).all()
        off = np.abs(replica[part][sent].astype(np.float64) - y[part][sent])
        assert (off <= 2.0**-8 * np.abs(delta[sent]) + 4 * np.finfo(dtype).eps * np.abs(ref[part][sent]) + 1e-30).all()
        assert np.abs(delta[rest]).max(initial=0) <= np.abs(delta[sent]).min()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 31, sparse.SPAN, sparse.SPAN + 777])
def test_signs_move_the_largest_by_their_mean_and_leave_the_least_that_one_magnitude_can(dtype, size):
    rng = np.random.default_rng(size)
    ref = np.zeros(size, dtype)
    y = (rng.standard_normal(size) ** 3).astype(dtype)
    replica = changed("sign:0.025", y, ref)
    for start in range(0, size, sparse.SPAN):
        part = slice(start, min(start + sparse.SPAN, size))
        delta, moved = y[part].astype(np.float64), replica[part].astype(np.float64)
        sent = sparse.largest(delta.astype(np.float32), sparse.kept(delta.size, 25_000))
        mean = np.abs(delta[sent]).mean()
        np.testing.assert_allclose(moved[sent], np.copysign(mean, delta[sent]), rtol=1e-6)
        assert np.count_nonzero(moved) == sent.size
        left = np.square(delta - moved).sum()
        np.testing.assert_allclose(left, np.square(delta).sum() - sent.size * mean**2, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("at", "value", "reason"), [(3, 0x80, "malformed"), (3, 0x7F, "nonfinite"), (4, 0x80, "malformed"), (4, 0x03, None)]
)
def test_a_magnitude_below_zero_or_infinite_and_a_sign_of_nothing_are_refused(at, value, reason):
    payload = bytearray(encode("sign:0.1", np.ones(50), np.zeros(50), n_parameters=50).tobytes())
    payload[:4] = np.float32(1 if at > 3 else np.inf).tobytes()
    payload[at] = value  # of the magnitude, or of the five signs
    if reason is None:
        assert sorted(decode("sign:0.1", payload, np.zeros(50), n_parameters=50)[:5]) == [-1, -1, 1, 1, 1]
        return
    with pytest.raises(Refused) as refusal:
        decode("sign:0.1", payload, np.zeros(50), n_parameters=50)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(("codec", "exchanges", "apart"), [("topk:0.1", 40, 1e-6), ("sign:0.1", 300, 1e-5)])
def test_a_resting_model_is_reached_once_every_delta_had_its_turn(codec, exchanges, apart):
    rng = np.random.default_rng(1)
    y, ref = rng.standard_normal(1000).astype(np.float32), np.zeros(1000, np.float32)
    for _ in range(exchanges):
        ref = changed(codec, y, ref)
    assert np.abs(ref - y).max() < apart


def test_equal_models_travel_as_no_change_and_moments_as_they_are():
    y = np.random.default_rng(2).standard_normal(900).astype(np.float32)
    assert changed("topk:0.1", y, y).tobytes() == y.tobytes()
    ref = y + 1
    payload = encode("topk:0.1", y, ref, n_parameters=890)
    assert decode("topk:0.1", payload, ref, n_parameters=890)[890:].tobytes() == y[890:].tobytes()
    assert encode("topk:0.1", y, ref, n_parameters=890).tobytes() == payload.tobytes()


@pytest.mark.parametrize("codec", ["topk:0.2", "sign:0.2"])
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_T13_any_sparse_payload_of_the_right_length_is_decoded_or_refused(codec, data):
    ref = np.linspace(-1, 1, 41, dtype=np.float32)
    size = payload_size(codec, 38, 3, 4)
    payload = bytearray(encode(codec, ref[::-1].copy(), ref, n_parameters=38).tobytes())
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), max_size=4)):
        payload[at] = value
    try:
        assert decode(codec, payload, ref, n_parameters=38).shape == ref.shape
    except Refused as refusal:
        assert refusal.reason in ("nonfinite", "malformed")
    for wrong in (bytes(payload[:-1]), bytes(payload) + b"\0"):
        with pytest.raises(Refused, match="layouts differ"):
            decode(codec, wrong, ref, n_parameters=38)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_is_neither_written_nor_read(value):
    y = np.full(20, 1.0)
    y[7] = value
    with pytest.raises(Misuse, match="not finite"):
        encode("topk:0.1", y, np.zeros(20), n_parameters=20)
    payload = encode("topk:0.1", np.ones(20), np.zeros(20), n_parameters=20)
    payload[:2] = np.array([0x7F80], "<u2").view(np.uint8)
    with pytest.raises(Refused, match="infinite"):
        decode("topk:0.1", payload, np.zeros(20), n_parameters=20)


def test_sizes_reach_what_was_promised_and_nothing_of_a_models_size_is_made():
    full = 4 * 25_000_000
    assert payload_size("topk:0.1", 25_000_000, 0, 4) < 0.07 * full
    assert payload_size("topk:0.01", 25_000_000, 0, 4) < 0.01 * full
    assert payload_size("sign:0.1", 25_000_000, 0, 4) < 0.02 * full
    y, ref = np.ones(12 * sparse.SPAN, np.float32), np.zeros(12 * sparse.SPAN, np.float32)
    out, payload = np.empty_like(y), np.empty(payload_size("topk:0.1", y.size, 0, 4), np.uint8)
    tracemalloc.start()
    encode("topk:0.1", y, ref, n_parameters=y.size, out=payload)
    decode("topk:0.1", payload, ref, n_parameters=y.size, out=out)
    assert tracemalloc.get_traced_memory()[1] < 4 * 8 * sparse.SPAN
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["topk", "topk:", "topk:0", "topk:0.10", "topk:1", "topk:.1", "topk:0.0000001", "topk:0.1 ",
                                  "TOPK:0.1", "topk:0.\u0661", "topk:0.0", "topk:-0.1"])  # fmt: skip
def test_a_share_has_one_spelling(name):
    assert not is_codec(name) and millionths(name) == 0
    with pytest.raises(Refused, match="unknown codec"):
        payload_size(name, 10, 0, 4)


@pytest.mark.parametrize("codec", ["f32", "f64", "bf16", "int8", "int4", "topk:0.1", "topk:0.013", "sign:0.1"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [5, 1024, 2500])
def test_many_rows_at_once_are_the_same_bits_as_one_payload_each(codec, dtype, size):
    rows = (np.random.default_rng(3).standard_normal((4, size)) ** 3).astype(dtype)
    rows[1], rows[2, ::2] = 0, 1
    zeros = np.zeros(size, dtype)
    each = [decode(codec, encode(codec, row, zeros, n_parameters=size), zeros, n_parameters=size) for row in rows]
    assert (np.stack(each) + 0.0).tobytes() == (decoded_rows(codec, rows) + 0.0).tobytes()


@pytest.mark.parametrize("codec", ["topk:0.5", "sign:0.5"])
def test_a_row_that_has_diverged_leaves_the_others_as_they_are(codec):
    rows = np.array([[1, 2, 3, 4, 5, 6], [np.nan, 1, np.inf, 1, 1, 1], [7, 8, 9, 10, 11, 12]], np.float32)
    with np.errstate(invalid="ignore"):
        together = decoded_rows(codec, rows)
    assert (together[[0, 2]] == decoded_rows(codec, rows[[0, 2]])).all()
    assert not np.isfinite(together[1]).all()


def test_an_exchange_moves_what_was_not_sent_once_in_all_and_never_beyond():
    """Two stale replicas, nothing sent any more: the models move together by what one full exchange would have moved."""
    lo, hi, moved = np.zeros(3), np.array([4.0, -8.0, 0.0]), np.zeros(3)
    for _ in range(80):
        moved += mixing.flow_step(lo, hi, 0.5, 1.0, 3.0, 1.0)
        lo, hi = mixing.predict(lo, hi, 0.5, 1.0, 3.0)
    np.testing.assert_allclose(moved, 0.75 * np.array([4.0, -8.0, 0.0]), rtol=1e-12)
    np.testing.assert_allclose([lo, hi], [[3.0, -6.0, 0.0]] * 2, rtol=1e-12)
