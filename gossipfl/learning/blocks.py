"""A large vector in pieces that stay in cache, and norms over them. Not a framework for lazy arrays.

Vectors are often memory-mapped files of hundreds of megabytes. Every function of mixing, correction, compression and
checks walks them with `slices`, so that temporaries stay small and several ufuncs meet the same piece in cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse

Vector = NDArray[Any]
"""One contiguous row of float32 or float64, shape (P,) or (P + M,); in simulators (..., P), one row a node or an exchange."""

Scalars = float | NDArray[np.float64]
"""A number, or one for each row: shape (...,)."""

Number = TypeVar("Number", float, NDArray[np.float64])
"""One of the two, and the result is alike."""

BLOCK: Final = 256 * 1024
"""Elements of a piece: 1 MiB of float32, a few of which fit the third-level cache. Smaller ones fit a faster cache and cost
more: two threads pass the interpreter's lock to and fro at every operation. A multiple of 1024."""

LONG: Final = 8192
"""From so many elements on squares are summed by dot products."""

ROW: Final = 1024
"""Elements of one dot product: few, so that float32 is exact enough to add them in."""

TINY: Final = 1e-30
"""A mean square below it is summed in float64 throughout: in float32 the squares of its smaller elements would be 0."""

DTYPES: Final = ("float32", "float64")
_DTYPES: Final = tuple(np.dtype(name) for name in DTYPES)


def slices(size: int, block: int = BLOCK) -> Iterator[slice]:
    """The pieces of range(size), in order; none when size is 0."""
    for start in range(0, size, block):
        yield slice(start, min(start + block, size))


def require_alike(*vectors: Vector) -> None:
    """Raises `Misuse` unless all have one shape, (..., P), and one dtype, float32 or float64."""
    shape, dtype = vectors[0].shape, vectors[0].dtype
    if dtype not in _DTYPES:
        raise Misuse(f"a vector has dtype {dtype}; use one of {DTYPES}")
    for vector in vectors:
        if not shape or vector.shape != shape or vector.dtype != dtype:
            shapes = [(v.shape, v.dtype.name) for v in vectors]
            raise Misuse(f"vectors must be rows of one length and dtype, got {shapes}; they must come from one Layout")


def room_for(like: Vector, out: Vector | None) -> Vector:
    """`out`, if it can take a result like `like`; a new array when it is None."""
    if out is None:
        return np.empty(like.shape, like.dtype)
    require_alike(like, out)
    return out


def factor(scalars: Scalars, like: Vector) -> Any:
    """Numbers made one dtype with `like`, once, and of a shape that multiplies its rows."""
    if isinstance(scalars, np.ndarray) and scalars.ndim:
        return scalars.astype(like.dtype, copy=False)[..., None]
    return like.dtype.type(scalars)


def row_norms(rows: Vector) -> NDArray[np.float64]:
    """(..., P) -> (...,), summed in float64: `norm` of each row but for the order of the sum."""
    return np.asarray(np.sqrt(np.einsum("...p,...p->...", rows, rows, dtype=np.float64)))


def norm(vector: Vector | Iterable[Vector]) -> float:
    """The Euclidean norm of a vector or of consecutive pieces of one, summed in float64.

    Of `LONG` and more (see `square_sum`) its last bits depend on the CPU: what two sides must get alike is computed by one and
    sent.
    NaN or infinity among the elements give NaN or infinity; float32 elements never overflow otherwise.
    """
    pieces = (vector[piece] for piece in slices(vector.size)) if isinstance(vector, np.ndarray) else vector
    total = 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        for piece in pieces:
            total += square_sum(piece)
    return math.sqrt(total)


def square_sum(piece: Vector) -> float:
    """The sum of squares, infinite or NaN where an element or the sum is; float32 elements do not overflow.

    Of less than `LONG` it is numpy's own sum of products in float64, the same bits on any CPU; a longer one's rows are OpenBLAS's
    in the vector's own dtype, whose order of adding is that of its kernel for this CPU: relative errors stay below 1e-7. In
    rows, because OpenBLAS takes threads of its own for a dot product of more than 10,000, which wait by spinning: where several
    threads walk a vector that had doubled the CPU time of a whole exchange. Numpy tells of what overflows, unless the
    caller's error state says otherwise."""
    if not piece.size:
        return 0.0
    whole = piece.size - piece.size % ROW if piece.size >= LONG else 0
    rest = piece[whole:].astype(np.float64)
    total = float(np.add.reduce(rest * rest))
    if not whole:
        return total
    rows = piece[:whole].reshape(-1, ROW)
    squares = float(np.vecdot(rows, rows).sum(dtype=np.float64))
    if not TINY * whole < squares < math.inf:
        rows = rows.astype(np.float64)
        squares = float(np.vecdot(rows, rows).sum())
    return squares + total


def is_finite(vector: Vector) -> bool:
    """Is every element a finite number; of any length, without a temporary of its size."""
    if vector.size <= BLOCK:  # a byte is searched for: a reduction takes twice as long of a short vector
        return b"\0" not in np.isfinite(vector).tobytes()
    return all(is_finite(vector[piece]) for piece in slices(vector.size))


def difference_norm(a: Vector, b: Vector) -> float:
    """norm(a - b) without a temporary of their size."""
    require_alike(a, b)
    return norm(np.subtract(a[piece], b[piece], dtype=np.float64) for piece in slices(a.size))
