"""How fast a graph mixes: eigenvalues of its weights and of its Laplacian, and the rounds that they predict.

Method: up to 600 nodes all eigenvalues, dense. Above, Lanczos (ARPACK) on the symmetric form with the known first
eigenvector taken out, to a residual of 1e-6 (the error of the value is its square over the distance to the next); where
that does not converge or the gap is below 1e-5 (a long ring: the eigenvalues crowd), shift-invert with a sparse
factorisation if the graph is narrow (a band after reverse Cuthill-McKee); else the best value so far, as a bound: the gap
is then at most what is said. Not here: weights (gossipfl.topology.weights), refusal of a ring by members
(gossipfl.topology.rules.warn).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.topology.draws import Draws
from gossipfl.topology.graphs import Floats, Graph, require_connected
from gossipfl.topology.rules import DEGREE, SLOWEST
from gossipfl.topology.weights import masses_of

DENSE: Final = 600
"""Nodes up to which all eigenvalues are computed: 0.1 s, no question of convergence."""

RESIDUAL: Final = 1e-6
TINY: Final = 1e-5
BANDED: Final = 3e9
"""n times the square of the bandwidth up to which a banded factorisation is affordable: some seconds."""

TRIED: Final = 5_000
"""Nodes up to which what is proposed for a slow graph is tried first."""

GOAL: Final = 1e-3
"""The share of the disagreement that `Spectrum.rounds` waits for."""

LOWEST_FOR_D2: Final = -1 / 3
"""D2 diverges if an eigenvalue of W is at or below this. Tang, Lian, Yan, Zhang, Liu, "D2", 2018."""

EDGE: Final = 1e-9
"""An eigenvalue this near a bound is at it: a ring of even length has one of exactly -1/3, which is found a rounding above or
below, as the CPU has it."""


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What decides the speed of x <- W x."""

    second: float
    """Second largest eigenvalue of W: the slowest agreement."""
    lowest: float
    """Smallest eigenvalue of W: what swings, if near -1."""
    exact: bool
    """Did the method for `second` converge? If not, it is a lower bound: the graph mixes at most as fast as said."""
    method: str

    @property
    def rho(self) -> float:
        """max(|second|, |lowest|): the share of the disagreement (mass-weighted norm) that a round leaves, in the end."""
        return max(abs(self.second), abs(self.lowest))

    @property
    def gap(self) -> float:
        """1 - rho."""
        return max(0.0, 1 - self.rho)

    def rounds(self, goal: float = GOAL) -> int | None:
        """Rounds until the disagreement is `goal` of the first: ln(1 / goal) / -ln rho, rounded up; None: never.

        **Laws**: no start is slower; a random one is at most this slow. 1 where rho = 0 (a complete graph).
        """
        if self.rho >= 1 - 1e-13:
            return None
        return 1 if self.rho <= goal else math.ceil(math.log(1 / goal) / -math.log(self.rho))


def of(graph: Graph, theta: Floats, masses: Floats | None = None) -> Spectrum:
    """The spectrum of the weights of a connected graph; see `conductances` for theta (E,).

    W = I - diag(1/m) L is similar to the symmetric I - m^(-1/2) L m^(-1/2), so all is real.

    **Raises**: Misuse if not connected.

    >>> from gossipfl.topology import generate, weights
    >>> ring = generate.ring(16)
    >>> found = of(ring, weights.conductances(ring))
    >>> round(found.second, 6), round((1 + 2 * math.cos(2 * math.pi / 16)) / 3, 6), round(found.lowest, 6)
    (0.949253, 0.949253, -0.333333)
    """
    require_connected(graph)
    if graph.n == 1:
        return Spectrum(0.0, 0.0, True, "one node")
    held = masses_of(graph.n, masses)
    return _found(_symmetric(graph, theta, held), np.sqrt(held / held.sum()))


def _symmetric(graph: Graph, theta: Floats, held: Floats) -> Any:
    from scipy.sparse import coo_array

    i, j = graph.edges[:, 0], graph.edges[:, 1]
    left = 1 - (np.bincount(i, theta, graph.n) + np.bincount(j, theta, graph.n)) / held
    off = theta / np.sqrt(held[i] * held[j])
    at = np.arange(graph.n)
    ends = np.concatenate([i, j, at]), np.concatenate([j, i, at])
    return coo_array((np.concatenate([off, off, left]), ends), shape=(graph.n, graph.n)).tocsr()


def _found(symmetric: Any, first: Floats) -> Spectrum:
    n = symmetric.shape[0]
    if n <= DENSE:
        values = np.linalg.eigvalsh(symmetric.toarray())
        return Spectrum(float(values[-2]), float(values[0]), True, "all eigenvalues, dense")
    start = _far(symmetric) / first
    second, exact = _extreme(lambda x: symmetric @ x - 2 * first * (first @ x), start, "LA")
    method = "Lanczos" if exact else "Lanczos, not converged: a bound"
    if not exact or 1 - second < TINY:
        inverted = _shift_inverted(symmetric)
        if inverted is not None:
            second, exact, method = inverted, True, "shift-invert, banded"
    lowest, sure = _extreme(lambda x: symmetric @ x, Draws(0, "lowest", n).uniform(n) - 0.5, "SA")
    if not sure:
        lowest = 2 * float(symmetric.diagonal().min()) - 1  # Gershgorin: W's rows sum to one, and W is similar
        method += "; lowest: Gershgorin's bound"
    return Spectrum(second, lowest, exact, method)


def _far(symmetric: Any) -> Floats:
    """(n,) hops from a node at the rim, centred: near the slowest mode of a slow graph, no worse than another start."""
    from scipy.sparse.csgraph import dijkstra

    rim = int(dijkstra(symmetric, indices=0, unweighted=True).argmax())
    hops: Floats = dijkstra(symmetric, indices=rim, unweighted=True)
    jitter = Draws(0, "lanczos", len(hops)).uniform(len(hops)) - 0.5
    return np.asarray(hops - hops.mean() + jitter / 8, np.float64)


def _extreme(product: Callable[[Floats], Floats], start: Floats, which: str) -> tuple[float, bool]:
    """An extreme eigenvalue of a symmetric operator with norm 1, and whether Lanczos converged; else a bound from inside."""
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    n = len(start)
    operator = LinearOperator((n, n), matvec=lambda x: product(x.ravel()), dtype=np.float64)
    try:
        found = eigsh(operator, 1, which=which, tol=RESIDUAL, v0=start, ncv=24, maxiter=100, return_eigenvectors=False)
        return float(found[0]), True
    except ArpackNoConvergence:
        x = product(start)
        for _ in range(100):  # the Rayleigh quotient of a power iteration is on the safe side
            x = product(x) + (x if which == "LA" else -x)
            x /= np.linalg.norm(x)
        return float(x @ product(x)), False


def _shift_inverted(symmetric: Any) -> float | None:
    """The second largest eigenvalue of W, if the graph is narrow enough to factorise; None else."""
    from scipy.sparse import identity
    from scipy.sparse.csgraph import reverse_cuthill_mckee
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    order = reverse_cuthill_mckee(symmetric, symmetric_mode=True)
    banded = symmetric[order][:, order].tocoo()
    width = int(abs(banded.row - banded.col).max())
    n = symmetric.shape[0]
    if n * float(width) ** 2 > BANDED:
        return None
    try:
        left = identity(n, format="csc") - banded.tocsc()  # I - W: smallest eigenvalues 0 and 1 - second
        values = eigsh(left, 3, sigma=-1e-12, which="LM", return_eigenvectors=False, v0=Draws(0, "invert", n).uniform(n))
    except (ArpackNoConvergence, RuntimeError):
        return None
    return 1 - float(np.sort(values)[1])


def lambda2(graph: Graph) -> tuple[float, bool]:
    """The second smallest eigenvalue of the Laplacian (algebraic connectivity), and whether the method converged: if not,
    the value is an upper bound.

    **Raises**: Misuse if not connected.
    """
    require_connected(graph)
    degree = int(graph.degrees.max())
    if degree == 0:
        return 0.0, True
    found = of(graph, np.full(len(graph.edges), 1 / (2 * degree)))
    return 2 * degree * (1 - found.second), found.exact


def slow(graph: Graph) -> str | None:
    """Why not to train on a graph, and what to do; None if it mixes in reasonable time.

    The bound is that of deployed federations: lambda2 / (2 d) below .03. A ring of 415 hospitals stays at .967 of
    centralized quality, where a random 6-regular graph reaches .9998.
    """
    require_connected(graph)
    if graph.n < 3:
        return None
    value, exact = lambda2(graph)
    share = value / (2 * int(graph.degrees.max()))
    if share >= SLOWEST:
        return None
    return (
        f"mixes too slowly to train on: lambda2 / (2 d) = {'' if exact else 'at most '}{share:.2g}, below {SLOWEST}: "
        f"what one side learns does not reach the other in reasonable time -- {_faster(graph)}"
    )


def require_fast(graph: Graph) -> None:
    """Refuses a graph that is too slow to train on: Misuse with what `slow` says."""
    said = slow(graph)
    if said is not None:
        raise Misuse(f"{graph.name} {said}")


def _faster(graph: Graph) -> str:
    """What to do about a slow graph: rings to add, tried, or another graph."""
    degree = min(DEGREE, graph.n - 1 - (graph.n - 1) % 2)
    for rings in (1, 2, 3) if graph.n <= TRIED else ():
        more = with_random_rings(graph, rings, seed=0)
        share = lambda2(more)[0] / (2 * int(more.degrees.max()))
        if share >= SLOWEST:
            edges = len(more.edges) - len(graph.edges)
            return f"add {edges} random links (--add-rings {rings} makes it {share:.2g}), or use random-regular:{degree}"
    return f"use random-regular:{degree}"


def with_random_rings(graph: Graph, rings: int, seed: int) -> Graph:
    """The graph with random cycles through all nodes added: two links a node each, so that no node becomes a hub; links'
    figures are left out.

    **Source**: Bollobas, Chung, "The diameter of a cycle plus a random matching", 1988: one suffices for a ring.
    """
    orders = [Draws(seed, "ring", graph.n, ring).order(graph.n) for ring in range(rings)]
    cycles = [np.stack([order, np.roll(order, -1)], axis=1) for order in orders]
    made = Graph.of(graph.n, np.concatenate([graph.edges, *cycles]), f"{graph.name} + {rings} random rings", graph.places)
    return made.with_links(graph.labels, source=f"{graph.source}; {rings} random rings added, seed {seed}")


def require_lowest(found: Spectrum, above: float = LOWEST_FOR_D2, method: str = "D2") -> None:
    """Refuses weights with an eigenvalue that a method cannot take: Misuse with the figure and a way out."""
    if found.lowest <= above + EDGE:
        raise Misuse(
            f"{method} needs every eigenvalue of W above {above:.4f}; the smallest is {found.lowest:.4f} "
            "-- use the weights 'lazy', (I + W) / 2"
        )
