"""One node after the other, with the deployed functions: what the vectorised engine's rounds must come to.

`Taped` is the engine that writes down who trained, who met whom and what was lost; `Plain` does that again in a Python loop,
a trainer and a vector a node. What a method does beside has its line in `Plain`, or its test fails.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gossipfl.learning import correction, mixing
from gossipfl.learning.training import Plan, Trainer
from gossipfl.simulator.vectorized.engine import Engine
from gossipfl.simulator.vectorized.meetings import Meetings
from gossipfl.simulator.vectorized.mixing import Terms


@dataclass
class Taped(Engine):
    tape: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def _come_and_go(self, at: int) -> None:
        gone = self.weather.members(at - 1) & ~self.weather.members(at)
        self.tape.append(("begin", (at, gone if at and self.mixer.flows else np.zeros_like(gone))))
        super()._come_and_go(at)

    def _train(self, nodes: Any, plan: Plan, *more: Any) -> None:
        self.tape.append(("train", (nodes, self.weather.steps(plan.steps)[nodes], plan, self._draws(*more), self.done)))
        super()._train(nodes, plan, *more)

    def _exchange(self, met: Meetings, plan: Plan, trains: bool) -> None:
        due = self.done + self.weather.faults.delay_rounds
        self.tape.append(("exchange", (met, self._terms(plan, trains), due)))
        super()._exchange(met, plan, trains)

    def _serve(self, asked: Any, plan: Plan, at: int) -> None:
        self.tape.append(("serve", (asked[~self.weather.loses(asked, at)],)))
        super()._serve(asked, plan, at)


class Plain:
    """Models, corrections and flows in dicts; `play` does a tape again."""

    def __init__(self, engine: Engine) -> None:
        model, rows = engine.model, engine.rows
        self.engine, self.mass = engine, [float(mass) for mass in engine.mixer.masses]
        self.trainers = [
            Trainer(copy.deepcopy(model.module), model.layout, model.task.loss, *rows.site(node)) for node in range(rows.nodes)
        ]
        self.p = model.layout.n_parameters
        self.models = [model.x0.copy() for _ in range(rows.nodes)]
        self.server = model.x0.copy()
        self.drift: list[Any] = [None] * rows.nodes
        self.flows: dict[int, Any] = {}
        """+ at the lower node"""
        self.late: list[tuple[int, int, Any, Any]] = []
        """due, node, displacement of the model, of F"""

    def play(self, tape: list[tuple[str, tuple[Any, ...]]]) -> np.ndarray:
        for kind, said in tape:
            getattr(self, kind)(*said)
        return np.stack(self.models)

    def begin(self, at: int, gone: Any) -> None:
        links = self.engine.mixer.links
        for edge, flow in self.flows.items():
            assert links is not None
            lo, hi = int(links.lo[edge]), int(links.hi[edge])
            if gone[lo] or gone[hi]:
                for node, sign in ((lo, 1), (hi, -1)):
                    self.drift[node] = self.drift[node] + sign * flow / flow.dtype.type(self.mass[node])
                self.flows[edge] = np.zeros_like(flow)
        for node in np.flatnonzero(gone).tolist():
            self.drift[node] = None
        for one in [one for one in self.late if one[0] <= at]:
            self.move(*one[1:])
        self.late = [one for one in self.late if one[0] > at]

    def train(self, nodes: Any, steps: Any, plan: Plan, draws: Any, round: int) -> None:
        for node, mine in zip(nodes.tolist(), steps.tolist(), strict=True):
            own = Plan(mine, plan.eta, plan.batch_size, plan.optimizer, plan.momentum, plan.proximal, plan.l2)
            outcome = self.trainers[node].train(self.models[node], self.drift[node], own, draws.of(node, round))
            self.models[node] = outcome.vector

    def exchange(self, met: Meetings, terms: Terms, due: int) -> None:
        before = [model.copy() for model in self.models]
        gammas = np.broadcast_to(met.gamma, len(met)).tolist()
        for at, (lo, hi) in enumerate(zip(met.lo.tolist(), met.hi.tolist(), strict=True)):
            clip = self.clip(terms, lo, hi, before)
            q = mixing.flow_step(before[lo], before[hi], gammas[at], self.mass[lo], self.mass[hi], clip)
            edge = None if met.edge is None else int(met.edge[at])
            for node, lower, there in ((lo, True, met.at_lo), (hi, False, met.at_hi)):
                moved = mixing.apply(np.zeros_like(q), q, self.mass[node], lower)
                booked = None
                if terms.kappa:
                    booked = correction.book(None, q[: self.p], terms.kappa, 1.0, 1.0, lower)
                    booked = correction.advance(None, None, booked, self.mass[node])
                if met.late is not None and met.late[at]:
                    if there is None or there[at]:
                        self.late.append((due, node, moved, booked))
                elif there is None or there[at]:
                    self.move(node, moved, booked)
            if terms.kappa and edge is not None:
                self.flows[edge] = correction.book(self.flows.get(edge), q[: self.p], terms.kappa, 1.0, 1.0, True)

    def clip(self, terms: Terms, lo: int, hi: int, models: list[Any]) -> float:
        if terms.tau is None:
            return 1.0
        apart = float(np.linalg.norm((models[hi] - models[lo]).astype(np.float64)))
        return float(mixing.clip_factor(apart, float(min(terms.tau[lo], terms.tau[hi]))))

    def move(self, node: int, moved: Any, booked: Any) -> None:
        self.models[node] = self.models[node] + moved
        if booked is not None:
            self.drift[node] = booked if self.drift[node] is None else self.drift[node] + booked

    def serve(self, arrived: Any) -> None:
        """FedAvg: the mean of what arrived; everybody takes it."""
        if len(arrived):
            alike = self.engine.settings.method.is_uniform
            weight = {node: 1.0 if alike else self.mass[node] for node in arrived.tolist()}
            total = sum(share * self.models[node].astype(np.float64) for node, share in weight.items())
            self.server = (total / sum(weight.values())).astype(self.server.dtype)
        self.models = [self.server.copy() for _ in self.models]
