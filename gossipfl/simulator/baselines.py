"""What a federation is measured against: one model on all rows pooled, and each hospital on its own. No messages.

Only a demo or a simulation can compute `centralized`: no real institution holds the pooled rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gossipfl.learning.parameters import Layout
from gossipfl.tasks.fitting import evaluate, layout_of, prepare, train_to_convergence
from gossipfl.tasks.normalisation import Normaliser, own_normaliser
from gossipfl.tasks.task import Data, Site, Task, Vector, pooled

ROUNDING: Final = 1e-6
"""Weights this small beside the intercept are what the optimiser leaves of 0. A site with one class only (Zurich and Basel of
heart) has a model that says the same of everybody, AUC .5; ranked by such remnants it would be anything from .3 to .7."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model with the preprocessing that it was trained with."""

    task: Task
    layout: Layout
    vector: Vector
    normaliser: Normaliser

    def metrics(self, data: Data) -> dict[str, float]:
        """The task's metrics on raw rows."""
        return evaluate(self.task, self.layout, self.vector, self.normaliser, data)


def fit(task: Task, data: Data, l2: float | None = None, seed: int = 0) -> Fitted:
    """The task's model trained to convergence on these rows, normalised by their own mean and spread.

    `l2` None takes the task's own.
    """
    normaliser = own_normaliser(data) if task.standardise else Normaliser.none()
    rows = prepare(task, normaliser, data)
    decay = float(getattr(task, "l2", 0.0)) if l2 is None else l2
    vector = train_to_convergence(task, rows, data.y, decay, seed)
    if hasattr(task, "classes") and len(np.unique(data.y)) < 2:
        vector = np.where(np.abs(vector) < ROUNDING * np.abs(vector).max(initial=0.0), 0, vector).astype(vector.dtype)
    return Fitted(task, layout_of(task), vector, normaliser)


def centralized(task: Task, sites: Sequence[Site], l2: float | None = None, seed: int = 0) -> Fitted:
    """The same model on the pooled training rows, with pooled normalisation: what a federation can hope for."""
    return fit(task, pooled([site.train for site in sites]), l2, seed)


def local_only(task: Task, sites: Sequence[Site], l2: float | None = None, seed: int = 0) -> list[Fitted]:
    """One model a site, on its own rows and its own normalisation: what each has without a federation."""
    return [fit(task, site.train, l2, seed) for site in sites]
