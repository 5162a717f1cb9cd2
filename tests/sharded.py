"""What each of several processes does in tests/test_shards.py: `torchrun .. tests/sharded.py FOLDER [DIE]`. No test itself."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.run import Record, Run
from gossipfl.simulator.vectorized.shards import Shard, Together, together
from gossipfl.simulator.vectorized.simulate import simulate

STUDY = Method("study", theta=0.25, leak=0.02, cap=2.0, clip=2.0)
FAULTS = {
    "dropout": 0.2, "lost": 0.1, "delayed": 0.2, "delay_rounds": 2, "leave": 0.1, "join": 0.1, "stragglers": 0.3, "noise": 0.1,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "pairs": {"method": STUDY, "faults": FAULTS},
    "edges": {"method": "d-psgd", "faults": {"dropout": 0.2}},
    "ledger over edges": {"method": "ledger-edges", "plan": Plan(3, 0.05, 16, momentum=0.5)},
    "ticks": {"method": "ledger", "mode": "ticks", "faults": {"dropout": 0.2}},
    "loop": {"method": "gossip", "training": "loop", "plan": Plan(2, 0.05, 16, momentum=0.9)},
    "several a round": {"method": STUDY, "exchanges": 3, "release": 3},
    "server": {"method": "fednova", "faults": {"dropout": 0.3, "lost": 0.2, "stragglers": 0.4, "noise": 0.1}},
    "server that remembers": {"method": "scaffold", "faults": {"dropout": 0.3, "lost": 0.2, "join": 0.2}},
    "server that steps": {"method": "fedadam", "faults": {"dropout": 0.3}},
    "compressed uploads": {"method": Method("tenth", combine="server", participation=0.4), "compression": "topk:0.1"},
    "push-sum": {"method": "push-sum", "faults": {"dropout": 0.3, "lost": 0.2, "join": 0.1}},
    "push-sum on a schedule": {"method": "push-sum", "topology": "one-peer-exponential", "faults": {"lost": 0.2}},
    "gradient tracking": {"method": "k-gt", "faults": {"dropout": 0.3, "lost": 0.1, "half": 0.1, "stragglers": 0.4}},
    "outer momentum": {"method": "noloco", "faults": {"dropout": 0.3, "half": 0.1}},
    "momentum of all": {"method": "qgm", "faults": {"dropout": 0.3, "stragglers": 0.4}, "release": 3},
    "compressed": {"method": "ledger", "compression": "topk:0.2", "faults": FAULTS},
    "compressed over edges": {"method": "d-psgd", "compression": "int8", "faults": {"dropout": 0.3}},
}
SETTINGS: dict[str, Any] = {"nodes": 13, "bootstrap": 12, "topology": "random-regular:4", "rounds": 12, "seed": 3, "watch": True}
KEPT: dict[str, dict[str, Any]] = {
    f"kept, {name}": {**SETTINGS, **CASES[name], "rounds": 30, "checkpoint_every": 5}
    for name in ("pairs", "server that remembers", "push-sum", "outer momentum", "compressed")
}
"""With checkpoints, and gone on from when a process has died."""


def run(group: Together | None, **settings: Any) -> Run:
    made = simulate("breast-cancer", group=group, **{**SETTINGS, "training": "matmul", **settings})
    if group is not None:
        Shard(group, made.nodes).collect(made.state)
    return made


class Stopped(Exception):
    """This process goes no further."""


def kept(group: Together | None, folder: Path, name: str, end: Callable[[], None]) -> Run:
    """With checkpoints; `end` is called amid the fourteenth round's end."""

    def strike(record: Record) -> None:
        if record.round == 13:
            end()

    return run(group, **KEPT[name], checkpoint=folder / name, progress=strike)


def die(group: Together, folder: Path) -> None:
    """Begin all runs with checkpoints: each is left after fourteen rounds, in the last the second process is killed."""

    def stop() -> None:
        raise Stopped

    def strike() -> None:
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    *others, last = KEPT
    for name in others:
        with suppress(Stopped):
            kept(group, folder, name, stop)
    kept(group, folder, last, strike)


def main(folder: Path, dies: bool) -> None:
    with together() as group:
        if dies and group is not None:
            die(group, folder)
        cases = {name: run(group, **case) for name, case in CASES.items()}
        cases |= {name: kept(group, folder, name, lambda: None) for name in KEPT}
        if group is None or group.rank == 0:
            for name, made in cases.items():
                np.savez(folder / f"{name}.npz", models=made.state.vectors(), rows=str(made.rows()), held=str(made.verdicts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "DIE" in sys.argv)
