"""Default settings of a study in rounds: task, method, budget and graph in; local steps, schedule, release, masses out.

The one door for defaults of the benchmark. What stands here was chosen on validation parts, never on test rows. Not here:
what a method does with them (simulator.vectorized.methods).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.methods import Method, method_of
from gossipfl.tasks import Task
from gossipfl.topology.graphs import Graph

TUNABLE = ("eta", "steps")
"""Settings of every plan that `--tune` may change; the method's own knob comes with the method."""


@dataclass(frozen=True)
class Recipe:
    """Everything that `gossipfl.simulate` is told of how to train, beside data, graph, rounds, faults and seed."""

    method: Method
    plan: Plan
    eta_schedule: str = "cosine"
    release: int = 0
    """last rounds, in which nobody trains"""
    masses: Literal["rows", "equal"] = "rows"

    def keywords(self) -> dict[str, Any]:
        """As `gossipfl.simulate` takes them."""
        return {
            "method": self.method,
            "plan": self.plan,
            "eta_schedule": self.eta_schedule,
            "release": self.release,
            "masses": self.masses,
        }


def recipe(task: Task, method: str | Method, rounds: int, graph: Graph | None = None) -> Recipe:
    """The settings of this method on this task for so many rounds; every method gets the same plan and schedule.

    `graph` None: a method with a server, or a graph that is drawn anew each round.

    **Raises**: Misuse for an unknown method.
    """
    batch = None if hasattr(task, "trainer") else 32
    plan = Plan(10, 0.1, batch, getattr(task, "optimizer", "sgd"), l2=float(getattr(task, "l2", 0.0)))
    return Recipe(method_of(method), plan)


def changed(given: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of its plan ("eta", "steps") or of its method (the name of its field)."""
    plan = {name: value for name, value in settings.items() if name in TUNABLE}
    own = {name: value for name, value in settings.items() if name not in TUNABLE}
    return replace(given, plan=replace(given.plan, **plan), method=replace(given.method, **own))
