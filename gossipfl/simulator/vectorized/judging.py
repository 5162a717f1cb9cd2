"""How good the nodes' models are: the metric of some of them on the same test rows, and how far all are from agreement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from gossipfl.learning.blocks import Vector
from gossipfl.learning.parameters import Layout, write
from gossipfl.simulator.results import LOWER_IS_BETTER
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats
from gossipfl.simulator.vectorized.shards import Shard
from gossipfl.simulator.vectorized.state import State
from gossipfl.tasks.classifier import Classifier
from gossipfl.tasks.fitting import evaluate
from gossipfl.tasks.normalisation import Normaliser
from gossipfl.tasks.task import Data, Task

SAMPLE: Final = 100
"""Nodes that are evaluated on the way, evenly over all: the fifth percentile is then the fifth of them."""

ALL: Final = 1000
"""Nodes up to which the last evaluation takes every one."""


@dataclass(frozen=True)
class Judge:
    """A task's metric on test rows."""

    task: Task
    normaliser: Normaliser
    test: Data
    masses: Floats

    @property
    def is_lower_better(self) -> bool:
        return self.task.metric in LOWER_IS_BETTER

    def scores(self, state: State, nodes: Integers) -> list[float]:
        """The metric of each of these nodes; NaN where it is not defined or the model is not finite. Equal models are judged
        once: after a round through a server all are."""
        known: dict[bytes, float] = {}
        found = []
        for node in nodes.tolist():
            vector = state.vector(node)
            name = vector.tobytes()
            if name not in known:
                known[name] = self._score(state.layout, vector)
            found.append(known[name])
        return found

    def _score(self, layout: Layout, vector: Vector) -> float:
        if not np.isfinite(vector).all():
            return math.nan
        with np.errstate(all="ignore"):
            if isinstance(self.task, Classifier):
                module, rows = self._prepared
                write(layout, vector, module)
                return self.task.score(self.test.y, self.task.scores(module, rows))
            return float(evaluate(self.task, layout, vector, self.normaliser, self.test).get(self.task.metric, math.nan))

    @cached_property
    def _prepared(self) -> tuple[nn.Module, Tensor]:
        """A module, and the test rows, normalised once: that took as long as judging them."""
        return self.task.model().eval(), torch.from_numpy(self.normaliser.apply(self.test.x))

    def summary(self, scores: Sequence[float]) -> dict[str, float]:
        """worst, 5th percentile, median and mean; a node whose model is not finite is the worst there is."""
        bad = math.inf if self.is_lower_better else -math.inf
        kept = np.array([bad if math.isnan(score) else score for score in scores])
        ordered = np.sort(-kept if self.is_lower_better else kept)
        sign = -1.0 if self.is_lower_better else 1.0
        with np.errstate(invalid="ignore"):
            return {
                "worst": sign * float(ordered[0]),
                "p5": sign * float(ordered[int(0.05 * (len(ordered) - 1))]),
                "median": float(np.median(kept)),
                "mean": float(kept.mean()),
            }

    def consensus(self, state: State, members: np.ndarray, shard: Shard | None = None) -> float:
        """sqrt(sum_i m_i |x_i - x|^2 / sum m) / |x|, x the mean, over the members. Blocks of nodes at a time."""
        nodes = np.flatnonzero(members)
        if not len(nodes):
            return math.nan
        whole = self.masses[nodes].sum()
        if shard is not None:
            nodes = nodes[shard.holds(nodes)]
        weights = self.masses[nodes] / whole
        spread = length = 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            for name in state.shared:
                rows = state.flat(state.shared, name)
                step = max(1, 2**18 // rows.shape[1])
                parts = [slice(start, start + step) for start in range(0, len(nodes), step)]
                middle = sum(
                    (weights[part].astype(rows.dtype) @ rows[nodes[part]] for part in parts), np.zeros(rows.shape[1], rows.dtype)
                )
                if shard is not None:
                    middle = shard.group.total(middle).astype(rows.dtype)
                length += float(np.square(middle, dtype=np.float64).sum())
                for part in parts:
                    apart = rows[nodes[part]] - middle
                    squares = np.einsum("np,np->n", apart, apart)
                    spread += float(weights[part] @ squares)
        if shard is not None:
            spread = float(shard.group.total(np.array([spread]))[0])
        return math.sqrt(spread / length) if length else math.sqrt(spread)


def sample(nodes: int, count: int) -> Integers:
    """`count` nodes, evenly over all."""
    return np.unique(np.linspace(0, nodes - 1, min(nodes, count)).astype(np.int64))
