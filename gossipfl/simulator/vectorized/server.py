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
from gossipfl.simulator.vectorized.meetings import Floats
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.mixing import Distort
from gossipfl.simulator.vectorized.state import State

Vectors = dict[str, Vector]

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
            self.model[name] = self.state.flat(self.state.shared, name)[0].copy()
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

    def before(self, nodes: Integers) -> None:
        """What these nodes need before they train."""
        for name, held in self.controls.items():
            self.state.flat(self.state.correction, name)[nodes] = self.control[name] - held[nodes]

    def take(self, nodes: Integers, steps: Integers, plan: Plan, distort: Distort | None) -> None:
        """What these nodes made of its model comes in; afterwards everybody holds the new one. **Shapes**: steps (n,)."""
        if len(nodes):
            share = self.weights[nodes] / self.weights[nodes].sum()
            moved = {name: self._moved(name, nodes, distort) for name in self.state.shared}
            if self.kept:
                self._compress(moved, nodes)
            for name, rows in moved.items():
                self.model[name] = self.model[name] + self._step(name, rows, nodes, share, steps, plan)
        for name, block in self.state.shared.items():
            block.view(len(block), -1)[:] = torch.from_numpy(self.model[name])

    def _step(self, name: str, moved: Vector, nodes: Integers, share: Floats, steps: Integers, plan: Plan) -> Vector:
        """By how much the server's model moves. **Shapes**: moved (n, size): y_i - z."""
        rule = self.method.post if name in self.state.parameters else "plain"
        if rule == "fednova":
            length = normaliser(steps, plan)
            return np.asarray(float(share @ length) * ((share / length) @ moved)).astype(moved.dtype)
        mean = np.asarray(share @ moved).astype(moved.dtype)
        if rule == "scaffold":
            self._control(name, moved, nodes, steps, plan)
        elif rule == "fedadam":
            return self._adam(name, mean)
        return mean

    def _control(self, name: str, moved: Vector, nodes: Integers, steps: Integers, plan: Plan) -> None:
        held, dtype = self.controls[name], moved.dtype.type
        found = moved / (steps * -plan.eta).astype(moved.dtype)[:, None]
        found += held[nodes] - self.control[name]
        gained = np.asarray((self.weights[nodes] / self.weights.sum()) @ (found - held[nodes]))
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

    def arrays(self) -> Iterator[tuple[str, Vector]]:
        """What a checkpoint holds of it."""
        groups = ("model", self.model), ("kept", self.kept), ("control", self.control), ("controls", self.controls)
        for group, vectors in (*groups, ("first", self.first), ("second", self.second)):
            for name, vector in vectors.items():
                yield f"{group}/{name}", vector


def normaliser(steps: Integers, plan: Plan) -> Floats:
    """How far tau steps go, in steps: FedNova's norm of a_i. tau for plain SGD; with a proximal term of strength mu, the first
    of tau steps is shortened tau - 1 times: (1 - (1 - eta mu)^tau) / (eta mu). **Shapes**: (n,)."""
    shrink = plan.eta * plan.proximal
    return np.asarray((1 - (1 - shrink) ** steps) / shrink if shrink else steps.astype(np.float64))
