"""What a round is made of, as data: the local phase, how models are combined, what the displacement is used for beside.

A method is a Plan for the local update, a way to combine (pairs | edges | mean) and a post (nothing, or booking
F <- F - kappa d). Gossip, the ledger, D-PSGD, FedAvg, FedProx and their corrected forms are rows of one table; what needs
another post gets one more field here, and one more branch where the displacement is known (vectorized.mixing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.learning.correction import kappa
from gossipfl.learning.mixing import clip_threshold
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.meetings import Floats
from gossipfl.simulator.vectorized.mixing import Terms

Combine = Literal["pairs", "edges", "mean"]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    leak, cap and clip are 0 by default: laws of exactness hold there. The deployed study has leak .02, cap 2, clip 2.
    """

    name: str
    combine: Combine = "pairs"
    theta: float = 0.0
    """share of what an exchange moved that comes back as correction; 0: no correction"""
    leak: float = 0.0
    cap: float = 0.0
    clip: float = 0.0
    proximal: float = 0.0

    def terms(self, plan: Plan, gamma: float, h_ref: float, gradient: Floats, *, trains: bool) -> Terms:
        """Of a round. `gradient` (N,): G of each node; `trains` False in the release, which books and clips nothing."""
        if not trains:
            return Terms()
        booked = kappa(self.theta, gamma, plan.eta, h_ref) if self.theta else 0.0
        tau = None
        if self.clip:
            reach = clip_threshold(plan.eta, plan.steps, gradient) * (self.clip / 2)
            tau = np.where(reach > 0, reach, np.inf)
        return Terms(booked, self.leak if booked else 0.0, self.cap if booked else 0.0, tau)

    @property
    def is_measured(self) -> bool:
        """Does it ask for gradient norms."""
        return bool(self.clip or (self.theta and self.cap))


METHODS: Final = {
    method.name: method
    for method in (
        Method("gossip"),
        Method("ledger", theta=0.25),
        Method("d-psgd", combine="edges"),
        Method("ledger-edges", combine="edges", theta=0.25),
        Method("fedavg", combine="mean"),
        Method("fedprox", combine="mean", proximal=0.1),
        Method("ledger-mean", combine="mean", theta=0.25),
    )
}


def method_of(given: str | Method) -> Method:
    """**Raises**: Misuse for a name that is not in the table."""
    if isinstance(given, Method):
        return given
    if given not in METHODS:
        raise Misuse(f"unknown method {given!r}; use one of {', '.join(METHODS)}, or a Method of your own")
    return METHODS[given]
