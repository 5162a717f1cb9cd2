"""Lockstep: what a federation does depends on its file and its rows alone, so that node and simulator say the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from places import breast_cancer, deploy
from test_node import driver_of, model, running, until
from worlds import federation, quadratics, toy_specs

from gossipfl.config import NodeConfig, load_node
from gossipfl.errors import ConfigError, Misuse
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.lockstep import Schedule
from gossipfl.recording import Fed, Recording
from gossipfl.replay import Replay
from gossipfl.simulator import network
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.network import Spec, World
from gossipfl.simulator.recorded import Recorded
from gossipfl.trust.membership import Topology

NAMES = ("a", "b", "c", "d", "e")
ROUNDS = 10


def manifests(paths: list[Path]) -> list[str]:
    """What one node signed over all its lives, each manifest once, in order: found by running the core again."""
    said: list[str] = []
    for path in paths:
        recording = Recording(path)
        run = Replay(recording.life)
        handle = run.peer.handle

        def listening(event: ev.Event, now: Any, handle: Any = handle) -> list[ev.Command]:
            commands: list[ev.Command] = handle(event, now)
            for command in commands:
                if isinstance(command, ev.Send) and isinstance(command.message, ms.Propose | ms.Reply):
                    said.append(repr(ms.decode_manifest(command.message.manifest)))
            return commands

        run.peer.handle = listening  # type: ignore[method-assign]
        for entry in recording:
            assert run.take(entry) is None or not isinstance(entry, Fed)
    return list(dict.fromkeys(said))


@pytest.mark.parametrize("rule", ["complete", "ring"])
def test_a_round_is_a_matching_that_every_member_computes_alike(rule: str) -> None:
    members = federation(dict.fromkeys(NAMES, 10), Topology(rule=rule))
    schedules = {name: Schedule(members, name, frozenset(NAMES)) for name in NAMES}
    met: Counter[frozenset[str]] = Counter()
    for number in range(200):
        partners = {name: schedule.partner(number) for name, schedule in schedules.items()}
        for name, peer in partners.items():
            assert not peer or (partners[peer] == name and peer in members.neighbours(name))
            if peer:
                assert schedules[name].begins(number) != schedules[peer].begins(number)
                met[frozenset((name, peer))] += 1
    assert len(met) == (10 if rule == "complete" else 5) and min(met.values()) > 0.5 * max(met.values())


def test_who_can_only_dial_is_the_one_who_asks() -> None:
    members = federation(dict.fromkeys(NAMES, 10))
    dialable = frozenset(NAMES) - {"c"}
    schedules = {name: Schedule(members, name, dialable) for name in NAMES}
    for number in range(50):
        peer = schedules["c"].partner(number)
        assert not peer or (schedules["c"].begins(number) and not schedules[peer].begins(number))


def test_a_round_out_of_all_measure_is_refused_and_not_counted_up_to() -> None:
    schedule = Schedule(federation(dict.fromkeys(NAMES, 10)), "a", frozenset(NAMES))
    for number in (2**40, schedule.rounds_max):
        with pytest.raises(Misuse, match="lockstep of at most"):
            schedule.partner(number)
    assert schedule.rounds_max >= 10**6 and not schedule.partners


def world(folder: Path, seed: int, specs: dict[str, Spec], **more: Any) -> World:
    seen = Recorded(folder)
    made = World(specs, seed, observers=[seen], **more)
    made.run(3600, lambda: all(node.boots and node.peer.stage == "finished" for node in made.nodes.values()))
    seen.close()
    return made


def by_node(folder: Path) -> dict[str, list[str]]:
    return {name: manifests(sorted(folder.glob(f"{name}-*"))) for name in NAMES}


@pytest.mark.parametrize("correction", ["ledger", "none"])
def test_neither_seed_nor_speed_nor_cut_nor_crash_changes_a_manifest(tmp_path: Path, correction: str) -> None:
    """With the ledger without crashes: a restart sums the correction anew from the flows, which rounds in another order."""
    members = federation(
        dict.fromkeys(NAMES, 10), local_rounds=ROUNDS, release_exchanges=4, codec="f64", correction=correction
    )
    learners, _ = quadratics(NAMES)

    def specs(speed: Any) -> dict[str, Spec]:
        return toy_specs(members, lambda name: learners[name], speed=speed, lockstep=True)

    crashes = 60.0 if correction == "none" else 0.0
    faults = Faults(cut_per_hour=400, crash_per_hour=crashes, refused_dials=0.2)
    first = world(tmp_path / "1", 1, specs(lambda name: 1.0))
    second = world(tmp_path / "2", 2, specs(lambda name: 0.1 + ord(name) % 3), faults=faults)
    assert all(node.peer.stage == "finished" for one in (first, second) for node in one.nodes.values())
    assert second.counts["cut"] and bool(second.counts["crash"]) == bool(crashes)
    said = by_node(tmp_path / "1")
    assert said == by_node(tmp_path / "2")
    assert sum(map(len, said.values())) >= ROUNDS * 3, "each round has an exchange or two, of two manifests each"
    assert [first.model(name).tobytes() for name in NAMES] == [second.model(name).tobytes() for name in NAMES]


def towns(folder: Path) -> dict[str, NodeConfig]:
    tomls = deploy(folder, list(NAMES), "toy", {name: f"site = {at}" for at, name in enumerate(NAMES)},
                   local_rounds=ROUNDS, release_exchanges=4, codec="f64", inbound_per_minute=60_000)  # fmt: skip
    for toml in tomls.values():
        toml.write_text(toml.read_text().replace("[node]\n", "[node]\nrecord = true\nlockstep = true\n"))
    return {name: load_node(toml) for name, toml in tomls.items()}


async def test_deployed_nodes_and_simulated_ones_sign_the_same_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = towns(tmp_path)
    drivers = {name: driver_of(config) for name, config in configs.items()}
    specs = {name: spec_of(driver) for name, driver in drivers.items()}
    async with running(*drivers.values()):
        await until(lambda: all(driver.peer.stage == "finished" for driver in drivers.values()), 60)
        models = {name: model(driver).tobytes() for name, driver in drivers.items()}
    begun = min(driver.parts.certificate.not_before for driver in drivers.values()) + 3600
    monkeypatch.setattr(network, "WALL_START_NS", begun * network.SECOND)
    simulated = world(tmp_path / "simulated", 7, specs)
    deployed = {name: manifests(sorted((tmp_path / name / "state" / "recordings").iterdir())) for name in NAMES}
    assert deployed == by_node(tmp_path / "simulated")
    assert models == {name: simulated.model(name).tobytes() for name in NAMES}
    assert sum(map(len, deployed.values())) >= ROUNDS * 3


def spec_of(driver: Any) -> Spec:
    """The simulator's node of the same keys, rows and study."""
    parts = driver.parts
    files, started = parts.store.files, parts.started
    return Spec(
        settings=lambda random: dataclasses.replace(parts.settings, random=random),
        bench=parts.bench, keys=parts.keys, certificate=parts.certificate, psk=parts.psk,
        x0=files.array(started.model, parts.bench.dtype).copy(),
    )  # fmt: skip


def test_lockstep_is_refused_where_the_study_leaves_something_to_the_clock(tmp_path: Path) -> None:
    toml = deploy(tmp_path, ["a", "b"], "breast-cancer", breast_cancer(["a", "b"]))["a"]
    toml.write_text(toml.read_text().replace("[node]\n", "[node]\nlockstep = true\n"))
    with pytest.raises(ConfigError, match="normalises by gossip"):
        driver_of(load_node(toml))


