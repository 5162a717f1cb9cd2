"""Many seeds in many processes: which belong together, one line a seed, all as one summary. Resumes where it stopped.

Not here: what one seed is (trial.py), processes and the file (pool.py), what is printed (gossipfl.cli.swarm).
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gossipfl
from gossipfl.simulator import pool
from gossipfl.simulator.faults import NO_FAULTS


@dataclass(frozen=True)
class Plan:
    """Which seeds, and how large their worlds are."""

    first: int
    seeds: int
    hours: float
    nodes: tuple[int, int]
    without: tuple[str, ...] = ()
    until_s: float | None = None
    once: bool = True
    """is what both ends of a session compute alike computed once (simulator.once)? The lines are the same"""

    def fits(self, line: dict[str, Any]) -> bool:
        """Was this line made by a plan like this one?"""
        same = (line.get("hours"), line.get("until_s"), tuple(line.get("without", ())), tuple(line.get("span", ())))
        return same == (self.hours, self.until_s, self.without, self.nodes)


def done(path: Path, plan: Plan) -> dict[int, dict[str, Any]]:
    """Lines of an earlier run of the same plan, by seed. **Raises**: ConfigError for a file that is no record of a swarm."""

    def seed(line: dict[str, Any]) -> int | None:
        number = int(line["seed"])
        return number if plan.fits(line) else None

    return pool.kept(path, seed, what="a record of a swarm")


def code() -> str:
    """What says by which code a line was made: the same files, the same word."""
    package = Path(gossipfl.__file__).parent
    files = sorted(package.rglob("*.py"))
    whole = b"".join(f"{file.relative_to(package).as_posix()}\0".encode() + file.read_bytes() + b"\0" for file in files)
    return hashlib.sha256(whole).hexdigest()[:16]


def one(plan: Plan, seed: int, record: Path | None = None, made_by: str = "") -> dict[str, Any]:
    """One seed, in a process of its own. An exception of the simulator itself is a failure, too."""
    from gossipfl.simulator import trial

    drawn = trial.draw(seed, plan.hours, plan.nodes, plan.without, plan.until_s)
    try:
        line = trial.run(drawn, record=record, once=plan.once).line()
    except Exception as error:
        where = traceback.format_exc(limit=-3)
        outcome = trial.Outcome(drawn, {"never-raises": "violated"}, {}, {"world": f"{type(error).__name__}: {error}\n{where}"})
        line = outcome.line()
    return line | {"span": list(plan.nodes), "code": made_by}


def run(plan: Plan, seeds: Sequence[int], processes: int, record: Path | None = None) -> Iterator[dict[str, Any]]:
    """The line of each seed, as they come. `record`: a folder for the recordings of a single seed's nodes."""
    yield from pool.run(partial(one, plan, record=record, made_by=code()), seeds, processes)


def failed(line: dict[str, Any]) -> list[str]:
    """Names of laws that did not hold."""
    return sorted(name for name, verdict in line["invariants"].items() if verdict != "held")


def summary(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All seeds as one object."""
    laws: dict[str, dict[str, int]] = {}
    faults: dict[str, int] = {}
    for line in lines:
        for name, verdict in line["invariants"].items():
            laws.setdefault(name, {"held": 0, "violated": 0, "unknown": 0})[verdict] += 1
        for name, count in line["faults"].items():
            if name not in NO_FAULTS:
                faults[name] = faults.get(name, 0) + count
    bad = [line for line in lines if failed(line)]
    return {
        "seeds": len(lines),
        "failed": sorted(line["seed"] for line in bad),
        "virtual_hours": round(sum(line["virtual_seconds"] for line in lines) / 3600, 3),
        "exchanges": sum(line["exchanges"] for line in lines),
        "events": sum(line["events"] for line in lines),
        "faults": dict(sorted(faults.items())),
        "cpu_s": round(sum(line["cpu_s"] for line in lines), 1),
        "invariants": dict(sorted(laws.items())),
    }
