"""What a simulation costs in one process and in two, and what goes between them: prints figures, judges nothing.

    python tests/bench_shards.py [NODES] [ROUNDS]

W2 of bench_vectorized.py (MLP 64-64-10 on digits, 18 rows a node, three local steps, then an exchange with a random neighbour)
on a random 4-regular graph, of which two processes cut half of the edges, and on a ring, of which they cut two. One thread a
process; CPU is that of the rounds, of the process that took most.
"""

from __future__ import annotations

import os
import subprocess
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from gossipfl import topology
from gossipfl.learning.training import Plan
from gossipfl.simulator import pool
from gossipfl.simulator.vectorized import shards
from gossipfl.simulator.vectorized.simulate import simulate
from gossipfl.tasks.digits import Digits

GRAPHS = ("random-regular:4", "ring")
HEADER = ("graph", "processes", "cut edges", "CPU s a process", "wall s", "us a node-round", "MB between, a round")


def measure(nodes: int, rounds: int, group: shards.Together | None) -> list[list[str]]:
    """One row a graph."""
    rows = []
    for name in GRAPHS:
        graph = topology.graph(name, nodes, 0)
        if group is not None:
            group.wait()
        run = simulate(
            Digits(hidden=(64,)), nodes=nodes, topology=graph, rounds=rounds, bootstrap=18, plan=Plan(3, 0.1, batch_size=6),
            method="gossip", training="matmul", threads=1, evaluate_every=0, group=group,
        )  # fmt: skip
        size = 1 if group is None else group.size
        owner = np.arange(nodes) * size // nodes
        cut = int((owner[graph.edges[:, 0]] != owner[graph.edges[:, 1]]).sum())
        figures = np.zeros(3 * size)
        at = 0 if group is None else group.rank
        figures[3 * at : 3 * at + 3] = run.cpu_seconds, run.seconds, run.moved
        whole = (figures if group is None else group.total(figures)).reshape(size, 3)
        cpu, wall, sent = float(whole[:, 0].max()), float(whole[:, 1].max()), float(whole[:, 2].sum())
        rows.append([name, str(size), str(cut), f"{cpu:.2f}", f"{wall:.2f}", f"{whole[:, 0].sum() / nodes / rounds * 1e6:.1f}",
                     f"{sent / rounds / 1e6:.2f}"])  # fmt: skip
    return rows


def main() -> None:
    nodes, rounds = (int(sys.argv[at]) if len(sys.argv) > at else other for at, other in ((1, 4000), (2, 50)))
    with shards.together() as group:
        rows = measure(nodes, rounds, group)
    if group is not None and group.rank:
        return
    if group is None:
        print(f"{nodes} nodes, {rounds} rounds, {pool.cores()} cores, load {os.getloadavg()[0]:.1f}")
        print(" | ".join(HEADER))
    for row in rows:
        print(" | ".join(row), flush=True)
    if group is None:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        subprocess.run([*start, __file__, str(nodes), str(rounds)], check=True)


if __name__ == "__main__":
    main()
