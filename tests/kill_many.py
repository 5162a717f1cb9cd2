"""Kill and restart real nodes that only mix; afterwards the mass-weighted mean must be exact and everybody must reach it.

    python tests/kill_many.py --kills 500 --nodes 12 --seed 1

Every connection is over real sockets, every kill is SIGKILL at a random instant. Prints the seed; exits 1 on failure.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import mixer
from places import ask, deploy

from gossipfl.protocol.peer import Course
from gossipfl.store import Store
from gossipfl.trust.membership import Membership

HERE = Path(__file__).parent
TOLERANCE = 1e-9
TOGETHER = 1e-11
"""Then an exchange that a stop leaves half done moves nothing that counts."""

PATIENCE_S = 120.0


class Town:
    """The processes of one run."""

    def __init__(self, folder: Path, nodes: int) -> None:
        self.names = [f"n{at:02d}" for at in range(nodes)]
        counts = {name: 10 * (1 + at % 3) for at, name in enumerate(self.names)}
        self.tomls = deploy(folder, self.names, "toy", dict.fromkeys(self.names, "site = 0"), counts, codec="f64")
        self.membership = Membership.load(folder / "federation.json")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.folder = folder

    def start(self, name: str) -> None:
        seed = str(self.names.index(name))
        command = [sys.executable, str(HERE / "mixer.py"), str(self.tomls[name]), seed]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(command, stderr=log, stdout=log)

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.kill()
        process.wait()

    def ask(self, name: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """None where it does not answer: it is starting, or was killed."""
        with contextlib.suppress(OSError, ValueError):
            return ask(self.tomls[name], path, body)
        return None

    def wait(self, what: str, holds: Any) -> None:
        end = time.monotonic() + PATIENCE_S
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"after {PATIENCE_S:g} s still not: {what}; logs in {self.folder}")
            for name, process in self.running.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text()[-2000:]
                    raise AssertionError(f"{name} exited by itself with {process.returncode}:\n{log}")
            time.sleep(0.1)

    def end(self) -> dict[str, np.ndarray]:
        """Stop all well; the models on their disks."""
        for process in self.running.values():
            process.send_signal(signal.SIGTERM)
        for name, process in self.running.items():
            assert process.wait(20) == 0, f"{name} did not stop well; {self.folder}/{name}.log"
        self.running = {}
        return {name: self.model(name) for name in self.names}

    def spread(self) -> float:
        """Largest difference between two running nodes' models; infinite where one does not answer."""
        raw = [self.ask(name, "/model") for name in self.names]
        return float(np.ptp([np.frombuffer(one) for one in raw], axis=0).max()) if all(raw) else float("inf")

    def busy(self) -> list[str]:
        """Those that have a session now: killing one that still starts proves less."""
        found = {name: self.ask(name, "/status") for name in self.names}
        return [name for name, one in found.items() if one and any(p["state"] == "connected" for p in one["peers"].values())]

    def model(self, name: str) -> np.ndarray:
        with Store.open(self.tomls[name].parent / "state") as store:
            course = msgspec.msgpack.decode(store.load()["course", name], type=Course)
            return np.array(store.files.array(course.model, "float64"))

    def clear(self) -> None:
        for name in list(self.running):
            self.kill(name)


def run(folder: Path, nodes: int, kills: int, seed: int) -> tuple[float, float, int]:
    """(distance of the mean from exact, largest distance of a node from the mean, exchanges)."""
    rng = random.Random(seed)
    town = Town(folder, nodes)
    mass = np.array([town.membership.mass(name) for name in town.names])
    exact = (mass[:, None] * np.array([mixer.vector(at) for at in range(nodes)])).sum(0) / mass.sum()
    try:
        for name in town.names:
            town.start(name)
        town.wait("all have exchanged", lambda: all((town.ask(n, "/status") or {}).get("exchanges") for n in town.names))
        for _ in range(kills):
            time.sleep(rng.random() * 0.3)
            town.wait("somebody has mixed since its start", town.busy)
            victim = rng.choice(town.busy())
            town.kill(victim)
            time.sleep(rng.random() * 0.1)
            town.start(victim)
        town.wait("all have come together", lambda: town.spread() < TOGETHER)
        exchanges = sum((town.ask(name, "/status") or {"exchanges": 0})["exchanges"] for name in town.names) // 2
        models = np.array(list(town.end().values()))
    finally:
        town.clear()
    mean = (mass[:, None] * models).sum(0) / mass.sum()
    return float(abs(mean - exact).max()), float(abs(models - mean).max()), exchanges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in {"--kills": 500, "--nodes": 12, "--seed": 1}.items():
        parser.add_argument(option, type=int, default=default)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="gossipfl-kill-"))
    print(f"{chosen} in {folder}", flush=True)
    off, spread, exchanges = run(folder, chosen.nodes, chosen.kills, chosen.seed)
    print(f"mean off by {off:.2e}, nodes off the mean by {spread:.2e}, {exchanges} exchanges, {chosen.kills} kills")
    sys.exit(0 if off <= TOLERANCE and spread <= TOLERANCE else 1)


if __name__ == "__main__":
    main()
