"""Generators: a number of nodes, a seed and a few figures to the edges of a graph, whole arrays at a time.

Every draw comes from raw generator bits (gossipfl.topology.draws): one seed is one graph on any machine. A graph that
cannot be made as asked is refused with what can be. Not here: the spec strings (gossipfl.topology.spec), whether a
graph is connected or fast enough (its user asks).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.topology.draws import Draws, Integers
from gossipfl.topology.graphs import Floats, Graph, require_room

GRID: Final = 2**20
"""Places of a geometric graph are whole numbers below this: squared distances are exact in float64."""

TRIES: Final = 200
"""How often a random graph is drawn anew before it is refused."""


def circle(n: int) -> Floats:
    """(n, 2) places on the unit circle, for a drawing."""
    angle = 2 * np.pi * np.arange(n) / n - np.pi / 2
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def ring(n: int) -> Graph:
    """One cycle 0, 1, ..., n-1: two neighbours each.

    >>> ring(4).edges.tolist()
    [[0, 1], [0, 3], [1, 2], [2, 3]]
    """
    return circulant(n, (1,))


def path(n: int) -> Graph:
    """The ring without its last edge."""
    at = np.arange(n - 1)
    return Graph.of(n, np.stack([at, at + 1], axis=1), places=np.stack([np.arange(n, dtype=np.float64), np.zeros(n)], axis=1))


def star(n: int) -> Graph:
    """Node 0 in the middle, the others around: what a federation with a server looks like."""
    at = np.arange(1, n)
    places = np.concatenate([np.zeros((1, 2)), circle(max(n - 1, 1))[: n - 1]])
    return Graph.of(n, np.stack([np.zeros_like(at), at], axis=1), places=places)


def complete(n: int) -> Graph:
    """Everybody with everybody.

    **Raises**: Misuse above about 10,000 nodes: its edges do not fit, and nobody needs them as a list.
    """
    require_room(n * (n - 1) // 2)
    return Graph.of(n, np.stack(np.triu_indices(n, 1), axis=1), places=circle(n))


def circulant(n: int, offsets: Sequence[int]) -> Graph:
    """Node i with i +- each offset, modulo n."""
    at = np.arange(n)
    pairs = [np.stack([at, (at + offset) % n], axis=1) for offset in offsets]
    return Graph.of(n, np.concatenate(pairs) if pairs else (), places=circle(n))


def exponential(n: int) -> Graph:
    """Node i with i +- 1, 2, 4, ... modulo n: about 2 log2 n neighbours, a gap of about 2 / (log2 n + 2).

    **Source**: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for decentralized deep training",
    2021. **Differs**: undirected, where theirs points forward only.
    """
    return circulant(n, [2**power for power in range(max(n - 1, 1).bit_length()) if 2**power < n])


def lattice(shape: Sequence[int], wraps: bool) -> Graph:
    """A grid of any dimensions, with its borders joined if it wraps.

    >>> lattice((2, 3), False).edges.tolist()
    [[0, 1], [0, 3], [1, 2], [1, 4], [2, 5], [3, 4], [4, 5]]
    """
    require_room(math.prod(shape) * len(shape))
    number = np.arange(math.prod(shape)).reshape(tuple(shape))
    pairs: list[Integers] = []
    for axis, length in enumerate(shape):
        ahead = np.roll(number, -1, axis)
        keep = np.arange(length) < length - (not wraps)
        pairs.append(np.stack([np.compress(keep, one, axis).ravel() for one in (number, ahead)], axis=1))
    last = np.stack([number.ravel() % shape[-1], number.ravel() // shape[-1]], axis=1).astype(np.float64)
    return Graph.of(number.size, np.concatenate(pairs), places=last)


def hypercube(n: int) -> Graph:
    """Nodes whose numbers differ in one bit.

    **Raises**: Misuse if n is not a power of two.
    """
    bits = n.bit_length() - 1
    if n != 1 << bits:
        raise Misuse(f"a hypercube has 2^d nodes, not {n} -- take {1 << bits} or {2 << bits}, or exponential")
    at = np.arange(n)
    pairs = [np.stack([at, at ^ (1 << bit)], axis=1) for bit in range(bits)]
    return Graph.of(n, np.concatenate(pairs) if pairs else (), places=circle(n))


def random_regular(n: int, k: int, seed: int) -> Graph:
    """A random graph in which everybody has k neighbours, connected.

    Stubs are paired at random; a loop or a second edge between the same two is exchanged with a random edge. Close to
    uniform, not exactly. A dense one is the complement of a sparse one; k = 2 is a ring in random order.

    **Raises**: Misuse if there is none: k >= n, n k odd, k < 2 (but for one edge).
    """
    if not 0 < k < n:
        raise Misuse(f"{k} neighbours each among {n} nodes -- take 1 to {n - 1}")
    if n * k % 2:
        raise Misuse(f"{n} nodes of degree {k} have {n * k}/2 edges, no whole number -- take degree {k + 1} or {n + 1} nodes")
    if k == 1 and n > 2:
        raise Misuse(f"{n} nodes of degree 1 are pairs that never hear of each other -- take degree 3 or more")
    require_room(n * k // 2)
    for attempt in range(TRIES):
        made = Graph.of(n, _regular(n, k, Draws(seed, "random-regular", n, k, attempt)), places=circle(n))
        if len(made.edges) * 2 == n * k and made.is_connected:
            return made
    raise Misuse(f"no connected graph of {n} nodes of degree {k} in {TRIES} draws -- raise the degree or change the seed")


def _regular(n: int, k: int, draws: Draws) -> Integers:
    if k == n - 1:
        return np.stack(np.triu_indices(n, 1), axis=1)
    if k == 2:
        order = draws.order(n)
        return np.stack([order, np.roll(order, -1)], axis=1)
    if 2 * k >= n:
        left = _keys(n, _regular(n, n - 1 - k, draws)) if k < n - 1 else np.empty(0, np.int64)
        everyone = np.stack(np.triu_indices(n, 1), axis=1)
        return everyone[~np.isin(_keys(n, everyone), left)]
    stubs = np.repeat(np.arange(n), k)[draws.order(n * k)]
    return _mended(n, stubs.reshape(-1, 2), draws)


def _keys(n: int, pairs: Integers) -> Integers:
    keys: Integers = pairs.min(axis=1) * n + pairs.max(axis=1)
    return keys


def _mended(n: int, pairs: Integers, draws: Draws) -> Integers:
    """The pairs without loops and repetitions, degrees kept: bad pair (a, b) and random (c, d) become (a, d), (c, b)."""
    keys = _keys(n, pairs)
    first = np.zeros(len(pairs), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    bad = np.flatnonzero(~first | (pairs[:, 0] == pairs[:, 1])).tolist()
    taken = set(keys.tolist()) if bad else set()
    waiting = set(bad)
    for _ in range(TRIES * max(1, len(bad))):
        if not waiting:
            break
        one = min(waiting)
        for other in draws.below(len(pairs), 64).tolist():
            if other in waiting:
                continue
            (a, b), (c, d) = pairs[one].tolist(), pairs[other].tolist()
            new = {min(a, d) * n + max(a, d), min(c, b) * n + max(c, b)}
            if a == d or c == b or len(new) < 2 or new & taken:
                continue
            taken.discard(min(c, d) * n + max(c, d))
            taken |= new
            pairs[one], pairs[other] = (a, d), (c, b)
            waiting.discard(one)
            break
    return pairs


def erdos_renyi(n: int, p: float, seed: int) -> Graph:
    """Every pair with probability p, independently.

    The gaps between edges in the list of all pairs are geometric; they are drawn from a table of (1 - p)^k made by
    multiplication, because the logarithm's last bit differs between machines.

    **Source**: Batagelj, Brandes, "Efficient generation of large random networks", 2005, for the gaps.
    """
    if not 0 < p <= 1:
        raise Misuse(f"probability {p} -- take above 0, up to 1")
    pairs = n * (n - 1) // 2
    require_room(math.ceil(pairs * p))
    if p == 1:
        return complete(n)
    draws = Draws(seed, "erdos-renyi", n, repr(p))
    table = np.multiply.accumulate(np.full(min(2**20, math.ceil(40 / p)), 1 - p))  # survival of k+1 pairs
    found: list[Integers] = []
    at = -1
    while at < pairs:
        gaps = np.searchsorted(-table, -draws.uniform(max(64, int(pairs * p / 4))), side="left")
        ends = at + np.cumsum(np.where(gaps == len(table), len(table), gaps + 1))
        found.append(ends[(gaps < len(table)) & (ends < pairs)])
        at = int(ends[-1])
    numbers = np.concatenate(found)
    starts = np.arange(n) * (2 * n - np.arange(n) - 1) // 2  # number of the pair (i, i + 1)
    lower = np.searchsorted(starts, numbers, side="right") - 1
    return Graph.of(n, np.stack([lower, numbers - starts[lower] + lower + 1], axis=1), places=circle(n))


def small_world(n: int, k: int, p: float, seed: int) -> Graph:
    """A ring of k nearest neighbours each, of whose edges a share p goes to a random node instead.

    **Source**: Watts, Strogatz, "Collective dynamics of small-world networks", 1998. **Differs**: all edges are rewired
    at once, not one after the other; what would repeat an edge is drawn again.
    """
    if k % 2 or not 2 <= k < n:
        raise Misuse(f"{k} nearest neighbours among {n} -- take an even number from 2 to {n - 1}")
    at = np.arange(n)
    pairs = np.concatenate([np.stack([at, (at + step) % n], axis=1) for step in range(1, k // 2 + 1)])
    if 2 * (k // 2) == n:
        raise Misuse(f"{k} nearest neighbours among {n} -- take fewer")
    draws = Draws(seed, "small-world", n, k, repr(p))
    todo = np.flatnonzero(draws.uniform(len(pairs)) < p)
    for _ in range(TRIES):
        if not todo.size:
            break
        wanted = np.stack([pairs[todo, 0], draws.below(n, len(todo))], axis=1)
        wanted_keys, keys = _keys(n, wanted), _keys(n, pairs)
        first = np.zeros(len(todo), bool)
        first[np.unique(wanted_keys, return_index=True)[1]] = True
        good = first & (wanted[:, 0] != wanted[:, 1]) & ~np.isin(wanted_keys, keys)
        pairs[todo[good]] = wanted[good]
        todo = todo[~good]
    return Graph.of(n, pairs, places=circle(n))


def scale_free(n: int, m: int, seed: int) -> Graph:
    """Nodes come one by one and choose m earlier ones, in proportion to their degree; node m begins with a star.

    A loop over nodes: each choice depends on those before (100,000 nodes of m = 3: well below a second).

    **Source**: Barabasi, Albert, "Emergence of scaling in random networks", 1999.
    """
    if not 1 <= m < n:
        raise Misuse(f"{m} links a newcomer among {n} nodes -- take 1 to {n - 1}")
    require_room(n * m)
    draws = Draws(seed, "scale-free", n, m)
    ends = [*range(m), *([m] * m)]  # every node as often as it has edges
    pairs = [(node, m) for node in range(m)]
    stream: Iterator[float] = iter(())
    for node in range(m + 1, n):
        chosen: set[int] = set()
        while len(chosen) < m:
            share = next(stream, None)
            if share is None:
                stream = iter(draws.uniform(4096).tolist())
                continue
            chosen.add(ends[int(share * len(ends))])
        pairs += [(other, node) for other in sorted(chosen)]
        ends += [*sorted(chosen), *([node] * m)]
    return Graph.of(n, pairs, places=circle(n))


def geometric(n: int, degree: float, seed: int) -> Graph:
    """Random places in a square; who is near is linked, `degree` neighbours each on average away from the border.

    **Source**: Gilbert, "Random plane networks", 1961.
    """
    from scipy.spatial import cKDTree

    if not 0 < degree < n:
        raise Misuse(f"{degree} neighbours on average among {n} nodes -- take above 0, below {n}")
    require_room(int(n * degree))
    places = Draws(seed, "geometric", n).below(GRID, 2 * n).reshape(n, 2).astype(np.float64)
    radius = round(GRID * math.sqrt(degree / (math.pi * n)))
    pairs = cKDTree(places).query_pairs(radius, output_type="ndarray")
    return Graph.of(n, pairs, places=places / GRID)


def clustered(n: int, regions: int, inside: int, long: int, seed: int) -> Graph:
    """Regions of nearly equal size, `inside` neighbours each within, and `long` links from each region to the next in a
    ring of regions.

    A region too small for a random regular graph is complete; an odd product makes one neighbour more.
    """
    if not 2 <= regions <= n // 2:
        raise Misuse(f"{regions} regions of {n} nodes -- take 2 to {max(n // 2, 2)} (two nodes each or more)")
    starts = np.arange(regions + 1) * n // regions
    pairs: list[Integers] = []
    places = np.empty((n, 2))
    for region in range(regions):
        low, size = int(starts[region]), int(starts[region + 1] - starts[region])
        degree = inside + (inside * size) % 2
        within = complete(size) if degree >= size - 1 else random_regular(size, degree, _mixed(seed, region))
        pairs.append(within.edges + low)
        places[low : low + size] = circle(regions)[region] * 3 + circle(size) * min(1.0, 6 / regions)
    draws = Draws(seed, "clustered", n, regions, inside, long)
    for region in range(regions if regions > 2 else 1):
        there = (region + 1) % regions
        sizes = [int(starts[one + 1] - starts[one]) for one in (region, there)]
        if long > min(sizes):
            raise Misuse(f"{long} long links between regions of {sizes[0]} and {sizes[1]} -- take at most {min(sizes)}")
        ends = [starts[one] + draws.order(size)[:long] for one, size in zip((region, there), sizes, strict=True)]
        pairs.append(np.stack(ends, axis=1))
    return Graph.of(n, np.concatenate(pairs), places=places)


def _mixed(seed: int, part: int) -> int:
    return int(Draws(seed, "part", part).raw(1)[0] >> np.uint64(1))
