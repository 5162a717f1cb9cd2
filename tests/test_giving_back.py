"""Statistics survive who leaves and who loses its disk: what came over a link that is over is given back, exactly once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_peer import frozen, statistics_world

from gossipfl.protocol import messages as ms
from gossipfl.simulator.network import World
from gossipfl.store import Store
from gossipfl.trust.membership import without
from gossipfl.workbench import statistics_reader


def all_frozen(world: World, *but: str) -> bool:
    return all(node.boots and node.peer.frozen for name, node in world.nodes.items() if name not in but)


def brought(world: World, *but: str) -> Any:
    """Largest relative difference of what all hold from what all brought."""
    there = [node for name, node in world.nodes.items() if name not in but]
    held = sum(node.store.files.array(node.peer.current["statistics"], "float64") for node in there)
    own = sum(node.spec.statistics for node in there)
    return float(np.max(np.abs(held - own) / np.maximum(1, np.abs(own))))


def strike(world: World, name: str, *others: str) -> None:
    """The federation file no longer has it: the others are started again with the new one, as their operators would."""
    gone = world.nodes[name]
    gone.crash()
    gone.gone = True
    for other in others:
        node = world.nodes[other]
        ordinary, was = node.spec.settings, node.peer.settings.members
        members: Any = without(was, name)  # type: ignore[arg-type]
        every = list(world.nodes)
        reader = statistics_reader(members.federation_id, other, every, members.active)
        node.crash(1.0)
        node.spec = replace(
            node.spec,
            settings=lambda random, ordinary=ordinary, members=members: replace(ordinary(random), members=members),
            bench=replace(node.spec.bench, estimate=reader),
        )


@pytest.mark.parametrize("seconds", [1.5, 2.0])
def test_who_leaves_for_good_amid_the_statistics_holds_nobody_up(seconds: float) -> None:
    """Its share of the sums was gone with it, and presences never came to 1: the others waited for ever."""
    world, _ = statistics_world(1)
    world.run(seconds)
    others = [name for name in world.nodes if name != "site-4"]
    assert not any(frozen(world)) and any(node.peer.links for node in world.nodes.values())
    strike(world, "site-4", *others)
    for name in others:
        world.nodes[name].boot()
    world.run(60, until=lambda: all_frozen(world, "site-4"))
    assert all_frozen(world, "site-4")
    world.run(10)
    used = {world.nodes[name].peer.frozen for name in others}
    assert len(used) == 1
    said = ms.decode_normalisation(used.pop())
    assert said.members == tuple(sorted(others))
    rows = sum(world.nodes[name].spec.statistics for name in others)
    assert said.count == (float(rows[5]),) * 3
    assert np.allclose(said.mean, rows[8:11] / rows[5:8], rtol=1e-5)
    assert brought(world, "site-4") < 1e-9
    assert all("site-4" not in world.nodes[name].peer.links for name in others)


@pytest.mark.parametrize("seconds", [1.5, 20.0])
def test_who_loses_its_disk_comes_back_to_the_statistics_that_all_have(seconds: float) -> None:
    """While statistics are mixed, or long after: it brings its own a second time, and what it had sent is given back."""
    world, _ = statistics_world(2)
    world.run(seconds)
    lost = world.nodes["site-2"]
    before = frozen(world)[0]
    lost.crash(1.0)
    lost.store = Store.modelled()
    lost.boot()
    world.run(100, until=lambda: all_frozen(world))
    assert all_frozen(world)
    world.run(10)
    assert len(set(frozen(world))) == 1
    assert not before or frozen(world)[0] == before
    if not before:
        assert brought(world) < 1e-9


def test_a_crash_before_it_is_given_back_neither_forgets_nor_repeats_it() -> None:
    world, _ = statistics_world(3)
    world.run(1.5)
    lost = world.nodes["site-1"]
    lost.crash(1.0)
    lost.store = Store.modelled()
    lost.boot()
    others = [node for node in world.nodes.values() if node is not lost]

    def crash_who_owes() -> bool:
        for node in others:
            if node.alive and any(link.owed for link in node.peer.links.values()):
                node.crash(0.0)
                node.boot()
        return all_frozen(world)

    world.run(100, until=crash_who_owes)
    assert all_frozen(world)
    assert brought(world) < 1e-9


def test_who_begins_its_links_anew_again_and_again_changes_no_sum() -> None:
    """As often as it may: each time both ends give back what the link had brought."""
    world, _ = statistics_world(4)
    world.run(1.2)
    for _ in range(3):
        world.run(0.3)
        hostile = world.nodes["site-3"]
        for peer in list(hostile.peer.links):
            link = hostile.peer.links[peer]
            hostile.peer.now, hostile.peer.out = hostile.now(), []
            hostile.peer.start_anew(link, link.epoch + 1, "because it can", limited=False)
            for command in hostile.peer.out:
                hostile.carry_out(command)
        for end in list(hostile.ends.values()):
            end.shut("again")
    world.run(100, until=lambda: all_frozen(world))
    assert all_frozen(world)
    assert brought(world) < 1e-9


@pytest.mark.parametrize(
    "parts, running",
    [(("given",), False), (("given", "vector"), False), (("all given",), False), (("given", "replica"), True)],
)
def test_statistics_of_which_a_file_rots_are_made_again_and_all_freeze(parts: tuple[str, ...], running: bool) -> None:
    """gossipfl swarm --first-seed 3 --seeds 1 --hours 24 --nodes 10: what a rotten booking held was never given back, and all
    waited until that node's folder was removed."""
    world, _ = statistics_world(5)
    for node in world.nodes.values():
        node.store = Store.modelled(kept_bytes=0)
    world.run(1.5)
    node = world.nodes["site-2"]
    links = [link for link in node.peer.links.values() if link.given and node.store.files.is_durable(link.given)]
    assert len(links) > 1 and not any(frozen(world))
    named = {
        "given": [links[0].given], "all given": [link.given for link in links], "replica": [links[0].statistics.own],
        "vector": [node.peer.current["statistics"]],
    }  # fmt: skip
    if not running:
        node.crash(1.0)
    disk = node.store.files.disk
    for name in [name for part in parts for name in named[part]]:
        file = next(file for file in disk.list() if file.startswith(name.hex()))
        disk.flip(file, 60)  # type: ignore[attr-defined]
    if running:
        world.run(20, until=lambda: not node.alive or "vector" not in parts)
        node.crash(1.0)
    node.boot()
    assert node.alive and any(note.kind == "damaged" for note in node.facts)
    world.run(100, until=lambda: all_frozen(world))
    assert all_frozen(world)
    world.run(10)
    assert len(set(frozen(world))) == 1
    assert brought(world) < 1e-9
