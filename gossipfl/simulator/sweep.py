"""A scenario many times: every combination of the values of [sweep], a line each in a file, and what they come to by setting.

Not here: one run (play.py), processes and the file (pool.py), the page (grid.py), what is printed (gossipfl.cli.sweep).
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gossipfl.errors import ConfigError, GossipError
from gossipfl.learning.comparing import corrected_t
from gossipfl.simulator import pool
from gossipfl.simulator import scenario as scenarios
from gossipfl.simulator.scenario import Read, Setting

RUNS_MAX: Final = 100_000

SEED: Final = "seed"
"""The setting that repeats a combination; the others make one."""

FIGURES: Final = ("worst", "share", "mean", "consensus", "bytes_per_node", "cpu_s")
"""What a line says of a run, and the table of a combination."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """A scenario to be run again and again, as another process can load it."""

    path: Path
    changes: tuple[str, ...]
    given: tuple[tuple[str, Any], ...]
    """of the command line"""
    axes: tuple[tuple[str, tuple[Any, ...]], ...]
    """name of a setting, its values"""
    base: str
    """names everything but the sweep: a line of another base is not ours"""
    data_dir: Path | None = None

    @property
    def combinations(self) -> Iterator[dict[str, Any]]:
        """One dict of settings a run."""
        for values in itertools.product(*(values for _, values in self.axes)):
            yield dict(zip((name for name, _ in self.axes), values, strict=True))

    def key(self, settings: Mapping[str, Any]) -> str:
        return json.dumps([self.base, settings], sort_keys=True)

    def read(self, settings: Mapping[str, Any]) -> Read:
        """The scenario of one run. **Raises**: ConfigError."""
        over: list[Setting] = [(tuple(name.split(".")), value) for name, value in settings.items()]
        return scenarios.load(self.path, self.changes, [*over, (("sweep",), {})], **dict(self.given))


def asked(
    path: Path, changes: Sequence[str] = (), data_dir: Path | None = None, **given: Any
) -> Asked:
    """The sweep of a scenario file. **Raises**: ConfigError: a setting that is no list, a value that no scenario can have."""
    read = scenarios.load(path, changes, **given)
    axes = tuple(_axes(read, read.scenario.sweep))
    named = [name for name, value in given.items() if value is not None and name.replace("__", ".") in dict(axes)]
    if named:
        raise ConfigError(read.fault(("sweep",), f"{named[0]} stands in [sweep]", "leave it out of the command line, or there"))
    number = math.prod(len(values) for _, values in axes)
    if number > RUNS_MAX:
        raise ConfigError(read.fault(("sweep",), f"{number:,} runs", f"take {RUNS_MAX:,} or fewer"))
    alike = read.scenario.model_dump_json(exclude={"sweep", "question", "source", "story", "expect"})
    base = hashlib.sha256(alike.encode()).hexdigest()[:16]
    made = Asked(path, tuple(changes), tuple(sorted(given.items())), axes, base, data_dir)
    for settings in made.combinations:
        try:
            made.read(settings)
        except ConfigError as error:
            faults = [fault if isinstance(fault, str) else fault.what for fault in error.faults]
            what = f"{shown(settings)}: {'; '.join(faults)}"
            raise ConfigError(read.fault(("sweep",), what, "every value must be one that the file could have")) from None
    return made


def _axes(read: Read, table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Dotted names, whether quoted or as tables, each with its values."""
    for name, value in table.items():
        keys = (*above, name)
        if isinstance(value, Mapping):
            yield from _axes(read, value, keys)
        elif not isinstance(value, list) or not value:
            fault = f"sweep: {'.'.join(keys)} is no list of values"
            raise ConfigError(read.fault(("sweep", *keys), fault, f"write {'.'.join(keys)} = [.., ..]"))
        elif len({json.dumps(one, sort_keys=True) for one in value}) < len(value):
            raise ConfigError(read.fault(("sweep", *keys), f"sweep: {'.'.join(keys)} has a value twice", "leave one out"))
        else:
            yield ".".join(keys), tuple(value)


def shown(settings: Mapping[str, Any]) -> str:
    """As a person reads it."""
    return ", ".join(f"{name} = {value}" for name, value in settings.items())


# ---- one run --------------------------------------------------------------------------------------------------------------


def one(asked: Asked, settings: dict[str, Any]) -> Line:
    """One run, in a process of its own. What the settings make impossible is an error of this line, not of the sweep."""
    from gossipfl.simulator import expect, play
    from gossipfl.simulator.results import finite, mean, share_of, worst

    head = {"key": asked.key(settings), "settings": settings}
    try:
        read = asked.read(settings)
        engine = read.scenario.engine
        run = play.play(play.Stage(read.scenario, play.prepare(read, engine, asked.data_dir), threads=1), engine)
    except GossipError as error:
        return {**head, "error": " ".join(str(error).split())}
    if not run.is_whole:
        raise KeyboardInterrupt
    judged = expect.judge(read.scenario.expect, run)
    known = [value for value in run.of(run.metric).values() if math.isfinite(value)]
    low = worst(known, run.metric) if known else math.nan
    sent = run.sent / (run.count or len(run.lives))
    line: Line = finite({
        "metric": run.metric,
        "worst": low,
        "share": share_of(low, run.centralized.get(run.metric, math.nan), run.metric) if known else math.nan,
        "mean": mean(known) if known else math.nan,
        "consensus": run.consensus_distance,
        "bytes_per_node": sent,
        "cpu_s": round(run.cpu_seconds, 2),
        "exchanges": run.exchanges,
        "invariants": {name: verdict for name, verdict in run.invariants.items() if name not in run.unseen},
        "unheld": [judgement.asked for judgement in judged if not judgement.holds],
        "notes": list(run.notes),
        "curve": [
            {"at": sample.at_s / run.per_unit, "consensus": sample.consensus, **_spread(sample, run.metric)}
            for sample in run.samples
        ],
        "unit": run.unit,
    })  # fmt: skip
    return head | line


def _spread(sample: Any, metric: str) -> dict[str, float]:
    from gossipfl.simulator.results import mean, worst

    if sample.spread:
        return dict(sample.spread)
    known = [value for value in sample.quality.values() if math.isfinite(value)]
    return {"worst": worst(known, metric), "mean": mean(known)} if known else {}


def done(path: Path, asked: Asked) -> dict[str, Line]:
    """Lines of an earlier run of this sweep, by key; those that failed are made again."""

    def key(line: Line) -> str | None:
        own = str(line["key"]) == asked.key(line["settings"])
        return str(line["key"]) if own and "error" not in line else None

    return pool.kept(path, key, what="a record of a sweep")


# ---- all of them -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A mean over seeds with the 95 % interval of Student's t; without one where there is one seed."""

    mean: float
    low: float = math.nan
    high: float = math.nan

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        known = [value for value in values if math.isfinite(value)]
        if not known:
            return cls(math.nan)
        middle = math.fsum(known) / len(known)
        if len(known) < 2:
            return cls(middle)
        found = corrected_t(known, 1.0, 0.0)
        return cls(middle, found.low, found.high)


@dataclass(frozen=True)
class Row:
    """One combination over its seeds."""

    settings: Mapping[str, Any]
    runs: int
    figures: Mapping[str, Figure]
    unheld: int
    """runs in which what was expected did not hold"""
    error: str = ""
    violated: tuple[str, ...] = ()
    """laws that did not hold in some run"""

    def said(self) -> str:
        """What is to be said of it beside its figures."""
        parts = [f"not as expected in {self.unheld} of {self.runs}"] * bool(self.unheld)
        parts += [f"violated: {', '.join(self.violated)}"] * bool(self.violated)
        return "; ".join([*parts, *([self.error] * bool(self.error))])


@dataclass
class Grid:
    """The whole sweep."""

    question: str
    metric: str
    axes: Sequence[tuple[str, Sequence[Any]]]
    """without the seed"""
    rows: list[Row] = field(default_factory=list)
    seeds: int = 1
    runs: int = 0
    of: int = 0

    @property
    def is_whole(self) -> bool:
        return self.runs == self.of


def grid(asked: Asked, question: str, lines: Mapping[str, Line]) -> Grid:
    """What the lines that there are come to."""
    axes = [(name, values) for name, values in asked.axes if name != SEED]
    seeds = dict(asked.axes).get(SEED, (None,))
    metric = next((line["metric"] for line in lines.values() if "metric" in line), "")
    total = math.prod(len(values) for _, values in asked.axes)
    found = Grid(question, metric, axes, [], len(seeds), len(lines), total)
    for values in itertools.product(*(values for _, values in axes)):
        settings = dict(zip((name for name, _ in axes), values, strict=True))
        mine = [settings | ({SEED: seed} if seed is not None else {}) for seed in seeds]
        there = [lines[key] for key in map(asked.key, mine) if key in lines]
        good = [line for line in there if "error" not in line]
        figures = {name: Figure.of([_number(line[name]) for line in good]) for name in FIGURES}
        error = next((line["error"] for line in there if "error" in line), "")
        bad = {name for line in good for name, verdict in line["invariants"].items() if verdict == "violated"}
        unheld = sum(bool(line["unheld"]) for line in good)
        found.rows.append(Row(settings, len(good), figures, unheld, error, tuple(sorted(bad))))
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def as_json(found: Grid) -> dict[str, Any]:
    """The object that --json prints."""
    return {
        "question": found.question,
        "metric": found.metric,
        "axes": {name: list(values) for name, values in found.axes},
        "seeds": found.seeds,
        "runs": found.runs,
        "of": found.of,
        "rows": [
            {
                "settings": dict(row.settings),
                "runs": row.runs,
                "unheld": row.unheld,
                "error": row.error or None,
                "violated": list(row.violated),
                **{name: vars(figure) for name, figure in row.figures.items()},
            }
            for row in found.rows
        ],
    }


def tidy(asked: Asked, lines: Mapping[str, Line]) -> str:
    """One run a row, as CSV: its settings and its figures."""
    names = [name for name, _ in asked.axes]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*names, "metric", *FIGURES, "exchanges", "held", "error"], lineterminator="\n")
    writer.writeheader()
    for settings in asked.combinations:
        if (line := lines.get(asked.key(settings))) is not None:
            kept = {name: line.get(name) for name in ("metric", *FIGURES, "exchanges", "error")}
            writer.writerow({**settings, **kept, "held": None if "error" in line else not line["unheld"]})
    return text.getvalue()


def curves(asked: Asked, lines: Mapping[str, Line]) -> Iterator[dict[str, Any]]:
    """Every point of every run's curve, with its settings."""
    for settings in asked.combinations:
        line = lines.get(asked.key(settings), {})
        for point in line.get("curve", ()):
            yield {**settings, "metric": line["metric"], "unit": line["unit"], **point}
