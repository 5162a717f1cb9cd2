"""toy: quadratics in numpy float64, elementwise: for laws whose answer is known exactly. No torch, no patients.

A row is (a_1 .. a_d, b_1 .. b_d) and costs sum of a_k (x_k - b_k)^2 / 2; a site's loss is the mean over its rows, so
the optimum weighted by rows is sum(a b) / sum(a), coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.tasks.task import Data, Floats, Key, Site, Vector, pooled, settings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gossipfl.learning.parameters import Layout
    from gossipfl.learning.training import Outcome, Plan

CURVATURE = (0.5, 2.0)
"""Different at every site, or every method finds the same optimum; at most 2, so that eta below 1 never diverges."""

SIZES = 20
"""Sites of 10, 20, .. rows, then of 10 again: if each of ten thousand had ten more than the one before, all had 500 million."""


@dataclass(frozen=True, eq=False)
class Toy:
    """A strongly convex quadratic in `dimension` parameters."""

    dimension: int = 8
    name: str = "toy"
    standardise: bool = False
    metric: str = "loss"
    l2: float = 0.0

    @property
    def features(self) -> tuple[str, ...]:
        return ()

    def model(self) -> nn.Module:
        raise Misuse("toy is numpy only; use its layout, initial and trainer, as tasks.fitting does")

    def loss(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise Misuse("toy is numpy only; use its trainer, as tasks.fitting does")

    def layout(self) -> Layout:
        from gossipfl.learning.parameters import Layout

        return Layout.flat(self.dimension, "float64")

    def initial(self, seed: int) -> Floats:
        """Zero, whatever the seed."""
        return np.zeros(self.dimension)

    def trainer(self, layout: Layout, x: Floats, y: Vector) -> ToyTrainer:
        return ToyTrainer(x)

    def converge(self, x: Floats, y: Vector, l2: float) -> Floats:
        """sum(a b) / (sum(a) + n l2): the exact optimum."""
        a, ab = _sums(x)
        return np.asarray(ab / (a + l2))

    def judge(self, vector: Floats, x: Floats, y: Vector) -> dict[str, float]:
        """The loss on these rows, and the distance from their optimum."""
        a, b = np.split(x, 2, axis=1)
        error = float(np.linalg.norm(vector - self.converge(x, y, 0.0)))
        return {"loss": float((a * np.square(vector - b)).sum(axis=1).mean() / 2), "error": error}

    def data(self, source: Mapping[str, Any]) -> Data:
        """Rows of site number `site`, from PCG64 of (seed, site); sites differ in curvature and in optimum."""
        chosen = settings(source, TOY_KEYS)
        rng = np.random.Generator(np.random.PCG64([chosen["seed"], chosen["site"]]))
        shape = chosen["rows"], self.dimension
        a = rng.uniform(*CURVATURE, size=self.dimension) * rng.uniform(0.8, 1.2, size=shape)
        b = rng.uniform(-3, 3, size=self.dimension) + rng.uniform(-0.5, 0.5, size=shape)
        ids = tuple(f"{chosen['site']}-{row}" for row in range(chosen["rows"]))
        return Data(np.concatenate([a, b], axis=1), np.zeros(chosen["rows"]), ids)

    def demo_sites(self, n: int, seed: int, data_dir: str | Path | None = None) -> tuple[list[Site], Data]:
        """Sites of 10, 20, .. 200 rows, over and over; all rows together are the test."""
        parts = [self.data(source) for source in self.demo_sources(n, seed)]
        everything = pooled(parts)
        return [Site(f"hospital-{site + 1}", part, everything) for site, part in enumerate(parts)], everything

    def demo_sources(self, n: int, seed: int, data_dir: str | Path | None = None) -> list[dict[str, Any]]:
        """The `[data]` tables with which `n` nodes read what `demo_sites` gives."""
        return [{"site": site, "seed": seed, "rows": 10 * (site % SIZES + 1)} for site in range(n)]


TOY_KEYS = {
    "site": Key(0, int, lambda n: n >= 0, "site: a number, 0 or more"),
    "seed": Key(0, int, lambda n: n >= 0, "seed: a number, 0 or more"),
    "rows": Key(20, int, lambda n: n >= 1, "rows: a number, 1 or more"),
}


class ToyTrainer:
    """Gradient steps on the mean of all rows, one ufunc at a time: the same bits on any machine."""

    draws = False
    """nothing at random"""

    def __init__(self, x: Floats) -> None:
        a, b = np.split(np.asarray(x, dtype=np.float64), 2, axis=1)
        self.a, self.ab = _sums(x)
        self.constant = float((a * b * b).mean(axis=0).sum() / 2)

    def train(self, vector: Vector, correction: Vector | None, plan: Plan, rng: object) -> Outcome:
        """y <- y - eta (a y - ab + l2 y + proximal (y - x) + F), `plan.steps` times, over all rows.

        **Raises**: Misuse but for plain SGD on all rows.
        """
        from gossipfl.learning.training import Outcome

        if plan.optimizer != "sgd" or plan.momentum or plan.batch_size is not None:
            raise Misuse("toy takes plain sgd on all rows, without momentum")
        passed, gradients = np.empty((plan.steps + 1, vector.size)), np.empty((plan.steps, vector.size))  # (H + 1, d), (H, d)
        passed[0], eta = vector, np.array(plan.eta)
        for y, gradient, moved in zip(passed[:-1], gradients, passed[1:], strict=True):
            np.subtract(self.a * y, self.ab, gradient)
            if plan.l2:
                gradient += plan.l2 * y
            if plan.proximal:
                gradient += plan.proximal * (y - vector)
            np.subtract(y, eta * (gradient if correction is None else gradient + correction), moved)
        before = passed[:-1]
        losses = np.add.reduce(self.a * before * before / 2 - self.ab * before, 1) + self.constant
        norms = np.sqrt(np.add.reduce(np.square(gradients), 1))
        return Outcome(passed[-1], plan.steps, sum(norms.tolist()) / plan.steps, sum(losses.tolist()) / plan.steps)


def _sums(x: Floats) -> tuple[Floats, Floats]:
    a, b = np.split(np.asarray(x, dtype=np.float64), 2, axis=1)
    return a.mean(axis=0), (a * b).mean(axis=0)
