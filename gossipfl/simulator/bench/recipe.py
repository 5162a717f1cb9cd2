"""Default settings of a study in rounds: task, method, budget and graph in; steps, schedule, exchanges, release, masses out.

The one door for defaults of the benchmark. What stands here was chosen on validation parts, never on test rows: ADR 23 has the
figures of what was tried and lost. Not here: what a method does with them (simulator.vectorized.methods).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.methods import METHODS, Method, method_of
from gossipfl.tasks import Task
from gossipfl.topology.graphs import Graph
from gossipfl.topology.rules import RESIDUE, contraction_of
from gossipfl.topology.spectrum import lambda2

TUNABLE = ("eta", "steps")
"""Settings of every plan that `--tune` may change; the method's own knob comes with the method."""

SCARCE: Final = 50
"""Rounds up to which a round has twice the local steps."""

EXCHANGES: Final = 400
"""A node's exchanges in a study, where rounds are scarce: with a partner after the other in each round, so many a round."""

EXCHANGES_OF_A_NET: Final = 1800
"""Six a round up to 300 rounds: a net is not at its end by then, and mixing is what lets momentum carry it further."""

MOMENTUM: Final = 0.95
"""Of a net's local steps, at a sixth of the rate without: the objective is then lower at every budget, for FedAvg, too. The
correction of drift is a displacement after the optimiser, so what flows over a link is in the momentum's own unit."""

MOST_EXCHANGES: Final = 6
"""A round. Against four, the worst node of the net gains half a point at 50 rounds; the linear models gain nothing."""

MET: Final = 0.6
"""Share of the nodes that a matching serves where 30 % are absent."""

RELEASE_SHARE: Final = 0.1
"""Of the rounds, at most, goes to the release: the falling rate has brought the models together before. A quarter lost .1 % on
icu at 50 rounds."""

HEAVIEST: Final = 10.0
"""Medians that a site may count. A deployed membership caps at 3, so that nobody owns a small federation's model; among 415
hospitals that moves the optimum itself by up to .0023 of the AUC."""


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
    heaviest: float = HEAVIEST

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


def recipe(task: Task, method: str | Method, rounds: int, graph: Graph | None = None) -> Recipe:
    """The settings of this method on this task for so many rounds; every method gets the same plan and schedule.

    A linear model: all rows of a site in every step, eta .1, a cosine. A net: 32 rows a step, eta .05 with momentum .95, a
    plateau and a straight fall; FedNova, which weighs plain steps, has eta .3 and no momentum. Exchanges and release are for
    methods of pairs; the ledger's theta grows with the exchanges of a round, for the better the models are mixed the surer is
    what flows. A `Method` of one's own keeps its theta.

    `graph` None: a method with a server, or a graph that is drawn anew each round.

    **Raises**: Misuse for an unknown method.
    """
    chosen = method_of(method)
    is_net = _is_net(task)
    optimizer: Literal["sgd", "adam"] = getattr(task, "optimizer", "sgd")
    momentum = MOMENTUM if is_net and optimizer == "sgd" and chosen.post != "fednova" else 0.0
    plan = Plan(
        20 if rounds <= SCARCE else 10,
        0.05 if momentum else 0.3 if is_net else 0.1,
        32 if is_net else None,
        optimizer,
        momentum,
        l2=float(getattr(task, "l2", 0.0)),
    )
    has_turns = chosen.combine == "pairs" and chosen.post == "plain" and not chosen.is_asynchronous
    exchanges = (
        min(MOST_EXCHANGES, math.ceil((EXCHANGES_OF_A_NET if is_net else EXCHANGES) / rounds)) if has_turns else 1
    )
    if chosen == METHODS["ledger"]:
        chosen = replace(chosen, theta=min(0.75, chosen.theta + 0.1 * (exchanges - 1)))
    meets = chosen.combine not in ("server", "none")
    release = min(release_rounds(graph, exchanges), int(RELEASE_SHARE * rounds)) if meets else 0
    return Recipe(chosen, plan, "linear-tail" if is_net else "cosine", release, exchanges)


def _is_net(task: Task) -> bool:
    """Has its model layers one after the other: is it not convex."""
    if hasattr(task, "trainer"):
        return False
    return sum(weight.ndim > 1 for weight in task.model().parameters()) > 1


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
