"""A scenario played in rounds: who its nodes are, what the engine of rounds is told, and its run as every engine's Run.

Beside play.py's engine of events, which runs the deployed code. Not here: how faults in time become faults in rounds
(translation.py), and the rounds themselves (simulator.vectorized).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gossipfl import tasks, topology
from gossipfl.digest import name_of
from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.recipe import SCHEDULES, plan_of
from gossipfl.simulator import federation as fed
from gossipfl.simulator import scenario as scenarios
from gossipfl.simulator.baselines import centralized
from gossipfl.simulator.play import WATCHED, Progress, Stage
from gossipfl.simulator.run import Life, Run, Sample, Span
from gossipfl.simulator.translation import Translated, translate
from gossipfl.simulator.vectorized import watching
from gossipfl.simulator.vectorized.faults import Faults
from gossipfl.simulator.vectorized.meetings import Links
from gossipfl.simulator.vectorized.methods import Method, method_of
from gossipfl.simulator.vectorized.run import Record
from gossipfl.simulator.vectorized.run import Run as Rounds
from gossipfl.simulator.vectorized.shards import Shard
from gossipfl.simulator.vectorized.simulate import require_memory, simulate
from gossipfl.tasks import Data, Site, Task, fitting
from gossipfl.trust.membership import Study

if TYPE_CHECKING:
    from gossipfl.simulator.scenario import Read, Scenario
    from gossipfl.topology import Graph

EVALUATIONS: Final = 40

SHOWN: Final = 1000
"""Nodes that a report lists; of more, so many, evenly over all."""

NAMED_BYTES: Final = 200
"""Of a node's name and what else Python keeps of it, before there is a model."""

CHECKPOINT: Final = "checkpoint.safetensors"


@dataclass(frozen=True, eq=False)
class Crowd:
    """The nodes of a scenario, without keys and certificates: rounds have no sessions."""

    seed: int
    task: Task
    study: Study
    names: Sequence[str]
    sites: list[Site]
    """what each trains on; with bootstrap, what all draw from"""
    test: Data
    topology: Any
    """a Graph, or a schedule"""
    count: int
    """rounds of training"""
    release: int
    """rounds after them"""

    @property
    def rounds(self) -> int:
        return self.count + self.release

    @property
    def graph(self) -> Graph | None:
        return None if hasattr(self.topology, "round") else self.topology


# ---- who ---------------------------------------------------------------------------------------------------------------


def crowd(read: Read, data_dir: Path | None = None) -> Crowd:
    """The nodes of a scenario. **Raises**: ConfigError with file and line."""
    scenario = read.scenario
    nodes = scenario.nodes
    if nodes.observers:
        raise ConfigError(read.fault(("nodes", "observers"), "rounds have trainers only", "leave observers out"))
    try:
        given = scenario.changes_of_study()
        options = given.pop("task_options", {})
        if scenario.rounds.count is not None:  # what follows from the number of rounds follows from those that are played
            given.setdefault("local_rounds", scenario.rounds.count)
        task = tasks.load(scenario.task, options)
        layout = fitting.layout_of(task)
        each = layout.size * np.dtype(layout.dtype).itemsize + 8 * (scenario.rounds.bootstrap or 0) + NAMED_BYTES
        require_memory(nodes.count, nodes.count * each)
        study = fed.study_of(scenario.task, task, scenario.seed, options, nodes.count, **given)
        sites, test = fed.sites_of(
            task, _dealt(task, scenario), scenario.seed, how=nodes.partition, alpha=nodes.alpha, ratio=nodes.ratio,
            source=scenario.data, data_dir=data_dir,
        )  # fmt: skip
        names = [site.name for site in sites]
        if scenario.rounds.bootstrap:
            wide = len(str(nodes.count))
            names = [f"hospital-{at + 1:0{wide}}" for at in range(nodes.count)]
        if unknown := list(scenarios.strangers(read, set(names))):
            raise ConfigError(*unknown)
        meets = _topology(read, names)
    except ConfigError as error:
        raise ConfigError(*(scenarios.placed(read, fault) for fault in error.faults), exit_code=error.exit_code) from None
    count = scenario.rounds.count or study.local_rounds
    return Crowd(scenario.seed, task, study, names, sites, test, meets, count, _release(scenario, study, meets, count))


def _dealt(task: Task, scenario: Scenario) -> int:
    """Sites that rows are dealt to: as many as nodes, or, where nodes draw from all rows, as many as the task has anyway."""
    if not scenario.rounds.bootstrap:
        return scenario.nodes.count
    own: Any = task
    return int(getattr(own, "all_sites", getattr(own, "demo_nodes", 5)))


def _topology(read: Read, names: Sequence[str]) -> Any:
    """A static graph, or what changes with the rounds."""
    wanted, seed = read.scenario.topology, read.scenario.seed
    if wanted.graph:
        spec = topology.parse(wanted.graph, "topology", Path(read.file).parent)
        if spec.changes:
            return topology.schedule(spec, len(names), seed)
        return topology.graph(spec, len(names), seed)
    from gossipfl.topology.graphs import Graph

    salt = fed.Keyring(f"simulation {seed}/").federation
    places = {name: at for at, name in enumerate(sorted(names))}
    found = topology.by_rule(wanted.rule, sorted(names), wanted.degree, salt)
    edges = [(places[one], places[other]) for one in found for other in found[one] if one < other]
    return Graph.of(len(names), np.array(edges, dtype=np.int64).reshape(-1, 2))


def _release(scenario: Scenario, study: Study, meets: Any, count: int) -> int:
    """What the scenario says, else the study, else as many as bring a residue of a hundredth, at most a quarter of the rounds."""
    said = scenario.rounds.release if scenario.rounds.release is not None else study.release_exchanges
    if said is not None:
        return said
    if scenario.rounds.method != "study" or hasattr(meets, "round") or meets.n > SHOWN:
        return 0
    neighbours: dict[str, list[str]] = {str(node): [] for node in range(meets.n)}
    for one, other in meets.edges.tolist():
        neighbours[str(one)].append(str(other))
        neighbours[str(other)].append(str(one))
    return min(topology.release_exchanges({name: tuple(found) for name, found in neighbours.items()}), math.ceil(count / 4))


# ---- what the engine is told --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Told:
    """Keywords of gossipfl.simulate, and what they came from."""

    keywords: dict[str, Any]
    translated: Translated
    notes: list[str] = field(default_factory=list)


def told(scenario: Scenario, made: Crowd) -> Told:
    """**Raises**: Misuse for a method that does not fit."""
    said, study = scenario.rounds, made.study
    method = _method(said.method, study)
    layout = fitting.layout_of(made.task)
    links = None if made.graph is None else Links.of(made.graph.edges, len(made.names))
    translated = translate(scenario, made.names, made.rounds, links, layout.size * np.dtype(layout.dtype).itemsize)
    if translated.outages.touches_links and method.combine in ("server", "push"):
        raise Misuse(
            f"who is cut off from whom (partitions, stalls) has no meaning for {method.name}, which needs no links between "
            "pairs; leave those faults out, or say who is away"
        )
    notes = [f"note: {one}" for one in translated.notes]
    compression, unsaid = _compression(scenario, study, method, links)
    ignored = _ignored(scenario)
    keywords = {
        "nodes": len(made.names),
        "sites": made.sites,
        "test": made.test,
        "topology": made.topology,
        "rounds": made.rounds,
        "release": made.release,
        "exchanges": said.exchanges or (2 * study.exchanges if said.method == "study" else 1),
        "faults": Faults(**{one.name: getattr(said, one.name) for one in dataclasses.fields(Faults)}),
        "outages": translated.outages,
        "method": method,
        "plan": plan_of(study, study.local_steps, study.eta),
        "eta_schedule": SCHEDULES.get(study.schedule, study.schedule),
        "seed": scenario.seed,
        "compression": compression,
        "mode": said.mode,
        "bootstrap": said.bootstrap,
        "masses": said.masses,
        "heaviest": study.heaviest,
        "training": said.training,
        "evaluate_every": said.evaluate_every or max(1, made.rounds // EVALUATIONS),
        "watch": True,
    }
    return Told(keywords, translated, notes + [f"note: {one}" for one in (*unsaid, *ignored)])


def _method(name: str, study: Study) -> Method:
    if name != "study":
        try:
            return method_of(name)
        except Misuse as fault:
            why, _, remedy = str(fault).partition("; ")
            raise ConfigError(Fault("rounds.method", None, why, remedy)) from None
    theta = study.theta if study.correction == "ledger" else 0.0
    clip = study.clip if theta else 0.0
    return Method("study", theta=theta, leak=study.leak, cap=study.cap, clip=clip, proximal=study.proximal)


def _compression(scenario: Scenario, study: Study, method: Method, links: Links | None) -> tuple[str, list[str]]:
    """The codec, where models are written in fewer bits than they have; and what is not done."""
    wanted = scenario.rounds.compression or study.codec
    if wanted in ("f32", "f64", "none"):
        return "none", []
    if scenario.rounds.compression is None and (method.combine not in ("pairs", "edges") or links is None):
        return "none", [f"study.codec = {wanted}: {method.name} sends whole models here"]
    return wanted, []


def _ignored(scenario: Scenario) -> Iterator[str]:
    """Settings of the file that are about time, lines or messages."""
    lines = sorted(scenario.lines.model_fields_set)
    if lines:
        yield f"rounds have no lines: {', '.join(f'lines.{name}' for name in lines)} have no effect"
    if scenario.nodes.dial_only:
        yield "rounds have no dials: nodes.dial_only has no effect"
    messages = {"statistics_tolerance", "minimum_count", "exchange_patience_s", "inbound_per_minute", "resets_per_day", "gamma"}
    if found := sorted(messages & scenario.study.model_fields_set):
        yield f"about messages, without effect in rounds: {', '.join(f'study.{name}' for name in found)}"


# ---- playing -------------------------------------------------------------------------------------------------------------


def play(stage: Stage) -> Run:
    """The engine of rounds. **Raises**: Misuse for settings that do not fit together, or what memory cannot hold."""
    scenario, made = stage.scenario, stage.made
    if not isinstance(made, Crowd):
        raise Misuse("the engine of rounds is given a Crowd; see simulator.rounds.crowd")
    if stage.observers:
        raise Misuse("nothing is sent in rounds that could be recorded; leave --record out, or take --engine events")
    asked = told(scenario, made)
    round_s = scenarios.round_seconds(scenario)
    kept = None if stage.folder is None else stage.folder / CHECKPOINT
    teller = _Teller(stage, made, round_s)
    keeping: dict[str, Any] = {"checkpoint": kept, "checkpoint_every": _kept_every(made), "threads": stage.threads}
    keeping["group"] = stage.group
    run = simulate(made.task, progress=teller, **keeping, **asked.keywords)
    if stage.group is not None and run.nodes <= SHOWN:
        Shard(stage.group, run.nodes).collect(run.state)
    return _told(scenario, made, asked, run, round_s)


def _kept_every(made: Crowd) -> int:
    """Rounds between two checkpoints: often enough to lose little, seldom enough to cost little."""
    return max(10, made.rounds // 20)


class _Teller:
    """Progress of the engine as Progress of a scenario."""

    def __init__(self, stage: Stage, made: Crowd, round_s: float) -> None:
        self.stage, self.made, self.round_s = stage, made, round_s
        self.made_so_far = self.exchanges = 0
        self.absent = 0
        self.apart = self.worst = math.nan

    def __call__(self, record: Record) -> None:
        self.made_so_far += record.present
        self.exchanges += record.exchanges
        self.absent += len(self.made.names) - record.present
        if not math.isnan(record.mean):
            self.apart, self.worst = record.consensus, record.worst
        at, rounds = record.round + 1, self.made.rounds
        trained = min(at, self.made.count)
        stage = "training" if at < self.made.count else "release" if at < rounds else "finished"
        nodes = {stage: record.present, "away": len(self.made.names) - record.present}
        stages = {name: count for name, count in nodes.items() if count}
        progress = Progress(
            at * self.round_s, rounds * self.round_s, self.made_so_far, self.exchanges, {"absent": self.absent},
            (trained, trained), self.apart, self.worst, stages, at, rounds,
        )  # fmt: skip
        self.stage.tell(progress)


def _told(scenario: Scenario, made: Crowd, asked: Told, run: Rounds, round_s: float) -> Run:
    shown = np.unique(np.linspace(0, run.nodes - 1, min(run.nodes, SHOWN)).astype(np.int64))
    lives = [_life(scenario, made, asked, run, int(node), round_s) for node in shown]
    whole = centralized(made.task, made.sites, made.study.l2, scenario.seed).metrics(made.test)
    others = {law.name: law.law for law in WATCHED}
    notes = [*asked.notes, f"note: trained by {run.way}", *(f"note: {one}" for one in run.notes)]
    if len(lives) < run.nodes:
        notes.append(f"note: {len(lives)} of the {run.nodes:,} nodes are listed, evenly over all")
    if unjudged := sorted(set(scenario.expect.happened) & asked.translated.missing):
        notes.append(f"note: not judged, for it cannot happen in rounds: expect.happened of {', '.join(unjudged)}")
    last = next((record for record in reversed(run.records) if not math.isnan(record.consensus)), None)
    absent = sum(run.nodes - record.present for record in run.records)
    return Run(
        question=scenario.question,
        task=scenario.task,
        metric=made.task.metric,
        seed=scenario.seed,
        engine="",
        virtual_seconds=run.done * round_s,
        events=sum(record.present for record in run.records),
        exchanges=run.exchanges,
        faults=dict(sorted((asked.translated.counts + Counter(absent=absent)).items())),
        lives=lives,
        happenings=[one for one in asked.translated.happenings if one.begin_s < run.done * round_s],
        samples=list(_samples(run, round_s)),
        centralized=whole,
        quality={life.name: {made.task.metric: run.scores[node]} for life, node in zip(lives, shown.tolist(), strict=True)
                 if node in run.scores},
        consensus_distance=last.consensus if last else math.nan,
        invariants={**run.verdicts, **dict.fromkeys(others, "unknown")},
        laws={**watching.LAWS, **others},
        first_violations=dict(run.violations),
        unseen=frozenset({*others, *(name for name, verdict in run.verdicts.items() if verdict == "unknown")}),
        meaningless=asked.translated.missing,
        content_digest=name_of(np.ascontiguousarray(run.state.vectors()).data).hex() if run.nodes <= SHOWN else None,
        test_rows=len(made.test),
        round_s=round_s,
        is_whole=run.is_whole,
        notes=notes,
        bytes_sent=run.bytes + run.server_bytes,
        count=run.nodes,
    )  # fmt: skip


def _life(scenario: Scenario, made: Crowd, asked: Told, run: Rounds, node: int, round_s: float) -> Life:
    """What one node did."""
    weather, done_s = asked.translated.outages, run.done * round_s
    rows = scenario.rounds.bootstrap or len(made.sites[node].train)
    life = Life(made.names[node], int(rows), "trainer", boots=1)
    if weather.joins[node] > 0:
        life.spans.append(Span(0.0, min(done_s, float(weather.joins[node]) * round_s), "not yet"))
    for _, first, last in weather.away[weather.away[:, 0] == node].tolist():
        if first * round_s < done_s:
            life.spans.append(Span(first * round_s, min(last * round_s, done_s), "down"))
    for first, last, group in weather.apart:
        if first * round_s < done_s and (group != group[node]).any() and _is_fewer(group, node):
            life.spans.append(Span(first * round_s, min(last * round_s, done_s), "apart"))
    leaves = float(weather.leaves[node])
    if leaves < run.done:
        life.spans.append(Span(leaves * round_s, done_s, "left"))
    life.stages.append((0.0, "training"))
    if run.done >= made.count and made.release:
        life.stages.append((made.count * round_s, "release"))
    if run.is_whole and math.isinf(leaves):
        life.stages.append((done_s, "finished"))
    if run.sent is not None and run.stepped is not None:
        took = np.flatnonzero(run.sent[: run.done, node])
        life.exchanges = [(at + 0.5) * round_s for at in took.tolist()]
        life.sent = life.received = int(run.sent[: run.done, node].sum())
        life.local_rounds = int((run.stepped[: run.done, node] > 0).sum())
        life.up = bool(run.done and (run.stepped[run.done - 1, node] > 0 or run.sent[run.done - 1, node] > 0))
    return life


def _is_fewer(group: np.ndarray, node: int) -> bool:
    """Is a node on the smaller side: the event engine, too, says of those that they are apart."""
    return int((group == group[node]).sum()) * 2 <= len(group)


def _samples(run: Rounds, round_s: float) -> Iterator[Sample]:
    exchanges = sent = 0
    for record in run.records:
        exchanges, sent = exchanges + record.exchanges, sent + record.bytes + record.server_bytes
        if not math.isnan(record.consensus):
            spread = {name: float(getattr(record, name)) for name in ("worst", "p5", "median", "mean")}
            yield Sample((record.round + 1) * round_s, {}, record.consensus, exchanges, sent, spread)
