"""Two finished benchmarks beside each other, method by method: what changed, and whether more than splits differ. No run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from gossipfl.errors import ConfigError, Fault
from gossipfl.learning.comparing import Interval, corrected_t
from gossipfl.simulator.bench import folder as folders

ASKED: Final = ("version", "task", "nodes", "topology", "rounds", "dropout", "stragglers", "seeds", "options", "changes")
"""Of a question, what a reader must know to differ."""


@dataclass(frozen=True)
class Change:
    """One method: B less A."""

    method: str
    before: float
    after: float
    """worst node over centralized, means over splits"""
    gain: Interval
    """over the splits that both have; no interval where seeds differ"""
    diverged: tuple[int, int]
    """splits of each, whose method then has no mean and no share"""
    rounds: tuple[float | None, float | None]
    bytes_per_node: tuple[float | None, float | None]
    """to 99 % of centralized"""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    metric: str
    asked: Mapping[str, tuple[Any, Any]]
    """what was asked differently"""
    changes: list[Change]
    only: tuple[list[str], list[str]]
    """methods that only one of the two has"""


def compare(before: Path, after: Path) -> Comparison:
    """**Raises**: ConfigError for a folder without a summary, or for two of different data."""
    one, other = folders.summary(before), folders.summary(after)
    if (one["task"], one["metric"]) != (other["task"], other["metric"]):
        what = f"{before} is of {one['task']}, {after} of {other['task']}"
        raise ConfigError(Fault("compare", None, what, "name two benchmarks of one dataset"))
    asked = {name: (one.get(name), other.get(name)) for name in ASKED if one.get(name) != other.get(name)}
    rows, others = one["by_method"], other["by_method"]
    both = [method for method in rows if method in others]
    ratio = float(one["train_rows"]), float(one["test_rows"])
    changes = [_change(method, rows[method], others[method], "seeds" not in asked, ratio) for method in both]
    return Comparison(
        one["metric"], asked, changes, ([m for m in rows if m not in others], [m for m in others if m not in rows])
    )  # fmt: skip


def _change(method: str, before: Any, after: Any, is_paired: bool, ratio: tuple[float, float]) -> Change:
    olds, news = _by_seed(before), _by_seed(after)
    gains = [_number(news[seed]) - _number(olds[seed]) for seed in olds if seed in news and is_paired]
    old, new = _number(before["share"]["middle"]), _number(after["share"]["middle"])
    gain = corrected_t(gains, *ratio) if len(gains) > 1 else Interval(new - old, math.nan, math.nan)
    goals = before["worst_reached"], after["worst_reached"]
    return Change(
        method,
        old,
        new,
        gain,
        (before["diverged"], after["diverged"]),
        (goals[0]["rounds"], goals[1]["rounds"]),
        (goals[0]["bytes_per_node"], goals[1]["bytes_per_node"]),
    )


def _by_seed(row: Any) -> dict[int, float | None]:
    """Of an unfinished benchmark, a method may lack any of the splits."""
    return dict(zip(row["seeds"], row["splits"], strict=True))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
