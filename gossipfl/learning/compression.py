"""Vector <-> payload bytes: deltas against an agreed reference, block by block, deterministic. No signatures, no files.

Payload (all little endian), its length fixed by codec, P, M and the vector's itemsize:

    moments   M x itemsize   the values themselves, plain
    scales    int8 and int4 only: ceil(P / 1024) x float32, one per 1024 parameters
    codes     P x 8 (f64), 4 (f32), 2 (bf16), 1 (int8) or 1/2 (int4) bytes: the deltas y - reference

or, for `topk:D` and `sign:D`, D a share such as 0.1: of every span of 122,880 parameters (the last shorter) the ceil(n D)
largest deltas:

    moments   M x itemsize
    values    span after span; topk: 2 bytes each, as bf16; sign: their mean magnitude as float32, then a bit each
    places    of each span: learning.sparse

Both sides hold replica = reference + decoded as the next reference, so what a codec loses stays in the next difference
and is sent then: there is no second error-feedback buffer, and no codec needs to be unbiased. That is why all round
to the nearest: half the worst error of stochastic rounding, nothing to seed, and a retry encodes the same bytes. In a
row of int8 no error exceeds 1/254 of the largest delta, so the residual of a resting model shrinks 254-fold a time; of int4
14-fold. Of a resting model `sign` leaves |d|^2 - k (mean |d_sent|)^2: the mean is the magnitude that leaves least.

**Source**: of `sign`: Sattler, Wiedemann, Mueller, Samek, "Robust and communication-efficient federated learning from non-i.i.d.
data", 2019 (sparse ternary compression). Differs: against the link's reference, and no coder of gaps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse, Refused
from gossipfl.learning import sparse
from gossipfl.learning.blocks import Vector, is_finite, require_alike, room_for, slices

Payload = bytes | bytearray | memoryview | NDArray[np.uint8]

ROW: Final = 1024
"""int8: parameters under one scale. 4 bytes in 1024 cost .4 %; BLOCK is a multiple of it."""

SCALE: Final = np.dtype("<f4")

NOTHING: Final = np.empty(0, SCALE)
"""Where a payload has no such part: nobody reads or writes it."""

WALK: Final = 2 * sparse.SPAN
"""Elements of a vector that `encode` and `decode` take at a time."""

TOP: Final = {"int8": np.float32(127), "int4": np.float32(7)}
"""The largest code."""


# ---- codecs: a block of deltas <-> codes ---------------------------------------------------------------------------


def _plain(delta: Vector, codes: NDArray[Any], scales: NDArray[Any]) -> None:
    codes[...] = delta


def _from_plain(codes: NDArray[Any], scales: NDArray[Any]) -> Vector:
    return codes


def _to_bf16(delta: Vector, codes: NDArray[Any], scales: NDArray[Any]) -> None:
    """The upper half of a float32, rounded to nearest, ties to even; overflow gives infinity (the peer refuses it)."""
    bits = delta.astype("<f4").view("<u4")
    odd = np.bitwise_and(np.right_shift(bits, 16), 1)
    np.add(bits, odd, out=bits)
    np.add(bits, np.uint32(0x7FFF), out=bits)
    codes[...] = np.right_shift(bits, 16, out=bits)


def _from_bf16(codes: NDArray[Any], scales: NDArray[Any]) -> Vector:
    bits = codes.astype("<u4")
    np.left_shift(bits, 16, out=bits)
    return bits.view("<f4")


def _rows(codes: NDArray[Any]) -> list[tuple[slice, slice]]:
    """(elements, their scales) of the whole rows of a block, then of the short last one."""
    whole = codes.size // ROW
    cut = whole * ROW
    parts = [(slice(0, cut), slice(0, whole)), (slice(cut, codes.size), slice(whole, whole + 1))]
    return [part for part in parts if part[0].stop > part[0].start]


def _to_int8(delta: Vector, codes: NDArray[Any], scales: NDArray[Any]) -> None:
    """scale = max |delta| / 127, code = round(delta / scale); a row of zeros has scale 0."""
    _quantised(delta, TOP["int8"], codes, scales)


def _to_int4(delta: Vector, codes: NDArray[Any], scales: NDArray[Any]) -> None:
    """As int8 with 7 in the place of 127; two codes a byte, the first in the lower half."""
    whole = np.zeros(2 * codes.size, np.int8)
    _quantised(delta, TOP["int4"], whole[: delta.size], scales)
    codes[...] = np.bitwise_or(np.bitwise_and(whole[::2], 15), np.left_shift(whole[1::2], 4)).view(np.uint8)


def _quantised(delta: Vector, most: np.float32, codes: NDArray[Any], scales: NDArray[Any]) -> None:
    for elements, of in _rows(codes):
        rows = delta[elements].astype(np.float32).reshape(of.stop - of.start, -1)
        scales[of] = _quantise(rows, most)
        codes[elements] = rows.reshape(-1)


def _quantise(rows: NDArray[np.float32], most: np.float32) -> NDArray[np.float32]:
    """Codes in the place of rows; their scales. **Shapes**: (R, n) -> (R,)."""
    top = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    np.divide(np.abs(top, out=top), most, out=top)  # abs: -0.0 is no scale
    scales: NDArray[np.float32] = top.copy()
    top[top == 0] = 1  # zeros, and deltas so small that their scale underflows: within half the smallest float
    np.divide(rows, top[:, None], out=rows)
    np.rint(rows, out=rows)
    np.clip(rows, -most, most, out=rows)  # a subnormal scale may be rounded down by a third
    return scales


def _from_int8(codes: NDArray[Any], scales: NDArray[Any]) -> Vector:
    delta = codes.astype(np.float32)
    for elements, of in _rows(codes):
        rows = delta[elements].reshape(of.stop - of.start, -1)
        np.multiply(rows, scales[of][:, None], out=rows)
    return delta


def _from_int4(codes: NDArray[Any], scales: NDArray[Any]) -> Vector:
    return _from_int8(_halves(codes), scales)


def _halves(codes: NDArray[Any]) -> NDArray[np.int8]:
    """The two codes of each byte, -8 to 7."""
    both = np.empty(2 * codes.size, np.int8)
    signed = codes.view(np.int8)
    both[::2] = np.right_shift(np.left_shift(signed, 4), 4)
    both[1::2] = np.right_shift(signed, 4)
    return both


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to write deltas: width of a code, whether rows have scales, and the two directions on one block."""

    dtype: str
    scaled: bool
    pack: Callable[[Vector, NDArray[Any], NDArray[Any]], None]
    unpack: Callable[[NDArray[Any], NDArray[Any]], Vector]
    in_a_byte: int = 1
    """codes"""

    def span(self, elements: slice) -> slice:
        """Where the codes of these elements stand; a piece begins at an even one."""
        return slice(elements.start // self.in_a_byte, -(-elements.stop // self.in_a_byte))


CODECS: Final = {
    "f64": Codec("<f8", False, _plain, _from_plain),
    "f32": Codec("<f4", False, _plain, _from_plain),
    "bf16": Codec("<u2", False, _to_bf16, _from_bf16),
    "int8": Codec("i1", True, _to_int8, _from_int8),
    "int4": Codec("u1", True, _to_int4, _from_int4, in_a_byte=2),
}


def _codec(name: str) -> Codec:
    if name not in CODECS:
        raise Refused(
            "codec", f"unknown codec {name!r}; both sides need one of {', '.join(CODECS)}, topk:0.1 or sign:0.1"
        )
    return CODECS[name]


SPARSE: Final = re.compile(r"(?:topk|sign):0\.(\d{0,5}[1-9])", re.ASCII)
"""One spelling for each share: no zero at the end, six decimals at most."""


@lru_cache(maxsize=64)
def millionths(codec: str) -> int:
    """The share of the deltas that a sparse codec sends, in millionths; 0 for one that sends all.

    >>> [millionths(codec) for codec in ("topk:0.1", "sign:0.025", "f32", "topk:0.10")]
    [100000, 25000, 0, 0]
    """
    found = SPARSE.fullmatch(codec)
    return int(found[1].ljust(6, "0")) if found else 0


def is_codec(name: str) -> bool:
    """Is this the name of a codec."""
    return name in CODECS or millionths(name) > 0


# ---- payloads ------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # of a study's one layout
def payload_size(codec: str, n_parameters: int, n_moments: int, itemsize: int) -> int:
    """Bytes of a payload; itemsize: 4 or 8, of the vector's dtype.

    Raises: `Refused("codec")` on an unknown codec.

    >>> [payload_size(codec, 2000, 3, 4) for codec in ("f64", "f32", "bf16", "int8", "int4")]
    [16012, 8012, 4012, 2020, 1020]
    >>> codecs = ("topk:0.1", "topk:0.01", "sign:0.1", "sign:0.01")
    >>> [round(1 - payload_size(codec, 25_000_000, 0, 4) / 1e8, 4) for codec in codecs]
    [0.9336, 0.9923, 0.9805, 0.997]
    """
    if share := millionths(codec):
        spans = ((n, sparse.kept(n, share)) for n in _spans(n_parameters))
        return n_moments * itemsize + sum(_values_size(codec, k) + sparse.places_size(n, k) for n, k in spans)
    kind = _codec(codec)
    scales = 4 * -(-n_parameters // ROW) if kind.scaled else 0
    codes: int = kind.span(slice(0, n_parameters)).stop
    return n_moments * itemsize + scales + codes * np.dtype(kind.dtype).itemsize


def _values_size(codec: str, count: int) -> int:
    """Bytes of a span's values in a sparse payload."""
    return 4 + (count + 7) // 8 if codec.startswith("sign:") else 2 * count


def _spans(n_parameters: int) -> Iterator[int]:
    """The lengths of the spans of a sparse payload."""
    for piece in slices(n_parameters, sparse.SPAN):
        yield piece.stop - piece.start


def codes_of(codec: str, payload: Payload, *, like: Vector, n_parameters: int) -> Codes | SparseCodes:
    """A payload of the right length, ready for `encode` and `decode` of a piece of a vector at a time. `like`: any vector of
    this layout. **Raises**: `Refused("codec")`, `Refused("size")`."""
    kind = SparseCodes if millionths(codec) else Codes
    return kind(codec, payload, like=like, n_parameters=n_parameters)


class SparseCodes:
    """`Codes` of the largest deltas only. Pieces, but for the last, begin and end at a multiple of learning.sparse.SPAN."""

    plain: Final = False
    deltas: Final = None

    def __init__(self, codec: str, payload: Payload, *, like: Vector, n_parameters: int) -> None:
        _require_split(like, n_parameters)
        n_moments, share = like.size - n_parameters, millionths(codec)
        self.size = _require_size(codec, payload, n_parameters, n_moments, like.itemsize)
        moments = np.dtype(like.dtype).newbyteorder("<")
        spans = list(_spans(n_parameters))
        counts = [sparse.kept(n, share) for n in spans]
        first = n_moments * moments.itemsize
        lengths = [_values_size(codec, k) for k in counts]
        second = first + sum(lengths)
        self.codec, self.n_parameters, self.counts = codec, n_parameters, counts
        self.moments: NDArray[Any] = _seen(payload, moments, n_moments, 0)
        self.values: NDArray[Any] = _seen(payload, np.uint8, sum(lengths), first)
        self.places: NDArray[Any] = _seen(payload, np.uint8, self.size - second, second)
        sizes = [sparse.places_size(n, k) for n, k in zip(spans, counts, strict=True)]
        self.value_at, self.place_at = ([0, *np.cumsum(one).tolist()] for one in (lengths, sizes))

    def encode(self, y: Vector, ref: Vector, piece: slice) -> None:
        """Write the largest deltas of y - ref, and the moments of y. Raises: `Misuse` when they are not finite."""
        write = _write_signs if self.codec.startswith("sign:") else _write_bf16
        for span, n, count, values, places in self._spans(piece):
            delta = np.subtract(y[span], ref[span]).astype(np.float32, copy=False)
            chosen = sparse.largest(delta, count)
            write(delta[chosen], values)
            sparse.write_places(chosen, n, places)
        outer = _outer(piece, self.n_parameters)
        self.moments[_shifted(outer, self.n_parameters)] = y[outer]
        if not np.isfinite(y[outer]).all():
            raise Misuse("a moment is not finite; check a trained model before encoding")

    def decode(self, ref: Vector, piece: slice, out: Vector) -> None:
        """Write ref + decoded, and the moments as sent, into `out`, which is this piece of the result. Raises:
        `Refused("malformed")`, `Refused("nonfinite")`."""
        read = _read_signs if self.codec.startswith("sign:") else _read_bf16
        for span, n, count, values, places in self._spans(piece):
            sent = read(values, count)
            if not np.isfinite(sent).all():
                raise Refused("nonfinite", "a value in the payload is NaN or infinite; the peer's training diverged")
            chosen = sparse.read_places(places, n, count)
            part = out[_shifted(span, piece.start)]
            part[...] = ref[span]
            part[chosen] = np.add(part[chosen], sent, dtype=out.dtype)
        outer = _outer(piece, self.n_parameters)
        out[_shifted(outer, piece.start)] = self.moments[_shifted(outer, self.n_parameters)]

    def require_sound(self) -> None:
        """Nothing: `decode` refuses what no encoder writes, span by span."""

    def _spans(self, piece: slice) -> Iterator[tuple[slice, int, int, NDArray[Any], NDArray[Any]]]:
        """(where, of how many, how many are sent, their values, coded places) of each span of a piece."""
        stop = min(piece.stop, self.n_parameters)
        for start in range(piece.start, stop, sparse.SPAN):
            at, n = start // sparse.SPAN, min(sparse.SPAN, stop - start)
            values = self.values[self.value_at[at] : self.value_at[at + 1]]
            yield (
                slice(start, start + n),
                n,
                self.counts[at],
                values,
                self.places[self.place_at[at] : self.place_at[at + 1]],
            )


def _write_bf16(sent: NDArray[np.float32], values: NDArray[np.uint8]) -> None:
    _to_bf16(sent, values.view("<u2"), values)


def _read_bf16(values: NDArray[np.uint8], count: int) -> Vector:
    return _from_bf16(values.view("<u2"), values)


def _write_signs(sent: NDArray[np.float32], values: NDArray[np.uint8]) -> None:
    """The mean magnitude, then a bit each: 1 is below 0."""
    values[:4] = _magnitudes(sent[None]).astype("<f4").view(np.uint8)
    values[4:] = np.packbits(np.signbit(sent), bitorder="little")


def _read_signs(values: NDArray[np.uint8], count: int) -> Vector:
    """**Raises**: Refused("malformed") for a magnitude below 0, and bits behind the last."""
    magnitude = values[:4].view("<f4")[0]
    bits = np.unpackbits(values[4:], bitorder="little")
    if np.signbit(magnitude) or bits[count:].any():
        raise Refused(
            "malformed", "a magnitude below 0, or a sign of nothing, which no encoder writes; the peer is faulty"
        )
    return np.asarray(np.where(bits[:count], -magnitude, magnitude))


def _magnitudes(sent: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean magnitude of each row, summed in float64. **Shapes**: (E, k) -> (E,)."""
    return np.asarray(np.abs(sent).astype(np.float64).mean(axis=1).astype(np.float32))


@lru_cache(maxsize=64)  # of a study's one layout
def _parts(codec: str, n_parameters: int, dtype: np.dtype[Any]) -> tuple[Codec, np.dtype[Any], np.dtype[Any], int, int]:
    """(codec, dtypes of codes and moments, how many scales, how many codes)."""
    kind = _codec(codec)
    n_scales = -(-n_parameters // ROW) if kind.scaled else 0
    return kind, np.dtype(kind.dtype), dtype.newbyteorder("<"), n_scales, kind.span(slice(0, n_parameters)).stop


class Codes:
    """A payload of the right length, and what its codes mean: `encode` and `decode` for a piece of a vector at a time.

    Pieces are slices of the vector, (P + M,); each but the last begins and ends at a multiple of `ROW`. Different pieces
    may be handled in different threads. Nothing is allocated that is larger than a piece. Numpy tells of what overflows, unless
    the caller's error state says otherwise.
    """

    def __init__(self, codec: str, payload: Payload, *, like: Vector, n_parameters: int) -> None:
        """`like`: any vector of this layout. Raises: `Refused("codec")`, `Refused("size")`."""
        _require_split(like, n_parameters)
        n_moments = like.size - n_parameters
        self.n_parameters, self.size = n_parameters, _require_size(codec, payload, n_parameters, n_moments, like.itemsize)
        self.kind, codes, moments, n_scales, n_codes = _parts(codec, n_parameters, like.dtype)
        first = n_moments * moments.itemsize
        self.moments: NDArray[Any] = _seen(payload, moments, n_moments, 0) if n_moments else NOTHING
        self.scales: NDArray[Any] = _seen(payload, SCALE, n_scales, first) if n_scales else NOTHING
        self.codes: NDArray[Any] = _seen(payload, codes, n_codes, first + 4 * n_scales)
        self.plain = not self.kind.scaled and codes == like.dtype
        self.deltas: Vector | None = self.codes if self.plain and not n_moments else None
        """where a piece of the payload is that of the vector's deltas"""

    def encode(self, y: Vector, ref: Vector, piece: slice, out: NDArray[Any] | None = None) -> None:
        """Write the codes of y - ref, and the moments of y. Raises: `Misuse` when they are not finite.

        `out`: where to write `deltas`, if not in their place in the payload."""
        if self.deltas is not None:
            delta = np.subtract(y[piece], ref[piece], out=self.deltas[piece] if out is None else out)
            sound = is_finite(delta)
        else:
            inner, of, outer = self._split(piece)
            delta = np.subtract(y[inner], ref[inner], out=self.codes[inner] if self.plain else None)
            if not self.plain:
                self.kind.pack(delta, self.codes[self.kind.span(inner)], self.scales[of])
            self.moments[_shifted(outer, self.n_parameters)] = y[outer]
            sound = is_finite(delta) and is_finite(y[outer])
        if not sound:
            raise Misuse(
                "the vector or its distance to the reference is not finite; check a trained model before encoding"
            )

    def decode(self, ref: Vector, piece: slice, out: Vector) -> None:
        """Write ref + decoded, and the moments as sent, into `out`, which is this piece of the result."""
        if self.deltas is not None:
            np.add(ref[piece], self.deltas[piece], out=out)
            return
        inner, of, outer = self._split(piece)
        delta = self.kind.unpack(self.codes[self.kind.span(inner)], self.scales[of])[: inner.stop - inner.start]
        np.add(ref[inner], delta, out=out[_shifted(inner, piece.start)], casting="same_kind")
        out[_shifted(outer, piece.start)] = self.moments[_shifted(outer, self.n_parameters)]

    def require_sound(self) -> None:
        """Raises: `Refused("nonfinite")`, `Refused("malformed")` for scales or codes that no encoder writes."""
        if not self.kind.scaled:
            return
        if not np.isfinite(self.scales).all():
            raise Refused("nonfinite", "a scale in the payload is NaN or infinite; the peer's training diverged")
        if np.signbit(self.scales).any() or any(self._is_wild(piece) for piece in slices(self.codes.size)):
            raise Refused(
                "malformed", "a scale below 0, or a code that no encoder writes (-128, of int4 -8); the peer is faulty"
            )
        if self.kind.in_a_byte == 2 and self.n_parameters % 2 and self.codes[-1] >> 4:
            raise Refused("malformed", "half a byte behind the last code is not 0; the peer is faulty")

    def _is_wild(self, piece: slice) -> bool:
        """Is a code of these bytes below what an encoder writes."""
        codes, one = self.codes[piece], self.kind.in_a_byte == 1
        return bool(codes.min() == -128 if one else ((codes & 0x0F == 0x08) | (codes & 0xF0 == 0x80)).any())

    def _split(self, piece: slice) -> tuple[slice, slice, slice]:
        """(parameters, their scales, moments) of a piece of the vector."""
        inner = slice(min(piece.start, self.n_parameters), min(piece.stop, self.n_parameters))
        of = slice(inner.start // ROW, -(-inner.stop // ROW))
        return inner, of, _outer(piece, self.n_parameters)


def _outer(piece: slice, n_parameters: int) -> slice:
    """The moments of a piece of the vector."""
    return slice(max(piece.start, n_parameters), max(piece.stop, n_parameters))


def _shifted(part: slice, start: int) -> slice:
    """The same elements, counted from `start`."""
    return slice(part.start - start, part.stop - start)


def _require_size(codec: str, payload: Payload, n_parameters: int, n_moments: int, itemsize: int) -> int:
    size, received = payload_size(codec, n_parameters, n_moments, itemsize), _bytes(payload).nbytes
    if received != size:
        raise Refused("size", f"payload of {received} bytes; {codec} of this layout has {size}: the layouts differ")
    return size


def _seen(payload: Payload, dtype: Any, count: int, offset: int) -> NDArray[Any]:
    return np.frombuffer(payload, dtype, count, offset) if count else NOTHING


def _require_split(vector: Vector, n_parameters: int) -> None:
    if not 0 <= n_parameters <= vector.size:
        raise Misuse(f"{n_parameters} parameters in a vector of {vector.size}; both come from one Layout")


def _bytes(payload: Payload) -> memoryview:
    return payload.data if isinstance(payload, np.ndarray) else memoryview(payload)


def _room(size: int, out: memoryview | bytearray | NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if out is None:
        return np.empty(size, np.uint8)
    view = _bytes(out)
    if view.nbytes != size or view.readonly:
        raise Misuse(f"out has {view.nbytes} bytes; the payload needs {size} writable ones")
    return np.frombuffer(view, np.uint8) if size else np.empty(0, np.uint8)


def encode(
    codec: str,
    y: Vector,
    ref: Vector,
    *,
    n_parameters: int,
    seed: bytes = b"",
    out: memoryview | bytearray | NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The payload of y - ref (parameters) and of y (moments); `out`, when given, is filled and returned as an array.

    Shapes: y, ref: (P + M,), P = n_parameters; result: (payload_size,) of uint8. Temporaries: a few blocks.
    Laws: the same inputs give the same bytes. |replica - y| is at most, beside the rounding of ref + delta: 0 (f64),
    2^-24 |delta| (f32, of float64 vectors), 2^-8 |delta| (bf16), max |delta in the row| / 254 (int8), / 14 (int4). Of topk, 2^-8
    |delta| where it is among the largest, else |delta|, which no larger one of its span is left out for; of sign, in a span the
    square sum of what is left is that of the deltas less k times the square of the mean magnitude sent.
    Raises: `Misuse` when y - ref is not finite (check the own model first), vectors are not alike, or `out` has the
    wrong length; `Refused("codec")` on an unknown codec.
    Randomness: none. `seed` names the exchange for codecs that draw; none of these does.
    """
    require_alike(y, ref)
    _require_split(y, n_parameters)
    buffer = _room(payload_size(codec, n_parameters, y.size - n_parameters, y.itemsize), out)
    codes = codes_of(codec, buffer.data, like=y, n_parameters=n_parameters)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in slices(y.size, WALK):
            codes.encode(y, ref, piece)
    return buffer


def decode(codec: str, payload: Payload, ref: Vector, *, n_parameters: int, out: Vector | None = None) -> Vector:
    """The replica that a payload means: ref + decoded (parameters), then the moments as sent. Same bits on every CPU.

    Shapes: ref, result: (P + M,). `out` may be `ref` itself. Temporaries: a few blocks.
    Laws: total: every payload of the right length gives a vector or `Refused`. Elements may be infinite or NaN where
    the codec can say so (f64, f32, bf16): checks.check is the next door.
    Raises: `Refused("codec")`; `Refused("size")` unless the length is exactly payload_size, before anything is
    allocated; `Refused("malformed")` for places that do not rise within their span, or bits where none belong (sparse);
    `Refused("nonfinite")` for a sparse value or a scale that is not finite, `Refused("malformed")` for a negative scale or
    code -128 (int4: -8), which no encoder writes: all a peer's fault.
    """
    codes = codes_of(codec, payload, like=ref, n_parameters=n_parameters)
    codes.require_sound()
    replica = room_for(ref, out)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in slices(ref.size, WALK):
            codes.decode(ref, piece, replica[piece])
    return replica


def decoded_rows(codec: str, deltas: Vector) -> Vector:
    """What `decode` makes of what `encode` writes of many deltas at once, without the bytes: for simulators.

    **Shapes**: (E, P) -> (E, P). **Laws**: each row is that of one payload, bit for bit but for the sign of zeros.
    """
    share, decoded = millionths(codec), np.empty_like(deltas)
    if not share and codec in ("f32", "f64"):
        return deltas.astype(codec.replace("f", "float"), copy=False).astype(deltas.dtype, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in slices(deltas.shape[1], sparse.SPAN if share else ROW):
            part = deltas[:, piece].astype(np.float32)
            if codec in TOP:
                scales = _quantise(part, TOP[codec])
                decoded[:, piece] = np.multiply(part, scales[:, None])
                continue
            mask: Any = sparse.largest_rows(part, sparse.kept(part.shape[1], share)) if share else True
            if codec.startswith("sign:"):
                magnitudes = _magnitudes(part[mask].reshape(len(part), -1))[:, None]
                found = np.where(np.signbit(part), -magnitudes, magnitudes)
            else:
                codes = np.empty(part.size, np.uint16)
                _to_bf16(part.reshape(-1), codes, codes)
                found = _from_bf16(codes, codes).reshape(part.shape)
            decoded[:, piece] = np.where(mask, found, np.float32(0))
    return decoded
