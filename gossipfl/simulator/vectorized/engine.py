"""One round of all nodes: who is there, local steps in blocks and threads, exchanges, what is late. No evaluation here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from gossipfl.errors import Misuse
from gossipfl.learning.correction import schedule
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.draws import Draws, Integers, Named, stream, uniform
from gossipfl.simulator.vectorized.faults import Weather
from gossipfl.simulator.vectorized.meetings import (
    Floats,
    Mask,
    Meetings,
    Schedule,
    drawn,
    every_edge,
    matching,
    metropolis,
    ticks,
)
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.mixing import Mixer, Terms
from gossipfl.simulator.vectorized.posts import Memory
from gossipfl.simulator.vectorized.push import Push, edges_of
from gossipfl.simulator.vectorized.rows import Nodes, Rows
from gossipfl.simulator.vectorized.server import Server
from gossipfl.simulator.vectorized.shards import Shard
from gossipfl.simulator.vectorized.state import State
from gossipfl.simulator.vectorized.stepping import Work
from gossipfl.simulator.vectorized.watching import Watching
from gossipfl.simulator.vectorized.ways import Choosing, Model, prepare

BLOCK_BYTES: Final = 4 * 2**20
MOST: Final = 1024
"""Nodes of a block: so many that a block's models and rows stay in cache, and no more than this."""


def block_of(model: Model, rows: Rows, plan: Plan) -> int:
    """Nodes that are trained together."""
    itemsize = np.dtype(model.layout.dtype).itemsize
    batch = int(rows.sizes(plan.batch_size).mean()) * int(np.prod(rows.x.shape[1:]))
    return int(np.clip(BLOCK_BYTES // (itemsize * (model.layout.size + batch)), 8, MOST))


@dataclass
class Settings:
    """What stays the same through a run."""

    plan: Plan
    method: Method
    rounds: int
    release: int = 0
    """last rounds, in which nobody trains"""
    decay: str = "constant"
    """of eta: see learning.correction.schedule"""
    mode: Literal["rounds", "ticks"] = "rounds"
    seed: int = 0
    threads: int = 1
    h_ref: float = 0.0
    """local steps between two exchanges of a node; 0: those of a round"""
    exchanges: int = 1
    """with others after the local steps of a round, one after the other; kappa is that of one: their sum is what moved"""
    codec: str = "none"
    """of what goes over links, or up to a server"""
    release_codec: str = ""
    """of the release; empty: the same"""

    def codec_at(self, round: int) -> str:
        return self.codec if round < self.rounds - self.release else self.release_codec or self.codec


Conduct = Callable[[int, Floats], Terms]
"""(round, G of each node) -> terms"""


class Listener(Protocol):
    """Whoever wants to know of a run what its records do not keep."""

    def met(self, round: int, met: Meetings) -> None:
        """These exchanges are being made, all at once, after what was told before."""

    def judged(self, round: int, scores: Mapping[int, float]) -> None:
        """These nodes' models have this metric at the end of a round."""


@dataclass
class Engine:
    """Holds the state and moves it on round by round; the same seed gives the same rounds."""

    model: Model
    rows: Rows
    state: State
    choosing: Choosing
    mixer: Mixer
    settings: Settings
    weather: Weather
    block: int
    meet: Schedule | None = None
    """pairs of each round; with a static graph in the mixer they are among its edges, else there is no graph"""
    draws: Draws | None = None
    """of local steps; None: the engine's own"""
    conduct: Conduct | None = None
    """on which terms each round is made; None: the method's"""
    done: int = 0
    """rounds"""
    exchanges: int = 0
    sent: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(N,) models that each node sent in the last round"""
    stepped: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(N,) local steps of each in the last round"""
    watching: Watching | None = None
    """whoever looks at this round's exchanges; None: nobody"""
    listener: Listener | None = None
    shard: Shard | None = None
    """the nodes that are this process's; None: all"""
    server: Server | None = None
    memory: Memory | None = None
    push: Push | None = None
    _gamma: Floats = field(default_factory=lambda: np.zeros(0))
    _pool: ThreadPoolExecutor | None = None

    def __post_init__(self) -> None:
        method = self.settings.method
        prepare(self.state, self.model, self.settings.plan)
        links = self.mixer.links
        if self.meet is None and method.combine in ("pairs", "edges", "push") and links is None:
            raise Misuse(f"{method.name} needs a graph, or a schedule of pairs")
        if method.combine == "edges" and links is not None:
            self._gamma = metropolis(links, self.mixer.masses) * (0.5 if method.is_lazy else 1.0)
        if method.combine == "push":
            self.push = Push(self.state, self.mixer.masses, edges_of(links, self.meet, self.state.nodes), self.shard)
        if method.has_memory:
            self.memory = Memory(self.state, method, self.mixer.masses, shard=self.shard)
        if method.has_server:
            masses = self.mixer.masses
            self.server = Server(
                self.state, method, np.ones_like(masses) if method.is_uniform else masses, self.settings.codec, self.shard
            )
        if method.theta and (method.leak or method.cap or (self.weather.some_leave and links is not None)):
            needs_all = method.leak or method.cap or self.conduct is not None
            self.mixer.keep_flows(None if needs_all else np.isfinite(self.weather.leaves))
        if method.theta:
            self.state.need_correction()
        if self.settings.plan.batch_size is None and self.shard is None:
            self.rows.unpack()

    # ---- a round ----------------------------------------------------------------------------------------------------

    def round(self) -> int:
        """Go on by one round. **Returns**: how many took part."""
        at, settings, weather = self.done, self.settings, self.weather
        self.sent, self.stepped = (np.zeros(self.state.nodes, dtype=np.int64) for _ in range(2))
        self._come_and_go(at)
        present = self._asked(weather.present(at), at)
        trains = at < settings.rounds - settings.release
        plan = self._plan(at)
        if settings.release_codec and self.mixer.replicas is not None:
            self.mixer.replicas.codec = settings.codec_at(at)
        self.mixer.arrive(at)
        if settings.mode == "ticks":
            assert self.mixer.links is not None
            for number, (awake, met) in enumerate(ticks(self.mixer.links, present, settings.seed, at)):
                if trains:
                    self._train(awake, plan, number)
                self._exchange(weather.strike(met, at, number), plan, trains)
        else:
            nodes = np.flatnonzero(present & weather.trains(at))
            if trains:
                for kept in (self.server, self.memory):
                    if kept is not None:
                        kept.before(nodes)
                self._train(nodes, plan)
            if self.watching is not None:
                self.watching.before(self.state)
            self._combine(present, plan, at, trains)
            if self.watching is not None:
                self.watching.after(self.state, at)
            if trains and self.memory is not None and settings.method.post == "qgm":
                self.memory.follow(self.stepped, plan.eta)
        self.done += 1
        return int(present.sum())

    def _asked(self, present: Mask, at: int) -> Mask:
        """Whom a server asks of those who are there: a share, at random. Everybody, where there is none."""
        share, there = self.settings.method.participation, np.flatnonzero(present)
        if self.server is None or share >= 1 or not len(there):
            return present
        keys = uniform(stream(self.settings.seed, "asked", at), there)
        asked = np.zeros_like(present)
        asked[there[np.argsort(keys)[: max(1, round(share * len(there)))]]] = True
        return asked

    def _plan(self, at: int) -> Plan:
        settings = self.settings
        rounds = max(1, settings.rounds - settings.release)
        eta = schedule(settings.decay, settings.plan.eta, at, rounds)
        return replace(settings.plan, eta=eta, proximal=settings.plan.proximal or settings.method.proximal)

    def _come_and_go(self, at: int) -> None:
        weather = self.weather
        if not at or not weather.changes(at):
            return
        self.mixer.leave(weather.members(at - 1) & ~weather.members(at))
        for node in np.flatnonzero(weather.joins == at):
            self._join(int(node), at)

    def _join(self, node: int, at: int) -> None:
        """A newcomer begins at the coordinate-wise median of three members' models, F = 0."""
        there = np.flatnonzero(self.weather.members(at - 1))
        if len(there):
            three = there[np.linspace(0, len(there) - 1, 3).astype(int)]
            if self.shard is not None:
                self.shard.bring(self.state, three)
            self.state.put(
                node, np.median([self.state.vector(int(one)) for one in three], axis=0).astype(self.model.layout.dtype)
            )

    # ---- local steps --------------------------------------------------------------------------------------------------

    def _draws(self, tick: int | None = None) -> Draws:
        return self.draws or Named(self.settings.seed, tick)

    def _train(self, nodes: Integers, plan: Plan, tick: int | None = None) -> None:
        """Local steps of these nodes. G, to which the clip is anchored, does not fall without a correction (ADR 21)."""
        method = self.settings.method
        before = self.state.gradient.copy() if method.clip and not method.theta else 0.0
        self._step(nodes, plan, tick)
        np.maximum(self.state.gradient, before, out=self.state.gradient)

    def _step(self, nodes: Integers, plan: Plan, tick: int | None) -> None:
        """In blocks: of a size where rows are many, of falling steps within a block."""
        steps = self.weather.steps(plan.steps, self.done)
        self.stepped[nodes] += steps[nodes]
        if self.shard is not None:
            nodes = nodes[self.shard.holds(nodes)]
        sizes = self.rows.sizes(plan.batch_size)
        is_even = bool((sizes == sizes[0]).all())
        draws, works = self._draws(tick), []
        for part in self._parts(nodes if is_even else nodes[np.argsort(sizes[nodes], kind="stable")], is_even):
            mine = steps[part]
            where: Nodes = part
            if (mine != mine[0]).any():
                order = np.argsort(-mine, kind="stable")
                where, mine = part[order], mine[order]
            elif len(part) == part[-1] - part[0] + 1 and (np.diff(part) == 1).all():
                where = slice(int(part[0]), int(part[-1]) + 1)
            works.append(Work(where, mine, plan, draws, self.done, self.settings.method.is_measured))
        way = self.choosing.way
        if not way.is_threaded:
            for number, work in enumerate(works):
                torch.manual_seed(int(stream(self.settings.seed, "torch", self.done, number)) >> 1)
                way.train(self.state, work)
            return
        self._each(lambda work: way.train(self.state, work), works)

    def _parts(self, nodes: Integers, is_even: bool) -> Iterator[Integers]:
        """Nodes of one block each; a loop's modules belong to a block, so its parts never cross one."""
        if is_even or self.choosing.way.name == "per-node loop":
            if (nodes[1:] < nodes[:-1]).any():
                nodes = np.sort(nodes)
            cuts = np.flatnonzero(np.diff(nodes // self.block)) + 1
        else:
            cuts = np.arange(self.block, len(nodes), self.block)
        yield from (part for part in np.split(nodes, cuts) if len(part))

    # ---- exchanges --------------------------------------------------------------------------------------------------

    def _combine(self, present: Mask, plan: Plan, at: int, trains: bool) -> None:
        settings, weather = self.settings, self.weather
        if settings.method.combine == "none":
            return
        if self.push is not None:
            faults = weather.faults
            self.sent += self.push.round(at, present, faults.lost + (1 - faults.lost) * faults.delayed, settings.seed)
            self.exchanges += int(self.sent.sum())
            return
        if self.server is not None:
            if trains:  # else everybody holds its model already
                self._serve(np.flatnonzero(present), plan, at)
            return
        for turn in range(settings.exchanges):
            there = present & weather.meets(at, turn)
            self._exchange(weather.strike(self._met(there, at, turn), at, turn), plan, trains)

    def _met(self, present: Mask, at: int, turn: int) -> Meetings:
        """Who exchanges with whom in this turn of a round."""
        settings, links = self.settings, self.mixer.links
        if self.meet is not None:
            edges, theta, is_directed = self.meet.round(at * settings.exchanges + turn)
            return drawn(edges, theta, self.mixer.masses, present, is_directed=is_directed, links=links)
        assert links is not None
        if settings.method.combine == "edges":
            return every_edge(links, self._gamma, present)
        return matching(links, present, settings.seed, at, turn)

    def _serve(self, asked: Integers, plan: Plan, at: int) -> None:
        """Up to the server and down again; what is lost on the way up, the server does without."""
        assert self.server is not None
        arrives = asked[~self.weather.loses(asked, at)]
        self.server.take(arrives, self.stepped[arrives], plan, self.weather.distort(at))
        self.sent[asked] += self.settings.method.vectors
        self.exchanges += len(asked)

    def _exchange(self, met: Meetings, plan: Plan, trains: bool) -> None:
        distort = self.weather.distort(self.done)
        self._count(met)
        told = self.memory.told(self.stepped, plan.eta) if trains and self.memory is not None else {}
        if self.shard is not None:
            self.shard.fetch(self.state, met, list(told.values()))
            met = self.shard.mine(met)
        terms = self._terms(plan, trains)
        if trains and self.memory is not None and self.settings.method.post == "noloco":
            self.memory.leap(met, self.stepped)
            return
        if trains and self.memory is not None and self.settings.method.post == "k-gt":
            self.memory.track(met, told)
        is_single = met.is_disjoint or self.mixer.replicas is not None
        is_product = not (is_single or self.mixer.flows or terms.tau is not None or distort)
        if is_product and met.at_lo is None and met.late is None:
            self.mixer.product(met, terms, self._each, self.block)
        else:
            self.mixer.exchange(met, terms, distort=distort, due=self.done + self.weather.faults.delay_rounds)

    def _count(self, met: Meetings) -> None:
        self.exchanges += len(met)
        if self.listener is not None:
            self.listener.met(self.done, met)
        for ends in (met.lo, met.hi) if met.sender is None else (met.sender,):
            np.add.at(self.sent, ends, self.settings.method.vectors)

    def _terms(self, plan: Plan, trains: bool) -> Terms:
        if self.conduct is not None:
            return self.conduct(self.done, self.state.gradient)
        settings = self.settings
        h_ref = settings.h_ref or float(settings.plan.steps)
        half = max(1, settings.rounds - settings.release) // 2
        kept = self._plan(min(self.done, half)).eta  # as a deployed node's clip, which falls no further (ADR 4)
        return settings.method.terms(plan, 1.0, h_ref, self.state.gradient, trains=trains, clipped_at=kept)

    # ---- threads ------------------------------------------------------------------------------------------------------

    def _each(self, do: Callable[[Any], None], items: list[Any]) -> None:
        if self._pool is None or len(items) < 2:
            for item in items:
                do(item)
        else:
            for _ in self._pool.map(do, items):
                pass

    @contextmanager
    def running(self) -> Iterator[None]:
        """To be around rounds: the threads of blocks, and 1 inside torch and BLAS. With other work on a core theirs cost many
        times more than they bring."""
        with alone():
            if self.settings.threads > 1:
                self._pool = ThreadPoolExecutor(self.settings.threads)
            try:
                yield
            finally:
                if self._pool is not None:
                    self._pool.shutdown()
                    self._pool = None


@contextmanager
def alone() -> Iterator[None]:
    """One thread inside torch and BLAS."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)
