"""A benchmark on disk: its question, one line a run as it ends, and what is made of them. A run that is there is not done again.

`runs.jsonl` grows a line a run; the rest of the folder is made anew from it each time. Not here: what a line means.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.simulator.bench.one import Line

RUNS: Final = "runs.jsonl"
TIDY: Final = ("task", "method", "seed", "round", "bytes_per_node", "node", "measure", "value")


def lines(folder: Path) -> dict[str, Line]:
    """The lines that are there, by key. A last line that was cut off is taken off the file.

    **Raises**: ConfigError (73) for a file that is no record of a benchmark.
    """
    path = folder / RUNS
    if not path.exists():
        return {}
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) < len(raw):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    found = {}
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            found[str(line["key"])] = line
        except (ValueError, KeyError, TypeError) as error:
            remedy = "name another --out; this file is no record of a benchmark"
            fault = Fault(str(path), number, f"not a line of a benchmark: {error}", remedy)
            raise ConfigError(fault, exit_code=Exit.STATE) from None
    return found


def append(folder: Path, line: Line) -> None:
    with (folder / RUNS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")


def made(folder: Path) -> Path:
    """The folder, there. **Raises**: ConfigError (73)."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fault = Fault(str(folder), None, f"cannot be made: {error.strerror}", "choose a writable place with --out")
        raise ConfigError(fault, exit_code=Exit.STATE) from None
    return folder


def tidy(lines: Sequence[Line]) -> Iterator[dict[str, Any]]:
    """One figure a row: every point of every curve, and every run's final figures (of round and bytes at its end)."""
    for line in lines:
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
