"""Plays a scenario: world, historian and checkers put together, run slice by slice, judged at the end; an engine is a function.

A second engine takes the same Stage and gives the same Run: add its line to ENGINES. Not here: what is printed (cli.simulate).
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gossipfl.errors import Misuse
from gossipfl.simulator.conservation import MOVING_LAWS
from gossipfl.simulator.faults import NO_FAULTS
from gossipfl.simulator.federation import Federation
from gossipfl.simulator.laws import NODE_LAWS
from gossipfl.simulator.network import SECOND, Observer, Pace, World
from gossipfl.simulator.patience import patience
from gossipfl.simulator.recovery import DoubtsEnd
from gossipfl.simulator.run import Run, clock
from gossipfl.simulator.trace import Digests
from gossipfl.simulator.trial import Watching, truth_of
from gossipfl.simulator.watch import Historian

if TYPE_CHECKING:
    from gossipfl.simulator.invariants import Checker
    from gossipfl.simulator.network import Node
    from gossipfl.simulator.rounds import Crowd
    from gossipfl.simulator.scenario import Read, Scenario
    from gossipfl.simulator.vectorized.shards import Together

ENGINES: Final[Mapping[str, tuple[str, str]]] = {
    "events": ("gossipfl.simulator.scenario:federation", "gossipfl.simulator.play:events"),
    "vectorized": ("gossipfl.simulator.rounds:crowd", "gossipfl.simulator.rounds:play"),
}
"""name -> module:function of (Read, folder of data) -> who plays, and of (Stage) -> Run."""

SAMPLES: Final = 120
"""Times at which models are judged."""

JUDGED_MAX: Final = 6000
"""Models judged in a run; many nodes are judged more seldom."""


WATCHED: Final = (*NODE_LAWS, *MOVING_LAWS, DoubtsEnd)
"""Laws that every history must keep; that all come together again is what a scenario expects in its own figures."""

QUIET_S: Final = 300.0
"""Without a fault, after which nothing may be in doubt."""


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    virtual_s: float
    of_s: float
    events: int
    exchanges: int
    faults: Mapping[str, int]
    local_rounds: tuple[int, int]
    """least and most of any trainer"""
    consensus: float
    quality: float
    """of the worst node"""
    stages: Mapping[str, int]
    """how many nodes are in each stage"""
    round: int = 0
    rounds: int = 0
    """where time is rounds: those done, and all"""


@dataclass
class Stage:
    """What an engine is given."""

    scenario: Scenario
    made: Federation | Crowd
    """who plays, as the engine wants it: see ENGINES"""
    tell: Callable[[Progress], None] = field(default=lambda progress: None)
    observers: Sequence[Observer] = ()
    """who else watches; only an engine of nodes has something to show them"""
    folder: Path | None = None
    """where an engine that can go on later keeps what it needs for that"""
    threads: int | None = None
    """that an engine may use; None: as many as there are cores"""
    group: Together | None = None
    """the processes that share the run; only an engine of rounds can be shared"""


def prepare(read: Read, engine: str = "events", data_dir: Path | None = None) -> Federation | Crowd:
    """Who plays a scenario. **Raises**: ConfigError with file and line; Misuse for an engine that is none."""
    found: Federation | Crowd = _imported(_engine(engine)[0])(read, data_dir)
    return found


def play(stage: Stage, engine: str = "events") -> Run:
    """Run the scenario. **Raises**: Misuse for an engine that is none."""
    _, function = _engine(engine)
    begun = time.process_time()
    run: Run = _imported(function)(stage)
    run.engine, run.cpu_seconds = engine, time.process_time() - begun
    return run


def _engine(name: str) -> tuple[str, str]:
    if name not in ENGINES:
        raise Misuse(f"no engine is called {name!r}; there is {', '.join(ENGINES)}")
    return ENGINES[name]


def _imported(where: str) -> Any:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def events(stage: Stage) -> Run:
    """The event simulator: the very Peers that are deployed."""
    scenario, made = stage.scenario, stage.made
    if stage.group is not None:
        raise Misuse("the engine of events runs in one process; leave torchrun out, or take --engine vectorized")
    if not isinstance(made, Federation):
        raise Misuse("the engine of events is given a Federation; see simulator.scenario.federation")
    strikes = [one.strike() for one in scenario.at]
    faults = scenario.options_of_faults()
    historian, specs = Historian(made, strikes, faults.until_hours * 3600), made.specs(scenario.nodes.speeds)
    watch, digests = Watching(truth_of(made, specs), WATCHED), Digests()
    world = World(
        specs,
        scenario.seed,
        faults,
        lines=scenario.lines.lines(made.graph, made.membership.active),
        pace=Pace(step_s=scenario.nodes.step_s),
        strikes=strikes,
        observers=[historian, watch, digests, *stage.observers],
    )
    liars = [name for strike in strikes if strike.kind == "hostile" for name in strike.nodes or world.nodes]
    watch.truth.caught.update(world.trouble.hostile, liars)
    end_s, nodes = scenario.hours * 3600, len(made.membership.active)
    slices = max(20, min(SAMPLES, JUDGED_MAX // nodes))
    with patience() as asked:
        for _ in range(slices):
            world.run(end_s / slices, asked.is_set)
            sample = historian.sample(world)
            stage.tell(_progress(world, made, end_s, sample.consensus, sample.quality))
            if asked.is_set():
                break
    historian.finish(world)
    watch.over(not asked.is_set() and _is_quiet(historian, end_s))
    run = _told(scenario, made, world, historian, watch, digests)
    run.is_whole = not asked.is_set()
    return run


def _is_quiet(historian: Historian, end_s: float) -> bool:
    """Have all finished, with nobody down and nothing gone wrong for a while? Only then must nothing be in doubt."""
    lives, since = historian.lives.values(), end_s - QUIET_S
    calm = all(one.end_s < since for one in historian.happenings)
    return calm and all(life.left or (life.up and life.finished_at() < since) for life in lives)


def _progress(world: World, made: Federation, end_s: float, apart: float, quality: Mapping[str, float]) -> Progress:
    from gossipfl.simulator.results import worst

    rounds = [node.peer.local_round for node in world.nodes.values() if node.boots and node.peer.settings.trains]
    known = [value for value in quality.values() if math.isfinite(value)]
    low = worst(known, made.task.metric) if known else math.nan
    span = (min(rounds, default=0), max(rounds, default=0))
    stages = Counter(_stage(node) for node in world.nodes.values())
    exchanges = world.counts["exchange"]
    return Progress(world.mono / SECOND, end_s, world.events, exchanges, faults_of(world), span, apart, low, stages)


def _stage(node: Node) -> str:
    if not node.boots:
        return "not yet there"
    return "left" if node.gone else node.peer.stage if node.alive else "down"


def faults_of(world: World) -> dict[str, int]:
    """How often each kind has happened."""
    return {kind: n for kind, n in sorted(world.counts.items()) if n and kind not in NO_FAULTS}


def _told(
    scenario: Scenario, made: Federation, world: World, historian: Historian, watch: Watching, digests: Digests
) -> Run:
    from gossipfl.simulator import baselines

    quality: dict[str, dict[str, float]] = {}
    for name in historian.lives:
        if (found := historian.model(world, name) if world.nodes[name].boots else None) is not None:
            quality[name] = historian.judged(*found)
    whole = baselines.centralized(made.task, made.sites, made.membership.study.l2, scenario.seed).metrics(made.test)
    return Run(
        question=scenario.question,
        task=scenario.task,
        metric=made.task.metric,
        seed=scenario.seed,
        engine="",
        virtual_seconds=world.mono / SECOND,
        events=world.events,
        exchanges=world.counts["exchange"],
        faults=faults_of(world),
        lives=list(historian.lives.values()),
        happenings=historian.happenings,
        samples=historian.samples,
        centralized=whole,
        quality=quality,
        consensus_distance=historian.samples[-1].consensus,
        invariants=watch.verdicts(),
        laws={one.name: one.law for one in watch.checkers},
        first_violations={one.name: _seen(one) for one in watch.checkers if one.first or one.error},
        trace_digest=digests.trace,
        content_digest=digests.content,
        test_rows=len(made.test),
        notes=list(_unplayed(scenario)),
    )


def _unplayed(scenario: Scenario) -> Iterator[str]:
    """What of a scenario has no meaning where nodes run in time."""
    if found := sorted(scenario.rounds.model_fields_set):
        yield f"note: for --engine vectorized, without effect here: {', '.join(f'rounds.{name}' for name in found)}"


def _seen(checker: Checker) -> str:
    """What a checker saw first, or why it could not judge."""
    if checker.first is None:
        return f"not known: {checker.error}"
    return f"{clock(checker.first.at_s)} {checker.first.node}: {checker.first.detail}"
