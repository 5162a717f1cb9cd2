"""Exactly once, on the real Peer with real crypto in the simulated network: loss and crashes bias nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from worlds import federation, quadratics, toy_specs

from gossipfl.protocol import events as ev
from gossipfl.protocol.peer import Peer
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.network import Node, Observer, World

TWELVE = {f"site-{number:02d}": 5 + 7 * number for number in range(12)}


def mixing_world(seed: int, dtype: str, faults: Faults, **changed: Any) -> tuple[World, Any]:
    """Twelve nodes that only mix, each from its own random vector, and the mass-weighted mean that they must reach."""
    rng = np.random.default_rng(seed)
    vectors = {name: rng.normal(size=16).astype(dtype) for name in TWELVE}
    members = federation(TWELVE, x0=np.zeros(16, dtype))
    specs = toy_specs(
        members, lambda name: None, begin=lambda name: vectors[name], trains=False, turn_ns=500_000_000, clip=0.0, **changed
    )
    masses = {name: members.mass(name) for name in TWELVE}
    mean = sum(masses[name] * vectors[name].astype("float64") for name in TWELVE) / sum(masses.values())
    return World(specs, seed, faults), mean


def furthest(world: World, mean: Any) -> float:
    return max(float(np.abs(world.model(name).astype("float64") - mean).max()) for name in world.nodes)


@pytest.mark.parametrize(("dtype", "exact", "seed"), [("float64", 1e-9, 0), ("float64", 1e-9, 1), ("float32", 1e-5, 2)])
def test_the_weighted_mean_survives_cuts_refusals_and_crashes(dtype: str, exact: float, seed: int) -> None:
    faults = Faults(cut_per_hour=1200, crash_per_hour=60, refused_dials=0.2, down_s=10, until_hours=80 / 3600)
    world, mean = mixing_world(seed, dtype, faults)
    world.run(80)
    assert world.counts["crash"] > 5
    assert world.counts["cut"] > 50
    world.run(300, until=lambda: furthest(world, mean) < exact / 10)
    assert furthest(world, mean) < exact
    assert not any(link.resets for node in world.nodes.values() for link in node.peer.links.values())


def test_the_weighted_mean_survives_faults_also_where_a_quarter_of_the_numbers_is_sent() -> None:
    faults = Faults(cut_per_hour=1200, crash_per_hour=60, refused_dials=0.2, down_s=10, until_hours=40 / 3600)
    world, mean = mixing_world(3, "float64", faults, codec="topk:0.25")
    world.run(300, until=lambda: furthest(world, mean) < 1e-6)
    assert world.counts["crash"] > 3 and world.counts["cut"] > 25
    assert furthest(world, mean) < 1e-5
    assert not any(link.resets for node in world.nodes.values() for link in node.peer.links.values())


def test_one_seed_is_one_history() -> None:
    faults = Faults(cut_per_hour=600, crash_per_hour=30, refused_dials=0.2, until_hours=30 / 3600)
    runs = [mixing_world(5, "float64", faults)[0] for _ in range(2)]
    for world in runs:
        world.run(40)
    first, second = runs
    assert first.events == second.events
    assert [node.facts for node in first.nodes.values()] == [node.facts for node in second.nodes.values()]


def training_world(
    seed: int, faults: Faults, observers: Any = (), codec: str = "f64", **study: Any
) -> tuple[World, Any, dict[str, float]]:
    counts = {f"site-{number}": 10 + 15 * number for number in range(6)}
    members = federation(counts, **({"local_rounds": 4000, "leak": 0.0, "cap": 0.0, "clip": 0.0} | study))
    trainers, optimum = quadratics(members.active, seed)
    speed = {name: 1.0 + index for index, name in enumerate(members.active)}
    specs = toy_specs(members, lambda name: trainers[name], speed=lambda name: speed[name], turn_ns=200_000_000, codec=codec)
    masses = {name: members.mass(name) for name in members.active}
    return World(specs, seed, faults, observers=observers), optimum(masses), masses


def test_the_ledger_reaches_the_weighted_optimum_through_idle_nodes_cuts_and_unequal_work() -> None:
    faults = Faults(cut_per_hour=600, refused_dials=0.2, crash_per_hour=30, down_s=10, until_hours=60 / 3600)
    world, optimum, _ = training_world(1, faults, eta=0.05)
    world.run(300, until=lambda: furthest(world, optimum) < 1e-7)
    assert furthest(world, optimum) < 1e-6


def test_the_ledger_reaches_it_also_through_a_sparse_codec() -> None:
    faults = Faults(cut_per_hour=600, refused_dials=0.2, crash_per_hour=30, down_s=10, until_hours=60 / 3600)
    world, optimum, _ = training_world(1, faults, codec="topk:0.25", eta=0.05)
    world.run(400, until=lambda: furthest(world, optimum) < 1e-4)
    assert furthest(world, optimum) < 1e-3


def test_plain_gossip_misses_the_optimum_that_the_ledger_reaches() -> None:
    world, optimum, _ = training_world(1, Faults(), eta=0.05, correction="none")
    world.run(100)
    assert furthest(world, optimum) > 1e-2


@pytest.mark.parametrize("codec", ["f64", "int4", "topk:0.25", "sign:0.25"])
def test_flows_are_opposite_bit_for_bit_once_links_are_quiet(codec: str) -> None:
    faults = Faults(cut_per_hour=600, refused_dials=0.2, crash_per_hour=60, down_s=5, until_hours=40 / 3600)
    world, _, _ = training_world(2, faults, codec=codec, eta=0.05, leak=0.02, cap=2.0, clip=2.0)
    world.run(45)
    world.run(30)
    for node in world.nodes.values():
        node.feed(ev.Operator("pause"))
    world.run(120)
    booked = 0
    for name, node in world.nodes.items():
        for peer, link in node.peer.links.items():
            other = world.nodes[peer].peer.links[name]
            assert (link.epoch, link.done) == (other.epoch, other.done)
            assert bool(link.flow) == bool(other.flow)
            if link.flow:
                mine = node.store.files.array(link.flow, "float64")
                theirs = world.nodes[peer].store.files.array(other.flow, "float64")
                assert np.array_equal(mine, -theirs)
                booked += 1
    assert booked == 30


def test_a_core_is_a_function_of_its_events() -> None:
    """What one node was fed, fed again to a fresh core, gives the same commands."""
    tape: list[tuple[Any, Any, list[Any]]] = []

    class Tape(Observer):
        def fed(self, world: World, node: Node, event: Any, commands: list[Any]) -> None:
            if node.name == "site-2":
                tape.append((event, node.now(), commands))

    world, _, _ = training_world(4, Faults(cut_per_hour=600, until_hours=20 / 3600), eta=0.05, observers=[Tape()])
    world.run(25)
    node = world.nodes["site-2"]
    again = Peer(node.spec.settings(node.chance()))
    assert len(tape) > 300
    for event, now, commands in tape:
        assert again.handle(event, now) == commands
