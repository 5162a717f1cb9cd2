"""The Base-(k+1) graph: for any number of nodes a short list of rounds, each node with at most k neighbours a round, after
which everybody holds exactly the mean.

**Source**: Takezawa, Sato, Bao, Niwa, Yamada, "Beyond exponential graph: communication-efficient topologies for
decentralized learning via finite-time convergence", NeurIPS 2023: the k-peer hyper-hypercube, the simple Base-(k+1) graph
and the Base-(k+1) graph. **Differs**: the factors of a hyper-hypercube are as few as possible by search, theirs from
the largest down. Not here: how rounds are used (gossipfl.topology.schedules).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.topology.draws import Integers
from gossipfl.topology.graphs import Floats


class Mixing(NamedTuple):
    """One round: edges (E, 2) and the weight of each (E,), the same both ways."""

    edges: Integers
    weight: Floats


def base_graph(n: int, k: int) -> list[Mixing]:
    """The rounds of the Base-(k+1) graph of n nodes.

    **Laws**: the product of the rounds is 1/n everywhere, to rounding; no node has more than k neighbours in a round;
    at most 2 log_{k+1}(n) + 2 rounds.
    **Raises**: Misuse if n < 1 or k < 1.

    >>> [len(base_graph(n, 1)) for n in (2, 4, 5, 6, 25)], [len(base_graph(25, k)) for k in (2, 3, 4)]
    ([1, 2, 5, 4, 9], [6, 5, 2])
    """
    if n < 1 or k < 1:
        raise Misuse(f"a Base graph of {n} nodes with {k} neighbours -- both are at least 1")
    simple = _simple(np.arange(n), k)
    smooth = _smooth_part(n, k)
    nodes = np.arange(n).reshape(smooth, n // smooth)
    first = [_simple(part, k) for part in nodes]
    then = [_hyper(part, k) for part in nodes.T]
    both = [_joined([part[t] for part in parts]) for parts in (first, then) for t in range(len(parts[0]))]
    return simple if len(simple) <= len(both) else both


def _smooth_part(n: int, k: int) -> int:
    """The largest divisor of n without prime factors above k + 1."""
    part = 1
    for factor in range(2, k + 2):
        while n % (part * factor) == 0:
            part *= factor
    return part


def _joined(parts: list[Mixing]) -> Mixing:
    none = Mixing(np.empty((0, 2), np.int64), np.empty(0))
    return Mixing(
        np.concatenate([none.edges, *(part.edges for part in parts)]),
        np.concatenate([none.weight, *(part.weight for part in parts)]),
    )


def _cliques(groups: Integers) -> Mixing:
    """Groups (G, s) in which everybody takes the mean: every pair with weight 1 / s."""
    size = groups.shape[1]
    one, other = np.triu_indices(size, 1)
    edges = np.stack([groups[:, one].ravel(), groups[:, other].ravel()], axis=1)
    return Mixing(edges, np.full(len(edges), 1 / size))


@lru_cache(maxsize=4096)
def _factors(n: int, k: int) -> tuple[int, ...] | None:
    """The fewest factors, each at most k + 1, whose product is n; None if a prime factor is larger."""
    if n == 1:
        return ()
    found = [(*rest, factor) for factor in range(2, k + 2) if n % factor == 0 and (rest := _factors(n // factor, k)) is not None]
    return min(found, key=len, default=None)


def _hyper(nodes: Integers, k: int) -> list[Mixing]:
    """The k-peer hyper-hypercube: means over one digit of the node's number after another."""
    rounds, stride = [], 1
    for factor in _factors(len(nodes), k) or ():
        digits = nodes.reshape(-1, factor, stride)
        rounds.append(_cliques(np.swapaxes(digits, 1, 2).reshape(-1, factor)))
        stride *= factor
    return rounds


def _digits(n: int, base: int) -> list[tuple[int, int]]:
    """(a, p) of n = sum a base^p with 0 < a < base, largest first."""
    found, power = [], 0
    while n:
        n, a = divmod(n, base)
        found += [(a, power)] * (a > 0)
        power += 1
    return found[::-1]


def _simple(nodes: Integers, k: int) -> list[Mixing]:
    """The simple Base-(k+1) graph.

    With V_1, V_2, ... the blocks of n's digits in base k + 1: each block finds its own mean; then block after block gives
    its mean to the smaller ones, in the share that makes their mean that of all from it on; what its nodes got in
    return is spread by a last hyper-hypercube in each part of (k+1)^p nodes.
    """
    if _factors(len(nodes), k) is not None:
        return _hyper(nodes, k)
    digits = _digits(len(nodes), k + 1)
    sizes = [a * (k + 1) ** p for a, p in digits]
    blocks = np.split(nodes, np.cumsum(sizes)[:-1])
    own = [_hyper(block, k) for block in blocks]
    spread = [[_hyper(part, k) for part in block.reshape(a, -1)] for block, (a, _) in zip(blocks, digits, strict=True)]
    rounds = [_joined([of_block[t % len(of_block)] for of_block in own if of_block]) for t in range(len(own[0]))]
    for t in range(1 + digits[0][1]):
        parts: list[Mixing] = []
        if t < len(blocks) - 1:
            parts += _given(blocks[t], digits[t][0], np.concatenate(blocks[t + 1 :]), k)
        for block, of_block in enumerate(spread[: t + 1]):
            since = t - block - 1
            parts += [part[since] for part in of_block if 0 <= since < len(part)]
        rounds.append(_joined(parts))
    return rounds


def _given(block: Integers, a: int, rest: Integers, k: int) -> list[Mixing]:
    """The round in which a block meets the smaller ones: each of these meets one node of each of the block's a parts."""
    parts = block.reshape(a, -1)
    edges = np.stack([np.tile(rest, a), parts[:, : len(rest)].ravel()], axis=1)
    met = Mixing(edges, np.full(len(edges), len(block) / (len(block) + len(rest)) / a))
    alone = parts[:, len(rest) :].ravel()  # who meets nobody of the others meets its like
    whole = len(alone) // (k + 1) * (k + 1)
    groups = [alone[:whole].reshape(-1, k + 1), alone[whole:].reshape(1, -1)]
    return [met, *(_cliques(group) for group in groups if group.size)]
