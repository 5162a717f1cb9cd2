"""The rules of deployed nodes: graphs made from member ids, the same at every node, and how fast they mix.

A graph is an adjacency: id -> sorted tuple of neighbours, ids in order. Not here: who is quiet or whom a node chooses
next (gossipfl.protocol.neighbours), graphs of a simulation (gossipfl.topology.graphs) and weights of a synchronous round
(gossipfl.topology.weights).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from gossipfl.errors import Misuse

if TYPE_CHECKING:
    import networkx

Adjacency = dict[str, tuple[str, ...]]

COMPLETE_UP_TO: Final = 16
"""Members up to which everybody may talk to everybody: 15 links of three vectors each are still cheap on disk."""

DEGREE: Final = 6
"""Default degree above that: 415 hospitals, 6-regular, reached .9998 of centralized at the worst node."""

SLOWEST: Final = 0.03
"""lambda2 / (2 d) below which a graph is too slow to train on: a ring of 415 stays at .967 of centralized."""

RESIDUE: Final = 0.01
"""Share of the disagreement that may be left after the release."""


def _adjacency(ids: Iterable[str], edges: Iterable[tuple[str, str]]) -> Adjacency:
    neighbours: dict[str, set[str]] = {member: set() for member in sorted(ids)}
    for one, other in edges:
        if one != other:
            neighbours[one].add(other)
            neighbours[other].add(one)
    return {member: tuple(sorted(found)) for member, found in neighbours.items()}


def complete(ids: Iterable[str]) -> Adjacency:
    """Everybody with everybody.

    >>> complete(["b", "a", "c"])
    {'a': ('b', 'c'), 'b': ('a', 'c'), 'c': ('a', 'b')}
    """
    members = sorted(ids)
    return _adjacency(members, ((one, other) for one in members for other in members))


def _cycle(order: list[str]) -> list[tuple[str, str]]:
    return [*pairwise(order), (order[-1], order[0])] if len(order) > 1 else []


def ring(ids: Iterable[str]) -> Adjacency:
    """One cycle in id order: for tests and experiments; it mixes slowly.

    >>> ring("abcd")
    {'a': ('b', 'd'), 'b': ('a', 'c'), 'c': ('b', 'd'), 'd': ('a', 'c')}
    """
    members = sorted(ids)
    return _adjacency(members, _cycle(members))


def regular(ids: Iterable[str], k: int, salt: bytes) -> Adjacency:
    """The union of k/2 Hamiltonian cycles; cycle c visits the ids in the order of SHA-256(salt | c | id).

    **Laws**: connected; degree at most k, and k but for the rare edge that two cycles share; who joins or leaves
    changes only edges of its own neighbours. Drawn by a hash, so that every node makes the same graph.

    **Raises**: Misuse if k is not even and at least 2.
    **Source**: Law, Siu, "Distributed construction of random expander networks", INFOCOM 2003.
    """
    if k < 2 or k % 2:
        raise Misuse(f"degree {k}: a union of cycles has an even degree of at least 2")
    members = sorted(ids)
    edges: list[tuple[str, str]] = []
    for cycle in range(k // 2):
        edges += _cycle(sorted(members, key=lambda member: _place(salt, cycle, member)))
    return _adjacency(members, edges)


def _place(salt: bytes, cycle: int, member: str) -> bytes:
    return hashlib.sha256(b"%d:%s|%d|%s" % (len(salt), salt, cycle, member.encode())).digest()


def by_rule(rule: str, ids: Iterable[str], degree: int, salt: bytes) -> Adjacency:
    """The graph of a rule: complete, ring, regular, or auto (complete up to 16 members, else regular).

    A regular rule of at least as many links as there are others is the complete graph.
    """
    members = sorted(ids)
    if rule == "ring":
        return ring(members)
    if rule == "complete" or (rule == "auto" and len(members) <= COMPLETE_UP_TO) or degree >= len(members) - 1:
        return complete(members)
    if rule in ("auto", "regular"):
        return regular(members, degree, salt)
    raise Misuse(f"unknown topology rule {rule!r}; use auto, complete, regular or ring")


def to_networkx(graph: Mapping[str, tuple[str, ...]]) -> networkx.Graph:
    """The same graph for networkx: drawing, GraphML, everything that is not needed to run a node."""
    import networkx as nx

    return nx.Graph({member: list(neighbours) for member, neighbours in graph.items()})


def degree_of(graph: Mapping[str, tuple[str, ...]]) -> int:
    """The largest degree."""
    return max((len(neighbours) for neighbours in graph.values()), default=0)


def is_connected(graph: Mapping[str, tuple[str, ...]]) -> bool:
    """Can news from anybody reach everybody? True for nobody and for one alone."""
    seen: set[str] = set()
    todo = list(graph)[:1]
    while todo:
        member = todo.pop()
        if member not in seen:
            seen.add(member)
            todo += graph[member]
    return len(seen) == len(graph)


def lambda2(graph: Mapping[str, tuple[str, ...]]) -> float:
    """The second smallest eigenvalue of the Laplacian: 0 if not connected, n if complete. 0 for fewer than two.

    >>> round(lambda2(complete("abcde")), 6), round(lambda2(ring("abcd")), 6)
    (5.0, 2.0)

    **Source**: Fiedler, "Algebraic connectivity of graphs", 1973.
    """
    import numpy as np

    if len(graph) < 2:
        return 0.0
    index = {member: at for at, member in enumerate(graph)}
    laplacian = np.zeros((len(graph), len(graph)))
    for member, neighbours in graph.items():
        laplacian[index[member], index[member]] = len(neighbours)
        for other in neighbours:
            laplacian[index[member], index[other]] = -1.0
    return max(0.0, float(np.linalg.eigvalsh(laplacian)[1]))


def speed(graph: Mapping[str, tuple[str, ...]]) -> float:
    """lambda2 / (2 d): the share of the slowest disagreement that one exchange a node takes away."""
    d = degree_of(graph)
    return lambda2(graph) / (2 * d) if d else 0.0


def contraction(graph: Mapping[str, tuple[str, ...]], gamma: float = 1.0) -> float:
    """What one exchange a node leaves of the disagreement.

    rho = max(1 - gamma lambda2 / (2 d), sqrt(1 - gamma (2 - gamma) (1 - (n - 2) / (2 (n - 1)))))

    The first term is the slowest mode in the mean, the second the spread of a random matching: of the squared
    difference of a pair, an exchange that moves the share gamma leaves (1 - gamma)^2.

    >>> round(contraction(complete("abcde")), 4), round(contraction(complete("abcde"), 0.5), 4)
    (0.6124, 0.7289)
    """
    return contraction_of(len(graph), speed(graph), gamma)


def contraction_of(n: int, speed: float, gamma: float = 1.0) -> float:
    """`contraction` of a graph of n nodes with this `speed`."""
    if n < 2:
        return 0.0
    matching = (n - 2) / (2 * (n - 1))
    return max(1 - gamma * speed, math.sqrt(1 - gamma * (2 - gamma) * (1 - matching)))


def release_exchanges(graph: Mapping[str, tuple[str, ...]], gamma: float = 1.0) -> int:
    """Mixing-only exchanges a node makes before a release: ln(1 / .01) / (-ln rho), rounded up.

    >>> release_exchanges(complete("abcde")), release_exchanges(complete("abcde"), 0.5)
    (10, 15)

    **Raises**: Misuse if the graph is not connected: no number would do.
    """
    if not is_connected(graph):
        raise Misuse("a graph that is not connected never agrees; add edges")
    rho = contraction(graph, gamma)
    return 1 if rho <= RESIDUE else math.ceil(math.log(1 / RESIDUE) / -math.log(rho))


def warn(graph: Mapping[str, tuple[str, ...]]) -> str | None:
    """Why not to train on this graph, and what to do; None if nothing is wrong."""
    if len(graph) < 2:
        return "a federation of one has nobody to learn with; add members"
    if not is_connected(graph):
        return "the topology is not connected: some members never hear of others; add edges or use the rule 'auto'"
    found = speed(graph)
    if found < SLOWEST:
        return (
            f"the topology mixes too slowly: lambda2 / (2 d) = {found:.4f}, below {SLOWEST}; "
            f"use the rule 'regular' with degree {DEGREE} or more"
        )
    return None
