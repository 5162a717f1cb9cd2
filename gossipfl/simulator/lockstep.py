"""A federation in lockstep as rounds of the engine: its matchings, its study's terms, its members' own draws.

For holding the engine against real peers: what comes out is what they come to, to rounding. Node by node in Python where it
draws, so not for large federations; and not for what lockstep refuses (gossipfl.protocol.lockstep).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gossipfl.errors import Misuse
from gossipfl.learning import correction, mixing
from gossipfl.learning.blocks import Vector
from gossipfl.protocol.lockstep import Schedule
from gossipfl.recipe import SCHEDULES, plan_of
from gossipfl.simulator.federation import Federation
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.engine import Engine, Settings, block_of
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.meetings import Floats, Links
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.mixing import Mixer, Terms
from gossipfl.simulator.vectorized.replicas import Replicas
from gossipfl.simulator.vectorized.rows import Rows
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.ways import Choice, Model, choose
from gossipfl.tasks import fitting
from gossipfl.tasks.normalisation import Normaliser
from gossipfl.trust.membership import Membership


@dataclass(frozen=True)
class Draws:
    """Of deployed nodes' hands, which seed a generator for each local round."""

    seeds: Sequence[tuple[int, ...]]
    """a node each"""

    def of(self, node: int, round: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([*self.seeds[node], round]))

    def each(self, nodes: Integers, counts: Integers, round: int, passes: int) -> Iterator[np.random.Generator]:
        return (self.of(node, round) for node in nodes.tolist())

    def orders(self, round: int, turn: int, nodes: Integers, counts: Integers) -> Integers:
        order = np.zeros((len(nodes), int(counts.max())), dtype=np.int64)
        for place, (node, rows) in enumerate(zip(nodes.tolist(), counts.tolist(), strict=True)):
            rng = self.of(node, round)
            rng.integers(2**63)  # the trainer's first draw, for dropout
            for _ in range(turn + 1):
                order[place, :rows] = rng.permutation(rows)
        return order


class Lockstep:
    """Rounds of a federation whose nodes keep step: `round` is the engine's schedule, `terms` its conduct.

    Node i is the i-th active member in the order of ids.
    """

    def __init__(self, members: Membership) -> None:
        self.members, self.study = members, members.study
        known = {name: members.member(name).certificate_read for name in members.active}
        dialable = frozenset(name for name in known if known[name].addresses)
        self.schedule = Schedule(members, members.active[0], dialable)
        self.places = {name: place for place, name in enumerate(members.active)}
        self.masses: Floats = np.array([members.mass(name) for name in members.active])
        edges = [(self.places[a], self.places[b]) for a, b in self.schedule.edges]
        self.links = Links.of(np.array(edges), len(self.places))

    def eta(self, local_round: int) -> float:
        study = self.study
        return correction.schedule(
            SCHEDULES.get(study.schedule, study.schedule), study.eta, local_round, study.local_rounds
        )

    def round(self, t: int) -> tuple[Integers, Floats, bool]:
        partner = self.schedule.matching(t)
        edges = np.array([(self.places[a], self.places[b]) for a, b in sorted(partner.items()) if a < b]).reshape(-1, 2)
        return edges, self.study.gamma * mixing.mu(self.masses[edges[:, 0]], self.masses[edges[:, 1]]), False

    def terms(self, t: int, gradient: Vector) -> Terms:
        """protocol.terms.Terms of all members at once: a round's exchange comes after its local round was counted."""
        study = self.study
        done = min(t + 1, study.local_rounds)
        kappa = 0.0
        if study.correction == "ledger" and done < study.local_rounds:
            kappa = correction.kappa(study.theta, study.gamma, self.eta(done), study.local_steps)
        tau = None
        if study.clip:
            reach = study.clip * self.eta(min(done, study.local_rounds // 2)) * study.local_steps * gradient
            tau = np.where(reach > 0, reach, math.inf)
        return Terms(kappa, study.leak if kappa else 0.0, study.cap if kappa else 0.0, tau)


def engine_of(federation: Federation, *, training: Choice = "auto", threads: int = 1) -> Engine:
    """An engine that does, round by round, what the federation's nodes do in lockstep.

    **Raises**: Misuse for what lockstep refuses: observers, and statistics that are made by gossip.
    """
    members, task = federation.membership, federation.task
    works = [federation.works[name] for name in members.active]
    if any(work.site is None or not len(work.site.train) for work in works) or works[0].normalised:
        raise Misuse(
            f"lockstep takes trainers only, and a task that standardises nothing; {task.name!r} among {len(works)} has other"
        )
    step, study, layout = Lockstep(members), members.study, works[0].layout
    rows = Rows.of([_ready(task, work.site.train) for work in works if work.site is not None])
    plan = plan_of(study, study.local_steps, study.eta)
    model = Model.of(task, layout, works[0].start)
    state, block = model.state(rows.nodes), block_of(model, rows, plan)
    rounds, release = study.local_rounds + members.release_exchanges, members.release_exchanges
    theta = study.theta if study.correction == "ledger" else 0.0
    method = Method("study", theta=theta, leak=study.leak, cap=study.cap, clip=study.clip)
    return Engine(
        model,
        rows,
        state,
        choose(model, rows, plan, block, float(rows.nodes) * study.local_rounds * plan.steps, training),
        Mixer(state, step.masses, step.links, replicas=_replicas(study.codec, state, step.links)),
        Settings(plan, method, rounds, release, SCHEDULES.get(study.schedule, study.schedule), threads=threads),
        Weather(Faults(), rows.nodes, rounds, 0),
        block,
        step,
        Draws([federation.spec(name).bench.seed for name in members.active]),
        step.terms,
    )


def _replicas(codec: str, state: State, links: Links) -> Replicas | None:
    """None for a codec that loses nothing of the models' own numbers."""
    is_exact = codec == "f64" or codec == state.layout.dtype.replace("float", "f")
    return None if is_exact else Replicas(codec, state, links)


def _ready(task: Any, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(fitting.prepare(task, Normaliser.none(), data)), torch.tensor(data.y)
