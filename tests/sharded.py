"""What each of several processes does in tests/test_shards.py: `torchrun .. tests/sharded.py FOLDER [DIE]`. No test itself."""

from __future__ import annotations

import os
import signal
import sys
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
}
SETTINGS: dict[str, Any] = {"nodes": 13, "bootstrap": 12, "topology": "random-regular:4", "rounds": 12, "seed": 3, "watch": True}
KEPT: dict[str, Any] = {**SETTINGS, **CASES["pairs"], "rounds": 30, "checkpoint_every": 5}


def run(group: Together | None, **settings: Any) -> Run:
    made = simulate("breast-cancer", group=group, **{**SETTINGS, "training": "matmul", **settings})
    if group is not None:
        Shard(group, made.nodes).collect(made.state)
    return made


def kept(group: Together | None, folder: Path, dies: bool) -> Run:
    """With checkpoints; `dies`: the second process is killed amid the fourteenth round's end."""

    def strike(record: Record) -> None:
        if dies and record.round == 13 and group is not None and group.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return run(group, **KEPT, checkpoint=folder / "kept", progress=strike)


def main(folder: Path, dies: bool) -> None:
    with together() as group:
        cases = {} if dies else {name: run(group, **case) for name, case in CASES.items()}
        cases["kept"] = kept(group, folder, dies)
        if group is None or group.rank == 0:
            for name, made in cases.items():
                np.savez(folder / f"{name}.npz", models=made.state.vectors(), rows=str(made.rows()), held=str(made.verdicts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "DIE" in sys.argv)
