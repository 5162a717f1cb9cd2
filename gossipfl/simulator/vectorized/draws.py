"""Random numbers named by seed, purpose, round and node, whoever asks first and in whichever thread. No global generator.

The engine computes the draws of all nodes at once; a plain loop computes those of one node. Both get the same numbers,
because each number is a function of its name alone: SplitMix64's finaliser over a counter. What is drawn once for a whole
round (who is absent, who meets whom) is here as well, so that switching one thing off shifts no other.

**Source**: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse

Bits = NDArray[np.uint64]
Integers = NDArray[np.int64]

GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
SECOND: Final = np.uint64(0x94D049BB133111EB)
ROW_BITS: Final = 22
"""Rows of one site at most 2^22: the lower bits of a sorting key name the row, the upper 42 are drawn."""

SHORT: Final = 8
"""Fewer numbers a node than this are computed column by column: short rows make short loops."""


def _mixed(bits: Bits) -> Bits:
    """The finaliser, in place."""
    scratch = np.empty_like(bits)
    for shift, factor in ((30, FIRST), (27, SECOND)):
        np.bitwise_xor(bits, np.right_shift(bits, np.uint64(shift), out=scratch), out=bits)
        np.multiply(bits, factor, out=bits)
    return np.bitwise_xor(bits, np.right_shift(bits, np.uint64(31), out=scratch), out=bits)


def stream(seed: int, purpose: str, *places: int) -> np.uint64:
    """The 64-bit start of a stream: seed, what for, and where (round, pass, ..)."""
    text = "|".join([str(seed), purpose, *map(str, places)])
    return np.uint64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little"))


def bits(start: np.uint64, nodes: Integers, count: int) -> Bits:
    """`count` numbers of 64 bits for each node: row i depends on (start, nodes[i]) only. **Shapes**: (N,) -> (N, count)."""
    keys = _mixed((nodes.astype(np.uint64) + np.uint64(1)) * GOLDEN ^ start)
    steps = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN
    if count < SHORT:
        return _mixed(keys + steps[:, None]).T
    return _mixed(keys[:, None] + steps)


def ahead(seed: int, purpose: str, rounds: range, nodes: Integers, count: int = 1) -> Bits:
    """What `bits` gives for the streams (seed, purpose, round). **Shapes**: -> (rounds, N, count)."""
    starts = np.array([stream(seed, purpose, round) for round in rounds], dtype=np.uint64)
    keys = _mixed((nodes.astype(np.uint64) + np.uint64(1)) * GOLDEN ^ starts[:, None])
    return _mixed(keys[..., None] + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)


def chance(drawn: Bits, share: float) -> NDArray[np.bool_]:
    """Which of the numbers, taken as `uniform` takes them, lie below the share."""
    return np.asarray((drawn >> np.uint64(11)) < np.uint64(math.ceil(share * 2.0**53)))


def uniform(start: np.uint64, nodes: Integers) -> NDArray[np.float64]:
    """One multiple of 2^-53 in [0, 1) for each node."""
    return (bits(start, nodes, 1)[:, 0] >> np.uint64(11)).astype(np.float64) * 2.0**-53


def orders(start: np.uint64, nodes: Integers, counts: Integers) -> Integers:
    """A permutation of 0 .. counts[i]-1 for each node, and after it what has no meaning. **Shapes**: -> (N, max count)."""
    widest = int(counts.max())
    if widest >= 1 << ROW_BITS:
        raise Misuse(f"a site of {widest} rows; at most {1 << ROW_BITS} are shuffled")
    keys = bits(start, nodes, widest)
    places = np.arange(widest, dtype=np.uint64)
    np.right_shift(keys, np.uint64(1), out=keys)  # below 2^63: the rows that are not there sort behind all
    np.bitwise_and(keys, ~np.uint64((1 << ROW_BITS) - 1), out=keys)
    np.bitwise_or(keys, places, out=keys)
    if int(counts.min()) < widest:
        keys[places >= counts[:, None].astype(np.uint64)] = np.uint64(2**64 - 1)
    keys.sort(axis=1)
    order: Integers = np.bitwise_and(keys, np.uint64((1 << ROW_BITS) - 1), out=keys).view(np.int64)
    return order


class Draws(Protocol):
    """What local steps draw: the orders of many nodes' rows for one pass of a round, or the generator of one node."""

    def orders(self, round: int, turn: int, nodes: Integers, counts: Integers) -> Integers: ...

    def of(self, node: int, round: int) -> Any: ...

    def each(self, nodes: Integers, counts: Integers, round: int, passes: int) -> Iterator[Any]:
        """`of` each of these nodes, which will shuffle their rows so many times."""
        ...


@dataclass(frozen=True)
class Named:
    """The engine's own: named by seed, round, pass and node; and by the tick, where a node may wake twice in a round."""

    seed: int
    tick: int | None = None

    def orders(self, round: int, turn: int, nodes: Integers, counts: Integers) -> Integers:
        return orders(self._stream("batches", round, turn), nodes, counts)

    def of(self, node: int, round: int) -> NodeDraws:
        return NodeDraws(self, node, round)

    def each(self, nodes: Integers, counts: Integers, round: int, passes: int) -> Iterator[NodeDraws]:
        """All shuffles at once: a node's own would cost as much as a step of a small net."""
        shuffled = [self.orders(round, turn, nodes, counts) for turn in range(passes)]
        for place, node in enumerate(nodes.tolist()):
            yield NodeDraws(self, node, round, [order[place, : counts[place]] for order in shuffled])

    def phase(self, node: int, round: int) -> int:
        """What seeds torch's generator for a node's local steps."""
        return int(self._stream("phase", round, node))

    def _stream(self, purpose: str, *places: int) -> np.uint64:
        return stream(self.seed, purpose, *places, *(() if self.tick is None else (self.tick,)))


class NodeDraws:
    """What learning.training.Trainer asks its generator for, of one node in one round: the numbers that `orders` gives."""

    def __init__(self, draws: Named, node: int, round: int, ready: list[Integers] | None = None) -> None:
        self.draws, self.node, self.round, self.passes, self.ready = draws, node, round, 0, ready or []

    def integers(self, high: int) -> int:
        return self.draws.phase(self.node, self.round) % high

    def permutation(self, rows: int) -> Integers:
        self.passes += 1
        if self.passes <= len(self.ready):
            return self.ready[self.passes - 1]
        order: Integers = self.draws.orders(self.round, self.passes - 1, np.array([self.node]), np.array([rows]))[0]
        return order
