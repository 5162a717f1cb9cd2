"""A benchmark on disk: one line a run as it ends, and all that is made of them. A run that is there is not done again.

`runs.jsonl` grows a line a run; the rest of the folder is made anew from it each time. Not here: what a line means.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.simulator import pool, results
from gossipfl.simulator.bench.network import NETWORKS
from gossipfl.simulator.bench.one import Line
from gossipfl.simulator.bench.page import page
from gossipfl.simulator.bench.question import VERSION, Question
from gossipfl.simulator.bench.summary import Summary
from gossipfl.simulator.bench.verdict import sentences, verdict

RUNS: Final = "runs.jsonl"
TRIALS: Final = "trials.jsonl"
SUMMARY: Final = "summary.json"
PAGE: Final = "report.html"
TIDY: Final = ("task", "method", "seed", "round", "bytes_per_node", "node", "measure", "value")


def lines(folder: Path, name: str = RUNS) -> dict[str, Line]:
    """The lines that are there, by key. **Raises**: ConfigError (73) for a file that is no record of a benchmark."""
    return pool.kept(folder / name, lambda line: str(line["key"]), what="a benchmark")


def older(there: Mapping[str, Line]) -> int:
    """How many lines another version of the benchmark has left, whose figures would not be comparable: they are not used."""
    return sum(line.get("version", 1) != VERSION for line in there.values())


def made(folder: Path) -> Path:
    """The folder, there. **Raises**: ConfigError (73)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(str(folder), None, f"cannot be made: {error.strerror}", "choose a writable place with --out")
        raise ConfigError(fault, exit_code=Exit.STATE) from None
    return folder


def as_json(asked: Question, found: Summary) -> dict[str, Any]:
    """The one object that `--json` prints: one object a method, and what they say."""
    return {
        "question": str(asked),
        "version": VERSION,
        "task": asked.task,
        "nodes": asked.nodes,
        "topology": asked.topology,
        "rounds": asked.rounds,
        "dropout": asked.dropout,
        "stragglers": asked.stragglers,
        "seeds": list(asked.seeds),
        "options": dict(asked.rows.options),
        "changes": {str(ask): dict(changes) for ask, changes in asked.changes.items()},
        "metric": found.metric,
        "train_rows": found.train_rows,
        "test_rows": found.test_rows,
        "methods": [row.as_json() for row in found.rows],
        "published": found.published,
        "refused": dict(found.refused),
        "missing": list(found.missing),
        "commits": list(found.commits),
        "sites": list(found.notes),
        "networks": {network.name: str(network) for network in NETWORKS},
        "said": sentences(verdict(found)),
    }


def write(folder: Path, asked: Question, found: Summary, held: Sequence[Line], manifest: Mapping[str, Any]) -> None:
    """Everything but the lines: summary, tidy figures, the page, how it was made."""
    results.write_json(folder / "manifest.json", manifest)
    results.write_json(folder / SUMMARY, as_json(asked, found))
    (folder / "metrics.csv").write_text(as_csv(tidy(held)), encoding="utf-8")
    (folder / PAGE).write_text(page(asked, found, held, manifest), encoding="utf-8")


def summary(folder: Path) -> dict[str, Any]:
    """What a finished benchmark says. **Raises**: ConfigError for a folder that has none."""
    try:
        found = json.loads((folder / SUMMARY).read_text("utf-8"))
        rows = {row["method"]: row for row in found["methods"]}
        if lacking := sorted({"task", "metric", "train_rows", "test_rows"} - set(found)):
            raise ValueError(f"it lacks {', '.join(lacking)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "name a folder that `gossipfl bench` has written"
        raise ConfigError(Fault(str(folder / SUMMARY), None, f"no summary of a benchmark: {error}", remedy)) from None
    return {**found, "by_method": rows}


def tidy(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """One figure a row: every point of every curve, and every run's final figures (of round and bytes at its end)."""
    for line in lines:
        if line["is_slow"]:
            continue
        head = {name: line[name] for name in ("task", "method", "seed")}
        for point in line.get("curve", ()):
            where = {"round": point["round"], "bytes_per_node": point["bytes_per_node"]}
            for node in ("worst", "p5", "median", "mean"):
                yield head | where | {"node": node, "measure": line["metric"], "value": point[node]}
            yield head | where | {"node": "all", "measure": "consensus", "value": point["consensus"]}
        where = {"round": line.get("rounds"), "bytes_per_node": line.get("bytes_per_node")}
        for node, value in line["score"].items():
            yield head | where | {"node": node, "measure": f"final {line['metric']}", "value": value}
        for measure in ("brier", "calibration", "log_loss", "cpu_s", "diverged"):
            yield head | where | {"node": "mean", "measure": measure, "value": line[measure]}


def as_csv(rows: Iterator[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, TIDY, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
