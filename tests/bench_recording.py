"""What recording costs: microseconds an event beside the core's own, and bytes an exchange, on the toy task.

    python tests/bench_recording.py --nodes 5 --minutes 30
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from worlds import federation, quadratics, toy_specs

from gossipfl.protocol.peer import Peer
from gossipfl.recorder import Recorder
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.network import World
from gossipfl.simulator.recorded import Recorded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=30)
    given = parser.parse_args()
    names = tuple(f"n{at}" for at in range(given.nodes))
    members = federation(dict.fromkeys(names, 10), local_rounds=10**6, local_round_s=1.0)
    learners, _ = quadratics(names)
    specs = toy_specs(members, lambda name: learners[name], begin=lambda name: np.zeros(8), turn_ns=10**9)
    spent = {"core": 0.0, "recording": 0.0}
    timed(Peer, "handle", spent, "core")
    timed(Recorder, "fed", spent, "recording")
    with tempfile.TemporaryDirectory() as folder:
        seen = Recorded(Path(folder))
        world = World(specs, 1, Faults(cut_per_hour=6), observers=[seen])
        world.run(60 * given.minutes)
        seen.close()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    exchanges = world.counts["exchange"]
    for what, seconds in spent.items():
        print(f"{what}: {seconds / world.events * 1e6:.1f} us an event, {seconds / exchanges * 1e6:.0f} us an exchange")
    print(f"{size / exchanges:.0f} bytes an exchange of both nodes, {world.events} events, {exchanges} exchanges")


def timed(kind: Any, name: str, spent: dict[str, float], what: str) -> None:
    inner = getattr(kind, name)

    def outer(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return inner(*arguments)
        finally:
            spent[what] += time.perf_counter() - began

    setattr(kind, name, outer)


if __name__ == "__main__":
    main()
