"""A task's model against rows: its layout, x^0, trainer, converged optimum, scores and metrics. One site; no mixing.

Every optional member of a task is resolved here and nowhere else. Rows come from `prepare`, but for `evaluate` and
`predict`, which normalise themselves so that no caller can forget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.tasks.normalisation import Normaliser
from gossipfl.tasks.task import Data, Floats, Task, Vector

if TYPE_CHECKING:
    from gossipfl.learning.parameters import Layout
    from gossipfl.learning.training import Outcome, Plan

ITERATIONS = 2000
"""Of L-BFGS; logistic regression on 30 features ends after 50 to 300."""


class Trainer(Protocol):
    """What runs local steps: learning.training.Trainer, or a task's own."""

    def train(self, vector: Vector, correction: Vector | None, plan: Plan, rng: np.random.Generator) -> Outcome: ...


def layout_of(task: Task) -> Layout:
    """Where each parameter stands in the model vector; moments and what stays at home apart."""
    own = getattr(task, "layout", None)
    if own is not None:
        return own()  # type: ignore[no-any-return]
    from gossipfl.learning.parameters import Layout

    return Layout.of(task.model(), getattr(task, "shared", None))


def is_net(task: Task) -> bool:
    """Has its model layers one after the other: is it not convex? False for a task that trains by itself."""
    if hasattr(task, "trainer"):
        return False
    return sum(weight.ndim > 1 for weight in task.model().parameters()) > 1


def start(task: Task, layout: Layout, seed: int) -> Vector:
    """x^0: the same vector on any machine."""
    own = getattr(task, "initial", None)
    if own is not None:
        return np.asarray(own(seed))
    from gossipfl.learning.parameters import initial

    return np.asarray(initial(layout, task.model(), seed))


def prepare(task: Task, normaliser: Normaliser, data: Data) -> Vector:
    """The rows as `trainer` takes them: normalised float32, or raw float64 where a task brings a trainer of its own."""
    return data.x if hasattr(task, "trainer") else normaliser.apply(data.x)


def trainer(task: Task, layout: Layout, x: Vector, y: Vector) -> Trainer:
    """A trainer on these normalised rows."""
    own = getattr(task, "trainer", None)
    if own is not None:
        return own(layout, x, y)  # type: ignore[no-any-return]
    import torch

    from gossipfl.learning import training

    return training.Trainer(task.model(), layout, task.loss, torch.tensor(x), torch.tensor(y))


def train_to_convergence(task: Task, x: Vector, y: Vector, l2: float, seed: int = 0) -> Vector:
    """The minimum of loss + l2/2 |weights|^2 on these normalised rows: what endless local steps would reach. Intercepts
    and other vectors are not penalised, as in training.

    L-BFGS over all rows in float64, from x^0 of `seed`. The objective is that of learning.training's steps, intercept
    included, so that federated and centralized models differ by the data only. Not convex (an MLP): a nearby minimum.

    **Raises**: Misuse where there are no rows.
    """
    if not len(y):
        raise Misuse("train_to_convergence() takes one row or more")
    own = getattr(task, "converge", None)
    if own is not None:
        return np.asarray(own(x, y, l2))
    import torch

    from gossipfl.learning import parameters

    layout, module = layout_of(task), task.model()
    parameters.write(layout, start(task, layout, seed), module)
    module = module.double()
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    rows, labels = torch.tensor(x, dtype=torch.float64), torch.tensor(y)
    optimizer = torch.optim.LBFGS(
        weights,
        max_iter=ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        penalty = torch.stack([weight.square().sum() for weight in weights if weight.ndim > 1]).sum()
        value = task.loss(module, rows, labels) + l2 / 2 * penalty
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return np.asarray(parameters.read(layout, module.float()))


def predict(task: Task, layout: Layout, vector: Vector, normaliser: Normaliser, x: Floats) -> Floats:
    """The task's scores of raw rows; the module's plain output where a task has no `scores`."""
    import torch

    from gossipfl.learning import parameters

    module = task.model()
    parameters.write(layout, vector, module)
    module.eval()
    rows = torch.from_numpy(normaliser.apply(x))
    with torch.no_grad():
        own = getattr(task, "scores", None)
        return np.asarray(own(module, rows) if own else module(rows).double().cpu().numpy())


def evaluate(task: Task, layout: Layout, vector: Vector, normaliser: Normaliser, data: Data) -> dict[str, float]:
    """The task's metrics on raw rows; its loss alone where a task has no `metrics`."""
    own: Any = getattr(task, "judge", None)
    if own is not None:
        return dict(own(vector, data.x, data.y))
    metrics = getattr(task, "metrics", None)
    if metrics is not None:
        return dict(metrics(data.y, predict(task, layout, vector, normaliser, data.x)))
    return {"loss": _loss(task, layout, vector, normaliser, data)}


def _loss(task: Task, layout: Layout, vector: Vector, normaliser: Normaliser, data: Data) -> float:
    import torch

    from gossipfl.learning import parameters

    module = task.model()
    parameters.write(layout, vector, module)
    module.eval()
    with torch.no_grad():
        return float(task.loss(module, torch.from_numpy(normaliser.apply(data.x)), torch.tensor(data.y)))
