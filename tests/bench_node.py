"""What a node costs while nothing happens, and whether its memory grows with the exchanges that it has done.

    python tests/bench_node.py [--seconds 60] [--exchanges 10000]

Idle: three deployed nodes (`gossipfl node run`, task toy) that have finished a study and keep their sessions. Growth: two
nodes that exchange a model of 1,000 parameters without pause. It prints figures and judges nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import PATIENCE_S, Pair, machine, status_kib
from places import ask, deploy


def cpu_s(pid: int) -> float:
    """User and system time of a process."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def wait(holds: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if holds():
                return
        if time.monotonic() > end:
            raise RuntimeError(f"not within {PATIENCE_S:g} s")
        time.sleep(0.2)


def idle(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        names = ["a", "b", "c"]
        data = {name: f"site = {at}" for at, name in enumerate(names)}
        tomls = deploy(Path(place), names, "toy", data, codec="f64", local_rounds=20, inbound_per_minute=60_000)
        command = [sys.executable, "-m", "gossipfl", "node", "run"]
        nodes = [subprocess.Popen([*command, str(toml)], stderr=subprocess.DEVNULL) for toml in tomls.values()]
        try:
            for toml in tomls.values():
                wait(lambda toml=toml: ask(toml, "/status")["stage"] == "finished")  # type: ignore[misc]
            live = [sum(p["state"] == "connected" for p in ask(toml, "/status")["peers"].values()) for toml in tomls.values()]
            time.sleep(3)
            before = [cpu_s(node.pid) for node in nodes]
            time.sleep(seconds)
            shares = [(cpu_s(node.pid) - was) / seconds for node, was in zip(nodes, before, strict=True)]
        finally:
            for node in nodes:
                node.send_signal(signal.SIGTERM)
            for node in nodes:
                node.wait(20)
    said = ", ".join(f"{share:.2%} ({sessions} sessions)" for share, sessions in zip(shares, live, strict=True))
    print(f"idle, finished, over {seconds:g} s: CPU of each node {said}")


def growth(exchanges: int) -> None:
    marks = [mark for mark in (100, 1000, exchanges // 2, exchanges) if mark <= exchanges]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Pair(Path(folder), 1000) as pair:
        pair.meet()
        for mark in sorted(set(marks)):
            while (done := pair.a.ask()["exchanges"]) < mark:
                pair.exchange(min(500, mark - done))
            sizes = [(status_kib(one.child.pid, "VmRSS"), one.anonymous_kib) for one in (pair.a, pair.b)]
            said = "; ".join(
                f"{role} {rss / 1024:.1f} MiB resident, {own / 1024:.1f} of it anonymous"
                for role, (rss, own) in zip(("asks:", "answers:"), sizes, strict=True)
            )
            print(f"after {mark:6} exchanges: {said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--exchanges", type=int, default=10_000)
    chosen = parser.parse_args()
    print(*machine(), sep="\n")
    idle(chosen.seconds)
    growth(chosen.exchanges)
    print(next(reversed(list(machine()))).replace("before", "after"))


if __name__ == "__main__":
    main()
