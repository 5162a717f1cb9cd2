"""One scenario file for both engines: faults in time as faults in rounds, laws, going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gossipfl.cli import application
from gossipfl.errors import ConfigError, Misuse
from gossipfl.simulator import expect, play, rounds, story
from gossipfl.simulator import scenario as sc
from gossipfl.simulator.faults import CLASSES, STRIKES, Faults
from gossipfl.simulator.run import Run, as_json
from gossipfl.simulator.scenario import At
from gossipfl.simulator.translation import AS_HALVES, MEANINGLESS, NO_TAIL, Translator, translate
from gossipfl.simulator.vectorized.meetings import Links, Meetings

BOTH = """\
question = "Does a partition stop anybody?"
task = "toy"
seed = 3
hours = 2
[nodes]
count = 6
[topology]
rule = "ring"
[study]
local_rounds = 20
local_round_s = 60
release_exchanges = 10
[[at]]
hour = 0.1
kind = "partition"
nodes = ["hospital-1", "hospital-2"]
seconds = 300
[[at]]
hour = 0.25
kind = "crash"
nodes = ["hospital-5"]
seconds = 120
[expect]
finished = true
consensus_below = 0.2
happened = { partition = 1, crash = 1 }
"""
NAMES = [f"hospital-{at}" for at in range(1, 7)]
RING = Links.of(np.array([[at, (at + 1) % 6] for at in range(6)]), 6)


def read_of(folder: Path, text: str = BOTH, *changes: str) -> sc.Read:
    path = folder / "scenario.toml"
    path.write_text(text)
    return sc.load(path, changes, engine="vectorized")


def played(read: sc.Read, folder: Path | None = None, tell: object = lambda progress: None) -> Run:
    stage = play.Stage(read.scenario, play.prepare(read, "vectorized"), tell, folder=folder)  # type: ignore[arg-type]
    return play.play(stage, "vectorized")


# ---- the same file -----------------------------------------------------------------------------------------------------


def test_one_file_gives_both_engines_the_same_keys_and_what_was_expected(tmp_path: Path) -> None:
    read = read_of(tmp_path)
    ours = played(read)
    events = sc.load(tmp_path / "scenario.toml")
    theirs = play.play(play.Stage(events.scenario, play.prepare(events)))
    said = as_json(ours), as_json(theirs)
    assert list(said[0]) == list(said[1])
    assert [set(one["quality"]) for one in said] == [set(said[0]["quality"])] * 2
    assert set(said[0]["nodes"]) == set(said[1]["nodes"])
    assert set(said[1]["invariants"]) < set(said[0]["invariants"])
    assert (said[0]["rounds"], said[1]["rounds"]) == (30, None)
    for run, asked in ((ours, read), (theirs, events)):
        assert all(one.holds for one in expect.judge(asked.scenario.expect, run))


def test_rounds_that_count_nodes_by_the_hundred_thousand_say_so_before_the_event_engine_tries(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(BOTH.replace("count = 6", "count = 6000"))
    with pytest.raises(ConfigError, match=r"the event engine plays up to 1,000 -- write engine = \"vectorized\""):
        sc.load(path)


def test_a_size_that_no_memory_holds_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    read = read_of(tmp_path, BOTH, "nodes.count=10000000", "rounds.bootstrap=4", "study.task_options={dimension=1000000}")
    with pytest.raises(Misuse, match=r"10,000,000 nodes need about [\d,.]+ GiB, and [\d,.]+ GiB are free; take fewer nodes"):
        play.prepare(read, "vectorized")


def test_a_method_and_chances_for_rounds_only_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    read = read_of(tmp_path, BOTH, "rounds.dropout=0.5", 'rounds.method="gossip"', "rounds.count=12", "rounds.release=0")
    run = played(read)
    assert run.virtual_seconds / run.round_s == 12
    assert run.faults["absent"] > 20
    with pytest.raises(ConfigError, match="did you mean 'dropout'"):
        read_of(tmp_path, BOTH, "rounds.dropuot=0.5")
    with pytest.raises(ConfigError, match=r"rounds\.method: .* did you mean 'gossip'"):
        played(read_of(tmp_path, BOTH, 'rounds.method="gosip"'))


def test_the_event_engine_says_that_what_is_meant_for_rounds_has_no_effect(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(BOTH + "[rounds]\ndropout = 0.5\n")
    read = sc.load(path, ["hours=0.3", "study.local_rounds=2", "at=[]", "expect.happened={}"])
    run = play.play(play.Stage(read.scenario, play.prepare(read)))
    assert run.notes == ["note: for --engine vectorized, without effect here: rounds.dropout"]
    manifest = {"began": "", "command": [], "seed": 0, "platform": "", "python": "", "packages": {}}
    assert run.notes[0] in story.page(run, read.scenario, [], manifest)


# ---- faults in time, in rounds -----------------------------------------------------------------------------------------


def test_a_partition_lasts_for_the_rounds_that_begin_within_it(tmp_path: Path) -> None:
    found = translate(read_of(tmp_path).scenario, NAMES, 30, RING, 64)
    everything = Meetings(RING.lo, RING.hi)
    met = [len(found.outages.reach(everything, at)) for at in range(30)]
    assert met == [4 if 6 <= at < 11 else 6 for at in range(30)]
    here = [int(found.outages.here(at).sum()) for at in range(30)]
    assert here == [5 if 15 <= at < 17 else 6 for at in range(30)]


@pytest.mark.parametrize("kind", STRIKES)
def test_every_fault_at_a_stated_time_is_translated_or_named(tmp_path: Path, kind: str) -> None:
    plain = read_of(tmp_path, BOTH.split("[[at]]")[0]).scenario
    value = {"drip": 0.01, "straggler": 100.0, "clock-jump": 60.0}.get(kind)
    at = (At(hour=0.1, kind=kind, nodes=("hospital-3",), seconds=600, value=value),)
    nodes = plain.nodes.model_copy(update={"step_s": 6.0})
    found = translate(plain.model_copy(update={"at": at, "nodes": nodes}), NAMES, 30, RING, 64)
    nothing = translate(plain.model_copy(update={"nodes": nodes}), NAMES, 30, RING, 64)
    does = found.outages.digest != nothing.outages.digest
    assert does != (kind in MEANINGLESS)
    assert does == (found.counts[kind] == 1) and does == (kind not in found.missing)
    assert does or any(kind in note for note in found.notes)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_by_chance_is_translated_or_named(kind: str) -> None:
    strong = Faults(
        cut_per_hour=9, refused_dials=0.5, stall_per_hour=9, stall_s=300, half_open_per_hour=9, drip_per_hour=9, drip_s=300,
        one_way_per_hour=9, one_way_s=300, partition_per_hour=3, crash_per_hour=9, down_s=300, restart_storm_per_hour=9,
        blackout_per_hour=9, pause_per_hour=9, pause_s=300, straggler_share=0.9, on_hours=0.2, late_share=0.9, leave_share=0.9,
        clock_skew_s=9, disk_full_per_hour=9, disk_full_s=300, io_error_per_hour=9, bit_rot_per_hour=9, duplicate_per_hour=9,
        hostile_share=0.9, until_hours=2.0,
    )  # fmt: skip
    one = dataclasses.replace(strong.without(*(other for other in CLASSES if other != kind)), down_s=300)
    made = Translator(NAMES, 60.0, 120, 3, RING)
    made.chance(one)
    found = made.done(np.ones(6))
    if kind in MEANINGLESS:
        assert found.missing == {kind} and not found.counts and kind in found.notes[0]
    elif kind != "straggler":  # its pace is drawn by translate
        assert found.counts[kind] > 0 and set(found.counts) == {kind}
        all_of_it = Translator(NAMES, 60.0, 120, 3, RING)
        all_of_it.chance(strong)
        assert all_of_it.counts[kind] == found.counts[kind], "a class that is on shifts no other"


def test_what_is_played_more_plainly_than_in_time_is_said(tmp_path: Path) -> None:
    stragglers = ["faults.straggler_share=0.5", "faults.straggler_tail=0.3"]
    changes = [*stragglers, "faults.partition_per_hour=2", "faults.partition_shape=ring"]
    found = translate(read_of(tmp_path, BOTH, *changes).scenario, NAMES, 30, RING, 64)
    assert {AS_HALVES, NO_TAIL} <= set(found.notes)
    assert not {AS_HALVES, NO_TAIL} & set(translate(read_of(tmp_path).scenario, NAMES, 30, RING, 64).notes)


def test_what_is_slow_does_fewer_steps_and_what_is_too_short_is_said(tmp_path: Path) -> None:
    text = BOTH + "[faults]\nstraggler_share = 0.5\nstraggler_factor = 20\npause_per_hour = 200\npause_s = 0.5\n"
    slow = translate(read_of(tmp_path, text, "nodes.step_s=3.0").scenario, NAMES, 30, RING, 64)
    assert sorted(set(slow.outages.share(0).round(6))) == [0.1, 1.0]
    assert any("too slow" in note for note in slow.notes)
    assert any("without effect" in note and "pause" in note for note in slow.notes)
    quick = translate(read_of(tmp_path, text).scenario, NAMES, 30, RING, 64)
    assert set(quick.outages.share(0)) == {1.0}


def test_lines_and_messages_are_said_to_have_no_effect(tmp_path: Path) -> None:
    text = BOTH + "[lines]\nlatency_s = 0.5\n"
    run = played(read_of(tmp_path, text, "study.minimum_count=20", "expect.happened.cut=1", "faults.cut_per_hour=1"))
    assert any("lines.latency_s have no effect" in note for note in run.notes)
    assert any("study.minimum_count" in note for note in run.notes)
    assert any("left out" in note and "cut" in note for note in run.notes)
    assert any("not judged" in note and "cut" in note for note in run.notes)
    with pytest.raises(ConfigError, match="rounds have trainers only"):
        play.prepare(read_of(tmp_path, BOTH, 'nodes.observers=["hospital-1"]'), "vectorized")
    with pytest.raises(Misuse, match=r"who is cut off from whom .* has no meaning for fedavg"):
        played(read_of(tmp_path, BOTH, 'rounds.method="fedavg"'))


# ---- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["dropout = 0.3", "lost = 0.4", "delayed = 0.4", "noise = 0.2", "stragglers = 0.5"])
def test_mixing_conserves_the_mass_under_every_fault_but_half_an_exchange(tmp_path: Path, fault: str) -> None:
    run = played(read_of(tmp_path, f"{BOTH}[rounds]\n{fault}\nevaluate_every = 1\n"))
    assert (run.invariants["mass-conserved"], run.invariants["finite-models"]) == ("held", "held")
    half = played(read_of(tmp_path, f"{BOTH}[rounds]\nhalf = 0.4\nevaluate_every = 1\n"))
    assert half.invariants["mass-conserved"] == "violated" and "the sum moved by" in half.first_violations["mass-conserved"]
    assert not all(one.holds for one in expect.judge(sc.Expect(), half))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_model_that_is_not_finite_is_seen_and_a_server_leaves_the_mass_unknown(tmp_path: Path) -> None:
    wild = "study.eta=1e8", "study.local_steps=80", "study.schedule=constant"
    with pytest.raises(Misuse, match=r"round \d+: models are no longer finite, training has diverged; take a smaller eta"):
        played(read_of(tmp_path, BOTH, *wild))
    run = played(read_of(tmp_path, BOTH, *wild, "rounds.method=gossip"))
    assert run.invariants["finite-models"] == "violated"
    text = BOTH.split("[[at]]")[0]
    assert played(read_of(tmp_path, text, 'rounds.method="fedavg"')).invariants["mass-conserved"] == "unknown"


# ---- interrupted --------------------------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[None]:
    """Ctrl-C as in a terminal: where a shell has started the tests in its background, it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening")
def test_ctrl_c_ends_after_the_round_and_going_on_gives_the_same_models(tmp_path: Path) -> None:
    read, folder = read_of(tmp_path, BOTH, "rounds.dropout=0.2"), tmp_path / "run"
    folder.mkdir()
    whole = played(read)

    def press(progress: play.Progress) -> None:
        if progress.round == 13:
            signal.raise_signal(signal.SIGINT)

    part = played(read, folder, press)
    assert not part.is_whole and part.virtual_seconds == 13 * part.round_s
    assert part.of("loss") and math.isfinite(part.consensus_distance)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    again = played(read, folder)
    assert again.is_whole and again.content_digest == whole.content_digest
    assert [dataclasses.astuple(one) for one in again.samples] == [dataclasses.astuple(one) for one in whole.samples]


def test_the_command_plays_the_file_and_goes_on_with_an_interrupted_folder_of_the_same_settings(tmp_path: Path) -> None:
    path, out = tmp_path / "scenario.toml", tmp_path / "out"
    path.write_text('engine = "vectorized"\n' + BOTH)
    asked = ["simulate", str(path), "--json", "--out", str(out)]
    done = CliRunner().invoke(application(), asked)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["engine"], said["whole"], said["rounds"]) == ("vectorized", True, 30)
    page = (out / "report.html").read_text()
    assert "What was expected held." in page and "rounds have no" not in page.split("<h2>")[0]
    assert "<script" not in page and "://" not in page
    assert not (out / rounds.CHECKPOINT).exists()
    (out / rounds.CHECKPOINT).write_bytes(b"")  # as if it had been interrupted, by another seed
    other = CliRunner().invoke(application(), [*asked, "--seed", "4"])
    assert other.exit_code == 73 or "other settings" in str(other.exception)
    record = CliRunner().invoke(application(), ["simulate", str(path), "--record", "--out", str(tmp_path / "two")])
    assert "leave --record out" in str(record.exception) + record.output
