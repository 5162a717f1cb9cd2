"""Laws of a federation of real Peers in the simulated network: stages, statistics, aborts, hostile members, stops."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest
from test_exactly_once import furthest
from worlds import certificate_of, federation, quadratics, toy_specs

from gossipfl.learning.checks import straight_alarm
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.events import Instant
from gossipfl.protocol.peer import Course
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.federation import found
from gossipfl.simulator.network import SECOND, Node, World
from gossipfl.tasks.normalisation import statistics_size, statistics_vector
from gossipfl.tasks.task import Data
from gossipfl.trust.membership import Topology, without
from gossipfl.workbench import statistics_reader

FIVE = {f"site-{number}": 30 + 10 * number for number in range(5)}


def statistics_world(
    seed: int, faults: Faults | None = None, sites: int = 5, topology: Topology | None = None
) -> tuple[World, Any]:
    """Sites with their own rows that make statistics and then only mix; and all rows together."""
    rng = np.random.default_rng(seed)
    counts = dict(list(FIVE.items())[:sites])
    rows = {name: rng.normal(loc=[50, -3, 0.1], scale=[9, 0.5, 2], size=(count, 3)) for name, count in counts.items()}
    members = federation(counts, topology)
    size = 8 * statistics_size(sites, 3)
    specs = toy_specs(members, lambda name: None, trains=False, statistics_size=size, clip=0.0)
    for index, name in enumerate(members.active):
        own = statistics_vector(index, sites, Data(rows[name], np.zeros(len(rows[name])), ()))
        reader = statistics_reader(members.federation_id, name, members.active, members.active)
        bench = replace(specs[name].bench, estimate=reader, learner=lambda statistics: None)
        specs[name] = replace(specs[name], bench=bench, statistics=own)
    return World(specs, seed, faults), np.concatenate(list(rows.values()))


def frozen(world: World) -> list[bytes]:
    return [node.peer.frozen for node in world.nodes.values()]


@pytest.mark.parametrize("seed", range(3))
def test_all_sites_freeze_the_statistics_of_all_rows(seed: int) -> None:
    from gossipfl.protocol.messages import decode_normalisation

    faults = Faults(cut_per_hour=600, crash_per_hour=60, down_s=5, until_hours=20 / 3600)
    world, rows = statistics_world(seed, faults)
    world.run(200, until=lambda: all(node.boots and node.peer.frozen for node in world.nodes.values()))
    world.run(30)
    used = set(frozen(world))
    assert len(used) == 1
    said = decode_normalisation(used.pop())
    assert said.members == tuple(sorted(FIVE))
    assert np.allclose(said.mean, rows.mean(axis=0), rtol=1e-5)
    assert np.allclose(said.spread, rows.std(axis=0), rtol=1e-5)
    assert said.count == (float(len(rows)),) * 3


@pytest.mark.parametrize("seed", range(4))
def test_pairs_that_meet_the_mean_exactly_do_not_split_the_federation(seed: int) -> None:
    """With four sites and gamma 1, two may hold the exact mean while others do not, and be pulled off it again."""
    world, _ = statistics_world(seed, sites=4)
    world.run(30)
    assert len(set(frozen(world))) == 1
    assert frozen(world)[0]
    assert not any(node.peer.counts.get("stats") for node in world.nodes.values())


def test_nobody_freezes_before_every_member_is_in() -> None:
    world, _ = statistics_world(0)
    absent = world.nodes["site-3"]
    absent.boot = lambda: None  # type: ignore[method-assign]
    world.run(60)
    others = [node for node in world.nodes.values() if node is not absent]
    assert not any(node.peer.frozen for node in others)
    assert all(abs(node.peer.presence[3]) == 0 for node in others)


def small_world(seed: int = 0, faults: Faults | None = None, **study: Any) -> tuple[World, Any]:
    """Three nodes that train on quadratics, and the weighted optimum."""
    counts = {"a": 10, "b": 20, "c": 30}
    members = federation(counts, **({"local_rounds": 100, "eta": 0.05, "leak": 0.0, "cap": 0.0, "clip": 0.0} | study))
    trainers, optimum = quadratics(members.active, seed)
    specs = toy_specs(members, lambda name: trainers[name], turn_ns=200_000_000)
    return World(specs, seed, faults), optimum({name: members.mass(name) for name in members.active})


def test_a_study_ends_in_a_release_and_every_node_finishes() -> None:
    world, optimum = small_world(local_rounds=60)
    world.run(200, until=lambda: all(node.boots and node.peer.stage == "finished" for node in world.nodes.values()))
    assert [node.peer.stage for node in world.nodes.values()] == ["finished"] * 3
    assert furthest(world, optimum) < 1e-3


def test_a_stopped_node_has_all_on_disk_and_goes_on_where_it_was() -> None:
    world, _ = small_world()
    world.run(10)
    node = world.nodes["b"]
    before = node.peer.local_round
    node.feed(ev.Stopping())
    world.run(10)
    assert node.stopped
    model = node.peer.current["model"]
    node.stopped = False
    node.store = node.store.crash(world.stream("test"), 0.0)
    node.boot()
    assert node.peer.current["model"] == model
    assert node.peer.local_round >= before > 0


def test_a_paused_node_neither_trains_nor_answers_until_it_resumes() -> None:
    world, _ = small_world()
    world.run(5)
    node = world.nodes["b"]
    node.feed(ev.Operator("pause"))
    world.run(5)
    rounds, exchanges = node.peer.local_round, node.peer.status()["exchanges"]
    world.run(20)
    assert (node.peer.local_round, node.peer.status()["exchanges"]) == (rounds, exchanges)
    assert any(note.kind == "refusal" and note.fields["reason"] == "paused" for note in node.facts)
    node.feed(ev.Operator("resume"))
    world.run(20)
    assert node.peer.local_round > rounds
    assert node.peer.status()["exchanges"] > exchanges


def begun(node: Node) -> int:
    """Exchanges that this node has begun, and that were made."""
    made = [fact.fields for fact in node.facts if fact.kind == "ingress"]
    return sum(one["role"] == "reply" for one in made)


def two_sites(turn_ns: int, rounds: int = 10**6) -> World:
    members = federation({"anna": 10, "bert": 20})
    trainers, _ = quadratics(("anna", "bert"))
    return World(toy_specs(members, trainers.__getitem__, local_rounds=rounds, turn_ns=turn_ns), seed=3)


@pytest.mark.parametrize("turn_s", [0.05, 0.5, 20])
def test_two_sites_begin_as_many_exchanges_as_the_study_says(turn_s: float) -> None:
    """Whose only neighbour was busy had given its turn up: half of all turns, where rounds are short."""
    world = two_sites(int(turn_s * SECOND), rounds=100)
    nodes = world.nodes.values()
    world.run(1)
    world.run(3000, until=lambda: all(node.peer.stage != "training" for node in nodes))
    assert sum(node.peer.local_round for node in nodes) == 200
    assert sum(map(begun, nodes)) >= 0.95 * 200


def test_a_proposal_that_gave_way_to_the_neighbours_own_is_made_again() -> None:
    """Sites of one pace propose to each other at once: the exchange that comes of it is begun by one of them."""
    members = federation({"anna": 10, "bert": 20, "cleo": 30})
    trainers, _ = quadratics(("anna", "bert", "cleo"))
    told = {"local_rounds": 100, "turn_ns": SECOND // 20, "exchanges": 2}
    world = World(toy_specs(members, trainers.__getitem__, **told), seed=3)
    world.run(1)
    world.run(300, until=lambda: all(node.peer.stage != "training" for node in world.nodes.values()))
    assert sum(map(begun, world.nodes.values())) >= 3 * 100 * 2


def test_nobody_keeps_a_turn_from_ending_by_proposing_again_and_again() -> None:
    world = two_sites(SECOND)
    world.run(1)
    peer, exchanges = world.nodes["bert"].peer, 0
    peer.begin_turn()
    peer.to_begin, peer.gave_way = 1, 0
    while peer.to_begin:
        peer.turn, peer.turn_peer = "exchanging", "anna"
        peer.on_exchanged("anna", "model", "training", False)
        exchanges += 1
    assert exchanges == 1 + peer.settings.exchanges


def test_a_turn_waits_for_a_busy_neighbour_no_longer_than_patience() -> None:
    world = two_sites(SECOND // 20)
    anna, bert = world.nodes["anna"], world.nodes["bert"]
    world.run(1)
    while not (anna.peer.turn == "waiting" and bert.peer.link("anna").pending) and world.mono < 60 * SECOND:
        world.run(0.0005)  # until an exchange that bert has begun, and not ended, keeps it
    bert.paused += 1  # its process hangs
    before = anna.peer.local_round
    world.run(40)
    patience_s = anna.peer.settings.patience_ns / SECOND
    assert anna.peer.turn == "waiting" and anna.peer.by_peer, "the connection stands, and nothing comes over it"
    assert anna.peer.local_round - before >= 40 / (patience_s + 0.1) - 2


def test_silent_members_that_mix_and_never_train_do_not_spoil_the_optimum() -> None:
    counts = dict.fromkeys("abcdef", 10)
    members = federation(counts, local_rounds=4000, eta=0.05, leak=0.0, cap=0.0, clip=0.0)
    trainers, optimum = quadratics(("a", "b", "c", "d"), 3)
    idle = {"e", "f"}
    specs = toy_specs(
        members, lambda name: trainers.get(name), turn_ns=200_000_000, trains=lambda name: name not in idle
    )
    world = World(specs, 3)
    world.run(120)
    assert furthest(world, optimum(dict.fromkeys("abcd", 1.0))) < 1e-8


def hostile(world: World, name: str, push: Callable[[Any], Any]) -> None:
    """A member with valid keys and sessions whose every local round answers with a displacement of its own."""
    bench = world.nodes[name]
    whole = bench.boot

    def boot() -> None:
        whole()
        honest = bench.bench.train

        def train(job: ev.Train) -> ev.Event:
            trained = honest(job)
            assert isinstance(trained, ev.Trained)
            honestly = bench.bench.vector(trained.displacement)
            moved = bench.bench.room(honestly)
            moved.array[...] = push(honestly)
            return msgspec.structs.replace(trained, displacement=bench.bench.keep(job.job, moved))

        bench.bench.train = train  # type: ignore[method-assign]

    bench.boot = boot  # type: ignore[method-assign]


def distance_of_the_honest(push: Callable[[Any], Any] | None, correction: str = "ledger") -> float:
    counts = dict.fromkeys("abcdefgh", 10)
    members = federation(counts, local_rounds=400, eta=0.05, correction=correction)
    trainers, optimum = quadratics(tuple("abcdefgh"), 3)
    world = World(toy_specs(members, lambda name: trainers[name], turn_ns=200_000_000), 3)
    if push is not None:
        hostile(world, "h", push)
    world.run(50)
    target = optimum(dict.fromkeys("abcdefgh", 1.0))
    return max(float(np.abs(world.model(name) - target).max()) for name in "abcdefg")


def test_the_ledger_stays_bounded_beside_a_member_that_always_pushes_one_way() -> None:
    """With the default leak, cap and clip: a push of a thousand a round moves the others by no more than a push of one
    hundred, both within a few units of everybody's optimum, which lies within three of the origin."""
    hundred = distance_of_the_honest(lambda moved: np.full_like(moved, 100.0))
    thousand = distance_of_the_honest(lambda moved: np.full_like(moved, 1000.0))
    assert thousand < 1.5 * hundred + 0.5
    assert thousand < 10


def test_without_a_correction_the_same_push_moves_nobody_much_further_than_no_push() -> None:
    """The clip is anchored to a gradient norm that does not fall then (ADR 21), nor grow with what is pushed."""
    alone = distance_of_the_honest(None, "none")
    assert distance_of_the_honest(lambda moved: np.full_like(moved, 1000.0), "none") < alone + 1


def test_without_a_correction_the_default_clip_does_not_keep_sites_apart() -> None:
    """Each site's gradient falls as it comes near its own optimum; with it fell the clip, and mixing stopped for ever."""
    apart = []
    for clip in (2.0, 0.0):
        world, _ = small_world(correction="none", clip=clip, local_rounds=400)
        world.run(300)
        assert {node.peer.stage for node in world.nodes.values()} == {"finished"}
        apart.append(np.ptp([world.model(name) for name in world.nodes], axis=0).max())
    assert apart[0] < 2 * apart[1] + 1e-3


def test_only_the_links_of_a_member_that_always_pushes_one_way_are_straight() -> None:
    counts = dict.fromkeys("abcde", 10)
    members = federation(counts, local_rounds=400, eta=0.05)
    trainers, _ = quadratics(tuple("abcde"), 3)
    world = World(toy_specs(members, lambda name: trainers[name], turn_ns=200_000_000), 3)
    hostile(world, "e", lambda moved: np.full_like(moved, 100.0))
    world.run(30)
    alarms = {
        (name, peer)
        for name in "abcd"
        for peer, found in world.nodes[name].bench.straightness.items()
        if straight_alarm(found.ratio)
    }
    assert alarms == {(name, "e") for name in "abcd"}


def test_who_has_left_is_no_neighbour_and_its_flow_is_dropped() -> None:
    world, _ = small_world()
    world.run(20)
    node = world.nodes["a"]
    assert node.peer.links["c"].flow
    members = without(node.peer.settings.members, "c")  # type: ignore[arg-type]
    ordinary = node.spec.settings
    node.spec = replace(node.spec, settings=lambda random: replace(ordinary(random), members=members))
    node.crash()
    node.boot()
    world.run(1)
    assert set(node.peer.links) == {"b"}
    assert ("link", "c") not in node.store.load()
    flows = [link.flow for link in node.peer.links.values() if link.flow]
    expected = -sum(node.store.files.array(flow, "float64") for flow in flows) / members.mass("a")
    if node.peer.correction:
        assert np.allclose(node.store.files.array(node.peer.correction, "float64"), expected, rtol=1e-12)


def spoil(world: World, name: str, change: Callable[[ev.Mix, ev.Event], ev.Event]) -> None:
    """Node `name` computes its half of every exchange wrongly, and signs it."""
    node = world.nodes[name]
    whole = node.boot

    def boot() -> None:
        whole()
        honest = node.bench.mix
        node.bench.mix = lambda job: change(job, honest(job))  # type: ignore[method-assign]

    node.boot = boot  # type: ignore[method-assign]


def test_a_reply_whose_flow_differs_is_aborted_and_both_take_their_halves_back() -> None:
    """The responder signs another q than the initiator computes: nobody keeps the exchange, and a new epoch follows."""
    vectors = {"a": np.full(8, 1.0), "b": np.full(8, 3.0)}
    members = federation({"a": 10, "b": 10})
    specs = toy_specs(members, lambda name: None, begin=lambda name: vectors[name], trains=False, clip=0.0)
    world = World(specs, 1)
    lies = [3]

    def lie(job: ev.Mix, honest: ev.Event) -> ev.Event:
        if isinstance(honest, ev.Mixed) and not job.payload and lies[0]:
            lies[0] -= 1
            return msgspec.structs.replace(honest, q=hashlib.sha256(b"another q").digest())
        return honest

    spoil(world, "b", lie)
    world.run(60)
    aborted = [note for note in world.nodes["a"].facts if note.kind == "abort"]
    assert [note.fields["reason"] for note in aborted] == ["numeric"] * len(aborted)
    assert 1 <= len(aborted) <= 3
    total = world.model("a") + world.model("b")
    assert np.allclose(total, 4.0, atol=1e-12)
    assert world.nodes["a"].peer.link("b").epoch == world.nodes["b"].peer.link("a").epoch >= 1


def test_a_replaced_certificate_opens_no_session_and_few_are_kept() -> None:
    world, _ = small_world()
    world.run(5)
    peer = world.nodes["a"].peer
    for counter in range(1, 9):
        assert peer.remember(certificate_of("b", counter))
    held = [known.counter for known in peer.certificates["b"].values()]
    assert sorted(held) == [5, 6, 7, 8]
    assert not peer.remember(certificate_of("b", 7))
    commands = peer.handle(ev.Opened(999, "b", False, certificate_of("b", 0)), world.now())
    assert any(isinstance(command, ev.Close) and command.conn == 999 for command in commands)


def test_a_site_that_comes_when_most_have_finished_takes_their_model_and_does_not_pull_it_away() -> None:
    counts = dict.fromkeys("abcde", 10)
    members = federation(counts, local_rounds=60, eta=0.05)
    trainers, _ = quadratics(members.active, 3)
    world = World(toy_specs(members, lambda name: trainers[name], turn_ns=200_000_000), 3)
    late = world.nodes["e"]
    boot, late.boot = late.boot, lambda: None  # type: ignore[method-assign]
    world.run(60)
    others = [world.nodes[name] for name in "abcd"]
    assert [node.peer.stage for node in others] == ["finished"] * 4
    before = world.model("a").copy()
    boot()
    world.run(60)
    assert late.peer.stage == "finished"
    assert late.peer.local_round < 10
    away = float(np.abs(world.model("a") - before).max())
    own = float(np.abs(trainers["e"].ab / trainers["e"].a - before).max())
    assert away < own / 3
    assert float(np.abs(world.model("e") - world.model("a")).max()) < own / 10


def test_T12_statistics_that_no_rows_can_have_made_are_refused_and_named() -> None:
    """A member says that it has 1e9 rows: the others take none of it, wait, and their operators can read why."""
    town = found("breast-cancer", 3, 0)
    specs, liar = town.specs(), town.membership.active[-1]
    absurd = np.array(specs[liar].statistics)
    absurd[3:] *= 1e7
    world = World(specs | {liar: replace(specs[liar], statistics=absurd)}, 0)
    world.run(20)
    honest = [world.nodes[name] for name in town.membership.active[:-1]]
    assert all(node.peer.counts.get("implausible") for node in honest)
    said = [fact.fields["detail"] for node in honest for fact in node.facts if fact.fields.get("reason") == "implausible"]
    assert said and all("declared counts allow" in detail for detail in said)
    assert all(np.abs(node.store.files.array(node.peer.current["statistics"], "f8")).max() < 1e9 for node in honest)


def test_a_session_at_rest_is_let_go_by_who_began_it_and_nobody_is_called_silent() -> None:
    world, _ = small_world(local_rounds=1)
    world.run(60)
    assert all(node.peer.stage == "finished" and node.peer.links for node in world.nodes.values())
    world.run(700)  # who does not know yet that the other has finished, too, keeps the session to its age
    before = world.counts["dial"]
    world.run(700)
    for node in world.nodes.values():
        states = [node.peer.neighbour(other) for other in node.peer.links]
        assert {one.state for one in states} == {"resting"} and all(one.is_here for one in states)
        assert not node.peer.by_peer and not node.ends
    assert world.counts["dial"] == before, "who rests is not dialled again"


def test_what_was_learned_without_anybody_to_exchange_with_is_on_disk_a_checkpoint_and_a_turn_later() -> None:
    world, _ = small_world(local_rounds=10**6)
    for away in "bc":
        world.nodes[away].gone = True
    world.run(5)
    node = world.nodes["a"]
    learned = node.peer.local_round
    world.run(35)  # a checkpoint is due after 30
    assert learned > 0
    assert msgspec.msgpack.decode(node.store.load()["course", "a"], type=Course).local_round >= learned


def test_a_session_that_rests_is_begun_again_by_whoever_has_something_to_say() -> None:
    members = federation({"a": 10, "b": 20, "c": 30}, local_rounds=10**6, eta=0.05)
    trainers, _ = quadratics(members.active, 0)
    world = World(toy_specs(members, lambda name: trainers[name], turn_ns=120 * 10**9), 0)
    world.run(90)
    assert not any(node.peer.by_peer for node in world.nodes.values())
    done, dials = world.counts["exchange"], world.counts["dial"]
    world.run(1200)
    exchanges = world.counts["exchange"] - done
    assert exchanges >= 25
    assert world.counts["dial"] - dials <= exchanges


def test_sessions_that_may_not_rest_are_pinged_together_and_a_ping_keeps_one_alive_and_says_nothing_else() -> None:
    """They may not where one side could not begin another."""
    world, _ = small_world(local_rounds=1)
    world.run(2)
    for each in world.nodes.values():
        each.peer.settings = replace(each.peer.settings, dialable=frozenset())
    world.run(28)
    node = world.nodes["a"]
    for other in "bc":
        if other not in node.peer.by_peer:
            node.peer.dial(other)
            world.dial(node, other)
    world.run(60)
    tape: list[tuple[int, list[ev.Command]]] = []
    handle = node.peer.handle

    def recorded(event: ev.Event, now: Instant) -> list[ev.Command]:
        commands = handle(event, now)
        if isinstance(event, ev.Received):
            assert isinstance(event.message, ms.Ping)
            assert commands == []
            assert node.peer.conns[event.conn].heard_ns == now.mono_ns
        tape.append((now.mono_ns, [one for one in commands if isinstance(one, ev.Send)]))
        return commands

    node.peer.handle = recorded  # type: ignore[method-assign]
    world.run(200)
    assert len(node.peer.by_peer) == 2
    spoke = [at for at, sent in tape if sent]
    assert all(len(sent) == 2 for _, sent in tape if sent)
    assert all(later - earlier <= 20.1e9 for earlier, later in itertools.pairwise(spoke))
