"""One seed of the swarm: a federation, a study, a bad day drawn from the seed, and what the checkers say of its history.

Chaos first, then healing, then only mixing, then rest; checkers throughout. Not here: many seeds (swarm.py), making a
failing one smaller (shrink.py), laws (invariants.py and beside it).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np

from gossipfl.digest import name_of
from gossipfl.protocol import events as ev
from gossipfl.protocol.core import Settings
from gossipfl.simulator.conservation import MOVING_LAWS
from gossipfl.simulator.faults import CLASSES, Faults, Strike
from gossipfl.simulator.federation import Federation, found
from gossipfl.simulator.invariants import Checker, Violation, Watch
from gossipfl.simulator.laws import NODE_LAWS
from gossipfl.simulator.lines import Line, Lines
from gossipfl.simulator.network import Observer, Pace, Spec, World
from gossipfl.simulator.recorded import Recorded
from gossipfl.simulator.recovery import AGAIN_S, HEALING_LAWS, ComesTogether, StatisticsEnd
from gossipfl.simulator.trace import Digests
from gossipfl.simulator.witness import Fellow, Truth
from gossipfl.trust.membership import Topology
from gossipfl.workbench import statistics_reader

LAWS: Final[tuple[type[Checker], ...]] = (*NODE_LAWS, *MOVING_LAWS, *HEALING_LAWS)

FULL_DAY: Final = 24.0
"""Hours for which `Faults.draw` is made: in a shorter history faults come more often, and none lasts longer than a sixth."""

BOOST: Final = 12.0
"""Times as often at most."""

EXCHANGES: Final = 50.0
"""That a node begins in a history of any length, about: what is tested is exchanges among faults, not waiting."""

RING: Final = 6
"""Nodes that a ring has at most: models creep round a longer one."""

MIXED: Final = 400
"""Exchanges of each node, at the end, that only mix, at most: far more than it needs."""

HURRY_S: Final = 1.0
"""Between two turns once all has healed, so that the end comes soon."""

STOPPING_S: Final = 15.0
"""A node that was being stopped when all healed is down after this, and started again."""

NEVER_S: Final = 1e9

STILL: Final = 1e-7
"""How near to 1 every presence is when statistics are frozen: soon, and still far below what two candidates may differ by."""

FROZEN_TURNS: Final = 600
"""Within which all nodes that mix statistics have frozen them."""

TURN_BYTES: Final = 2500.0
"""That an exchange of statistics puts on a line, greeting and manifests with it: a slow line carries less than one a second."""

TOGETHER_S: Final = 1800.0
"""Within which models must have come together."""

REST_S: Final = 200.0
"""Of rest, at the end: more than the longest wait before a peer is tried again."""

AGAIN_SHARE: Final = 25
"""One seed in so many is run twice, and must give the same history."""


@dataclass(frozen=True)
class Trial:
    """One seed's world, in plain values: the same values, the same history."""

    seed: int
    hours: float
    """of chaos"""
    nodes: int
    kind: str
    """mixing: nodes that only mix, each from its own model; training: more rounds than there is time; study: to its end"""
    rule: str
    ledger: bool
    leak: float
    cap: float
    clip: float
    turn_s: float
    """least time between two turns of a node"""
    checkpoint_s: float
    step_s: float
    latency_s: float
    bandwidth_bytes_s: float
    dimension: int
    statistics: bool
    """do nodes mix statistics first?"""
    keeps: bool
    """do nodes keep files in memory? Otherwise each use reads the disk, as it does those of a large model"""
    deaf: bool
    """do all connections of one node die right before all heals, without anybody being told?"""
    faults: Faults
    without: tuple[str, ...] = ()
    """classes of faults that are off although they were drawn"""
    until_s: float | None = None
    """the history is watched so far only, without healing"""

    def command(self) -> str:
        """What a person types to see this history again."""
        said = [f"gossipfl swarm --first-seed {self.seed} --seeds 1 --hours {self.hours:g} --nodes {self.nodes}"]
        if self.without:
            said.append(f"--without {','.join(self.without)}")
        if self.until_s is not None:
            said.append(f"--until {self.until_s:g}")
        return " ".join(said)


def draw(
    seed: int, hours: float, nodes: tuple[int, int] = (4, 16), without: Sequence[str] = (), until_s: float | None = None
) -> Trial:
    """The world of a seed. Every property has a stream of its own, so that fixing one shifts no other."""

    def stream(purpose: str) -> Random:
        return Random(f"swarm/{seed}/{purpose}")

    def spread(purpose: str, low: float, high: float) -> float:
        return round(float(low * (high / low) ** stream(purpose).random()), 6)

    def one(purpose: str, *choices: Any) -> Any:
        return choices[int(stream(purpose).random() * len(choices))]

    pace = hours * 3600 / EXCHANGES
    size = nodes[0] + int(stream("nodes").random() * (nodes[1] + 1 - nodes[0]))
    return Trial(
        seed=seed,
        hours=hours,
        nodes=size,
        kind=one("kind", "mixing", "training", "study"),
        rule=one("rule", "complete", "regular", "ring" if size <= RING else "regular"),
        ledger=one("ledger", True, True, False),
        leak=one("leak", 0.0, 0.02),
        cap=one("cap", 0.0, 2.0),
        clip=one("clip", 0.0, 2.0),
        turn_s=spread("turn", min(pace, max(0.2, pace / 8)), pace),
        checkpoint_s=spread("checkpoint", 2.0, 600.0),
        step_s=spread("step", 0.001, 0.5),
        latency_s=spread("latency", 0.002, 1.0),
        bandwidth_bytes_s=one("bandwidth", 0.0, 0.0, spread("bytes", 200.0, 100_000.0)),
        dimension=one("dimension", 8, 8, 8, 40),
        statistics=one("statistics", False, False, True),
        keeps=one("keeps", True, False),
        deaf="half-open" not in without and one("deaf", False, False, True),
        faults=bad_day(stream("faults"), hours).without(*without),
        without=tuple(without),
        until_s=until_s,
    )


def bad_day(rng: Random, hours: float) -> Faults:
    """`Faults.draw`, made to fit into so many hours."""
    drawn = Faults.draw(rng)
    often, longest = min(BOOST, max(1.0, FULL_DAY / hours)), hours * 600
    fitted: dict[str, Any] = {}
    for one in fields(drawn):
        value = getattr(drawn, one.name)
        if one.name in ("late_hours", "leave_hours", "on_hours", "off_hours"):
            fitted[one.name] = value * min(1.0, hours / FULL_DAY)
        elif one.name.endswith("_per_hour"):
            fitted[one.name] = value * often
        elif one.name.endswith("_s") and not one.name.endswith("_bytes_s") and not one.name.startswith("clock"):
            fitted[one.name] = min(value, longest)
    return replace(drawn, until_hours=hours, **fitted)


@dataclass
class Outcome:
    """What came of a trial."""

    trial: Trial
    verdicts: dict[str, str]
    violations: dict[str, Violation]
    errors: dict[str, str]
    """checkers that failed themselves"""
    virtual_s: float = 0.0
    events: int = 0
    exchanges: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    trace_digest: str = ""
    cpu_s: float = 0.0

    @property
    def ok(self) -> bool:
        return all(verdict == "held" for verdict in self.verdicts.values())

    def line(self) -> dict[str, Any]:
        """As one JSON object."""
        trial = self.trial
        return {
            "seed": trial.seed, "hours": trial.hours, "nodes": trial.nodes, "kind": trial.kind,
            "without": list(trial.without), "until_s": trial.until_s, "virtual_seconds": round(self.virtual_s, 3),
            "events": self.events, "exchanges": self.exchanges, "faults": dict(sorted(self.counts.items())),
            "invariants": self.verdicts, "violations": {name: asdict(one) for name, one in self.violations.items()},
            "errors": self.errors, "trace_digest": self.trace_digest, "cpu_s": round(self.cpu_s, 3),
            "command": trial.command(),
        }  # fmt: skip


class Watching(Watch, Observer):
    """A Watch as a World asks for it."""

    def is_together(self) -> bool:
        """Does the law of consensus hold already?"""
        return all(one.is_near(self.lives) for one in self.checkers if isinstance(one, ComesTogether))

    def waits_for_statistics(self) -> bool:
        return any(one.waiting(self.lives) for one in self.checkers if isinstance(one, StatisticsEnd))


def federation_of(trial: Trial) -> tuple[Federation, dict[str, Spec]]:
    """Members and Specs: the toy task, whose answer is known."""
    mixes = trial.kind == "mixing"
    names = [f"hospital-{at:0{len(str(trial.nodes))}}" for at in range(1, trial.nodes + 1)]
    topology = Topology(rule="regular", degree=4) if trial.rule == "regular" else Topology(rule=trial.rule)  # type: ignore[arg-type]
    rounds = {"study": int(EXCHANGES / 2), "training": 10**6}.get(trial.kind, 10)
    federation = found(
        "toy",
        trial.nodes,
        trial.seed,
        options={"dimension": trial.dimension},
        topology=topology,
        observers=names if mixes else (),
        study={
            "correction": "ledger" if trial.ledger else "none", "leak": trial.leak, "cap": trial.cap, "clip": trial.clip,
            "local_rounds": rounds, "local_steps": 5, "eta": 0.05, "theta": 0.5, "exchanges": 1,
            "schedule": "constant" if trial.kind == "training" else "cosine",
            "local_round_s": min(trial.turn_s, 86_400.0), "release_exchanges": MIXED,
        },
    )  # fmt: skip
    specs = federation.specs(change=lambda told: replace(told, checkpoint_ns=int(trial.checkpoint_s * 1e9)))
    if trial.statistics:
        specs = {name: with_statistics(spec, federation, name) for name, spec in specs.items()}
    if mixes:
        rng = np.random.Generator(np.random.PCG64(trial.seed))
        specs = {name: replace(spec, begin=rng.uniform(-3, 3, size=trial.dimension)) for name, spec in specs.items()}
    return federation, specs


def with_statistics(spec: Spec, federation: Federation, name: str) -> Spec:
    """It mixes statistics of one feature first, which nothing uses: its rows' counts, sums and sums of squares are drawn."""
    members = federation.membership
    own = int.from_bytes(name_of(name.encode())[:2], "big") / 65536
    rows = np.array([10.0, 10.0 * own, 10.0 * (own * own + 1)])
    vector = np.concatenate([np.equal(members.active, name).astype("float64"), rows])
    reader = statistics_reader(members.federation_id, name, members.active, members.active)
    told = spec.settings

    def settings(random: Any) -> Settings:
        return replace(told(random), statistics_size=vector.nbytes, tolerance=STILL)

    return replace(spec, settings=settings, statistics=vector, bench=replace(spec.bench, estimate=reader))


def truth_of(federation: Federation, specs: dict[str, Spec]) -> Truth:
    """What the checkers are told, in plain values."""
    members = federation.membership
    told = next(iter(specs.values()))
    settings = told.settings(Random(0))
    fellows = {
        name: Fellow(
            mass=members.mass(name),
            identity=spec.certificate.identity,
            neighbours=tuple(members.neighbours(name)),
            begin=np.array(spec.x0 if spec.begin is None else spec.begin),
            statistics=np.array(spec.statistics),
        )
        for name, spec in specs.items()
    }
    return Truth(
        federation=members.federation_id,
        x0=bytes.fromhex(members.x0),
        codec=members.study.codec,
        fellows=fellows,
        gamma=members.study.gamma,
        leak=members.study.leak,
        dtype=told.bench.dtype,
        sizes={"model": settings.model_size, "statistics": settings.statistics_size},
        per_minute=members.study.inbound_per_minute,
    )


def run(
    trial: Trial,
    laws: Sequence[Callable[[Truth], Checker]] = LAWS,
    twice: bool | None = None,
    record: Path | None = None,
    once: bool = True,
) -> Outcome:
    """The whole history. `twice`: run it again and compare; by default one seed in `AGAIN_SHARE`. `record`: a folder for the
    recordings of all nodes. `once`: what both ends compute alike is computed once (simulator.once); the second time it is not."""
    began = time.process_time()
    federation, specs = federation_of(trial)
    watch, digests = Watching(truth_of(federation, specs), laws), Digests(content=False)
    seen = None if record is None else Recorded(record, watch.found)
    world = _world(trial, specs, once, watch, digests, *([seen] if seen else []))
    watch.truth.caught.update(world.trouble.hostile)
    quiet = False
    if trial.until_s is not None:
        world.run(trial.until_s)
    else:
        world.run(trial.hours * 3600)
        _heal(world, watch)
        quiet = True
    watch.over(quiet)
    if seen:
        seen.look(world)
        seen.close()
    verdicts: dict[str, str] = dict(watch.verdicts())
    violations = {one.name: one.first for one in watch.checkers if one.first}
    digest = digests.trace
    if twice if twice is not None else trial.seed % AGAIN_SHARE == 0:
        again = run(trial, (ComesTogether, StatisticsEnd), twice=False, once=False)  # laws that say how long all must go on
        verdicts["same-again"] = "held" if again.trace_digest == digest else "violated"
        if again.trace_digest != digest:
            violations["same-again"] = Violation(0.0, "", "end", "the same seed gave another history the second time")
    return Outcome(
        trial, verdicts, violations, {one.name: one.error for one in watch.checkers if one.error}, world.mono / 1e9,
        world.events, sum(map(_done, world.nodes.values())) // 2, dict(world.counts), digest, time.process_time() - began,
    )  # fmt: skip


def _world(trial: Trial, specs: dict[str, Spec], once: bool, *observers: Observer) -> World:
    line = Line(latency_s=trial.latency_s, bandwidth_bytes_s=trial.bandwidth_bytes_s)
    strikes = [Strike(trial.hours * 3600 - 0.5, "half-open", (min(specs),))] if trial.deaf else []
    pace, lines = Pace(step_s=trial.step_s), Lines(line)
    return World(
        specs, trial.seed, trial.faults, lines=lines, pace=pace, strikes=strikes, observers=observers, keeps=trial.keeps,
        once=once,
    )  # fmt: skip


def _heal(world: World, watch: Watching) -> None:
    """The day is over: everybody comes back, exchanges again, ends training, mixes, and rests."""
    world.heal()
    world.run(STOPPING_S)
    for node in world.nodes.values():
        node.begin_afresh()
        node.boot()
    _set_pace(world, HURRY_S)
    watch.say("healed")
    before = {name: _done(node) for name, node in world.nodes.items()}
    world.run(
        AGAIN_S,
        until=lambda: all(
            node.stopped or (node.alive and (node.peer.stage == "finished" or _done(node) > before[name]))
            for name, node in world.nodes.items()
        ),
    )
    watch.say("due")
    if watch.waits_for_statistics():
        world.run(FROZEN_TURNS * turn_lasts_s(world), until=lambda: not watch.waits_for_statistics())
    watch.say("frozen")
    for node in _there(world):
        node.feed(ev.Operator("finish"))
    watch.say("mixing")
    world.run(TOGETHER_S, until=watch.is_together)
    _set_pace(world, NEVER_S)
    world.run(REST_S)
    for node in _there(world):
        node.feed(ev.Stopping())
    world.run(30)


def turn_lasts_s(world: World) -> float:
    """With an exchange of statistics, once operators have hurried."""
    bandwidth = world.lines.usual.bandwidth_bytes_s
    return max(HURRY_S, TURN_BYTES / bandwidth) if bandwidth else HURRY_S


def _paced(settings: Callable[[Random], Settings], turn_ns: int, random: Random) -> Settings:
    return replace(settings(random), turn_ns=turn_ns)


def _done(node: Any) -> int:
    """Halves of exchanges of a node's whole life."""
    return sum(link.exchanges for link in node.peer.links.values()) if node.boots else 0


def _there(world: World) -> list[Any]:
    return [node for node in world.nodes.values() if node.alive and not node.stopped]


def _set_pace(world: World, turn_s: float) -> None:
    """Operators set the least time between two turns, now and for who is started later: nothing else changes."""
    turn_ns = int(turn_s * 1e9)
    for node in world.nodes.values():
        node.spec = replace(node.spec, settings=partial(_paced, node.spec.settings, turn_ns))
        if node.alive:
            node.peer.settings = replace(node.peer.settings, turn_ns=turn_ns)
            node.peer.turn_next = world.mono + turn_ns
            node.feed(ev.Alarm())


def classes_on(trial: Trial) -> list[str]:
    return [name for name in CLASSES if not trial.faults.are_off(name)]
