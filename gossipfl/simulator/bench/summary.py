"""Lines of runs in, one row a method out: means over splits, paired intervals, what reaching 99 % of centralized took.

A method with a diverged run has no mean and no share: the row says how many diverged, and nothing is averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np

from gossipfl.learning.comparing import LOWER_IS_BETTER, Interval, corrected_t
from gossipfl.simulator.bench.network import NETWORKS
from gossipfl.simulator.bench.one import Line
from gossipfl.simulator.bench.question import REFERENCES, base
from gossipfl.simulator.results import share_of
from gossipfl.simulator.vectorized.methods import method_of

GOAL: Final = 0.99
"""Of centralized: the share that "rounds to" and "bytes to" are about."""

NODES: Final = ("worst", "low", "median", "mean")
"""Which node a figure is of: the worst, the 5th percentile, the median; the mean over nodes."""

MEASURES: Final = ("brier", "calibration", "log_loss", "consensus", "bytes_per_node", "exchanges", "cpu_s")
"""Figures of a line that are averaged over splits as they are."""

QUALITY: Final = ("brier", "calibration", "log_loss", "consensus")
"""Of MEASURES, those that a method with a diverged run has not, even where a model that ran away is finite."""

SLOW: Final = next(network.name for network in NETWORKS if network.slow_times > 1)
"""The network with a slow site."""

NOTHING: Final = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Reached:
    """What the worst node (or the mean over nodes) needed to come to GOAL and stay above it: the median over splits; None
    where a split did not come there."""

    rounds: float | None
    bytes_per_node: float | None
    seconds: Mapping[str, float | None]
    """modelled, by network"""
    splits: int
    """of all, that came there"""


@dataclass(frozen=True)
class Row:
    """One method over all seeds."""

    method: str
    metric: str
    runs: int
    diverged: int
    """runs with a node that diverged"""
    score: Mapping[str, float]
    """of NODES, means over splits"""
    splits: Sequence[float]
    """worst node over centralized, one a split"""
    seeds: Sequence[int]
    """of `splits`"""
    share: Interval
    """of `splits`: mean, and interval of the corrected resampled t"""
    difference: Interval
    """worst node less centralized, likewise"""
    patients: Sequence[Mapping[str, float] | None]
    """worst node less centralized over patients drawn anew, one a split"""
    delong: Sequence[Mapping[str, float] | None]
    """the worst node's AUC with its interval over patients, one a split; None for another metric"""
    against_fedavg: Interval
    """worst node less FedAvg's worst node, over splits"""
    worst_reached: Reached
    mean_reached: Reached
    others_seconds: float | None
    """until the worst node but the slow one is at GOAL, with a slow site, modelled: the median over splits. Through a server all
    have one model, and wait alike"""
    brier: float
    calibration: float
    log_loss: float
    consensus: float
    bytes_per_node: float
    exchanges: float
    cpu_s: float
    diverged_slow: int = 0
    """runs with a slow site, in which a node diverged: it then has no time there"""
    sites: Mapping[str, float] = field(default_factory=dict)
    """means over splits: `of` so many sites the federated model is `better` than the site's own on all test rows, and of
    `own_of` sites with rows of their own held out it has the lower log loss on these at `own_better`; `own_loss` and
    `own_loss_alone` are the means over these sites"""

    @property
    def over_patients(self) -> tuple[float, float]:
        """From the lowest to the highest end of the splits' intervals of worst less centralized; NaN where a split has none."""
        known = [one for one in self.patients if one is not None]
        if not known or len(known) < len(self.patients):
            return math.nan, math.nan
        return min(one["low"] for one in known), max(one["high"] for one in known)

    @property
    def is_reference(self) -> bool:
        return self.method in REFERENCES

    @property
    def has_server(self) -> bool:
        return not self.is_reference and method_of(base(self.method)).has_server

    @property
    def is_experimental(self) -> bool:
        return not self.is_reference and method_of(base(self.method)).is_experimental

    @property
    def sign(self) -> int:
        """1 where more is better."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "is_experimental": self.is_experimental}


@dataclass(frozen=True)
class Summary:
    """All methods of one question."""

    metric: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    train_rows: int
    test_rows: int
    missing: Sequence[str] = ()
    """methods without a line for every seed"""
    published: Sequence[Mapping[str, Any]] = ()
    """a published model beside the pooled one, one a split"""
    refused: Mapping[str, str] = field(default_factory=dict)
    """method -> why the engine would not run it"""
    commits: Sequence[str] = ()
    """of the code that made the runs"""
    notes: Sequence[str] = ()
    """what a reader should know of the sites: sizes, who has one class, who has no metric of its own"""

    def row(self, method: str) -> Row | None:
        return next((row for row in self.rows if row.method == method), None)


def summarise(
    lines: Sequence[Line],
    methods: Sequence[str],
    refused: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Summary:
    """Rows in the order of `methods`, of those that have lines. `refused`: method -> why it was not run."""
    plain: dict[str, dict[int, Line]] = {}
    slow: dict[str, dict[int, Line]] = {}
    for line in lines:
        (slow if line["is_slow"] else plain).setdefault(line["method"], {})[line["seed"]] = line
    there = [method for method in methods if method in plain]
    seeds = sorted({line["seed"] for line in lines})
    rows = [_row(method, plain, list(slow.get(method, {}).values())) for method in there]
    missing = [method for method in methods if set(plain.get(method, ())) != set(seeds)]
    published = [line["published"] for line in plain.get("centralized", {}).values() if line.get("published")]
    commits = sorted({line["commit"] for line in lines if line.get("commit")})
    first = lines[0]
    return Summary(
        first["metric"], rows, seeds, first["train_rows"], first["test_rows"], missing, published, refused or {}, commits, notes
    )  # fmt: skip


def _row(method: str, by: Mapping[str, Mapping[int, Line]], slow: Sequence[Line]) -> Row:
    lines, fedavg, alone = by[method], by.get("fedavg", {}), by.get("local", {})
    held = [lines[seed] for seed in sorted(lines)]
    diverged = sum(line["diverged"] > 0 for line in held)
    metric = held[0]["metric"]
    ratio = (
        float(np.mean([line["train_rows"] for line in held])),
        float(np.mean([line["test_rows"] for line in held])),
    )
    worst = [_number(line["score"]["worst"]) for line in held]
    whole = [_number(line["centralized"]) for line in held]
    shares = [share_of(one, all_, metric) for one, all_ in zip(worst, whole, strict=True)]
    both = [seed for seed in sorted(lines) if seed in fedavg and method not in ("fedavg", *REFERENCES)]
    gains = [_number(lines[seed]["score"]["worst"]) - _number(fedavg[seed]["score"]["worst"]) for seed in both]
    differences = [one - all_ for one, all_ in zip(worst, whole, strict=True)]
    return Row(
        method,
        metric,
        len(held),
        diverged,
        {name: _mean(line["score"][name] for line in held) for name in NODES},
        shares,
        sorted(lines),
        _interval(shares, *ratio),
        _interval(differences, *ratio),
        [line["against_centralized"] for line in held],
        [line.get("delong") for line in held],
        _interval(gains, *ratio) if both else NOTHING,
        reached(held, slow, "worst"),
        reached(held, slow, "mean"),
        _others(held, slow),
        **{name: _mean(None if diverged and name in QUALITY else line.get(name) for line in held) for name in MEASURES},
        diverged_slow=sum(line["diverged"] > 0 for line in slow),
        sites={}
        if diverged or method in REFERENCES
        else _gains(metric, [(lines[seed], alone[seed]) for seed in sorted(lines) if seed in alone]),
    )


def _gains(metric: str, pairs: Sequence[tuple[Line, Line]]) -> dict[str, float]:
    """At how many sites a method's model is better than the site's own, over splits of both."""
    counts = []
    for with_, alone in pairs:
        both, own = (
            [(one, other) for one, other in zip(with_["sites"][name], alone["sites"][name], strict=False)
             if one is not None and other is not None]
            for name in ("score", "own_log_loss")
        )  # fmt: skip
        better, lower = sum(is_better(metric, *pair) for pair in both), sum(one < other for one, other in own)
        losses = np.mean(own, axis=0).tolist() if own else [math.nan, math.nan]
        counts.append((len(both), better, len(own), lower, *losses))
    if not counts:
        return {}
    names = ("of", "better", "own_of", "own_better", "own_loss", "own_loss_alone")
    return dict(zip(names, np.mean(counts, axis=0).tolist(), strict=True))


def _interval(values: Sequence[float], train: float, test: float) -> Interval:
    """The corrected resampled t's; of a single split its value, without an interval."""
    if len(values) == 1:
        return Interval(values[0], math.nan, math.nan)
    return corrected_t(values, train, test)


def reached(lines: Sequence[Line], slow: Sequence[Line], node: str) -> Reached:
    """When this node of each split came to GOAL of centralized for good; `slow`: lines of runs with a slow site."""
    points, others = [_first(line, node) for line in lines], [_first(line, node) for line in slow]
    seconds = _seconds(points) | _seconds(others)
    came = sum(point is not None for point in points)
    return Reached(_middle(points, "round"), _middle(points, "bytes_per_node"), seconds, came)


def _others(lines: Sequence[Line], slow: Sequence[Line]) -> float | None:
    """Of `Row.others_seconds`."""
    points = [_first(line, "others") for line in slow] if slow else [_first(line, "worst") for line in lines]
    return _seconds(points).get(SLOW)


def _middle(points: Sequence[Line | None], name: str) -> float | None:
    """The median over splits; None where one has none."""
    values = [point[name] for point in points if point is not None]
    return float(np.median(values)) if values and len(values) == len(points) else None


def _seconds(points: Sequence[Line | None]) -> dict[str, float | None]:
    names = dict.fromkeys(name for point in points if point is not None for name in point.get("seconds", {}))
    return {name: _middle([None if point is None else point["seconds"] for point in points], name) for name in names}


def _first(line: Line, node: str) -> Line | None:
    """The first point of the curve from which on the goal is held; None of a run that diverged: no figure is its."""
    metric, found = line["metric"], None
    if line["diverged"]:
        return None
    for point in reversed(line.get("curve", ())):
        value = point.get(node)
        if value is None or not share_of(value, line["centralized"], metric) >= GOAL:
            break
        found = point
    return found


def is_better(metric: str, one: float, other: float) -> bool:
    return one < other if metric in LOWER_IS_BETTER else one > other


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Any) -> float:
    return float(np.mean([_number(value) for value in values]))
