"""What a demo or simulation leaves behind: metrics per method on the same patients, a summary, and the run folder.

Not here: the page (simulator.report), the terminal (cli.demo), how the models came to be.
"""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np

from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.learning.evaluation import figures
from gossipfl.learning.evaluation import label as named
from gossipfl.tasks.task import Vector

LOWER_IS_BETTER: Final = frozenset({"loss", "error", "brier", "log_loss"})

PACKAGES: Final = ("gossipfl", "torch", "numpy", "scipy", "scikit-learn", "aiohttp", "pynacl", "msgspec", "pydantic")

Metrics = dict[str, float]


@dataclass(frozen=True)
class SiteResult:
    """One hospital: its rows, and what each way of training gives it on the held-out patients."""

    name: str
    rows: int
    labels: Mapping[str, int]
    """rows per class"""
    local: Metrics
    gossip: Metrics
    exchanges: int
    bytes_sent: int
    starts: int
    curve: Sequence[Mapping[str, Any]] = ()
    """{wall, stage, local_round, exchanges, metrics} as the node itself saw it"""


@dataclass(frozen=True)
class Result:
    """All of one demo."""

    task: str
    seed: int
    metric: str
    test_rows: int
    centralized: Metrics
    sites: Sequence[SiteResult]
    consensus: float
    """how far the final models lie from their weighted mean, relative to it; see `consensus`"""
    distances: Sequence[tuple[float, float]]
    """(seconds, distance of the two models) at every exchange of the study"""
    seconds: float
    killed: Mapping[str, Any] | None
    stages: Mapping[str, float] = field(default_factory=dict)
    """seconds at which the last hospital entered each stage"""

    @property
    def exchanges(self) -> int:
        """Both sides count each."""
        return sum(site.exchanges for site in self.sites) // 2

    @property
    def bytes_sent(self) -> int:
        return sum(site.bytes_sent for site in self.sites)

    def of(self, method: str, metric: str) -> list[float]:
        """One value a site. `method` is "local" or "gossip"."""
        return [getattr(site, method).get(metric, math.nan) for site in self.sites]

    def share(self) -> float:
        """Worst node over centralized, in the task's metric (turned over where lower is better)."""
        return share_of(worst(self.of("gossip", self.metric), self.metric), self.centralized[self.metric], self.metric)

    def shown(self) -> list[str]:
        """The metrics that tables show: the task's own, then AUC and accuracy where there are any."""
        return list(dict.fromkeys([self.metric, *(m for m in ("auc", "accuracy") if m in self.centralized)]))


def worst(values: Sequence[float], metric: str) -> float:
    return max(values) if metric in LOWER_IS_BETTER else min(values)


def share_of(value: float, whole: float, metric: str) -> float:
    """A value over the centralized one, turned over where lower is better."""
    top, bottom = (whole, value) if metric in LOWER_IS_BETTER else (value, whole)
    return top / bottom if bottom else math.nan


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def consensus(vectors: Sequence[Vector], masses: Sequence[float]) -> float:
    """sqrt(sum_i m_i |x_i - x|^2 / sum m) / |x|, where x is the mass-weighted mean: 0 when all are one model.

    >>> consensus([np.array([1.0]), np.array([3.0])], [1.0, 1.0])
    0.5
    """
    weights = np.asarray(masses, dtype=np.float64) / math.fsum(masses)
    models = np.stack([np.asarray(vector, dtype=np.float64) for vector in vectors])  # (N, P)
    middle = (weights[:, None] * models).sum(axis=0)
    spread = float((weights * np.square(models - middle).sum(axis=1)).sum())
    length = float(np.sqrt(np.square(middle).sum()))
    return math.sqrt(spread) / length if length else math.sqrt(spread)


# ---- the summary and the folder --------------------------------------------------------------------------------------


def summary(result: Result, report: Path) -> dict[str, Any]:
    """The one object that `--json` prints."""
    metric = result.metric
    local, gossip = result.of("local", metric), result.of("gossip", metric)
    return {
        "task": result.task,
        "seed": result.seed,
        "nodes": len(result.sites),
        "metric": metric,
        "centralized": result.centralized[metric],
        "local_only": {"mean": mean(local), "worst": worst(local, metric)},
        "gossip": {"mean": mean(gossip), "worst": worst(gossip, metric)},
        "worst_over_centralized": result.share(),
        "all_metrics": {name: _rows(result, name) for name in result.shown()},
        "test_rows": result.test_rows,
        "consensus": result.consensus,
        "exchanges": result.exchanges,
        "bytes": result.bytes_sent,
        "bytes_per_node": result.bytes_sent / len(result.sites),
        "seconds": round(result.seconds, 2),
        "killed": result.killed,
        "sites": [
            {
                "name": site.name,
                "rows": site.rows,
                "labels": dict(site.labels),
                "local_only": site.local.get(metric),
                "gossip": site.gossip.get(metric),
                "exchanges": site.exchanges,
                "bytes": site.bytes_sent,
                "starts": site.starts,
            }
            for site in result.sites
        ],
        "report": str(report),
    }


def _rows(result: Result, name: str) -> dict[str, Any]:
    local, gossip = result.of("local", name), result.of("gossip", name)
    return {
        "centralized": result.centralized[name],
        "local_only": {"mean": mean(local), "worst": worst(local, name)},
        "gossip": {"mean": mean(gossip), "worst": worst(gossip, name)},
    }


def table(result: Result) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the closing table."""
    names = result.shown()
    many = [("local only, mean", "local", mean, None), ("local only, worst site", "local", None, worst),
            ("federated, mean node", "gossip", mean, None), ("federated, worst node", "gossip", None, worst)]  # fmt: skip
    whole = figures(result.centralized)  # with the interval, where there is one: smaller differences say little
    rows = [["centralized", *(whole.get(named(name), "-") for name in names)]]
    for label, method, average, extreme in many:
        values = [result.of(method, name) for name in names]
        made = [average(v) if average else extreme(v, n) for v, n in zip(values, names, strict=True)]  # type: ignore[misc]
        rows.append([label, *(f"{value:.4f}" for value in made)])
    return ["", *map(named, names)], rows


def manifest(seed: int, command: Sequence[str], began: float) -> dict[str, Any]:
    """What ran, where and from what: versions, seed, command."""
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "command": list(command),
        "seed": seed,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        from gossipfl import __version__

        return __version__ if package == "gossipfl" else "not installed"


def fresh(folder: Path) -> Path:
    """The run folder, made. **Raises**: ConfigError (73): there is something in it, or it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(Fault(str(folder), None, "is not empty", "choose another --out"), exit_code=Exit.STATE)
    except OSError as error:
        fault = Fault(str(folder), None, f"cannot be made: {error.strerror}", "choose a writable place with --out")
        raise ConfigError(fault, exit_code=Exit.STATE) from None
    return folder.resolve()


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def write_curves(path: Path, sites: Sequence[SiteResult]) -> None:
    """All nodes' evaluations in one file, in the order of time."""
    rows = [{"site": site.name, **row} for site in sites for row in site.curve]
    rows.sort(key=lambda row: row.get("wall", 0.0))
    write_lines(path, rows)


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line."""
    lines = [json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def finite(content: Any) -> Any:
    """JSON has no NaN: null, where a metric is not defined."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): finite(value) for key, value in content.items()}
    return [finite(item) for item in content] if isinstance(content, list | tuple) else content
