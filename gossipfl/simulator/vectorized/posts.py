"""What some methods remember of a node beside its model, and do with what a round moved: K-GT, quasi-global momentum, NoLoCo.

Each looks at the models before the local steps (x), after them (y) and after the exchange (x'), and leaves a correction F for
the next local steps, or another model. What is booked on the way, F <- F - kappa d, is vectorized.mixing's: the ledger, D2.

    K-GT     z_i = (x_i - y_i) / (eta K_i);  F_i <- F_i + sum_j (theta_ij / m_i) (z_j - z_i);  x' mixed from y
    QGM      d_i = (x_i - x'_i) / (eta K_i);  M_i <- mu M_i + (1 - mu) d_i;  F_i = beta M_i
    NoLoCo   D_i = y_i - x_i;  V_i <- alpha V_i + beta mean D - gamma (x_i - mean x);  x'_i = x_i + V_i

Means are those of the pair (NoLoCo), weighted by mass. Who is away keeps what it has.

**Laws**: K-GT's mass-weighted sum of F stays zero where both ends of each exchange apply their half, so that it rests at the
weighted optimum, with any K_i.
**Source**: Liu, Lin, Koloskova, Stich, "Decentralized gradient tracking with local steps", 2023 (K-GT; global step 1). Lin,
Karimireddy, Stich, Jaggi, "Quasi-global momentum: accelerating decentralized deep learning on heterogeneous data", 2021.
Kolehmainen, Blagoev, Donaghy, Ersoy, Nies, "NoLoCo: no-all-reduce low communication training method for large models", 2025.
**Differs**: K-GT begins with F = 0, not with the gradients at x^0. QGM holds M through the local steps of a round: with one
step that is the paper's. NoLoCo: its outer step in pairs, and alpha .5 with gamma = beta = .7, are those of the program that its
authors published; means weighted by mass are ours. It stays experimental: its bound on gamma is our `contraction`, and local
steps are a study's plain ones, where theirs are Adam's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gossipfl.learning.blocks import Vector
from gossipfl.learning.mixing import mu
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats, Meetings
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.shards import Held, Shard, here, own_nodes
from gossipfl.simulator.vectorized.state import State


@dataclass
class Memory:
    """**Shapes**: masses (N,); start and moment (N, size) of each tensor."""

    state: State
    method: Method
    masses: Floats
    start: dict[str, Vector] = field(default_factory=dict)
    """x of this round"""
    moment: dict[str, Vector] = field(default_factory=dict)
    """V of NoLoCo; QGM's lies in F"""
    shard: Shard | None = None
    """the nodes that are this process's; None: all"""

    def __post_init__(self) -> None:
        names = list(self.state.shared) if self.method.post == "noloco" else self.state.parameters
        self.start = {name: np.zeros_like(self.state.flat(self.state.shared, name)) for name in names}
        if self.method.post == "noloco":
            self.moment = {name: np.zeros_like(self.state.flat(self.state.shared, name)) for name in names}
        else:
            self.state.need_correction()

    def before(self, nodes: Integers) -> None:
        """These nodes are about to train."""
        nodes = here(self.shard, nodes)
        for name, held in self.start.items():
            held[nodes] = self.state.flat(self.state.shared, name)[nodes]

    def told(self, steps: Integers, eta: float) -> dict[str, Vector]:
        """What nodes tell each other beside their models, after the local steps: K-GT z, NoLoCo x. **Shapes**: steps (N,)."""
        if self.method.post != "k-gt":
            return self.start if self.method.post == "noloco" else {}
        nodes, slopes = here(self.shard, np.flatnonzero(steps)), {}
        for name, held in self.start.items():
            slopes[name] = np.zeros_like(held)
            slopes[name][nodes] = self._slope(name, nodes, steps, eta)
        return slopes

    def track(self, met: Meetings, slopes: dict[str, Vector]) -> None:
        """K-GT, before the exchange; `slopes` as they were told."""
        moves, rows = self._moves(met), own_nodes(self.shard, self.state.nodes)
        for name, slope in slopes.items():
            correction = self.state.flat(self.state.correction, name)[rows]
            np.add(correction, moves @ slope, out=correction)

    def follow(self, steps: Integers, eta: float) -> None:
        """Quasi-global momentum, after the exchange. **Shapes**: steps (N,)."""
        nodes = here(self.shard, np.flatnonzero(steps))
        keep, gain = self.method.momentum_kept, (1 - self.method.momentum_kept) * self.method.momentum
        for name, held in self.start.items():
            correction, dtype = self.state.flat(self.state.correction, name), held.dtype.type
            correction[nodes] = dtype(keep) * correction[nodes] + dtype(gain) * self._slope(name, nodes, steps, eta)

    def leap(self, met: Meetings, steps: Integers) -> None:
        """NoLoCo's exchange and outer step. **Shapes**: steps (N,)."""
        moves, method, where = self._moves(met), self.method, own_nodes(self.shard, self.state.nodes)
        nodes = here(self.shard, np.flatnonzero(steps))
        needed: Any = slice(None) if self.shard is None else np.unique(np.concatenate([nodes, met.lo, met.hi]))
        for name, held in self.start.items():
            rows, moment, dtype = self.state.flat(self.state.shared, name), self.moment[name], held.dtype.type
            gained = np.zeros_like(held)
            gained[needed] = rows[needed] - held[needed]
            gained[where] += moves @ gained
            pulled = (moves @ held)[nodes - where.start]
            moment[nodes] = (
                dtype(method.momentum) * moment[nodes]
                + dtype(method.outer_step) * gained[nodes]
                + dtype(method.pull) * pulled
            )
            rows[nodes] = held[nodes] + moment[nodes]

    def _slope(self, name: str, nodes: Integers, steps: Integers, eta: float) -> Vector:
        """(x - now) / (eta K) of these nodes: what their local steps descended in the mean. **Shapes**: steps (N,)."""
        rows = self.state.flat(self.state.shared, name)
        apart = self.start[name][nodes] - rows[nodes]
        return np.asarray(apart / (eta * steps[nodes]).astype(apart.dtype)[:, None])

    def _moves(self, met: Meetings) -> Any:
        """W - I of these meetings, a row for each own node, (n, N): only the ends that apply their half."""
        from scipy import sparse

        nodes = self.state.nodes
        theta = met.gamma * mu(self.masses[met.lo], self.masses[met.hi])
        parts = []
        for own, other, there in ((met.lo, met.hi, met.at_lo), (met.hi, met.lo, met.at_hi)):
            kept = slice(None) if there is None else there
            parts.append((own[kept], other[kept], (theta / self.masses[own])[kept]))
        rows, columns, shares = (np.concatenate(part) for part in zip(*parts, strict=True))
        everybody = np.arange(nodes)
        values = np.concatenate([shares, -np.bincount(rows, shares, nodes)]).astype(self.state.layout.dtype)
        places = np.concatenate([rows, everybody]), np.concatenate([columns, everybody])
        return sparse.csr_array((values, places), shape=(nodes, nodes))[own_nodes(self.shard, nodes)]

    def arrays(self) -> Iterator[Held]:
        """What a checkpoint holds of it: F is in the state."""
        where = own_nodes(self.shard, self.state.nodes)
        yield from ((name, held, where) for name, held in self.moment.items())


def contraction(alpha: float, gamma: float) -> float:
    """The share of the squared disagreement that NoLoCo's outer step leaves in the long run, without gradients, where many
    nodes meet in random pairs; 1 or more: they run apart.

    With e = x_i - mean x of one node and v = V_i, and a partner that is independent of it: v' = alpha v - gamma (e - e_j) / 2,
    e' = e + v'. That maps (E e^2, E e v, E v^2) linearly; this is the map's spectral radius.

    >>> round(contraction(0.5, 0.5), 2), contraction(0.9, 1.0) > 1
    (0.65, True)
    """
    columns = []
    for spread, cross, speed in np.eye(3):
        after = alpha**2 * speed + gamma**2 * spread / 2 - alpha * gamma * cross
        mixed = alpha * cross - gamma * spread / 2
        columns.append([spread + 2 * mixed + after, mixed + after, after])
    return float(np.abs(np.linalg.eigvals(np.array(columns).T)).max())
