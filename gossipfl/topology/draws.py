"""Random numbers that are the same on every machine: integer generator bits, and what exact arithmetic makes of them.

numpy promises the raw stream of a bit generator, not what `Generator.integers` or `permutation` make of it. Not here:
which graph is drawn (gossipfl.topology.generate), and anything secret.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Draws:
    """The stream of a seed and a label: Philox 4x64 keyed by SHA-256(seed | label), used in order.

    >>> Draws(1, "example").below(10, 5).tolist()
    [7, 8, 7, 5, 4]

    **Laws**: the same (seed, label) gives the same numbers whatever the machine, thread or version of numpy; another
    label gives an independent stream, so that nothing depends on the order of calls elsewhere.
    """

    def __init__(self, seed: int, *label: object) -> None:
        text = "|".join(str(part) for part in (seed, *label))
        self._bits = np.random.Philox(key=int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little"))

    def raw(self, count: int) -> NDArray[np.uint64]:
        """64 bits each."""
        drawn: NDArray[np.uint64] = self._bits.random_raw(count)
        return drawn

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Multiples of 2^-53 in [0, 1)."""
        return (self.raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def below(self, bound: int, count: int) -> Integers:
        """Whole numbers in 0..bound-1; the bias is below bound / 2^53."""
        return np.minimum((self.uniform(count) * bound).astype(np.int64), bound - 1)

    def order(self, count: int) -> Integers:
        """A permutation of 0..count-1."""
        return np.argsort(self.raw(count), kind="stable").astype(np.int64)
