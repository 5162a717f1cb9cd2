"""Is a received vector plausible? Finite everywhere, and not absurdly far away. Not a defence against poisoning.

A hostile member can send anything that is validly signed: this is the door after decoding. Subtle attacks are bounded
by the clip of mixing and by robust rules, not here.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from gossipfl.errors import Misuse, Refused
from gossipfl.learning.blocks import Vector, difference_norm, is_finite, norm, slices, square_sum

LIMIT: Final = 1000.0
"""How far is absurd. An honest replica differs from the own model by a few times its norm at most, even after weeks of
separate training; float32 still resolves a difference of a thousand."""


def check(vector: Vector, reference: Vector, *, limit: float = LIMIT, distance: float | None = None) -> None:
    """Nothing, when `vector` may be used beside `reference` (the own vector of the same space).

    norm(vector - reference) <= limit (norm(reference) + sqrt(n)); sqrt(n), one unit for each of the n coordinates, lets
    a model move that began at zero. limit = infinity asks only for finite elements (the statistics space: sums of
    squares have no scale of their own). `distance` is norm(vector - reference), of a caller who has it already.

    Raises: `Refused("nonfinite")` for NaN or infinity, `Refused("implausible")` beyond the limit: a peer's fault;
    `Misuse` when the reference is not finite or not alike.
    Laws: raises nothing on vector = reference; accepts or refuses regardless of the order of the elements.
    """
    if not limit > 0:
        raise Misuse(f"limit is {limit}; it must be above 0")
    distance = difference_norm(vector, reference) if distance is None else distance
    if not math.isfinite(distance):
        _refuse_nonfinite(vector)
        if not is_finite(reference):
            raise Misuse("the own reference is not finite; check a vector before it becomes one")
        raise Refused(
            "implausible",
            "the peer's vector is so far away that the distance overflows; its data or its training have gone wrong, or it "
            "is faulty",
        )
    if limit == math.inf or distance <= limit * math.sqrt(reference.size):  # then the norm, a pass more, need not be known
        return
    furthest = limit * (norm(reference) + math.sqrt(reference.size))
    if not distance <= furthest:
        raise Refused(
            "implausible",
            f"the peer's vector is {distance:.3g} away from ours, at most {furthest:.3g} is accepted; "
            "its training diverged (lower its learning rate) or it is faulty",
        )


def _refuse_nonfinite(vector: Vector) -> None:
    bad = sum(int(piece.size - np.isfinite(piece).sum()) for piece in (vector[where] for where in slices(vector.size)))
    if bad:
        raise Refused(
            "nonfinite",
            f"{bad} of {vector.size} elements are NaN or infinite; the peer's training diverged (lower its "
            "learning rate) or it is faulty",
        )


# ---- does a link always push the same way? ---------------------------------------------------------------------------


SAMPLE: Final = 4096
"""Coordinates that are watched: all of a small model, a random part of a large one (a ratio of norms needs no more)."""

ENOUGH: Final = 10
"""Exchanges before it is judged: after five, honest links of a net that begins to learn reach .92."""

STRAIGHT: Final = 0.9
"""Above it a link is straight: from ten exchanges on honest ones stay below .82, those of a member that always pushes above
.99 (docs/adr/0019)."""


class Straightness:
    """norm(sum q) / sum norm(q) of one link, over all it has seen: 1 where every exchange pushed the same way, near 0 where
    they go to and fro. In memory: it begins anew with the process.

    **Laws**: between 0 and 1; the same for any scale of q."""

    def __init__(self) -> None:
        self.total: Vector | None = None
        self.length = 0.0
        self.exchanges = 0

    def add(self, q: Vector) -> None:
        """The watched coordinates of one exchange's flow."""
        self.total = q.astype(np.float64) if self.total is None else self.total + q
        self.length += math.sqrt(square_sum(q))
        self.exchanges += 1

    @property
    def ratio(self) -> float | None:
        """None before there were enough exchanges, or where nothing has moved."""
        if self.exchanges < ENOUGH or self.total is None or not self.length:
            return None
        return math.sqrt(square_sum(self.total)) / self.length


def straight_alarm(ratio: float | None) -> str:
    """What an operator should know of a link of this straightness; empty where nothing.

    >>> straight_alarm(0.5), straight_alarm(0.93)[:34]
    ('', 'every exchange pushes the same way')
    """
    if ratio is None or ratio <= STRAIGHT:
        return ""
    return (
        f"every exchange pushes the same way (straightness {ratio:.2f} since this node's start): a peer that pulls all models "
        f"to its own, by a fault, other data or intent; ask that site"
    )
