"""Default settings of a study in rounds: task, method, budget and graph in; steps, schedule, exchanges, release, masses out.

The one door for defaults of the benchmark. The numbers are those of gossipfl.defaults, which a deployed study has, too; here is
what rounds make of them. Not here: what a method does with them (simulator.vectorized.methods).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gossipfl import defaults
from gossipfl.learning.training import Plan
from gossipfl.recipe import SCHEDULES
from gossipfl.simulator.vectorized.methods import METHODS, Method, method_of
from gossipfl.tasks import Task, fitting
from gossipfl.topology.graphs import Graph
from gossipfl.topology.rules import RESIDUE, contraction_of
from gossipfl.topology.spectrum import lambda2

TUNABLE = ("eta", "steps")
"""Settings of every plan that `--tune` may change; the method's own knob comes with the method."""

MET: Final = 0.6
"""Share of the nodes that a matching serves where 30 % are absent."""

RELEASE_SHARE: Final = 0.1
"""Of the rounds, at most, goes to the release: the falling rate has brought the models together before. A quarter lost .1 % on
icu at 50 rounds."""

@dataclass(frozen=True)
class Recipe:
    """Everything that `gossipfl.simulate` is told of how to train, beside data, graph, rounds, faults and seed."""

    method: Method
    plan: Plan
    eta_schedule: str = "cosine"
    release: int = 0
    """last rounds, in which nobody trains"""
    exchanges: int = 1
    """a round, one after the other"""
    masses: Literal["rows", "equal"] = "rows"
    heaviest: float = defaults.HEAVIEST_OF_MANY

    def keywords(self) -> dict[str, Any]:
        """As `gossipfl.simulate` takes them."""
        return {
            "method": self.method,
            "plan": self.plan,
            "eta_schedule": self.eta_schedule,
            "release": self.release,
            "exchanges": self.exchanges,
            "masses": self.masses,
            "heaviest": self.heaviest,
        }


def recipe(task: Task, method: str | Method, rounds: int, graph: Graph | None = None, nodes: int | None = None) -> Recipe:
    """The settings of this method on this task for so many rounds; every method gets the same plan and schedule.

    Local steps are defaults.training; FedNova, which weighs plain steps, has no momentum. Exchanges and release are for
    methods of pairs; the ledger's theta is defaults.theta of the exchanges, a `Method` of one's own keeps its theta.

    `graph` None: a method with a server, or a graph that is drawn anew each round. `nodes` None: as many as the graph has, or
    many.

    **Raises**: Misuse for an unknown method.
    """
    chosen = method_of(method)
    is_net = fitting.is_net(task)
    optimizer: Literal["sgd", "adam"] = getattr(task, "optimizer", "sgd")
    local = defaults.training(is_net, rounds, optimizer, momentum=0.0 if chosen.post == "fednova" else defaults.MOMENTUM)
    plan = Plan(
        local.local_steps, local.eta, local.batch_size, optimizer, local.momentum, l2=float(getattr(task, "l2", 0.0))
    )
    has_turns = chosen.combine == "pairs" and chosen.post == "plain" and not chosen.is_asynchronous
    exchanges = defaults.exchanges(is_net, rounds) if has_turns else 1
    if chosen == METHODS["ledger"]:
        chosen = replace(chosen, theta=defaults.theta(exchanges, whole=is_net))
    meets = chosen.combine not in ("server", "none")
    release = min(release_rounds(graph, exchanges), int(RELEASE_SHARE * rounds)) if meets else 0
    decay = SCHEDULES.get(local.schedule, local.schedule)
    count = nodes or (graph.n if graph is not None else None)
    heaviest = defaults.heaviest(count) if count else defaults.HEAVIEST_OF_MANY
    return Recipe(chosen, plan, decay, release, exchanges, heaviest=heaviest)


def release_rounds(graph: Graph | None, exchanges: int) -> int:
    """Rounds without training after which .01 of the disagreement is left, on this graph with so many exchanges a round.

    None: neighbours are drawn anew, from all.
    """
    rho = math.sqrt(0.5)
    if graph is not None:
        rho = contraction_of(graph.n, lambda2(graph)[0] / (2 * max(1, int(graph.degrees.max()))))
    needed = 1.0 if rho <= RESIDUE else math.log(1 / RESIDUE) / -math.log(rho)
    return math.ceil(needed / (MET * exchanges))


def changed(given: Recipe, **settings: Any) -> Recipe:
    """The recipe with other settings of its plan ("eta", "steps") or of its method (the name of its field)."""
    plan = {name: value for name, value in settings.items() if name in TUNABLE}
    own = {name: value for name, value in settings.items() if name not in TUNABLE}
    return replace(given, plan=replace(given.plan, **plan), method=replace(given.method, **own))
