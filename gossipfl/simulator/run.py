"""What a simulated run was: values that report, table, run folder and --json are made of, whichever engine played it.

Not here: how they came to be (simulator.play), what is said of them (simulator.tell, simulator.story).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["down", "apart", "paused", "not yet", "left"]
"""Of a node, where it is not simply up."""

Verdict = Literal["held", "violated", "unknown"]


@dataclass
class Span:
    """A node was in a state for some time."""

    begin_s: float
    end_s: float
    state: State


@dataclass
class Life:
    """One node over the whole run."""

    name: str
    rows: int
    role: str
    hostile: bool = False
    spans: list[Span] = field(default_factory=list)
    exchanges: list[float] = field(default_factory=list)
    """virtual seconds at which it had applied its half of one"""
    stages: list[tuple[float, str]] = field(default_factory=list)
    """virtual seconds at which it entered a stage"""
    sent: int = 0
    """bytes"""
    received: int = 0
    boots: int = 0
    local_rounds: int = 0
    up: bool = True
    """at the end"""

    @property
    def stage(self) -> str:
        return self.stages[-1][1] if self.stages else "not started"

    @property
    def left(self) -> bool:
        return any(span.state == "left" for span in self.spans)

    def finished_at(self) -> float:
        """Virtual seconds; infinity if it has not."""
        return next((at for at, stage in self.stages if stage == "finished"), math.inf)

    def gaps(self, end_s: float) -> Iterator[tuple[float, float]]:
        """The times without an exchange, from the first to where it finished, or to the end."""
        last = min(end_s, self.finished_at())
        marks = [at for at in self.exchanges if at <= last]
        yield from zip(marks, [*marks[1:], last], strict=True)


@dataclass
class Happening:
    """One fault: when it began and ended, and whom it concerned."""

    kind: str
    begin_s: float
    end_s: float
    nodes: tuple[str, ...]
    detail: str = ""
    planned: int | None = None
    """which [[at]] of the scenario it is; None: by chance"""
    missed: bool = False
    """of an [[at]]: there was nothing that it could strike"""


@dataclass(frozen=True)
class Sample:
    """How good the models were at one time."""

    at_s: float
    quality: Mapping[str, float]
    """node -> the task's metric; without those that have no model to judge yet"""
    consensus: float
    exchanges: int
    sent: int
    """bytes of all nodes, so far"""
    spread: Mapping[str, float] = field(default_factory=dict)
    """worst, p5, median and mean over the nodes, where they are too many to have one each"""


@dataclass
class Run:
    """All of one."""

    question: str
    task: str
    metric: str
    seed: int
    engine: str
    virtual_seconds: float
    events: int
    exchanges: int
    faults: Mapping[str, int]
    lives: Sequence[Life]
    happenings: Sequence[Happening]
    samples: Sequence[Sample]
    centralized: Mapping[str, float]
    quality: Mapping[str, Mapping[str, float]]
    """node -> every metric of its last model"""
    consensus_distance: float
    invariants: Mapping[str, Verdict] = field(default_factory=dict)
    laws: Mapping[str, str] = field(default_factory=dict)
    """invariant -> what it says, in a sentence"""
    first_violations: Mapping[str, str] = field(default_factory=dict)
    """invariant -> what was seen, in words"""
    trace_digest: str | None = None
    content_digest: str | None = None
    unseen: frozenset[str] = frozenset()
    """invariants that this engine cannot see: unknown, and nobody's fault"""
    meaningless: frozenset[str] = frozenset()
    """kinds of faults that were asked for and cannot happen in this engine"""
    cpu_seconds: float = 0.0
    test_rows: int = 0
    round_s: float = 0.0
    """virtual seconds of a round, where time is rounds; 0: time is time"""
    is_whole: bool = True
    """False: somebody interrupted it"""
    notes: Sequence[str] = ()
    """what else a reader should know"""
    bytes_sent: int | None = None
    """of all nodes, where `lives` are only some"""
    count: int | None = None
    """of all nodes, where `lives` are only some"""

    @property
    def honest(self) -> list[Life]:
        return [life for life in self.lives if not life.hostile]

    def life(self, name: str) -> Life:
        return next(life for life in self.lives if life.name == name)

    def of(self, metric: str) -> dict[str, float]:
        """Honest node -> a metric of its last model."""
        return {
            life.name: self.quality[life.name][metric]
            for life in self.honest
            if metric in self.quality.get(life.name, {})
        }

    def planned(self) -> list[Happening]:
        return [one for one in self.happenings if one.planned is not None]

    @property
    def healed_s(self) -> float:
        """When the last fault was over."""
        return max((one.end_s for one in self.happenings), default=0.0)

    @property
    def sent(self) -> int:
        return sum(life.sent for life in self.lives) if self.bytes_sent is None else self.bytes_sent

    @property
    def per_unit(self) -> float:
        """Virtual seconds in a unit of the pictures' horizontal axis."""
        return self.round_s or 3600.0

    @property
    def unit(self) -> str:
        """What that axis counts."""
        return "rounds" if self.round_s else "virtual hours"

    @property
    def a_unit(self) -> str:
        """One of them."""
        return "a round" if self.round_s else "an hour"

    def when(self, seconds: float) -> str:
        """A time, as a person would say it of this run."""
        if self.round_s and math.isfinite(seconds):
            return f"round {math.ceil(seconds / self.round_s - 1e-9)}"
        return clock(seconds)

    def lasts(self, seconds: float) -> str:
        """How long, as a person would say it of this run."""
        if self.round_s and math.isfinite(seconds):
            rounds = round(seconds / self.round_s)
            if not rounds:
                return "less than a round"
            return "one round" if rounds == 1 else f"{rounds} rounds"
        return length(seconds)


def as_json(run: Run) -> dict[str, Any]:
    """The object that --json prints; every engine has these keys."""
    from gossipfl.simulator.results import mean, share_of, worst

    values = list(run.of(run.metric).values())
    known = [value for value in values if math.isfinite(value)]
    whole = run.centralized.get(run.metric, math.nan)
    quality: dict[str, Any] = {"metric": run.metric, "centralized": whole}
    if known:
        low = worst(known, run.metric)
        quality |= {"mean": mean(known), "worst": low, "worst_over_centralized": share_of(low, whole, run.metric)}
    quality["nodes"] = run.of(run.metric)
    return {
        "seed": run.seed,
        "virtual_seconds": run.virtual_seconds,
        "events": run.events,
        "exchanges": run.exchanges,
        "faults": dict(run.faults),
        "quality": quality,
        "consensus_distance": run.consensus_distance,
        "invariants": dict(run.invariants),
        "trace_digest": run.trace_digest,
        "content_digest": run.content_digest,
        "whole": run.is_whole,
        "rounds": round(run.virtual_seconds / run.round_s) if run.round_s else None,
        "notes": list(run.notes),
        "question": run.question,
        "task": run.task,
        "engine": run.engine,
        "bytes_sent": run.sent,
        "cpu_seconds": round(run.cpu_seconds, 2),
        "violations": dict(run.first_violations),
        "nodes": {
            life.name: {
                "rows": life.rows,
                "role": life.role,
                "hostile": life.hostile,
                "stage": life.stage,
                "local_rounds": life.local_rounds,
                "exchanges": len(life.exchanges),
                "bytes_sent": life.sent,
                "starts": life.boots,
                "down_s": round(math.fsum(span.end_s - span.begin_s for span in life.spans if span.state == "down"), 3),
                "up": life.up,
            }
            for life in run.lives
        },
    }


def clock(seconds: float) -> str:
    """A virtual time of day.

    >>> clock(54_321), clock(math.inf)
    ('15:05:21', 'never')
    """
    if not math.isfinite(seconds):
        return "never"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def length(seconds: float) -> str:
    """How long, in the unit that a person would use.

    >>> [length(x) for x in (0.4, 12, 360, 5000, 90_000)]
    ['0.4 s', '12 s', '6 min', '1 h 23 min', '25 h']
    """
    if not math.isfinite(seconds):
        return "for ever"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 and seconds % 1 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if seconds % 60 < 1 or seconds > 600 else f"{seconds / 60:.1f} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")
