"""How a study is trained where nobody says otherwise: the numbers, and the rules of those that follow from rounds and members.

The one definition: `gossipfl federation create` writes them into the federation file, demo and simulators train by them, and the
benchmark measures them. docs/recipe.md is this room as a table, with what the benchmark and a deployed node do differently, and
why; ADR 23 and 31 have what was tried and lost. Not here: what node and engines do with them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

ROUNDS: Final = 100
"""Of a linear model."""

ROUNDS_OF_A_NET: Final = 300

SCARCE: Final = 50
"""Rounds up to which a round has twice the local steps."""

EXCHANGES: Final = 400
"""A node's exchanges in a study, where rounds are scarce: one after the other in each round, so many a round."""

EXCHANGES_OF_A_NET: Final = 1800
"""Six a round up to 300 rounds: a net is not at its end by then, and mixing is what lets momentum carry it further."""

MOST_EXCHANGES: Final = 6
"""A round. Against four, the worst node of the net gains half a point at 50 rounds; the linear models gain nothing."""

MOMENTUM: Final = 0.98
"""Of a net's local steps in rounds, at a sixth of the rate without: the objective is then lower at every budget, for every
method. The correction of drift is a displacement after the optimiser, so what flows over a link is in the momentum's own unit."""

MOMENTUM_OF_NODES: Final = 0.95
"""The same of deployed nodes, who come back and make up for what they missed while others have gone on: the longer memory and the
whole of the correction brought them nothing (ADR 32)."""

NET_BATCH: Final = 32
"""Rows in a step of a net; a linear model takes all."""

GAMMA: Final = 0.5
"""Share of the difference that an exchange of deployed nodes moves: their exchanges overlap. Disjoint pairs move all of it."""

LEAK: Final = 0.02
CLIP: Final = 2.0
"""Against neighbours who may be hostile, and rates that are too high; the benchmark, whose nodes are honest, has neither, nor a
cap. On honest nodes these two cost nothing that could be told."""

CAP: Final = 4.0
"""Likewise, on the flow of a link. The least with which honest nodes reach the bar in every split tried: 2 held them back where
masses or labels differ much (digits .9865 of centralized, .9973 with 4), and each one more opens it to who lies (ADR 31)."""

HEAVIEST: Final = 3.0
"""Medians that a site may weigh in a small federation: one large hospital must not own the model."""

HEAVIEST_OF_MANY: Final = 10.0
"""The same among many, where three would move the optimum itself: among 415 hospitals by up to .0023 of the AUC."""

Schedule = Literal["cosine", "constant", "tail"]


@dataclass(frozen=True)
class Training:
    """Local steps of a round, and how the rate falls over the rounds."""

    local_steps: int
    eta: float
    batch_size: int | None
    """None: all local rows"""
    momentum: float
    schedule: Schedule


def training(is_net: bool, rounds: int, optimizer: str = "sgd", *, momentum: float = MOMENTUM) -> Training:
    """A linear model: all rows in every step, eta .1, a cosine. A net: 32 rows a step, eta .05 with momentum (without:
    .3), a plateau and a straight fall. Adam, whose step is its rate: eta .01, a cosine.

    `momentum`: of a net. 0 for a method that cannot bear it.
    """
    steps, batch = 20 if rounds <= SCARCE else 10, NET_BATCH if is_net else None
    if optimizer == "adam":
        return Training(steps, 0.01, batch, 0.0, "cosine")
    if not is_net:
        return Training(steps, 0.1, batch, 0.0, "cosine")
    return Training(steps, 0.05 if momentum else 0.3, batch, momentum, "tail")


def rounds(is_net: bool) -> int:
    """Local rounds of training before the release."""
    return ROUNDS_OF_A_NET if is_net else ROUNDS


def exchanges(is_net: bool, rounds: int) -> int:
    """In which a node takes part in each round.

    >>> [exchanges(False, rounds) for rounds in (50, 100, 400)], exchanges(True, 300)
    ([6, 4, 1], 6)
    """
    return min(MOST_EXCHANGES, math.ceil((EXCHANGES_OF_A_NET if is_net else EXCHANGES) / rounds))


def begun(exchanges: int) -> int:
    """Of so many, those that a deployed node begins itself: it is asked as often as it asks.

    >>> [begun(n) for n in (1, 4, 6)]
    [1, 2, 3]
    """
    return math.ceil(exchanges / 2)


def theta(exchanges: int, *, whole: bool = False) -> float:
    """Strength of the correction where a node takes part in so many exchanges a round: the better the models are mixed, the
    surer is what flows. kappa stays that of one exchange a round, for their sum is what moved. `whole`: of a net in rounds, up to
    all of it.

    >>> [round(theta(n), 2) for n in (1, 2, 4, 6)], [round(theta(n, whole=True), 2) for n in (1, 2, 4, 6)]
    ([0.25, 0.35, 0.55, 0.75], [0.25, 0.4, 0.7, 1.0])
    """
    return min(1.0, 0.25 + 0.15 * (exchanges - 1)) if whole else min(0.75, 0.25 + 0.1 * (exchanges - 1))


def heaviest(members: int) -> float:
    """Medians of all counts that one site may weigh: 3, and among many a tenth of their number, at most 10. So nobody has more
    than about a tenth of a large federation, and a large hospital among few not the model.

    >>> [heaviest(n) for n in (4, 30, 50, 415)]
    [3.0, 3.0, 5.0, 10.0]
    """
    return min(HEAVIEST_OF_MANY, max(HEAVIEST, members / 10))
