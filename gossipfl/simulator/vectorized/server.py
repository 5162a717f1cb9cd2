"""Rounds through a server: those who are asked take its model, train, and send theirs back. The clients are the engine's nodes.

After a round every node holds the server's model: one that was away takes it when it comes back, before it trains, which is
the same. Rules: the mean (FedAvg, FedProx). No gossip here, and nothing that a deployed federation has: it has no server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from gossipfl.learning.blocks import Vector
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.mixing import Distort
from gossipfl.simulator.vectorized.state import State

Vectors = dict[str, Vector]


@dataclass
class Server:
    """The server's model and what its rule remembers. **Shapes**: weights (N,); a tensor of the model (size,)."""

    state: State
    method: Method
    weights: Floats
    """what each node counts: its mass, or 1"""
    model: Vectors = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model:
            self.model = {name: self.state.flat(self.state.shared, name)[0].copy() for name in self.state.shared}

    def take(self, nodes: Integers, steps: Integers, plan: Plan, distort: Distort | None) -> None:
        """What these nodes made of its model comes in; afterwards everybody holds the new one. **Shapes**: steps (n,)."""
        if len(nodes):
            share = self.weights[nodes] / self.weights[nodes].sum()
            for name in self.state.shared:
                self.model[name] = self._mean(self._sent(name, nodes, distort), share)
        for name, block in self.state.shared.items():
            block.view(len(block), -1)[:] = torch.from_numpy(self.model[name])

    def _sent(self, name: str, nodes: Integers, distort: Distort | None) -> Vector:
        rows: Vector = self.state.flat(self.state.shared, name)[nodes]
        if distort is not None:
            distort(name, nodes, rows)
        return rows

    def _mean(self, rows: Vector, share: Floats) -> Vector:
        return np.asarray(share @ rows).astype(rows.dtype)

    def arrays(self) -> Iterator[tuple[str, Vector]]:
        """What a checkpoint holds of it."""
        yield from self.model.items()
