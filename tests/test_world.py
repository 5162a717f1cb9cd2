"""Every fault of the simulator: switchable alone, counted, with what follows from it; and afterwards all goes on."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from worlds import federation, quadratics, toy_specs

from gossipfl.protocol import events as ev
from gossipfl.simulator.faults import CLASSES, HOSTILE_KINDS, Faults, Strike
from gossipfl.simulator.lines import Line, Lines
from gossipfl.simulator.network import SECOND, Node, Observer, Pace, World

TURN_S = 20
BUSY_S = 10
"""A pace at which a session never rests, so that what befalls it is felt."""


class Watch(Observer):
    """When each node completed an exchange that it began, and what befell whom."""

    def __init__(self) -> None:
        self.exchanges: dict[str, list[tuple[float, str]]] = defaultdict(list)
        self.struck_at: list[tuple[float, str, tuple[str, ...]]] = []
        self.bytes = 0

    def did(self, world: World, node: Node, command: ev.Command) -> None:
        if isinstance(command, ev.Commit):
            for fact in command.facts:
                if fact.kind == "ingress" and fact.fields["role"] == "reply":
                    self.exchanges[node.name].append((world.mono / SECOND, fact.fields["peer"]))

    def struck(self, world: World, kind: str, names: tuple[str, ...], detail: str) -> None:
        assert kind != "exception", detail
        self.struck_at.append((world.mono / SECOND, kind, names))

    def wire(self, world: World, sender: str, receiver: str, size: int) -> None:
        self.bytes += size

    def within(self, since: float, until: float, name: str = "") -> list[str]:
        """With whom an exchange was completed in this time, by this node or by anyone."""
        chosen = [self.exchanges[name]] if name else self.exchanges.values()
        return [peer for times in chosen for at, peer in times if since <= at < until]


def small_world(
    names: str = "abcd", faults: Faults | None = None, *strikes: Strike, turn_s: float = TURN_S, size: int = 8, **more: Any
) -> tuple[World, Watch]:
    members = federation(dict.fromkeys(names, 10), x0=np.zeros(size), local_rounds=10**6, eta=0.05, theta=0.5, cap=2.0)
    trainers, _ = quadratics(members.active)
    specs = toy_specs(
        members,
        lambda name: trainers[name],
        begin=lambda name: np.random.default_rng(ord(name)).random(size) - 0.5,
        turn_ns=int(turn_s * SECOND),
        **({"trains": False} if size != 8 else {}),
    )
    watch = Watch()
    return World(specs, 7, faults, strikes=strikes, observers=[watch], **more), watch


ALONE: dict[str, dict[str, Any]] = {
    "cut": {"cut_per_hour": 60},
    "refused": {"refused_dials": 0.5},
    "stall": {"stall_per_hour": 60},
    "half-open": {"half_open_per_hour": 60},
    "drip": {"drip_per_hour": 60},
    "one-way": {"one_way_per_hour": 30},
    "partition": {"partition_per_hour": 30, "partition_s": 60, "partition_shape": "any"},
    "crash": {"crash_per_hour": 30},
    "restart-storm": {"restart_storm_per_hour": 10},
    "blackout": {"blackout_per_hour": 20},
    "pause": {"pause_per_hour": 30},
    "straggler": {"straggler_share": 0.3, "straggler_tail": 0.2},
    "churn": {"on_hours": 0.1, "off_hours": 0.02},
    "late": {"late_share": 0.3, "late_hours": 0.1},
    "leave": {"leave_share": 0.2, "leave_hours": 0.1},
    "clock": {"clock_skew_s": 100, "clock_drift_ppm": 200, "clock_jump_per_hour": 20},
    "disk-full": {"disk_full_per_hour": 10, "disk_full_s": 30},
    "io-error": {"io_error_per_hour": 20},
    "bit-rot": {"bit_rot_per_hour": 20},
    "duplicate": {"duplicate_per_hour": 200},
    "hostile": {"hostile_share": 0.2, "hostile_per_hour": 300},
}
COUNTED = {"clock": "clock-jump"}


@pytest.mark.parametrize("name", ALONE)
def test_each_class_happens_alone_and_when_it_ends_every_node_exchanges_again(name: str) -> None:
    world, watch = small_world("abcd", Faults(**ALONE[name], until_hours=0.2))
    world.run(720)
    happened = {kind for _, kind, _ in watch.struck_at if not kind.endswith("-end")}
    assert world.counts[COUNTED.get(name, name)] > 0
    assert happened <= {name, "crash", "clock-jump", "clock-skew", "clock-drift", "state-lost"}
    world.run(600)
    staying = [node for node in world.nodes.values() if not node.stopped]
    assert len(staying) == (3 if name == "leave" else 4)
    for node in staying:
        assert watch.within(world.mono / SECOND - 300, world.mono / SECOND, node.name), (name, node.name)


def test_every_class_has_its_law() -> None:
    assert set(ALONE) == set(CLASSES)


def test_a_cut_loses_what_is_on_its_way_and_the_exchange_is_made_all_the_same() -> None:
    line = Lines(Line(latency_s=0.05, bandwidth_bytes_s=100_000))
    world, watch = small_world("ab", None, turn_s=5, size=100_000, lines=line)
    got = 0
    while not got:
        world.run(0.1)
        end = next(iter(world.nodes["a"].ends.values()), None)
        got = sum(held.next_chunk for one in (end, end.other) for held in one.incoming.values()) if end else 0
    world.sever(end, "cut")
    world.run(60)
    assert watch.within(0, 100)
    assert not any(link.resets for node in world.nodes.values() for link in node.peer.links.values())


@pytest.mark.parametrize("kind", ["one-way", "partition", "pause", "crash", "disk-full"])
def test_while_it_lasts_nothing_is_exchanged_with_who_is_struck_and_then_it_goes_on(kind: str) -> None:
    world, watch = small_world("ab", None, Strike(100, kind, ("b",), seconds=200))
    world.run(700)
    assert watch.within(0, 100)
    assert not watch.within(120, 300)
    assert watch.within(300, 700)
    assert [names for _, end, names in watch.struck_at if end == kind + "-end"] or kind == "crash"


def test_a_stalled_connection_brings_what_it_held_when_it_goes_on() -> None:
    world, watch = small_world("ab", None, Strike(99, "stall", seconds=30), turn_s=BUSY_S)
    world.run(300)
    assert not watch.within(100, 129)
    assert watch.within(129, 131)
    assert not any("cut" in note.fields.get("detail", "") for node in world.nodes.values() for note in node.facts)


def test_a_half_open_connection_is_found_out_by_its_silence() -> None:
    world, watch = small_world("ab", None, Strike(100, "half-open"), turn_s=BUSY_S)
    world.run(400)
    assert not watch.within(101, 130)
    assert watch.within(130, 400)


def test_a_dripping_connection_is_closed_as_too_slow() -> None:
    world, watch = small_world("ab", None, Strike(35, "drip", ("a",), seconds=60, value=50.0), turn_s=BUSY_S, size=50_000)
    world.run(200)
    assert any("slow" in note.fields.get("detail", "") for node in world.nodes.values() for note in node.facts)
    assert watch.within(100, 200)


@pytest.mark.parametrize("shape", ["halves", "isolated", "ring"])
def test_a_partition_parts_those_whom_its_shape_parts_and_heals(shape: str) -> None:
    world, watch = small_world("abcdef", None, Strike(100, "partition", seconds=300, value=shape))
    world.run(900)
    allowed = {
        "halves": {frozenset(pair) for side in ("abc", "def") for one in side for two in side for pair in [(one, two)]},
        "isolated": {frozenset((one, two)) for one in "bcdef" for two in "bcdef"},
        "ring": {frozenset(pair) for pair in ("ab", "bc", "cd", "de", "ef", "fa")},
    }[shape]
    made = {(at, frozenset((name, peer))) for name, times in watch.exchanges.items() for at, peer in times}
    assert {pair for at, pair in made if 110 < at < 400} <= allowed
    assert {pair for at, pair in made if at > 400} - allowed


def test_what_was_not_synced_may_be_lost_and_what_was_committed_is_not() -> None:
    for survival in (0.0, 1.0):
        world, _ = small_world("ab", None, Strike(100, "crash", ("b",), seconds=10, value=survival))
        world.run(99.9)
        before = world.nodes["b"].peer.link("a").done
        world.run(30)
        node = world.nodes["b"]
        assert node.boots == 2
        assert node.peer.link("a").done >= before > 0


def test_a_crash_amid_a_commit_comes_at_one_of_its_steps() -> None:
    world, watch = small_world("ab", None, *(Strike(at, "crash-saving", ("b",), seconds=1) for at in range(50, 800, 50)))
    world.run(1000)
    crashes = [at for at, kind, _ in watch.struck_at if kind == "crash"]
    assert len(crashes) > 8
    assert all(at % 50 > 0 for at in crashes)
    assert watch.within(850, 1000)


@pytest.mark.parametrize(("survival", "seconds"), [(0.0, 40), (0.75, 5)])
def test_who_crashes_amid_a_commit_is_down_for_as_long_as_was_said_and_keeps_what_was_said(survival: float, seconds: int) -> None:
    world, watch = small_world("ab", None, Strike(50, "crash-saving", ("b",), seconds=seconds, value=survival))
    said: list[str] = []
    watch.struck = lambda world, kind, names, detail: said.append(f"{kind} {world.mono / SECOND:.3f} {detail}")
    world.run(300)
    (crash, over) = [line.split() for line in said if line.startswith("crash")]
    assert crash[2:] == [f"{survival:.3f}"] and float(over[1]) - float(crash[1]) == pytest.approx(seconds)


def test_a_storm_is_five_crashes_within_a_minute_and_a_blackout_takes_everyone() -> None:
    world, watch = small_world("abc", None, Strike(100, "restart-storm", ("b",)), Strike(300, "crash", seconds=30))
    world.run(160)
    assert sum(kind == "crash" and names == ("b",) for _, kind, names in watch.struck_at) == 5
    world.run(150)
    assert not any(node.alive for node in world.nodes.values())
    world.run(100)
    assert all(node.alive for node in world.nodes.values())


def test_a_straggler_s_rounds_take_longer_and_nobody_else_s() -> None:
    world, _ = small_world("ab", Faults(straggler_share=0.5, straggler_factor=50), pace=Pace(step_s=0.5), turn_s=1)
    world.run(600)
    (slow,) = [node for node in world.nodes.values() if node.slow > 1]
    (fast,) = [node for node in world.nodes.values() if node.slow == 1]
    assert 10 * slow.peer.local_round < fast.peer.local_round


@pytest.mark.parametrize("until", [math.inf, 0.05, 0.25])
def test_a_trace_says_when_a_node_is_up_also_when_all_else_has_healed(until: float) -> None:
    up = Faults(sessions=(("b", 0.1, 0.2), ("b", 0.3, 0.4)), until_hours=until)
    world, _ = small_world("abc", up, Strike(0.29 * 3600, "crash", ("b",)), Strike(0.395 * 3600, "crash", ("b",)))
    seen = []
    for at in range(36, 1800, 36):
        world.run(at - world.mono / SECOND)
        seen.append((at / 3600, world.nodes["b"].alive))
        assert world.nodes["a"].alive
    assert all(alive == (0.1 < at < 0.2 or 0.3 < at < 0.4) for at, alive in seen if min(abs(10 * at % 1), 1) > 0.15)


def test_clocks_run_apart_jump_and_come_right_again() -> None:
    world, _ = small_world("ab", Faults(clock_skew_s=100, clock_drift_ppm=200), Strike(50, "clock-jump", ("b",), value=3000.0))
    world.run(1000)
    right, a, b = world.now(), world.nodes["a"].now(), world.nodes["b"].now()
    assert 0 < abs(a.mono_ns - right.mono_ns) <= 200e-6 * right.mono_ns
    assert 2800e9 < b.wall_ns - right.wall_ns < 3200e9
    world.heal()
    assert [node.now().wall_ns for node in world.nodes.values()] == [right.wall_ns] * 2
    assert world.nodes["a"].now().mono_ns == a.mono_ns


def test_a_full_disk_stops_the_node_which_is_started_again_until_there_is_space() -> None:
    world, _ = small_world("ab", None, Strike(100, "disk-full", ("b",), seconds=100))
    world.run(95)
    done = world.nodes["b"].peer.link("a").done
    world.run(400)
    assert world.counts["exit-73"] > 3
    assert world.nodes["b"].peer.link("a").done > done
    assert not world.nodes["b"].peer.link("a").resets


def test_a_rotten_row_is_refused_until_the_operator_has_moved_the_folder_away() -> None:
    strikes = Strike(100, "bit-rot", ("b",), value="row"), Strike(110, "crash", ("b",), seconds=5)
    world, watch = small_world("abc", None, *strikes)
    world.run(3000)
    assert not world.nodes["b"].alive
    world.run(2000)
    assert world.nodes["b"].alive
    assert world.counts["state-lost"] == 1
    assert watch.within(4500, 5000, "b")


@pytest.mark.parametrize("kind", HOSTILE_KINDS)
def test_a_liar_is_refused_or_ignored_and_the_others_go_on(kind: str) -> None:
    world, watch = small_world("abcd", None, Strike(50, "hostile", ("d",), seconds=200, value=kind))
    world.run(500)
    assert world.counts["hostile"] > 5
    honest = [world.nodes[name] for name in "abc"]
    refusals = {note.fields["reason"] for node in honest for note in node.facts if note.kind == "refusal"}
    closed = any("malformed" in note.fields.get("detail", "") for node in honest for note in node.facts)
    assert refusals or closed or kind == "replayed"
    assert all(np.isfinite(world.model(node.name)).all() for node in honest)
    assert all(watch.within(300, 500, node.name) for node in honest)


def test_a_transfer_takes_its_bytes_over_the_bandwidth_and_two_share_a_line() -> None:
    def seconds(names: str) -> float:
        lines = Lines(Line(latency_s=0.01, jitter=0.0, bandwidth_bytes_s=50_000))
        world, watch = small_world(names, None, turn_s=1, size=50_000, lines=lines)
        world.run(60)
        return len(watch.within(0, 60)) / len(names)

    alone, three = seconds("ab"), seconds("abc")
    assert 60 / (4 * 8 + 1) * 2 * 0.5 <= 2 * alone <= 60 / 8 + 1  # 400 kB each way at 50 kB/s: 8 s, both ways at once
    assert three <= alone + 1


def test_order_is_kept_on_a_connection_whatever_the_jitter() -> None:
    world, watch = small_world("abc", None, turn_s=1, lines=Lines(Line(latency_s=0.5, jitter=1.0)))
    world.run(300)
    assert len(watch.within(0, 300)) > 50
    assert not any(note.kind == "refusal" for node in world.nodes.values() for note in node.facts)


def test_a_line_of_its_own_is_that_of_the_way_back_too() -> None:
    far = Line(latency_s=3.0, jitter=0.0)
    lines = Lines(Line(), {("a", "b"): far})
    assert lines.line("b", "a") is far
    assert lines.line("a", "c") is lines.usual


def test_switching_one_class_off_shifts_no_other() -> None:
    whole = Faults(
        partition_per_hour=20, partition_s=20, clock_jump_per_hour=20, disk_full_per_hour=20, one_way_per_hour=20,
        cut_per_hour=60, crash_per_hour=30, hostile_share=0.3, straggler_share=0.3,
    )  # fmt: skip

    def times(faults: Faults, kinds: tuple[str, ...]) -> list[Any]:
        world, watch = small_world("abc", faults)
        world.run(400)
        return [one for one in watch.struck_at if one[1] in kinds]

    kept = ("clock-jump", "disk-full", "one-way", "straggler")
    before = times(whole, kept)
    assert {kind for _, kind, _ in before} == set(kept)
    for off in ("crash", "cut", "hostile"):
        assert times(whole.without(off), kept) == before, off


def test_one_seed_is_one_history_with_every_fault_on() -> None:
    faults = Faults(**{key: value for some in ALONE.values() for key, value in some.items()}, until_hours=0.1)

    def history() -> Any:
        world, watch = small_world("abcd", faults)
        world.run(600)
        return world.events, watch.struck_at, watch.bytes, [node.facts for node in world.nodes.values()]

    assert history() == history()


def test_heal_makes_everything_right_at_once() -> None:
    faults = Faults(**{key: value for some in ALONE.values() for key, value in some.items()}).without("leave")
    world, watch = small_world("abcd", faults)
    world.run(400)
    world.heal()
    world.run(300)
    struck = len(watch.struck_at)
    world.run(300)
    assert len(watch.struck_at) == struck
    assert all(node.alive and not node.paused and node.slow == 1 for node in world.nodes.values())
    assert all(watch.within(700, 1000, name) for name in world.nodes)
