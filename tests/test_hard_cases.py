"""Laws that were once found broken, each by the case that broke it: hostile members, restarts at bad moments, stops."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import warnings
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from test_node import driver_of, town, until
from test_peer import small_world, statistics_world
from test_threats import hear, quiet_world
from worlds import certificate_of, keys_of

from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.link import decode_link
from gossipfl.protocol.peer import Course
from gossipfl.simulator.network import World
from gossipfl.trust.membership import without

TWO = {"anna": 10, "bert": 20}


def rest(world: World, *names: str) -> None:
    """These nodes begin nothing of their own any more."""
    for name in names or tuple(world.nodes):
        peer = world.nodes[name].peer
        peer.begin_turn = lambda peer=peer: setattr(peer, "turn_next", 10**18)  # type: ignore[method-assign,misc]


def test_a_member_whose_finite_statistics_overflow_is_refused_and_stops_nobody() -> None:
    """workbench.mix: the sum of squares of finite float64 overflows, distance is NaN, checks.check lets it pass where limit
    is infinite, and clip_factor raises Misuse out of carry_out: every neighbour's process ends, again after each restart."""
    world, _ = statistics_world(0, sites=2)
    bad = world.nodes["site-0"]
    bad.spec = dataclasses.replace(bad.spec, statistics=np.full_like(bad.spec.statistics, 1e200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        world.run(20)
    # Either end may be the first to see it: it must be a refusal (or an abort), at whichever.
    said = [note.fields["reason"] for node in world.nodes.values() for note in node.facts if note.kind in ("refusal", "abort")]
    assert set(said) & {"nonfinite", "implausible"}


def test_an_exchange_in_doubt_over_a_new_federation_file_settles() -> None:
    """replied(): check_manifest refuses the stored reply, signed under the version before, with k = 0: for ever."""
    world = quiet_world(turn_ns=300_000_000)
    pair: tuple[str, str] | None = None
    for _ in range(20_000):
        world.run(0.001)
        pair = next(((one, two) for one in TWO for two in TWO if one != two and is_answered(world, one, two)), None)
        if pair:
            break
    assert pair
    for node in world.nodes.values():
        node.crash()
    new = without(world.nodes["anna"].peer.settings.members, "cleo")  # type: ignore[arg-type]
    for name in pair:
        node = world.nodes[name]
        before = node.spec.settings
        node.spec = dataclasses.replace(
            node.spec, settings=lambda random, before=before: dataclasses.replace(before(random), members=new)
        )
        node.boot()
    done = world.nodes[pair[0]].peer.link(pair[1]).done
    world.run(600)
    link = world.nodes[pair[0]].peer.link(pair[1])
    assert link.done > done or link.epoch > 0


def is_answered(world: World, one: str, two: str) -> bool:
    """Has `two` applied a proposal whose reply `one` has not?"""
    mine, theirs = world.nodes[one].peer.link(two), world.nodes[two].peer.link(one)
    return bool(mine.pending and theirs.answered and theirs.answered.open and theirs.done == mine.pending.k)


def test_a_state_folder_restored_from_a_copy_with_an_exchange_in_doubt_settles() -> None:
    """Link.names drops the reply's payload after the receipt, but judge() says `again` and offers it: Missing, for ever."""
    world = quiet_world(TWO, turn_ns=300_000_000)
    anna, bert = world.nodes["anna"], world.nodes["bert"]
    copy: list[Any] = []
    commit = anna.store.commit

    def committed(*arguments: Any) -> None:
        commit(*arguments)
        if not copy and anna.peer.link("bert").pending:
            copy.append(anna.store.crash(random.Random(1), 1.0))

    anna.store.commit = committed  # type: ignore[method-assign]

    def is_over() -> bool:
        answered = bert.peer.link("anna").answered
        doubt = decode_link(copy[0].load()["link", "bert"]).pending if copy else None
        return bool(answered and not answered.open and doubt and bert.peer.link("anna").done == doubt.k)

    for _ in range(20_000):
        world.run(0.001)
        if is_over():
            break
    assert is_over()
    anna.crash()
    anna.store = copy[0]
    rest(world, "bert")
    before = bert.peer.link("anna").done
    anna.boot()
    world.run(300)
    link = bert.peer.link("anna")
    assert link.epoch > 0 or link.done > before


def test_a_member_cannot_fill_the_record_with_refusals() -> None:
    """refused() notes every Refusal, also of what was never proposed and before the greeting: a thousand characters each, as
    fast as the wire carries; the log of facts keeps a million, so that receipts go."""
    world = quiet_world()
    peer = next(iter(world.nodes["anna"].peer.by_peer))
    noted = 0
    for _ in range(1000):
        if peer in world.nodes["anna"].peer.by_peer:
            commands = hear(world, "anna", peer, ms.Refusal(2**40, "slow", "x" * 1000))
            noted += sum(isinstance(command, ev.Note) for command in commands)
    assert noted <= 10


def test_a_member_that_refuses_session_after_session_does_not_fill_the_record() -> None:
    """gossipfl swarm --first-seed 737 --seeds 1 --hours 24 --nodes 14: only the refusals of who refuses had a limit."""
    world = quiet_world()
    node, storm = world.nodes["anna"], world.nodes["bert"]
    noted = refused = 0
    for _ in range(60):
        storm.crash(1.0)
        storm.boot()
        world.run(0.5, until=lambda: "bert" in node.peer.by_peer)
        if "bert" in node.peer.by_peer:
            commands = hear(world, "anna", "bert", ms.Refusal(0, "quota", "x" * 1000))
            refused += 1
            noted += sum(isinstance(command, ev.Note) and command.kind == "refusal" for command in commands)
    assert noted <= 10 * (1 + world.mono / 60e9) < refused


async def test_stopping_while_a_dial_hangs_ends_well(tmp_path: Path) -> None:
    """Client.dial goes on after close(): aiohttp's RuntimeError("Session is closed") is not in FOREIGN and ends run()."""
    configs = town(tmp_path)
    port = int(configs["b"].node.listen.rsplit(":", 1)[1])
    called = asyncio.Event()
    silent = await asyncio.start_server(lambda reader, writer: called.set(), "127.0.0.1", port)
    driver = driver_of(configs["a"])
    running = asyncio.create_task(driver.run())
    await driver.running.wait()
    await until(lambda: driver.peer.neighbour("b").state == "dialling")
    await called.wait()
    driver.stop()
    try:
        await running
    finally:
        silent.close()


async def test_a_stop_does_not_wait_for_a_long_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be interrupted is left behind once the drain has had its time."""
    monkeypatch.setattr("gossipfl.protocol.peer.DRAIN_NS", 200_000_000)
    driver = driver_of(town(tmp_path)["a"])
    honest, gate = driver.bench.train, threading.Event()
    driver.bench.train = lambda job: (gate.wait(60), honest(job))[1]  # type: ignore[method-assign,func-returns-value]
    running = asyncio.create_task(driver.run())
    await driver.running.wait()
    await until(lambda: driver.peer.turn == "training")
    driver.stop()
    try:
        async with asyncio.timeout(30):
            await running
    finally:
        gate.set()


def test_a_gradient_that_is_not_finite_does_not_cut_a_node_off_for_ever() -> None:
    """Displacement finite, norm of the gradient not (Adam; mix(gradient=nan)): persisted in Course, signed, refused by all."""
    world, _ = small_world()
    world.run(8)
    node = world.nodes["b"]
    honest, once = node.bench.train, [1]

    def train(job: ev.Train) -> ev.Event:
        trained = honest(job)
        return msgspec.structs.replace(trained, gradient=float("inf")) if once and not once.clear() else trained  # type: ignore

    node.bench.train = train  # type: ignore[method-assign]
    world.run(10)
    held = node.peer.status()["exchanges"]
    node.feed(ev.Operator("resume"))
    world.run(60)
    assert node.peer.status()["exchanges"] > held


def test_a_dial_whose_session_is_turned_away_is_tried_again() -> None:
    """opened() closes (older certificate) and leaves the neighbour `dialling`: no Dial ever again, /status says dialling."""
    world, _ = small_world(local_rounds=100_000)
    world.run(5)
    anna, bert = world.nodes["a"], world.nodes["b"]
    anna.peer.remember(certificate_of("b", 3))
    bert.peer.settings = dataclasses.replace(bert.peer.settings, dialable=frozenset())
    for end in list(anna.ends.values()):
        if end.peer == "b":
            world.sever(end, "cut")
    world.run(60)
    bert.crash()
    bert.spec = dataclasses.replace(bert.spec, certificate=certificate_of("b", 4), keys=keys_of("b", 4))
    bert.boot()
    bert.peer.settings = dataclasses.replace(bert.peer.settings, dialable=frozenset())
    world.run(90)
    assert "b" in anna.peer.by_peer


def test_a_reply_applied_between_opened_and_hello_is_receipted() -> None:
    """mixed_reply sends Done only to a greeted session; the peer's `answered` stays open and it may begin nothing."""
    world = quiet_world(TWO, turn_ns=300_000_000)
    anna, bert = world.nodes["anna"], world.nodes["bert"]
    held: list[ev.Event] = []
    told: list[int] = []
    work, tell = anna.work, anna.tell

    def slow(job: Any) -> None:
        if isinstance(job, ev.Mix) and job.payload and not held:
            held.append(anna.bench.carry_out(job))
        else:
            work(job)

    def late(event: ev.Event) -> None:
        tell(event)
        if isinstance(event, ev.Opened) and held and not told:
            told.append(1)
            tell(held[0])

    anna.work, anna.tell = slow, late  # type: ignore[method-assign]
    while not held:
        world.run(0.001)
    world.sever(next(iter(anna.ends.values())), "cut")
    while not told:
        world.run(0.01)
    rest(world)
    world.run(120)
    assert bert.peer.is_idle("anna")


def test_after_a_restart_no_round_is_trained_without_the_correction() -> None:
    """started() queues Correct and begins to train in the same step, with F = 0."""
    world, _ = small_world()
    world.run(15)
    node = world.nodes["b"]
    assert node.peer.correction
    node.crash()
    jobs: list[ev.Job] = []
    work = node.work
    node.work = lambda job: (jobs.append(job), work(job))[1]  # type: ignore[method-assign,func-returns-value]
    node.boot()
    world.run(1)
    assert all(job.correction for job in jobs if isinstance(job, ev.Train))


def test_who_leaves_stops_within_a_few_minutes() -> None:
    """`leave` waits for exchanges with peers that have done training; in the statistics stage it is never prepared."""
    world, _ = small_world(local_rounds=10_000)
    world.run(10)
    world.nodes["b"].feed(ev.Operator("leave"))
    world.run(300)
    assert world.nodes["b"].stopped


def test_who_leaves_during_the_statistics_stops_too() -> None:
    world, _ = statistics_world(0)
    world.nodes["site-3"].boot = lambda: None  # type: ignore[method-assign]
    world.run(5)
    world.nodes["site-0"].feed(ev.Operator("leave"))
    world.run(120)
    assert world.nodes["site-0"].stopped


def test_no_greeting_takes_a_link_beyond_what_a_message_can_say() -> None:
    """settle() answers epoch 2**53 with 2**53 + 1: from then on no peer can read this node's Hello on that link."""
    world = quiet_world(TWO)
    core = world.nodes["anna"].peer
    for end in list(world.nodes["anna"].ends.values()):
        world.sever(end, "cut")
    world.run(1)
    members = core.settings.members
    view = ms.LinkView(2**53, 1, 0, b"", bytes(32))
    core.handle(ev.Opened(900, "bert", False, certificate_of("bert")), world.now())
    core.handle(
        ev.Received(900, ms.Hello(members.version, members.digest, core.settings.layout, "training", b"", view, (), 0)),
        world.now(),
    )
    for command in core.handle(ev.Opened(901, "bert", False, certificate_of("bert")), world.now()):
        if isinstance(command, ev.Send):
            ms.decode(ms.encode(command.message))




def test_a_damaged_model_file_is_replaced_by_what_a_neighbour_was_last_sent() -> None:
    """Found by the simulator's bit rot: only the files of links were looked at; the node paused for ever, and said nothing."""
    world, _ = small_world(local_rounds=100_000)
    world.run(20)
    node = world.nodes["b"]
    node.feed(ev.Stopping())
    world.run(10)
    course = msgspec.msgpack.decode(node.store.load()["course", "b"], type=Course)
    disk = node.store.files.disk
    disk.flip(next(file for file in disk.list() if file.startswith(course.model.hex())), 5)  # type: ignore[attr-defined]
    before = node.peer.status()["exchanges"]
    node.boot()
    world.run(60)
    assert any(note.kind == "damaged" for note in node.facts)
    assert not node.peer.paused
    assert node.peer.status()["exchanges"] > before
    assert not any(link.resets for link in node.peer.links.values())
