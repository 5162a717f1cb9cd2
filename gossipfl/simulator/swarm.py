"""Many seeds in many processes: which are done, which are next, one line a seed in a file. Resumes where it stopped.

Not here: what one seed is (trial.py), what is printed (gossipfl.cli.swarm).
"""

from __future__ import annotations

import json
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gossipfl.errors import ConfigError, Exit, Fault

PER_PROCESS: Final = 200
"""Seeds that a process runs before a fresh one takes its place: what a library leaks is let go."""


@dataclass(frozen=True)
class Plan:
    """Which seeds, and how large their worlds are."""

    first: int
    seeds: int
    hours: float
    nodes: tuple[int, int]
    without: tuple[str, ...] = ()
    until_s: float | None = None

    def fits(self, line: dict[str, Any]) -> bool:
        """Was this line made by a plan like this one?"""
        same = (line.get("hours"), line.get("until_s"), tuple(line.get("without", ())), tuple(line.get("span", ())))
        return same == (self.hours, self.until_s, self.without, self.nodes)


def done(path: Path, plan: Plan) -> dict[int, dict[str, Any]]:
    """Lines of an earlier run of the same plan, by seed. A last line that was cut off is taken off the file.

    **Raises**: ConfigError for a file that is no record of a swarm.
    """
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
            seed = int(line["seed"])
        except (ValueError, KeyError, TypeError) as error:
            remedy = "name another --out; this file is no record of a swarm"
            raise ConfigError(Fault(str(path), number, f"not a line of a swarm: {error}", remedy), exit_code=Exit.STATE) from None
        if plan.fits(line):
            found[seed] = line
    return found


def one(plan: Plan, seed: int, record: Path | None = None) -> dict[str, Any]:
    """One seed, in a process of its own. An exception of the simulator itself is a failure, too."""
    from gossipfl.simulator import trial

    drawn = trial.draw(seed, plan.hours, plan.nodes, plan.without, plan.until_s)
    try:
        line = trial.run(drawn, record=record).line()
    except Exception as error:
        where = traceback.format_exc(limit=-3)
        outcome = trial.Outcome(drawn, {"never-raises": "violated"}, {}, {"world": f"{type(error).__name__}: {error}\n{where}"})
        line = outcome.line()
    return line | {"span": list(plan.nodes)}


def run(plan: Plan, seeds: Sequence[int], processes: int, record: Path | None = None) -> Iterator[dict[str, Any]]:
    """The line of each seed, as they come. `record`: a folder for the recordings of a single seed's nodes."""
    if processes == 1 or len(seeds) == 1:
        for seed in seeds:
            yield one(plan, seed, record)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    waiting = iter(seeds)
    with ProcessPoolExecutor(processes, mp_context=context, max_tasks_per_child=PER_PROCESS) as pool:
        flying: set[Future[dict[str, Any]]] = set()
        try:
            while True:
                for seed in waiting:
                    flying.add(pool.submit(one, plan, seed))
                    if len(flying) >= 2 * processes:
                        break
                if not flying:
                    return
                ready, flying = wait(flying, return_when=FIRST_COMPLETED)
                for future in ready:
                    yield future.result()
        finally:
            for future in flying:
                future.cancel()


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")


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


def cores() -> int:
    with suppress(AttributeError):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
