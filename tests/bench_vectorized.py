"""What a node and round costs when all nodes are simulated at once: prints figures, judges nothing.

    python tests/bench_vectorized.py            W1 and W2 at 1,000 nodes, beside gossipy where it is installed
    python tests/bench_vectorized.py --scale    cost by number of nodes, and 100,000 nodes of W1
    python tests/bench_vectorized.py --faults   the cost of all faults together
    python tests/bench_vectorized.py --loop     the engine's pick beside a plain per-node loop, for nets
    python tests/bench_vectorized.py --busy     the same with one core taken by another process

W1: logistic regression 30 -> 2, 16 rows a node, one step. W2: MLP 64-64-10 on digits, 18 rows a node, one pass of three
steps. Then an exchange with a random neighbour on a random 4-regular graph. Rows alternate, medians of five; CPU is that
of the process. gossipy: `pip install gossipy-dfl pandas dill` (it wants torchvision as well, for which a stub stands in
here); without it only our own figures are printed. One thread everywhere.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import nn

from gossipfl import topology
from gossipfl.learning.training import Plan, Trainer
from gossipfl.simulator.vectorized.engine import Engine, Settings, alone, block_of
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.meetings import Links
from gossipfl.simulator.vectorized.methods import method_of
from gossipfl.simulator.vectorized.mixing import Mixer
from gossipfl.simulator.vectorized.rows import Rows
from gossipfl.simulator.vectorized.ways import Model, choose
from gossipfl.tasks.breast_cancer import BreastCancer
from gossipfl.tasks.digits import Digits
from gossipfl.tasks.fitting import layout_of, start

REPEATS = 5


@dataclass(frozen=True, eq=False)
class W1(BreastCancer):
    def model(self) -> nn.Module:
        return nn.Linear(30, 2)

    def loss(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(module(x), y)


class Images(Digits):
    """Digits through any net; `net` makes it."""

    def __init__(self, net: Callable[[], nn.Module]) -> None:
        super().__init__()
        object.__setattr__(self, "model", net)


def work(which: str) -> tuple[Any, int, Plan]:
    """task, rows a node, local steps"""
    if which == "W1":
        return W1(), 16, Plan(1, 0.1)
    return Digits(hidden=(64,)), 18, Plan(3, 0.1, batch_size=6)


def engine(task: Any, nodes: int, rows_each: int, plan: Plan, way: Any = "auto", method: str = "gossip",
           faults: dict[str, Any] | None = None, rounds: int = 10**6) -> Engine:  # fmt: skip
    data = task.everything()
    x = (data.x - data.x.mean(axis=0)) / (data.x.std(axis=0) + 1e-9)
    index = np.random.default_rng(0).integers(len(data.y), size=nodes * rows_each)
    rows = Rows(torch.tensor(x, dtype=torch.float32), torch.tensor(data.y), index, np.full(nodes, rows_each))
    layout = layout_of(task)
    model = Model.of(task, layout, start(task, layout, 0))
    block = block_of(model, rows, plan)
    links = Links.of(topology.graph("random-regular:4", nodes, 0, whole=False).edges, nodes)
    with alone():
        chosen = choose(model, rows, plan, block, float(nodes) * 100 * plan.steps, way)
    state = model.state(nodes)
    weather = Weather(Faults.of(faults), nodes, rounds, 0)
    settings = Settings(plan, method_of(method), rounds)
    return Engine(model, rows, state, chosen, Mixer(state, np.ones(nodes), links), settings, weather, block)


def rounds_of(made: Engine, count: int) -> Callable[[], float]:
    """CPU microseconds a node and round over `count` rounds."""

    def run() -> float:
        with made.running():
            began = time.process_time()
            for _ in range(count):
                made.round()
            return (time.process_time() - began) / (count * made.state.nodes) * 1e6

    run()
    return run


def alternating(rows: dict[str, Callable[[], float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(REPEATS):
        for name, run in rows.items():
            found[name].append(run())
    return found


def show(found: dict[str, list[float]], against: str | None = None, unit: str = "us") -> None:
    base = statistics.median(found[against]) if against in found else None
    for name, values in found.items():
        middle = statistics.median(values)
        ratio = "" if base is None or name == against else f"   {base / middle:7.1f} times less"
        print(f"  {name:34} {middle:9.2f} {unit}  ({min(values):.2f} to {max(values):.2f}){ratio}")


# ---- gossipy ---------------------------------------------------------------------------------------------------------


def gossipy_rounds(which: str, nodes: int, count: int) -> Callable[[], float] | None:
    """The same workload in gossipy: push, merge then train; nothing is evaluated."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.datasets"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
    sys.modules["torchvision"].datasets = sys.modules["torchvision.datasets"]  # type: ignore[attr-defined]
    try:
        import gossipy
        from gossipy.core import AntiEntropyProtocol, ConstantDelay, CreateModelMode, StaticP2PNetwork
        from gossipy.model.handler import TorchModelHandler
        from gossipy.model.nn import LogisticRegression, TorchMLP
        from gossipy.node import GossipNode
        from gossipy.simul import GossipSimulator
    except ImportError as error:
        print(f"gossipy: not measured here ({error}); pip install gossipy-dfl pandas dill")
        return None
    gossipy.LOG.setLevel(logging.ERROR)
    task, rows_each, _ = work(which)
    data = task.everything()
    x = torch.tensor((data.x - data.x.mean(axis=0)) / (data.x.std(axis=0) + 1e-9), dtype=torch.float32)
    y = torch.tensor(data.y)

    class Dispatcher:
        def __getitem__(self, node: int) -> Any:
            chosen = torch.from_numpy(np.random.default_rng(node).integers(len(y), size=rows_each))
            return (x[chosen], y[chosen]), None

        def size(self) -> int:
            return nodes

        def has_test(self) -> bool:
            return False

    adjacency = topology.graph("random-regular:4", nodes, 0, whole=False).adjacency().toarray().astype(int)
    handler = TorchModelHandler(
        net=LogisticRegression(30, 2) if which == "W1" else TorchMLP(64, 10, (64,)), optimizer=torch.optim.SGD,
        optimizer_params={"lr": 0.1}, criterion=nn.CrossEntropyLoss(), local_epochs=1,
        batch_size=16 if which == "W1" else 6, create_model_mode=CreateModelMode.MERGE_UPDATE,
    )  # fmt: skip
    members = GossipNode.generate(
        data_dispatcher=Dispatcher(), p2p_net=StaticP2PNetwork(nodes, adjacency), model_proto=handler, round_len=1, sync=True
    )
    simulator = GossipSimulator(
        nodes=members, data_dispatcher=Dispatcher(), delta=1, protocol=AntiEntropyProtocol.PUSH, delay=ConstantDelay(0)
    )
    simulator.init_nodes(seed=1)

    def run() -> float:
        with alone(), contextlib.redirect_stdout(io.StringIO()):
            began = time.process_time()
            simulator.start(n_rounds=count)
            return (time.process_time() - began) / (count * nodes) * 1e6

    run()
    return run


# ---- what is measured ------------------------------------------------------------------------------------------------


def speed(nodes: int = 1000) -> None:
    for which in ("W1", "W2"):
        task, rows_each, plan = work(which)
        rows: dict[str, Callable[[], float]] = {}
        other = gossipy_rounds(which, nodes, 1)
        if other is not None:
            rows["gossipy"] = other
        for way in ("matmul", "vmap"):
            made = engine(task, nodes, rows_each, plan, way)
            rows[f"{made.choosing.way.name}, gossip"] = rounds_of(made, 50 if which == "W1" else 15)
        made = engine(task, nodes, rows_each, plan, "matmul", "ledger")
        rows["batched matmul, ledger"] = rounds_of(made, 50 if which == "W1" else 15)
        print(f"{which}, {nodes:,} nodes, CPU a node and round")
        show(alternating(rows), "gossipy")


def scale() -> None:
    for which, sizes in (("W1", (100, 1000, 10_000, 100_000)), ("W2", (100, 1000, 10_000))):
        task, rows_each, plan = work(which)
        at_once = 100_000 if which == "W1" else 10_000
        made = {n: rounds_of(engine(task, n, rows_each, plan, "matmul"), max(2, at_once // n)) for n in sizes}
        found = alternating({f"{n:,} nodes": run for n, run in made.items()})
        print(f"{which}, CPU a node and round by the number of nodes")
        show(found)
        middle = [statistics.median(values) for values in found.values()]
        for (few, a), (many, b) in pairwise(zip(sizes, middle, strict=True)):
            print(f"  exponent {few:,} -> {many:,}: {1 + math.log(b / a) / math.log(many / few):.3f}")


def large(nodes: int = 100_000, rounds: int = 100) -> None:
    """In a process of its own: memory is that of this run alone. CPU with graph, rows and the choice of a way."""
    began = time.process_time()
    task, rows_each, plan = work("W1")
    made = engine(task, nodes, rows_each, plan)
    with made.running():
        for _ in range(rounds):
            made.round()
    spent = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"W1, {nodes:,} nodes, {rounds} rounds, graph included: {spent:.1f} CPU s, peak {peak:.0f} MiB (torch included)")


def cost_of_faults() -> None:
    every = {"dropout": 0.1, "up_rounds": 30.0, "down_rounds": 5.0, "lost": 0.1, "half": 0.02, "stragglers": 0.2, "delayed": 0.05,
             "sign_flip": 0.02, "noise": 0.02, "leave": 0.05, "join": 0.05}  # fmt: skip
    for which, plan in (("W1", Plan(10, 0.1)), ("W1", Plan(1, 0.1)), ("W2", work("W2")[2])):
        task, rows_each, _ = work(which)
        count = 30 if which == "W1" else 10
        rows = {
            "none": rounds_of(engine(task, 1000, rows_each, plan, "matmul", "ledger"), count),
            "all faults": rounds_of(engine(task, 1000, rows_each, plan, "matmul", "ledger", every, 10**4), count),
        }
        print(f"{which}, {plan.steps} steps, 1,000 nodes, ledger: CPU a node and round, present or not")
        show(alternating(rows), "none")


class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.lstm(x.view(-1, 8, 8))[0][:, -1])
        return out


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip


def wide() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))


def beside_a_loop(nodes: int = 32, rounds: int = 100) -> None:
    """Whole runs, the probe included, against the same rounds by a plain loop of trainers and numpy mixing."""
    for name, net in (("CNN", cnn), ("LSTM", Lstm), ("MLP of 300,000", wide)):
        task, plan = Images(net), Plan(2, 0.05, batch_size=16)

        picks: list[str] = []

        def picked(task: Any = task, plan: Plan = plan, picks: list[str] = picks) -> float:
            began = time.process_time()
            made = engine(task, nodes, 64, plan)
            picks.append(made.choosing.way.name)
            with made.running():
                for _ in range(rounds):
                    made.round()
            return time.process_time() - began

        def loop(task: Any = task, plan: Plan = plan) -> float:
            began = time.process_time()
            made = engine(task, nodes, 64, plan, "loop")
            trainers = [
                Trainer(task.model(), made.model.layout, task.loss, *made.rows.site(node)) for node in range(nodes)
            ]
            vectors = [made.model.x0.copy() for _ in range(nodes)]
            links, rng = made.mixer.links, np.random.default_rng(0)
            assert links is not None
            with alone():
                for _ in range(rounds):
                    vectors = [one.train(v, None, plan, rng).vector for one, v in zip(trainers, vectors, strict=True)]
                    free = set(range(nodes))
                    for edge in rng.permutation(len(links)).tolist():
                        a, b = int(links.lo[edge]), int(links.hi[edge])
                        if a in free and b in free:
                            free -= {a, b}
                            vectors[a] = (vectors[a] + vectors[b]) / 2
                            vectors[b] = vectors[a].copy()
            return time.process_time() - began

        found: dict[str, list[float]] = {"plain loop": [], "engine": []}
        for _ in range(3):
            found["plain loop"].append(loop())
            found["engine"].append(picked())
        print(f"{name}, {nodes} nodes, {rounds} rounds, CPU s in all, probe included; picked: {picks[0]}")
        show(found, "plain loop", "s")


def _spin(stop: Any) -> None:
    while not stop.is_set():
        sum(range(10_000))


def busy() -> None:
    task, rows_each, plan = work("W2")
    run = rounds_of(engine(task, 1000, rows_each, plan, "matmul"), 15)
    free = [run() for _ in range(REPEATS)]
    stop = multiprocessing.Event()
    others = [multiprocessing.Process(target=_spin, args=(stop,)) for _ in range(1)]
    for other in others:
        other.start()
    taken = [run() for _ in range(REPEATS)]
    stop.set()
    for other in others:
        other.join()
    print("W2, 1,000 nodes, CPU a node and round, with and without another process on one core")
    show({"alone": free, "one core busy": taken})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for name in ("scale", "faults", "loop", "busy", "large"):
        parser.add_argument(f"--{name}", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} CPUs, torch {torch.__version__}, numpy {np.__version__}")
    if chosen.large:
        large()
    elif chosen.scale:
        scale()
        child = multiprocessing.get_context("spawn").Process(target=large)
        child.start()
        child.join()
    elif chosen.faults:
        cost_of_faults()
    elif chosen.loop:
        beside_a_loop()
    elif chosen.busy:
        busy()
    else:
        speed()
    print(f"load {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
