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
from gossipfl.simulator.vectorized.draws import stream, uniform
from gossipfl.simulator.vectorized.engine import Engine
from gossipfl.simulator.vectorized.meetings import Meetings
from gossipfl.simulator.vectorized.methods import Method
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

    def _combine(self, present: Any, plan: Plan, at: int, trains: bool) -> None:
        if self.push is not None:
            faults, edges = self.weather.faults, self.push.period[at % len(self.push.period)]
            drawn = uniform(stream(self.settings.seed, "push", at), edges.link)
            self.tape.append(("push", (edges, present, drawn >= faults.lost + (1 - faults.lost) * faults.delayed)))
        super()._combine(present, plan, at, trains)

    def round(self) -> int:
        present = super().round()
        self.tape.append(("end", ()))
        return present


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
        self.sums = [(mass * model, mass) for mass, model in zip(self.mass, self.models, strict=True)]
        """s_i and w_i of push-sum"""
        self.said: dict[tuple[int, int], tuple[Any, float]] = {}
        self.heard: dict[tuple[int, int], tuple[Any, float]] = {}
        """running sums of what each has sent to each, and what of it has come"""
        self.begun: dict[int, tuple[Any, int, Plan]] = {}
        """model before this round's local steps, their number and plan, of each who took some"""
        zeros = np.zeros_like(model.x0)
        self.memory: dict[int, Any] = dict.fromkeys(range(rows.nodes), zeros)
        """c_i of SCAFFOLD, V_i of NoLoCo"""
        self.control, self.first, self.second = zeros, zeros, np.full_like(zeros, 1e-6)
        """c of SCAFFOLD; FedAdam's two"""

    def play(self, tape: list[tuple[str, tuple[Any, ...]]]) -> np.ndarray:
        for kind, said in tape:
            getattr(self, kind)(*said)
        return np.stack(self.models)

    @property
    def method(self) -> Method:
        return self.engine.settings.method

    def begin(self, at: int, gone: Any) -> None:
        self.begun = {}
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
            if self.method.post == "scaffold":
                self.drift[node] = self.control - self.memory[node]
            self.begun[node] = self.models[node], mine, plan
            own = Plan(mine, plan.eta, plan.batch_size, plan.optimizer, plan.momentum, plan.proximal, plan.l2)
            outcome = self.trainers[node].train(self.models[node], self.drift[node], own, draws.of(node, round))
            self.models[node] = outcome.vector

    def exchange(self, met: Meetings, terms: Terms, due: int) -> None:
        if self.begun and self.method.post == "noloco":
            self.leap(met)
            return
        if self.method.post == "k-gt":
            self.track(met)
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

    # ---- what a method does beside -------------------------------------------------------------------------------------

    def slope(self, node: int) -> Any:
        """(x - now) / (eta K): what the local steps descended in the mean; 0 for who took none."""
        if node not in self.begun:
            return np.zeros_like(self.models[node])
        start, steps, plan = self.begun[node]
        return (start - self.models[node]) / start.dtype.type(plan.eta * steps)

    def pulls(self, met: Meetings, values: list[Any]) -> list[Any]:
        """sum_j (theta_ij / m_i) (v_j - v_i) of each node, theta the share of the reduced mass; ends that apply only."""
        pulled = [np.zeros_like(value) for value in values]
        gammas = np.broadcast_to(met.gamma, len(met)).tolist()
        for at, (lo, hi) in enumerate(zip(met.lo.tolist(), met.hi.tolist(), strict=True)):
            theta = gammas[at] * mixing.mu(self.mass[lo], self.mass[hi])
            for me, other, there in ((lo, hi, met.at_lo), (hi, lo, met.at_hi)):
                if there is None or there[at]:
                    pulled[me] = pulled[me] + values[me].dtype.type(theta / self.mass[me]) * (values[other] - values[me])
        return pulled

    def track(self, met: Meetings) -> None:
        """K-GT: F_i follows the others' mean descent."""
        moved = self.pulls(met, [self.slope(node) for node in range(len(self.models))])
        self.drift = [gain if held is None else held + gain for held, gain in zip(self.drift, moved, strict=True)]

    def leap(self, met: Meetings) -> None:
        """NoLoCo: V <- alpha V + beta mean D - gamma (x - mean x), x' = x + V."""
        start = [self.begun[node][0] if node in self.begun else held for node, held in enumerate(self.models)]
        gained = [now - held for now, held in zip(self.models, start, strict=True)]
        mean, pull = self.pulls(met, gained), self.pulls(met, start)
        for node in self.begun:
            method = self.method
            outer = method.outer_step * (gained[node] + mean[node]) + method.pull * pull[node]
            self.memory[node] = method.momentum * self.memory[node] + outer
            self.models[node] = start[node] + self.memory[node]

    def push(self, edges: Any, present: Any, came: Any) -> None:
        """Push-sum with running sums: the sum of all shares so far goes over an edge, and what is new in it is taken in."""
        nodes = np.flatnonzero(present).tolist()
        for node in nodes:
            held, weight = self.sums[node]
            self.sums[node] = held + self.mass[node] * (self.models[node] - held / weight), weight
        pairs = list(zip(edges.sender.tolist(), edges.receiver.tolist(), came.tolist(), strict=True))
        shares = {node: 1 / (1 + sum(sender == node for sender, _, _ in pairs)) for node in nodes}
        sent = {node: tuple(shares[node] * part for part in self.sums[node]) for node in nodes}
        for node in nodes:
            self.sums[node] = sent[node]  # type: ignore[assignment]
        nothing = (np.zeros_like(self.server), 0.0)
        for sender, receiver, arrives in pairs:
            if sender not in sent:
                continue
            pair = sender, receiver
            self.said[pair] = tuple(a + b for a, b in zip(self.said.get(pair, nothing), sent[sender], strict=True))  # type: ignore
            if arrives and receiver in sent:
                new = [a - b for a, b in zip(self.said[pair], self.heard.get(pair, nothing), strict=True)]
                self.sums[receiver] = self.sums[receiver][0] + new[0], self.sums[receiver][1] + new[1]
                self.heard[pair] = self.said[pair]
        for node in nodes:
            self.models[node] = self.sums[node][0] / self.sums[node][1]

    def end(self) -> None:
        """Quasi-global momentum: M <- mu M + (1 - mu) d, F = beta M."""
        if self.method.post == "qgm":
            keep, beta = self.method.momentum_kept, self.method.momentum
            for node in self.begun:
                held = np.zeros_like(self.server) if self.drift[node] is None else self.drift[node]
                self.drift[node] = keep * held + (1 - keep) * beta * self.slope(node)

    def serve(self, arrived: Any) -> None:
        """z <- z + s(weighted mean of y_i - z) by the method's rule; everybody takes it."""
        mass = {node: 1.0 if self.method.is_uniform else self.mass[node] for node in arrived.tolist()}
        share = {node: held / sum(mass.values()) for node, held in mass.items()}
        moved = {node: self.models[node] - self.server for node in share}
        if share:
            step = sum(share[node] * moved[node] for node in share)
            if self.method.post == "fednova":
                length = {node: self.length(node) for node in share}
                step = sum(share[node] / length[node] * moved[node] for node in share)
                step = step * sum(share[node] * length[node] for node in share)
            elif self.method.post == "scaffold":
                found = {node: self.memory[node] - self.control + self.slope(node) for node in share}
                gained = sum(mass[node] / sum(self.mass) * (found[node] - self.memory[node]) for node in share)
                self.control, self.memory = self.control + gained, self.memory | found
            elif self.method.post == "fedadam":
                self.first = 0.9 * self.first + 0.1 * step
                self.second = 0.99 * self.second + 0.01 * step * step
                step = self.method.server_eta * self.first / (np.sqrt(self.second) + 1e-3)
            self.server = (self.server + step).astype(self.server.dtype)
        self.models = [self.server.copy() for _ in self.models]

    def length(self, node: int) -> float:
        """FedNova's measure of local steps: each of them shrunk by the proximal ones after it."""
        _, steps, plan = self.begun[node]
        return sum((1 - plan.eta * plan.proximal) ** later for later in range(steps))
