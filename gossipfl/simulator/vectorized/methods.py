"""What a round is made of, as data: the local phase, how models are combined, what the displacement is used for beside.

A method is a way to combine (pairs, all edges, a server, or not at all), a post (what is done with what moved) and a few
figures; local steps are everybody's Plan. One row of METHODS is one method. Not here: the arithmetic (vectorized.mixing,
.server, .posts, .push), and the references that no rounds lead to (simulator.baselines: centralized, local-only).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from gossipfl import defaults
from gossipfl.errors import Misuse
from gossipfl.learning.correction import kappa
from gossipfl.learning.mixing import clip_threshold
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.meetings import Floats
from gossipfl.simulator.vectorized.mixing import Terms

Combine = Literal["pairs", "edges", "push", "server", "none"]
"""disjoint pairs of a round; every edge at once; directed edges with weights of their own; through a server that everybody
talks to; each for itself"""

Post = Literal["plain", "fednova", "scaffold", "fedadam", "k-gt", "qgm", "noloco"]
"""what is done with the displacement beside adding it and booking F <- F - kappa d; see vectorized.server and .posts"""

REFERENCES: Final = ("centralized", "local-only")
"""What methods are measured against, trained to convergence without rounds: see simulator.baselines"""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    leak, cap and clip are 0 by default: laws of exactness hold there. The deployed study has leak .02, cap 2, clip 2.
    """

    name: str
    combine: Combine = "pairs"
    post: Post = "plain"
    theta: float = 0.0
    """share of what an exchange moved that comes back as correction; 0: no correction"""
    leak: float = 0.0
    cap: float = 0.0
    clip: float = 0.0
    proximal: float = 0.0
    neighbours: int = 0
    """the graph is drawn anew each round, so many neighbours each, whatever the topology; 0: the topology"""
    is_local: bool = False
    """re-drawn neighbours: each sends to so many at random, and who receives averages (a directed graph)"""
    is_asynchronous: bool = False
    """ticks instead of rounds: one node wakes, trains and asks a neighbour"""
    is_lazy: bool = False
    """(I + W) / 2 instead of W"""
    least_eigenvalue: float = -1.0
    """W must have no eigenvalue at or below this"""
    is_uniform: bool = False
    """a server weighs all nodes alike, instead of by mass"""
    participation: float = 1.0
    """a server asks this share of the nodes that are there, at random"""
    server_eta: float = 0.03
    """FedAdam's step at the server"""
    momentum: float = 0.0
    """beta of quasi-global momentum, alpha of NoLoCo"""
    momentum_kept: float = 0.9
    """mu of quasi-global momentum: what its moving average keeps"""
    outer_step: float = 0.7
    """beta of NoLoCo"""
    pull: float = 0.7
    """gamma of NoLoCo; the beta in its authors' program"""
    is_experimental: bool = False
    source: str = ""
    """who published it, where it differs"""

    @property
    def has_server(self) -> bool:
        return self.combine == "server"

    @property
    def vectors(self) -> int:
        """Of a model's size in one message."""
        return 2 if self.post in ("scaffold", "k-gt", "noloco") else 1

    @property
    def has_memory(self) -> bool:
        """Is there something of vectorized.posts."""
        return self.post in ("k-gt", "qgm", "noloco")

    def require(self, plan: Plan) -> None:
        """**Raises**: Misuse for local steps that the method's formula does not know."""
        if self.post == "fednova" and (plan.optimizer != "sgd" or plan.momentum):
            raise Misuse(f"{self.name} weighs plain SGD steps; momentum that outlives a round and Adam have no such weight: "
                         "use sgd without momentum, or fedavg")  # fmt: skip

    def terms(
        self, plan: Plan, gamma: float, h_ref: float, gradient: Floats, *, trains: bool, clipped_at: float | None = None
    ) -> Terms:
        """Of a round. `gradient` (N,): G of each node; `trains` False in the release, which books and clips nothing;
        `clipped_at` is the rate that the clip is anchored to, None for that of the round."""
        if not trains:
            return Terms()
        booked = kappa(self.theta, gamma, plan.eta, h_ref) if self.theta else 0.0
        tau = None
        if self.clip:
            reach = clip_threshold(clipped_at or plan.eta, plan.steps, gradient) * (self.clip / 2)
            tau = np.where(reach > 0, reach, np.inf)
        return Terms(booked, self.leak if booked else 0.0, self.cap if booked else 0.0, tau)

    @property
    def is_measured(self) -> bool:
        """Does it ask for gradient norms."""
        return bool(self.clip or (self.theta and self.cap))


LEAST_FOR_D2: Final = -1 / 3
"""D2 diverges where W has an eigenvalue at or below it: Tang, Lian, Yan, Zhang, Liu (2018), assumption 1."""

METHODS: Final = {
    method.name: method
    for method in (
        Method("local", combine="none", source="the same local steps, and nobody exchanges anything"),
        Method("fedavg", combine="server", source="McMahan, Moore, Ramage, Hampson, Aguera y Arcas, "
               '"Communication-efficient learning of deep networks from decentralized data", 2017'),
        Method("fedavg-uniform", combine="server", is_uniform=True, source="as fedavg, every node weighed alike"),
        Method("fedprox", combine="server", proximal=0.1, source="Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "
               '"Federated optimization in heterogeneous networks", 2020'),
        Method("fednova", combine="server", post="fednova", source="Wang, Liu, Liang, Joshi, Poor, "
               '"Tackling the objective inconsistency problem in heterogeneous federated optimization", 2020'),
        Method("scaffold", combine="server", post="scaffold", source="Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "
               '"SCAFFOLD", 2020, option II'),
        Method("fedadam", combine="server", post="fedadam", source="Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, "
               'McMahan, "Adaptive federated optimization", 2021'),
        Method("gossip", source='Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", 2006, with local steps'),
        Method("d-psgd", combine="edges", source="Lian, Zhang, Zhang, Hsieh, Zhang, Liu, "
               '"Can decentralized algorithms outperform centralized algorithms?", 2017; adapt, then combine'),
        Method("push-sum", combine="push", source="Assran, Loizou, Ballas, Rabbat, "
               '"Stochastic gradient push", 2019, with the running sums of Hadjicostis, Vaidya, Dominguez-Garcia, 2016'),
        Method("epidemic", combine="edges", neighbours=6, source="de Vos, Farhadkhani, Guerraoui, Kermarrec, Pires, "
               'Sharma, "Epidemic learning", 2023 (EL-Oracle)'),
        Method("epidemic-local", combine="edges", neighbours=6, is_local=True, source="as epidemic (EL-Local)"),
        Method("ledger", theta=defaults.theta(1), source="gossip whose flows over links serve again as correction of drift"),
        Method("ledger-edges", combine="edges", theta=defaults.theta(1), source="the ledger over all edges at once"),
        Method("d2", combine="edges", theta=1.0, least_eigenvalue=LEAST_FOR_D2, source="Tang, Lian, Yan, Zhang, Liu, "
               '"D2: decentralized training over decentralized data", 2018; with several local steps the correction is '
               "spread over them"),
        Method("d2-lazy", combine="edges", theta=1.0, is_lazy=True, least_eigenvalue=LEAST_FOR_D2,
               source="d2 with (I + W) / 2, which every graph allows"),
        Method("qgm", combine="edges", post="qgm", momentum=0.9, source="Lin, Karimireddy, Stich, Jaggi, "
               '"Quasi-global momentum", 2021'),
        Method("k-gt", combine="edges", post="k-gt", source="Liu, Lin, Koloskova, Stich, "
               '"Decentralized gradient tracking with local steps", 2023'),
        Method("noloco", post="noloco", momentum=0.5, is_experimental=True, source="Kolehmainen, Blagoev, Donaghy, Ersoy, "
               'Nies, "NoLoCo", 2025; outer momentum between random pairs'),
        Method("ad-psgd", is_asynchronous=True, source="Lian, Zhang, Zhang, Liu, "
               '"Asynchronous decentralized parallel stochastic gradient descent", 2018; a tick trains, then averages'),
    )
}  # fmt: skip


def method_of(given: str | Method) -> Method:
    """**Raises**: Misuse for a name that is not in the table, with the nearest that is."""
    if isinstance(given, Method):
        return given
    if given in REFERENCES:
        raise Misuse(f"{given!r} is no method of rounds but a reference, trained to convergence: "
                     "gossipfl.simulator.baselines has it; 'local' takes local steps alone, for as many rounds")  # fmt: skip
    if given not in METHODS:
        near = difflib.get_close_matches(given, METHODS, 1, 0.5)
        meant = f"did you mean {near[0]!r}? There are" if near else "use one of"
        raise Misuse(f"unknown method {given!r}; {meant} {', '.join(METHODS)}, or a Method of your own")
    return METHODS[given]
