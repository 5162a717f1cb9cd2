"""Schedules: who mixes with whom in round t, and how much, as arrays that a vectorised engine uses without Python a node.

A round is edges (E, 2) with a conductance theta (E,), and x_i <- x_i + (theta / m_i) (x_j - x_i), masses m_i = 1 unless
given. Undirected: both ends move, so the mass-weighted mean is kept. Directed: the row is (who moves, towards whom).
Draws depend on (seed, round) alone: any round may be asked for in any order. Not here: models (the engine), who is absent
(it leaves edges out: each round is right for any subset of its edges, in the mean).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.topology import base_graph as base
from gossipfl.topology.draws import Draws, Integers
from gossipfl.topology.graphs import Floats, Graph
from gossipfl.topology.weights import conductances, masses_of


class Round(NamedTuple):
    """One round of mixing.

    **Shapes**: edges (E, 2) int64, theta (E,) float64. Undirected rows are (lower, higher), no pair twice.
    """

    edges: Integers
    theta: Floats
    directed: bool = False


class Schedule(Protocol):
    """Round t of any topology, static or not."""

    @property
    def name(self) -> str: ...
    @property
    def n(self) -> int: ...
    @property
    def period(self) -> int | None:
        """Rounds after which it repeats; 1: static; None: drawn anew each round."""
        ...

    @property
    def exact_after(self) -> int | None:
        """Rounds (from a multiple of the period on) after which everybody holds exactly the mean; None: never exactly."""
        ...

    def round(self, t: int) -> Round:
        """The edges of round t = 0, 1, ...; the same each time it is asked."""
        ...


@dataclass(frozen=True, slots=True)
class Listed:
    """A schedule that repeats a list of rounds."""

    name: str
    n: int
    rounds: tuple[Round, ...]
    exact_after: int | None = None

    @property
    def period(self) -> int | None:
        """The length of the list."""
        return len(self.rounds)

    def round(self, t: int) -> Round:
        """Round t modulo the length."""
        return self.rounds[t % len(self.rounds)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A schedule whose every round is drawn."""

    name: str
    n: int
    draw: Callable[[int], Round]
    exact_after: int | None = None
    period: int | None = None

    def round(self, t: int) -> Round:
        """Round t, drawn from (seed, t)."""
        return self.draw(t)


def static(graph: Graph, rule: str = "mass-metropolis", masses: Floats | None = None) -> Schedule:
    """All edges of a graph in every round, by a rule of `weights.RULES`; FedAvg is the complete graph with its own."""
    full = 2 * len(graph.edges) == graph.n * (graph.n - 1)
    if full and rule == "mass-metropolis":
        held = masses_of(graph.n, masses)
        theta = held[graph.edges[:, 0]] * held[graph.edges[:, 1]] / held.sum()
        return Listed(graph.name, graph.n, (Round(graph.edges, theta),), exact_after=1)
    return Listed(graph.name, graph.n, (Round(graph.edges, conductances(graph, rule, masses)),))


def one_peer_exponential(n: int, masses: Floats | None = None) -> Schedule:
    """Round t: everybody takes the mean of itself and of who stands 2^(t mod ceil(log2 n)) steps ahead. Directed.

    **Laws**: doubly stochastic; the exact mean after log2 n rounds if n is a power of two.
    **Source**: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for decentralized deep training",
    2021. **Raises**: Misuse for unequal masses: with half from one neighbour the weighted mean would move.
    """
    _require_equal(masses_of(n, masses), "one-peer-exponential")
    at, length = np.arange(n), max(1, (n - 1).bit_length())
    rounds = tuple(_directed(np.stack([at, (at + 2**step) % n], axis=1), np.full(n, 0.5)) for step in range(length))
    return Listed("one-peer-exponential", n, rounds, exact_after=length if n == 2**length else None)


def _directed(edges: Integers, share: Floats) -> Round:
    keep = edges[:, 0] != edges[:, 1]
    return Round(edges[keep], share[keep], directed=True)


def base_graph(n: int, k: int, masses: Floats | None = None) -> Schedule:
    """The Base-(k+1) graph: at most k neighbours a round, the exact mean after each period, for every n.

    **Raises**: Misuse for unequal masses (mix m x and m instead, and divide), n < 1, k < 1.
    **Source**: gossipfl.topology.base_graph.

    >>> base_graph(25, 2).period
    6
    """
    _require_equal(masses_of(n, masses), "base")
    rounds = tuple(Round(np.sort(mixing.edges, axis=1), mixing.weight) for mixing in base.base_graph(n, k))
    none = Round(np.empty((0, 2), np.int64), np.empty(0))
    return Listed(f"base:{k}", n, rounds or (none,), exact_after=len(rounds) or 1)


def _require_equal(held: Floats, name: str) -> None:
    if held.size and held.max() - held.min() > 1e-12 * held.max():
        raise Misuse(
            f"{name} averages equal masses, not {held.min():g} to {held.max():g} -- leave the masses out and weight the "
            "gradients by size, or use a matching or a graph with mass-metropolis weights"
        )


def _pairs(edges: Integers, held: Floats, gamma: float) -> Round:
    """An exchange on each edge: gamma times the reduced mass; at gamma 1 both land on their weighted mean."""
    one, other = held[edges[:, 0]], held[edges[:, 1]]
    return Round(edges, gamma * one * other / (one + other))


def random_matching(
    n: int, seed: int, graph: Graph | None = None, masses: Floats | None = None, gamma: float = 1.0
) -> Schedule:
    """Each round disjoint pairs that exchange: of all nodes at random (one is left over if n is odd), or of a graph.

    On a graph: edges in random order, each taken if both ends are still free; no further edge fits (maximal).

    **Laws**: on all nodes, n even, a round leaves (n - 2) / (2 (n - 1)) of the squared disagreement in the mean at
    gamma 1 (Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", 2006, for the single pair).
    **Randomness**: n or E raw draws a round and more for what is left, keyed by (seed, round).
    """
    held = masses_of(n, masses)
    name = "random-matching" + (f" of {graph.name}" if graph else "")

    def draw(t: int) -> Round:
        draws = Draws(seed, "random-matching", t)
        if graph is not None:
            return _pairs(maximal_matching(graph, draws), held, gamma)
        order = draws.order(n)
        return _pairs(np.sort(order[: n // 2 * 2].reshape(-1, 2), axis=1), held, gamma)

    return Drawn(name, n, draw)


def maximal_matching(graph: Graph, draws: Draws) -> Integers:
    """Disjoint edges (M, 2), none of the others fits: the greedy matching of a random order of the edges.

    All at once: an edge whose draw is the smallest at both its ends is taken; then again among what is left.
    """
    edges, keys = graph.edges, draws.raw(len(graph.edges))
    least = np.empty(graph.n, np.uint64)
    taken = np.zeros(graph.n, bool)
    found: list[Integers] = []
    while len(edges):
        one, other = edges[:, 0], edges[:, 1]
        least.fill(np.iinfo(np.uint64).max)
        np.minimum.at(least, one, keys)
        np.minimum.at(least, other, keys)
        chosen = (least[one] == keys) & (least[other] == keys)
        found.append(edges[chosen])
        taken[one[chosen]] = taken[other[chosen]] = True
        left = ~(taken[one] | taken[other])
        edges, keys = edges[left], keys[left]
    return np.concatenate(found) if found else edges


def edge_colouring(graph: Graph, masses: Floats | None = None, gamma: float = 1.0) -> Schedule:
    """Every edge of a graph once in a period, in disjoint pairs: round t is colour t, round robin.

    The complete graph in n - 1 rounds (n if odd) as in a tournament; else greedy, at most 2 d - 1 colours.
    """
    held = masses_of(graph.n, masses)
    colours = _tournament(graph.n) if 2 * len(graph.edges) == graph.n * (graph.n - 1) else _greedy_colours(graph)
    rounds = tuple(_pairs(edges, held, gamma) for edges in colours)
    return Listed(f"edge-colouring of {graph.name}", graph.n, rounds or (_pairs(graph.edges, held, gamma),))


def _tournament(n: int) -> list[Integers]:
    """The circle method: one stands still, the others turn."""
    size = n + n % 2
    at = np.arange(1, size // 2)
    found = []
    for turn in range(size - 1):
        ends = np.stack([(turn + at) % (size - 1), (turn - at) % (size - 1)], axis=1)
        pairs = np.sort(np.concatenate([[[turn, size - 1]], ends]), axis=1)
        found.append(pairs[pairs[:, 1] < n])
    return [pairs for pairs in found if len(pairs)]


def _greedy_colours(graph: Graph) -> list[Integers]:
    used = [0] * graph.n  # bit c: an edge of colour c ends here
    colours = np.empty(len(graph.edges), np.int64)
    for at, (one, other) in enumerate(graph.edges.tolist()):
        free = ~(used[one] | used[other])
        lowest = free & -free
        used[one] |= lowest
        used[other] |= lowest
        colours[at] = lowest.bit_length() - 1
    return [graph.edges[colours == colour] for colour in range(int(colours.max(initial=-1)) + 1)]


def epidemic_oracle(n: int, s: int, seed: int, masses: Floats | None = None) -> Schedule:
    """Each round a new random graph in which everybody has s neighbours; everybody takes the mean of itself and them.

    **Laws**: the neighbours of a node are a uniform s-subset of the others, so that with equal masses a round leaves
    (1 - s / (n - 1)) / (s + 1) of the squared disagreement in the mean; doubly stochastic.
    **Source**: de Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, Sharma, "Epidemic Learning: boosting decentralized
    learning with randomized communication", NeurIPS 2023 (EL-Oracle). **Differs**: the s-regular graph is a circulant of
    random steps under a random relabelling, not uniform among all: that costs one permutation a round.
    **Raises**: Misuse if 0 < s < n does not hold, or n and s are both odd.
    """
    if not 0 < s < n or (s % 2 and n % 2):
        raise Misuse(f"{s} neighbours each of {n} nodes -- take 1 to {n - 1}, and one of the two even")
    held = masses_of(n, masses)

    def draw(t: int) -> Round:
        draws = Draws(seed, "epidemic-oracle", s, t)
        steps = (1 + draws.order((n - 1) // 2)[: s // 2]).tolist() + ([n // 2] if s % 2 else [])
        order, at = draws.order(n), np.arange(n)
        halves = [at[: n // 2] if 2 * step == n else at for step in steps]
        ends = [np.stack([order[one], order[(one + step) % n]], axis=1) for one, step in zip(halves, steps, strict=True)]
        edges = np.sort(np.concatenate(ends), axis=1)
        return Round(edges, np.minimum(held[edges[:, 0]], held[edges[:, 1]]) / (s + 1))

    return Drawn(f"epidemic-oracle:{s}", n, draw)


def epidemic_local(n: int, s: int, seed: int, masses: Floats | None = None) -> Schedule:
    """Each round everybody sends to s random others; who receives takes the mean of itself and what came. Directed.

    **Laws**: a row sums to one, a column need not: the mean moves at random, without bias. With equal masses a round
    leaves (1 - (1 - s / (n - 1))^n) / s - 1 / (n - 1) of the squared distance from the old mean, in the mean.
    **Source**: as `epidemic_oracle` (EL-Local).
    **Raises**: Misuse unless 0 < s < n.
    """
    if not 0 < s < n:
        raise Misuse(f"{s} receivers of {n} nodes -- take 1 to {n - 1}")
    held = masses_of(n, masses)

    def draw(t: int) -> Round:
        draws = Draws(seed, "epidemic-local", s, t)
        senders = np.repeat(np.arange(n), s)
        receivers = (senders + 1 + _subsets(n, s, draws).ravel()) % n
        weight = held[senders]
        total = held + np.bincount(receivers, weight, n)
        share = weight / total[receivers]
        return Round(np.stack([receivers, senders], axis=1), share * held[receivers], directed=True)

    return Drawn(f"epidemic-local:{s}", n, draw)


def _subsets(n: int, s: int, draws: Draws) -> Integers:
    """(n, s) rows of distinct numbers below n - 1, each row uniform."""
    if s * s > n or n < 8:
        keys = draws.raw(n * (n - 1)).reshape(n, n - 1)
        return np.argsort(keys, axis=1, kind="stable")[:, :s]
    rows = draws.below(n - 1, n * s).reshape(n, s)
    while True:
        ordered = np.sort(rows, axis=1)
        again = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if not again.size:
            return rows
        rows[again] = draws.below(n - 1, len(again) * s).reshape(-1, s)


def mix(x: Floats, found: Round, masses: Floats | None = None) -> Floats:
    """x (n, ...) after a round: the reference that engines are held against, and what rates are measured with."""
    held = masses_of(len(x), masses)
    i, j = found.edges[:, 0], found.edges[:, 1]
    flow = found.theta.reshape(-1, *[1] * (x.ndim - 1)) * (x[j] - x[i])
    moved = np.zeros_like(x)
    np.add.at(moved, i, flow)
    if not found.directed:
        np.subtract.at(moved, j, flow)
    return x + moved / held.reshape(-1, *[1] * (x.ndim - 1))


def contraction(schedule: Schedule, rounds: int = 30, vectors: int = 8, seed: int = 0) -> float:
    """The share of the disagreement (root mean square) that a round leaves, measured: `vectors` random starts, a geometric
    mean over whole periods. 0 where the mean is exact within them. For equal masses."""
    period = schedule.period or 1
    rounds = max(period, rounds // period * period)
    x = Draws(seed, "contraction").uniform(schedule.n * vectors).reshape(-1, vectors)
    x -= x.mean(axis=0)
    first = float(np.linalg.norm(x))
    logs = 0.0
    for t in range(rounds):
        x = mix(x, schedule.round(t))
        x -= x.mean(axis=0)
        left = float(np.linalg.norm(x))
        if left < 1e-12 * first:
            return 0.0
        logs += math.log(left / first)
        x *= first / left
    return math.exp(logs / rounds)
