"""Real processes, started as an operator starts them, stopped with SIGTERM and killed with SIGKILL."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kill_many
import pytest
from places import ask, breast_cancer, deploy

PATIENCE_S = 90.0


def command(toml: Path, verb: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "gossipfl", "node", verb, str(toml), *more]


def start(toml: Path) -> subprocess.Popen[bytes]:
    with (toml.parent / "log").open("ab") as log:
        return subprocess.Popen(command(toml, "run"), stderr=log)


@contextlib.contextmanager
def started(*tomls: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """None of them outlives the test."""
    processes = [start(toml) for toml in tomls]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def status(toml: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return dict(ask(toml, "/status"))
    return {}


def until(holds: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end, f"after {PATIENCE_S:g} s still not: {what}"
        time.sleep(0.1)


def test_two_processes_learn_real_patients_together_and_stop_well(tmp_path: Path) -> None:
    names = ["a", "b"]
    tomls = deploy(tmp_path, names, "breast-cancer", breast_cancer(names), local_rounds=20, inbound_per_minute=60_000)
    with started(*tomls.values()) as processes:
        until(lambda: all(status(toml).get("stage") == "finished" for toml in tomls.values()), "finished")
        second = subprocess.run(command(tomls["a"], "run"), capture_output=True, text=True, timeout=60)
        assert second.returncode == 73 and "in use by process" in second.stderr
        shown = subprocess.run(command(tomls["a"], "status"), capture_output=True, text=True, timeout=60)
        assert shown.returncode == 0 and "finished" in shown.stdout
        assert "connected" in shown.stdout or "resting" in shown.stdout
        stopped = subprocess.run(command(tomls["a"], "stop"), capture_output=True, timeout=60)
        processes[1].send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in processes] == [0, 0] and stopped.returncode == 0
    gone = subprocess.run(command(tomls["a"], "status"), capture_output=True, text=True, timeout=60)
    assert gone.returncode == 69 and "gossipfl node run" in gone.stderr
    rows = (tmp_path / "a" / "state" / "metrics.jsonl").read_text().splitlines()
    assert '"auc"' in rows[-1]


def test_a_node_killed_at_any_instant_loses_no_exchange_and_goes_on(tmp_path: Path) -> None:
    names = ["a", "b"]
    tomls = deploy(tmp_path, names, "toy", {"a": "site = 0", "b": "site = 1"}, local_rounds=10**6, codec="f64",
                   inbound_per_minute=60_000, local_round_s=0.02)  # fmt: skip
    with started(*tomls.values()) as processes:
        until(lambda: status(tomls["a"]).get("exchanges", 0) > 5, "exchanges")
        before = status(tomls["a"])
        processes[0].kill()
        processes[0].wait()
        processes[0] = start(tomls["a"])
        until(lambda: status(tomls["a"]).get("exchanges", 0) > before["exchanges"] + 3, "exchanges after the restart")
        after = status(tomls["a"])["peers"]["b"]
        assert after["epoch"] == before["peers"]["b"]["epoch"], "the link began anew: an exchange was lost"
        processes[0].send_signal(signal.SIGTERM)
        assert processes[0].wait(30) == 0


@pytest.mark.timeout(280)
def test_twenty_kills_leave_the_weighted_mean_exact_and_all_nodes_at_it(tmp_path: Path) -> None:
    seed = 1
    off, spread, exchanges = kill_many.run(tmp_path, nodes=3, kills=20, seed=seed)
    again = f"python tests/kill_many.py --nodes 3 --kills 20 --seed {seed}"
    assert off <= kill_many.TOLERANCE and spread <= kill_many.TOLERANCE and exchanges > 20, again
