"""Weights of a round of mixing: what flows over each edge, as one figure an edge or as a sparse matrix, and refusals.

    x_i <- x_i + sum_j (theta_ij / m_i) (x_j - x_i)          theta_ij = theta_ji: the conductance of an edge, m_i: a mass

so the mass-weighted sum of x never changes. As a matrix: W = I - diag(1/m) L_theta. Not here: how fast that is
(gossipfl.topology.spectrum), edges that change from round to round (gossipfl.topology.schedules).
"""

from __future__ import annotations

import difflib
from typing import Any, Final

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.topology.graphs import Floats, Graph

RULES: Final = {
    "metropolis": "theta = 1 / (max(d_i, d_j) + 1); every node counts alike, whatever its mass",
    "mass-metropolis": "theta = min(m_i / (d_i + 1), m_j / (d_j + 1)); keeps the mass-weighted mean",
    "lazy": "half of mass-metropolis: W = (I + W') / 2, no negative eigenvalue",
    "uniform": "theta = min(m) / (d_max + 1), the same on every edge",
}
"""Rule -> its formula, d degrees, m masses (all 1 where none are given)."""

SLACK: Final = 1e-9
"""How far a row may be from summing to one: rounding of a row of thousands, far below any weight."""


def masses_of(n: int, masses: Floats | None) -> Floats:
    """(n,) masses, all 1 if none are given. **Raises**: Misuse unless finite, above 0 and n of them."""
    if masses is None:
        return np.ones(n)
    found = np.asarray(masses, np.float64)
    if found.shape != (n,) or not np.isfinite(found).all() or not (found > 0).all():
        raise Misuse(f"masses of shape {found.shape} for {n} nodes -- give each node one, finite and above 0")
    return found


def conductances(graph: Graph, rule: str = "mass-metropolis", masses: Floats | None = None) -> Floats:
    """theta of every edge by a rule of `RULES`.

    **Shapes**: masses (n,), the result (E,) in the order of graph.edges.
    **Laws**: sum_j theta_ij <= m_i d_i / (d_i + 1), so that W is stochastic with a positive diagonal.
    **Raises**: Misuse for an unknown rule (with what could be meant) or masses that are not.
    **Source**: Xiao, Boyd, Lall, "A scheme for robust distributed sensor fusion based on average consensus", 2005, for
    metropolis; Xiao, Boyd, "Fast linear iterations for distributed averaging", 2004, for the equal weight.

    >>> conductances(Graph.of(3, [(0, 1), (1, 2)]), masses=np.array([1.0, 3.0, 9.0])).tolist()
    [0.5, 1.0]
    """
    if rule not in RULES:
        near = difflib.get_close_matches(rule, RULES, 1, 0.4)
        raise Misuse(f"unknown weights {rule!r} -- " + (f"did you mean {near[0]!r}?" if near else f"use {', '.join(RULES)}"))
    held = masses_of(graph.n, None if rule == "metropolis" else masses)
    degrees = graph.degrees
    if rule == "uniform":
        return np.full(len(graph.edges), held.min() / (degrees.max(initial=0) + 1))
    offered = held / (degrees + 1)
    theta = np.minimum(offered[graph.edges[:, 0]], offered[graph.edges[:, 1]])
    return theta / 2 if rule == "lazy" else theta


def matrix(graph: Graph, theta: Floats, masses: Floats | None = None, dtype: Any = np.float64) -> Any:
    """W as scipy CSR of (n, n): W_ij = theta_ij / m_i, W_ii what is left of 1.

    Computed in float64 and cast last: a float64 W would turn a float32 product into float64 silently.
    """
    from scipy.sparse import coo_array

    held = masses_of(graph.n, masses)
    i, j = graph.edges[:, 0], graph.edges[:, 1]
    left = 1 - (np.bincount(i, theta, graph.n) + np.bincount(j, theta, graph.n)) / held
    values = np.concatenate([theta / held[i], theta / held[j], left])
    at = np.arange(graph.n)
    rows, columns = np.concatenate([i, j, at]), np.concatenate([j, i, at])
    return coo_array((values.astype(dtype), (rows, columns)), shape=(graph.n, graph.n)).tocsr()


def require_stochastic(weights: Any, masses: Floats | None = None) -> None:
    """Refuses a matrix that does not average: a row that does not sum to 1, a negative weight, a mean that moves.

    **Shapes**: weights (n, n), dense or sparse. **Laws** checked: W 1 = 1, W >= 0, m^T W = m^T.
    **Raises**: Misuse with the first such row or column, its figure, and a way out.
    """
    from scipy.sparse import coo_array

    found = coo_array(weights)
    if found.shape[0] != found.shape[1]:
        raise Misuse(f"weights of shape {found.shape} -- give one row and one column a node")
    n = int(found.shape[0])
    values, rows, columns = np.asarray(found.data, np.float64), found.row, found.col
    if not np.isfinite(values).all():
        raise Misuse("a weight is not finite -- every weight is a share, 0 to 1")
    if (values < -SLACK).any():
        at = int(values.argmin())
        remedy = "take smaller steps: (I + W) / 2, or the weights 'metropolis'"
        raise Misuse(f"weight {values[at]:g} of node {rows[at]} for node {columns[at]} is negative -- {remedy}")
    sums = np.bincount(rows, values, n)
    at = int((abs(sums - 1) > SLACK).argmax())
    if abs(sums[at] - 1) > SLACK:
        raise Misuse(f"row {at} sums to {sums[at]:g}, not 1 -- put what is missing on the diagonal, or divide the row by it")
    held = masses_of(n, masses)
    kept = np.bincount(columns, values * held[rows], n) / held
    at = int((abs(kept - 1) > SLACK).argmax())
    if abs(kept[at] - 1) > SLACK:
        counted = "its mass" if masses is not None else "one node"
        remedy = "use symmetric conductances (weights 'mass-metropolis'), or push-sum, which keeps weights of its own"
        raise Misuse(f"column {at} counts for {kept[at]:g} of {counted}: the mean would move -- {remedy}")
