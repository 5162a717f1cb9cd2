"""Rounds through a server: those who are asked take its model, train, and send theirs back. The clients are the engine's nodes.

After a round every node holds the server's model: one that was away takes it when it comes back, before it trains, which is
the same. No gossip here, and nothing that a deployed federation has: it has no server.

    z <- z + s(sum_i p_i (y_i - z)), p_i the node's share among those who sent
    FedAvg, FedProx   s(d) = d
    FedNova           z <- z + (sum_i p_i tau_i) sum_i p_i (y_i - z) / tau_i, tau_i the local steps
    SCAFFOLD          F_i = c - c_i in the local steps; c_i <- c_i - c + (z - y_i) / (eta K_i), c <- the mean of all c_i
    compressed        C(y_i - z + e_i) is sent and takes the place of y_i - z, e_i keeps the rest; z goes down as it is
    FedAdam           u <- b1 u + (1 - b1) d, v <- b2 v + (1 - b2) d^2, s(d) = server_eta u / (sqrt(v) + tau)

**Source**: McMahan et al., 2017, for the mean; Wang, Liu, Liang, Joshi, Poor, "Tackling the objective inconsistency problem in
heterogeneous federated optimization", 2020, with a_i of plain SGD and of the proximal step; Karimireddy, Kale, Mohri, Reddi,
Stich, Suresh, "SCAFFOLD: stochastic controlled averaging for federated learning", 2020, option II, global step 1; Reddi,
Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan, "Adaptive federated optimization", 2021, algorithm 2; Stich,
Cordonnier, Jaggi, "Sparsified SGD with memory", 2018, for what is kept of a compressed upload.
**Differs**: SCAFFOLD's means are weighted by mass, where the paper's are plain, so that it rests at the weighted optimum;
moments of batch norm are averaged under every rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch

from gossipfl.learning import compression
from gossipfl.learning.blocks import Vector
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats, Mask
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.mixing import Distort
from gossipfl.simulator.vectorized.shards import Held, Shard, here, own_nodes
from gossipfl.simulator.vectorized.state import State

Vectors = dict[str, Vector]


@dataclass(frozen=True)
class Came:
    """What reached the server in a round. **Shapes**: all (n,)."""

    nodes: Integers
    share: Floats
    """p_i, of the sum over all nodes that came"""
    steps: Integers

    def only(self, kept: Mask) -> Came:
        """Some of them, each with its share of all."""
        return Came(self.nodes[kept], self.share[kept], self.steps[kept])


ADAM_BETA1: Final = 0.9
ADAM_BETA2: Final = 0.99
ADAM_TAU: Final = 1e-3
"""Of FedAdam, as published."""


@dataclass
class Server:
    """The server's model and what its rule remembers. **Shapes**: weights (N,); a tensor of the model (size,)."""

    state: State
    method: Method
    weights: Floats
    """what each node counts: its mass, or 1"""
    codec: str = "none"
    """of what goes up"""
    shard: Shard | None = None
    """the nodes that are this process's; None: all. Each process holds the server's model, sums are over all of them"""
    model: Vectors = field(default_factory=dict)
    kept: Vectors = field(default_factory=dict)
    """e_i, (N, size), where uploads are compressed"""
    control: Vectors = field(default_factory=dict)
    """c of SCAFFOLD"""
    controls: Vectors = field(default_factory=dict)
    """c_i, (N, size)"""
    first: Vectors = field(default_factory=dict)
    second: Vectors = field(default_factory=dict)
    """u and v of FedAdam"""

    def __post_init__(self) -> None:
        for name in self.state.shared:
            self.model[name] = self.state.flat(self.state.shared, name)[self.own.start].copy()
        for name in self.state.parameters:
            if self.method.post == "scaffold":
                self.state.need_correction()
                self.control[name] = np.zeros_like(self.model[name])
                self.controls[name] = np.zeros_like(self.state.flat(self.state.shared, name))
            if self.codec != "none":
                self.kept[name] = np.zeros_like(self.state.flat(self.state.shared, name))
            if self.method.post == "fedadam":
                self.first[name] = np.zeros_like(self.model[name])
                self.second[name] = np.full_like(self.model[name], ADAM_TAU**2)

    @property
    def own(self) -> slice:
        return own_nodes(self.shard, self.state.nodes)

    def before(self, nodes: Integers) -> None:
        """What these nodes need before they train."""
        nodes = here(self.shard, nodes)
        for name, held in self.controls.items():
            self.state.flat(self.state.correction, name)[nodes] = self.control[name] - held[nodes]

    def take(self, nodes: Integers, steps: Integers, plan: Plan, distort: Distort | None) -> None:
        """What these nodes made of its model comes in; afterwards everybody holds the new one. **Shapes**: steps (n,)."""
        if len(nodes):
            came = Came(nodes, self.weights[nodes] / self.weights[nodes].sum(), steps)
            mine = came if self.shard is None else came.only(self.shard.holds(nodes))
            moved = {name: self._moved(name, mine.nodes, distort) for name in self.state.shared}
            if self.kept and len(mine.nodes):
                self._compress(moved, mine.nodes)
            for name, rows in moved.items():
                self.model[name] = self.model[name] + self._step(name, rows, came, mine, plan)
        for name, block in self.state.shared.items():
            block.view(len(block), -1)[self.own] = torch.from_numpy(self.model[name])

    def _step(self, name: str, moved: Vector, came: Came, mine: Came, plan: Plan) -> Vector:
        """By how much the server's model moves. **Shapes**: moved (n, size): y_i - z of `mine`."""
        rule = self.method.post if name in self.state.parameters else "plain"
        if rule == "fednova":
            length = float(came.share @ normaliser(came.steps, plan))
            return (length * self._sum(mine.share / normaliser(mine.steps, plan), moved)).astype(moved.dtype)
        mean = self._sum(mine.share, moved).astype(moved.dtype)
        if rule == "scaffold":
            self._control(name, moved, mine, plan)
        elif rule == "fedadam":
            return self._adam(name, mean)
        return mean

    def _sum(self, weights: Floats, rows: Vector) -> Floats:
        """sum_i weights_i rows_i, over the nodes of all processes. **Shapes**: (n,), (n, size) -> (size,)."""
        found = np.asarray(weights @ rows, dtype=np.float64)
        return found if self.shard is None else self.shard.total(found)

    def _control(self, name: str, moved: Vector, mine: Came, plan: Plan) -> None:
        held, dtype, nodes = self.controls[name], moved.dtype.type, mine.nodes
        found = moved / (mine.steps * -plan.eta).astype(moved.dtype)[:, None]
        found += held[nodes] - self.control[name]
        gained = self._sum(self.weights[nodes] / self.weights.sum(), found - held[nodes])
        held[nodes] = found
        self.control[name] = self.control[name] + gained.astype(dtype)

    def _adam(self, name: str, mean: Vector) -> Vector:
        one, two, dtype = self.first[name], self.second[name], mean.dtype.type
        one += dtype(1 - ADAM_BETA1) * (mean - one)
        two += dtype(1 - ADAM_BETA2) * (mean * mean - two)
        return np.asarray(dtype(self.method.server_eta) * one / (np.sqrt(two) + dtype(ADAM_TAU)))

    def _moved(self, name: str, nodes: Integers, distort: Distort | None) -> Vector:
        """y_i - z of these nodes, as they say."""
        rows: Vector = self.state.flat(self.state.shared, name)[nodes]
        if distort is not None:
            distort(name, nodes, rows)
        rows -= self.model[name]
        return rows

    def _compress(self, moved: Vectors, nodes: Integers) -> None:
        """What comes of the uploads at the server, in the place of what was meant; the rest is kept for next time."""
        meant = np.concatenate([moved[name] + held[nodes] for name, held in self.kept.items()], axis=1)
        came, at = compression.decoded_rows(self.codec, meant), 0
        for name, held in self.kept.items():
            part = slice(at, at + held.shape[1])
            moved[name] = came[:, part]
            held[nodes] = meant[:, part] - came[:, part]
            at = part.stop

    def arrays(self) -> Iterator[Held]:
        """What a checkpoint holds of it."""
        groups = ("model", self.model), ("control", self.control), ("first", self.first), ("second", self.second)
        for group, vectors in groups:
            yield from ((f"{group}/{name}", vector, slice(None)) for name, vector in vectors.items())
        for group, vectors in (("kept", self.kept), ("controls", self.controls)):
            yield from ((f"{group}/{name}", vector, self.own) for name, vector in vectors.items())


def normaliser(steps: Integers, plan: Plan) -> Floats:
    """How far tau steps go, in steps: FedNova's norm of a_i. tau for plain SGD; with a proximal term of strength mu, the first
    of tau steps is shortened tau - 1 times: (1 - (1 - eta mu)^tau) / (eta mu). **Shapes**: (n,)."""
    shrink = plan.eta * plan.proximal
    return np.asarray((1 - (1 - shrink) ** steps) / shrink if shrink else steps.astype(np.float64))
