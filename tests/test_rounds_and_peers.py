"""The engine's rounds are what real peers do: one federation in lockstep, in the event simulator and all at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gossipfl.errors import Misuse
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.federation import Federation, found
from gossipfl.simulator.lockstep import engine_of
from gossipfl.simulator.network import World
from gossipfl.topology import graph
from gossipfl.trust.membership import Topology

CLOSE = {"float64": 1e-9, "float32": 1e-5}
ROUNDS = 24
SOFTMAX = {"options": {"hidden": []}, "how": "dirichlet"}
"""Convex, in minibatches: softmax regression on digits, sites of different labels and sizes."""

PLAIN = {"leak": 0.0, "cap": 0.0, "clip": 0.0, "gamma": 1.0}
STUDIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gossip": ("toy", {"correction": "none"} | PLAIN, {}),
    "gossip, half the way": ("toy", {"correction": "none", "clip": 0.0}, {}),
    "gossip, clipped": ("toy", {"correction": "none", "clip": 4.0}, {}),
    "ledger": ("toy", PLAIN, {}),
    "ledger as deployed": ("toy", {}, {}),
    "ledger, cosine, proximal": ("toy", {"schedule": "cosine", "proximal": 0.1, "cap": 0.5}, {}),
    "gossip in minibatches": ("digits", {"correction": "none", "batch_size": 16} | PLAIN, SOFTMAX),
    "ledger in minibatches": ("digits", {"batch_size": 16} | PLAIN, SOFTMAX),
    "ledger as deployed, momentum": ("digits", {"batch_size": 16, "momentum": 0.5}, SOFTMAX),
    "ledger as deployed, int8": ("toy", {"codec": "int8"}, {}),
    "gossip, a quarter of the numbers": ("toy", {"correction": "none", "codec": "topk:0.25"} | PLAIN, {}),
    "ledger as deployed, a quarter of the numbers": ("toy", {"codec": "topk:0.25"}, {}),
    "ledger in minibatches, a tenth of the numbers": ("digits", {"batch_size": 16, "codec": "topk:0.1"} | PLAIN, SOFTMAX),
    "ledger as deployed, adam": ("digits", {"batch_size": 16, "optimizer": "adam", "eta": 0.01}, SOFTMAX),
}


def federation(task: str, study: dict[str, Any], rows: dict[str, Any], **more: Any) -> Federation:
    given = {"local_rounds": ROUNDS, "local_steps": 3, "release_exchanges": 3} | study
    return found(task, 8, 1, study=given, **rows, **more)


def peers(made: Federation) -> np.ndarray:
    """Models of real Peers in lockstep, over cut lines: (N, P)."""
    specs = made.specs({"hospital-2": 0.3}, lambda settings: replace(settings, lockstep=True, turn_ns=1_000_000))
    world = World(specs, 3, Faults(cut_per_hour=200))
    world.run(3600, lambda: all(node.boots and node.peer.stage == "finished" for node in world.nodes.values()))
    assert all(node.peer.stage == "finished" and node.peer.local_round == ROUNDS for node in world.nodes.values())
    return np.stack([world.model(name) for name in made.membership.active])


@pytest.mark.parametrize("name", STUDIES)
def test_rounds_of_all_at_once_are_those_of_real_peers(name: str) -> None:
    made = federation(*STUDIES[name], topology=Topology(rule="ring") if "half" in name else None)
    real, engine = peers(made), engine_of(made)
    with engine.running():
        while engine.done < engine.settings.rounds:
            engine.round()
    assert engine.exchanges > 2 * ROUNDS
    found, layout = engine.state.vectors(), engine.state.layout
    assert np.abs(real - engine.model.x0).max() > 0.01
    np.testing.assert_allclose(found, real, atol=CLOSE[layout.dtype], rtol=0)


def test_each_way_of_training_draws_the_minibatches_of_the_peers() -> None:
    made = federation(*STUDIES["ledger in minibatches"], graph=graph("random-regular:3", 8))
    vectors = []
    for way in ("loop", "matmul"):
        engine = engine_of(made, training=way)  # type: ignore[arg-type]
        with engine.running():
            for _ in range(4):
                engine.round()
        vectors.append(engine.state.vectors())
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-5)


def test_what_lockstep_refuses_the_engine_refuses() -> None:
    with pytest.raises(Misuse, match="standardises nothing"):
        engine_of(found("breast-cancer", 4, 0))
