"""Every method, all nodes at once, is what a plain loop over nodes with the deployed functions makes of the same schedule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from plain_loop import Plain, Taped

from gossipfl import simulate
from gossipfl.learning.training import Plan
from gossipfl.simulator.vectorized import simulate as door
from gossipfl.simulator.vectorized.methods import METHODS, Method
from gossipfl.simulator.vectorized.run import Run

CLOSE = {"float64": 1e-9, "float32": 1e-5}
STORM = {"dropout": 0.3, "lost": 0.1, "half": 0.1, "stragglers": 0.4, "delayed": 0.2, "delay_rounds": 2, "leave": 0.2}
BOTH_AT_ONCE = ("k-gt", "noloco")
"""Cannot take a late half."""


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Taped]:
    """The engine of each simulation that a test runs."""
    made: list[Taped] = []

    def taped(*parts: Any, **more: Any) -> Taped:
        made.append(Taped(*parts, **more))
        return made[-1]

    monkeypatch.setattr(door, "Engine", taped)
    return made


def ran(method: str | Method, dtype: str = "float64", task: str = "breast-cancer", **more: Any) -> Run:
    settings: dict[str, Any] = {
        "nodes": 8, "topology": "random-regular:5", "rounds": 6, "seed": 3, "plan": Plan(3, 0.1, batch_size=16, l2=0.01),
        "faults": STORM, "evaluate_every": 0, "threads": 2, "block": 3, "training": "matmul", "dtype": dtype,
    }  # fmt: skip
    return simulate(task, method=method, **settings | more)


def same(run: Run, engine: Taped) -> None:
    found, plain = run.state.vectors(), Plain(engine).play(engine.tape)
    assert np.abs(found - engine.model.x0).max() > 0.01
    np.testing.assert_allclose(found, plain, atol=CLOSE[engine.state.layout.dtype], rtol=0)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_the_plain_loop_with_dropouts_and_all_that_may_befall_an_exchange(
    name: str, dtype: str, engines: list[Taped]
) -> None:
    storm = {fault: share for fault, share in STORM.items() if not (fault == "delayed" and name in BOTH_AT_ONCE)}
    same(ran(name, dtype, faults=storm), engines[0])
    same(ran(name, dtype, faults={"dropout": 0.3}), engines[1])


@pytest.mark.parametrize("way", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["ledger", "d-psgd", "fedavg"])
def test_so_it_is_in_the_other_ways_of_training_and_with_momentum(name: str, way: str, engines: list[Taped]) -> None:
    same(ran(name, training=way, plan=Plan(4, 0.05, batch_size=8, momentum=0.5, proximal=0.1)), engines[0])


@pytest.mark.parametrize(("name", "topology"), [("ledger", "epidemic-oracle:2"), ("gossip", "epidemic-local:2")])
def test_so_is_a_net_with_adam_on_a_schedule_without_a_graph(name: str, topology: str, engines: list[Taped]) -> None:
    same(ran(name, task="digits", topology=topology, plan=Plan(3, 0.01, batch_size=8, optimizer="adam")), engines[0])


@pytest.mark.parametrize("name", ["ledger", "d-psgd"])
def test_so_are_several_exchanges_a_round(name: str, engines: list[Taped]) -> None:
    run = ran(name, exchanges=3)
    same(run, engines[0])
    assert run.exchanges > 2 * ran(name).exchanges
