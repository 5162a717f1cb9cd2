"""Who exchanges with whom in a round, as arrays: matchings, all edges, everybody's mean, ticks in batches without conflict.

Nodes are 0 .. N-1 and an edge is (lo, hi), lo < hi. Not here: how graphs are made (gossipfl.topology), and arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.learning.mixing import mu
from gossipfl.simulator.vectorized.draws import Integers, bits, stream

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

EDGES: Final = np.arange(1)
"""One stream a round for what is drawn over all edges: the node that such a draw is named after."""


@dataclass(frozen=True)
class Meetings:
    """One round's exchanges. **Shapes**: lo, hi, edge, gamma (E,)."""

    lo: Integers
    hi: Integers
    gamma: Floats | float = 1.0
    """share of the pair's reduced mass that moves; see learning.mixing.flow_step"""
    edge: Integers | None = None
    """number of each edge in the graph; None where there is no graph whose links could remember anything"""
    is_disjoint: bool = True
    """no node twice: then models change in place"""
    at_lo: Mask | None = None
    at_hi: Mask | None = None
    """where a half is applied; None: everywhere"""
    late: Mask | None = None
    """which are applied only after a delay"""
    sender: Integers | None = None
    """the node that sends, where only one end does; None: both send"""

    def __len__(self) -> int:
        return len(self.lo)

    def only(self, kept: Mask | Integers | slice) -> Meetings:
        """Some of them."""
        parts: dict[str, Any] = {"lo": self.lo[kept], "hi": self.hi[kept]}
        for name in ("gamma", "edge", "at_lo", "at_hi", "late", "sender"):
            value = getattr(self, name)
            if isinstance(value, np.ndarray):
                parts[name] = value[kept]
        return replace(self, **parts)


@dataclass(frozen=True)
class Links:
    """The edges of a static graph. **Shapes**: lo, hi (E,), degree (N,)."""

    nodes: int
    lo: Integers
    hi: Integers
    degree: Integers

    @classmethod
    def of(cls, edges: NDArray[Any], nodes: int) -> Links:
        """**Raises**: Misuse for a loop, or a node that is not there."""
        pairs = np.sort(np.asarray(edges, dtype=np.int64).reshape(-1, 2), axis=1)
        if len(pairs) and (pairs[0, 0] < 0 or pairs.max() >= nodes or (pairs[:, 0] == pairs[:, 1]).any()):
            raise Misuse(f"edges join two different nodes of 0 .. {nodes - 1}")
        pairs = np.unique(pairs[:, 0] * nodes + pairs[:, 1])
        lo, hi = pairs // nodes, pairs % nodes
        return cls(nodes, lo, hi, np.bincount(np.concatenate([lo, hi]), minlength=nodes))

    def __len__(self) -> int:
        return len(self.lo)

    def numbers(self, lo: Integers, hi: Integers) -> Integers:
        """Which edge each pair is. **Raises**: Misuse for a pair that is none."""
        keys, wanted = self.lo * self.nodes + self.hi, lo * self.nodes + hi
        edge = np.searchsorted(keys, wanted)
        if (edge == len(keys)).any() or (keys[edge] != wanted).any():
            raise Misuse("the schedule has pairs that are no edges of its graph")
        return edge

    def neighbours(self) -> tuple[Integers, Integers, Integers]:
        """(starts (N + 1,), neighbour, edge): the neighbours of node i lie at starts[i] .. starts[i + 1]."""
        ends = np.concatenate([self.lo, self.hi])
        order = np.argsort(ends, kind="stable")
        starts = np.concatenate([[0], np.cumsum(self.degree)])
        return starts, np.concatenate([self.hi, self.lo])[order], np.tile(np.arange(len(self)), 2)[order]


def metropolis(links: Links, masses: Floats) -> Floats:
    """theta_ij = min(m_i / (d_i + 1), m_j / (d_j + 1)) as a share of the pair's reduced mass. **Shapes**: (E,).

    **Laws**: with W = I - diag(1/m) L_theta every row is a mean with weights of at least 0.
    **Source**: Xiao, Boyd, "Fast linear iterations for distributed averaging" (2004); "Differs": masses are in.
    """
    share = masses / (links.degree + 1)
    theta = np.minimum(share[links.lo], share[links.hi])
    return np.asarray(theta / mu(masses[links.lo], masses[links.hi]))


def matching(links: Links, present: Mask, seed: int, round: int, turn: int = 0) -> Meetings:
    """A maximal matching among those present: edges in random order, each taken if both its ends are free.

    **Randomness**: one number an edge, of the stream (seed, matching, round), and (.., turn) for a second or later one.
    """
    keys = bits(stream(seed, "matching", round, *((turn,) if turn else ())), EDGES, len(links))[0]
    if present.all():
        order = np.argsort(keys)
    else:
        there = np.flatnonzero(present[links.lo] & present[links.hi])
        order = there[np.argsort(keys[there])]
    edge = np.concatenate(list(firsts(links.lo[order], links.hi[order], links.nodes)) or [order])
    edge = order[edge]
    return Meetings(links.lo[edge], links.hi[edge], 1.0, edge)


def firsts(one: Integers, other: Integers, nodes: int, *, wait: bool = False) -> Iterator[Integers]:
    """Pairs in an order, taken in turns: those both of whose nodes stand in no earlier pair that is left. Each turn gives
    places in the order. Pairs that meet a node of a turn fall out, or with `wait` are left for the next."""
    ends = np.empty(2 * len(one), dtype=np.int64)
    ends[0::2], ends[1::2] = one, other
    left = np.arange(len(one))
    first = np.empty(nodes, dtype=np.int64)
    free = np.ones(nodes, dtype=bool)
    while len(left):
        place = np.arange(len(ends)) >> 1
        first[ends[::-1]] = place[::-1]  # the earliest pair of each node is written last
        met = first[ends] == place
        now = met[0::2] & met[1::2]
        yield left[now]
        if wait:
            stay = ~now
        else:
            free[one[left[now]]] = free[other[left[now]]] = False
            stay = free[one[left]] & free[other[left]]
        left, ends = left[stay], ends[np.repeat(stay, 2)]


def every_edge(links: Links, gamma: Floats, present: Mask) -> Meetings:
    """All edges between nodes that are present, each with its share."""
    edge = np.flatnonzero(present[links.lo] & present[links.hi])
    return Meetings(links.lo[edge], links.hi[edge], gamma[edge], edge, is_disjoint=False)


def drawn(
    edges: NDArray[Any],
    theta: Floats,
    masses: Floats,
    present: Mask,
    *,
    is_directed: bool = False,
    links: Links | None = None,
) -> Meetings:
    """The exchanges of a round of gossipfl.topology's schedules. Directed: (who moves, towards whom), one end applies.

    `links`: the graph that all its pairs are edges of, where there is one.

    **Shapes**: edges (E, 2), theta (E,).
    """
    one, other = edges[:, 0], edges[:, 1]
    kept = present[one] & present[other]
    one, other, theta = one[kept], other[kept], theta[kept]
    lo, hi = np.minimum(one, other), np.maximum(one, other)
    ends = np.bincount(np.concatenate([lo, hi]), minlength=1)
    gamma = np.asarray(theta / mu(masses[lo], masses[hi]))
    edge = None if links is None else links.numbers(lo, hi)
    met = Meetings(lo, hi, gamma, edge, int(ends.max()) <= 1)
    return replace(met, at_lo=one == lo, at_hi=one == hi, sender=other) if is_directed else met


def ticks(links: Links, present: Mask, seed: int, round: int) -> Iterator[tuple[Integers, Meetings]]:
    """One tick a node in the mean, each a random node that wakes, trains and asks a random neighbour.

    They come in batches (who wakes, its exchange), in the order in which ticks that share no node may be done at once:
    what comes out is what one tick after the other would give.

    **Randomness**: three numbers a tick, of the stream (seed, ticks, round).
    """
    nodes = np.arange(links.nodes)
    start = stream(seed, "ticks", round)
    three = (bits(start, nodes, 2) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    awake = (three[:, 0] * links.nodes).astype(np.int64)
    starts, neighbour, edges = links.neighbours()
    awake = awake[links.degree[awake] > 0]
    place = starts[awake] + (three[: len(awake), 1] * links.degree[awake]).astype(np.int64)
    other, edge = neighbour[place], edges[place]
    fine = present[awake] & present[other]
    awake, other, edge = awake[fine], other[fine], edge[fine]
    for now in firsts(awake, other, links.nodes, wait=True):
        a, b = awake[now], other[now]
        yield a, Meetings(np.minimum(a, b), np.maximum(a, b), 1.0, edge[now])


class Schedule(Protocol):
    """What changes with time: gossipfl.topology's schedules, or one's own. `round` gives (edges (E, 2), theta (E,), directed)."""

    def round(self, t: int) -> tuple[Any, Any, bool]: ...
