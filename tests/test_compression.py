"""Payloads: round trips with their error bounds, total parsers, memory. Not who sends what to whom."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gossipfl.errors import Misuse, Refused
from gossipfl.learning.blocks import BLOCK
from gossipfl.learning.compression import CODECS, ROW, decode, encode, payload_size

SIZES = (0, 1, 2, ROW - 1, ROW, ROW + 1, 3 * ROW + 7, 40 * ROW + 1)
SCALED = {"int8": 127, "int4": 7}
RELATIVE = {"f64": 0.0, "f32": 2.0**-24, "bf16": 2.0**-8}

every_codec = pytest.mark.parametrize("codec", CODECS)
every_dtype = pytest.mark.parametrize("dtype", ["float32", "float64"])


def pair(size: int, dtype: str, seed: int = 0, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    ref = rng.standard_normal(size).astype(dtype)
    return (ref + spread * rng.standard_normal(size) ** 3).astype(dtype), ref


def bound(codec: str, y: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """The error that the docstring promises, with the rounding of y - ref and of ref + delta."""
    delta = np.abs(y.astype(np.float64) - ref)
    eps = np.finfo(y.dtype).eps
    rounding = eps * (np.abs(y) + np.abs(ref) + delta)
    if codec not in SCALED:
        return RELATIVE[codec] * delta * 1.01 + rounding + 2.0**-149 + (codec == "bf16") * 2.0**-133
    tops = np.concatenate([np.full(len(r), r.max()) for r in np.array_split(delta, range(ROW, delta.size, ROW))])
    return (
        tops / (2 * SCALED[codec]) * 1.001 + rounding + 2.0**-141
    )  # where the scale is subnormal it is off by half a unit, 127 times


@every_dtype
@every_codec
@pytest.mark.parametrize("size", [s for s in SIZES if s])
def test_replica_is_within_the_promised_error(codec, dtype, size):
    y, ref = pair(size, dtype, size)
    replica = decode(codec, encode(codec, y, ref, n_parameters=size), ref, n_parameters=size)
    assert replica.dtype == y.dtype
    assert (np.abs(replica.astype(np.float64) - y) <= bound(codec, y, ref)).all()


@every_codec
@settings(max_examples=60, deadline=None)
@given(
    y=arrays(np.float32, 37, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    ref=arrays(np.float32, 37, elements=st.floats(-(2.0**100), 2.0**100, width=32)),
)
def test_replica_is_within_the_promised_error_for_any_values(codec, y, ref):
    replica = decode(codec, encode(codec, y, ref, n_parameters=37), ref, n_parameters=37)
    assert (np.abs(replica.astype(np.float64) - y) <= bound(codec, y, ref)).all()


@every_dtype
@every_codec
def test_equal_models_travel_as_no_change_at_all(codec, dtype):
    y, _ = pair(2 * ROW + 5, dtype)
    assert decode(codec, encode(codec, y, y, n_parameters=y.size), y, n_parameters=y.size).tobytes() == y.tobytes()


@every_dtype
@every_codec
def test_a_resting_model_is_reached_within_a_few_exchanges(codec, dtype):
    y, ref = pair(5 * ROW, dtype)
    for _ in range(24):
        ref = decode(codec, encode(codec, y, ref, n_parameters=y.size), ref, n_parameters=y.size)
    assert np.abs(ref - y).max() <= 2 * np.finfo(dtype).eps * np.abs(y).max()


@every_dtype
@every_codec
@pytest.mark.parametrize("n_parameters", [0, 1, 5, ROW + 3])
def test_moments_travel_as_plain_values_and_do_not_see_the_reference(codec, dtype, n_parameters):
    y, ref = pair(n_parameters + 9, dtype)
    payload = encode(codec, y, ref, n_parameters=n_parameters)
    assert decode(codec, payload, ref, n_parameters=n_parameters)[n_parameters:].tobytes() == y[n_parameters:].tobytes()
    assert payload[: 9 * y.itemsize].tobytes() == y[n_parameters:].tobytes()


@every_dtype
@every_codec
@pytest.mark.parametrize("size", SIZES)
def test_length_is_exactly_what_the_layout_says_and_every_other_is_refused(codec, dtype, size):
    y, ref = pair(size + 3, dtype)
    payload = encode(codec, y, ref, n_parameters=size).tobytes()
    assert len(payload) == payload_size(codec, size, 3, y.itemsize)
    for wrong in (payload[:-1], payload + b"\0", b""):
        with pytest.raises(Refused, match="layouts differ") as refusal:
            decode(codec, wrong, ref, n_parameters=size)
        assert refusal.value.reason == "size"


def test_wrong_length_is_refused_before_anything_is_allocated():
    ref = np.zeros(2_000_000, np.float32)
    tracemalloc.start()
    with pytest.raises(Refused):
        decode("int8", b"\0" * 10, ref, n_parameters=ref.size)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@every_codec
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_decode_is_total_on_bytes_of_the_right_length(codec, data):
    ref = np.linspace(-1, 1, 41, dtype=np.float32)
    size = payload_size(codec, 38, 3, 4)
    payload = data.draw(st.binary(min_size=size, max_size=size))
    try:
        replica = decode(codec, payload, ref, n_parameters=38)
    except Refused as refusal:
        assert codec in SCALED and refusal.reason in ("nonfinite", "malformed")
    else:
        assert replica.shape == ref.shape and replica.dtype == ref.dtype


@pytest.mark.parametrize(
    ("scale", "code", "reason"),
    [(np.nan, 1, "nonfinite"), (np.inf, 1, "nonfinite"), (-1.0, 1, "malformed"), (1.0, -128, "malformed")],
)
def test_int8_refuses_what_no_encoder_writes(scale, code, reason):
    payload = np.float32(scale).tobytes() + np.full(10, code, np.int8).tobytes()
    with pytest.raises(Refused) as refusal:
        decode("int8", payload, np.zeros(10, np.float32), n_parameters=10)
    assert refusal.value.reason == reason


@pytest.mark.parametrize(
    ("scale", "codes", "reason"),
    [(np.nan, "1111", "nonfinite"), (-1.0, "1111", "malformed"), (1.0, "1811", "malformed"), (1.0, "8111", "malformed"),
     (1.0, "1110", None), (1.0, "1111", "malformed")],
)  # fmt: skip
def test_int4_refuses_what_no_encoder_writes(scale, codes, reason):
    """Three numbers, whose last byte has a half that belongs to none."""
    halves = [int(code) for code in codes]
    payload = np.float32(scale).tobytes() + bytes(low | high << 4 for low, high in (halves[:2], halves[2:]))
    if reason is None:
        assert decode("int4", payload, np.zeros(3, np.float32), n_parameters=3).tolist() == [1.0, 1.0, 1.0]
        return
    with pytest.raises(Refused) as refusal:
        decode("int4", payload, np.zeros(3, np.float32), n_parameters=3)
    assert refusal.value.reason == reason


@every_codec
def test_a_model_that_is_not_finite_is_never_encoded(codec):
    for bad in (np.nan, np.inf):
        for where in (0, 4):
            y, ref = pair(5, "float32")
            y[where] = bad
            with pytest.raises(Misuse, match="not finite"):
                encode(codec, y, ref, n_parameters=3)


def test_unknown_codec_is_refused():
    with pytest.raises(Refused, match="zip") as refusal:
        payload_size("zip", 1, 1, 4)
    assert refusal.value.reason == "codec"


@every_codec
def test_encoding_again_gives_the_same_bytes_into_any_buffer(codec):
    y, ref = pair(40 * ROW + 11, "float32")
    first = encode(codec, y, ref, n_parameters=y.size - 4, seed=b"a")
    buffer = bytearray(first.size)
    encode(codec, y, ref, n_parameters=y.size - 4, seed=b"b", out=memoryview(buffer))
    assert bytes(buffer) == first.tobytes()


@every_codec
def test_decode_in_place_and_from_read_only_memory_gives_the_same_bits(codec):
    y, ref = pair(40 * ROW + 11, "float32")
    payload = encode(codec, y, ref, n_parameters=y.size - 4).tobytes()
    apart = decode(codec, payload, ref, n_parameters=y.size - 4)
    assert decode(codec, memoryview(payload), ref, n_parameters=y.size - 4, out=ref) is ref
    assert ref.tobytes() == apart.tobytes()


@every_codec
def test_temporaries_stay_far_below_the_vector(codec):
    y, ref = pair(8_000_000, "float32")
    out, replica = np.empty(payload_size(codec, y.size, 0, 4), np.uint8), np.empty_like(y)
    tracemalloc.start()
    encode(codec, y, ref, n_parameters=y.size, out=out)
    decode(codec, out, ref, n_parameters=y.size, out=replica)
    assert tracemalloc.get_traced_memory()[1] < 5 * 4 * BLOCK
    tracemalloc.stop()


def test_bf16_is_round_to_nearest_even_of_torch():
    torch = pytest.importorskip("torch")
    y = np.random.default_rng(1).standard_normal(5000).astype(np.float32)
    zeros = np.zeros_like(y)
    replica = decode("bf16", encode("bf16", y, zeros, n_parameters=y.size), zeros, n_parameters=y.size)
    assert np.array_equal(replica, torch.from_numpy(y).bfloat16().float().numpy())


def test_out_of_the_wrong_length_or_vectors_unalike_are_misuse():
    y, ref = pair(10, "float32")
    for call in (
        lambda: encode("f32", y, ref, n_parameters=10, out=bytearray(39)),
        lambda: encode("f32", y, ref[:9], n_parameters=9),
        lambda: encode("f32", y, ref.astype(np.float64), n_parameters=10),
        lambda: encode("f32", y, ref, n_parameters=11),
    ):
        with pytest.raises(Misuse):
            call()
