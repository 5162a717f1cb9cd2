"""A recording tells a run so fully that the core repeats it to the bit, holds no secret, and notices what was changed."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner
from worlds import federation, keys_of, quadratics, toy_specs

from gossipfl import sums
from gossipfl.cli import application
from gossipfl.errors import ConfigError, Exit
from gossipfl.protocol import events as ev
from gossipfl.protocol.peer import Peer
from gossipfl.recorder import Recorder
from gossipfl.recording import MAGIC, Damaged, Fed, Frames, Recording, Shape, cut
from gossipfl.replay import behind, replay
from gossipfl.simulator import trial
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.network import Observer, World
from gossipfl.simulator.recorded import Recorded

NAMES = ("anna", "bert", "carl")


class Kept(Recorded):
    """Also what each core says of itself at the end of each of its lives."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.says: dict[str, dict[str, Any]] = {}

    def fed(self, world: Any, node: Any, event: Any, commands: Any) -> None:
        super().fed(world, node, event, commands)
        self.says[f"{node.name}-{node.boots:04d}"] = node.peer.status()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Kept, list[Path]]:
    """Three nodes, ten minutes of cuts, crashes and refused dials."""
    folder = tmp_path_factory.mktemp("recordings")
    members = federation(dict.fromkeys(NAMES, 10), local_rounds=60)
    learners, _ = quadratics(NAMES)
    specs = toy_specs(members, lambda name: learners[name], begin=lambda name: np.full(8, float(len(name))))
    seen = Kept(folder)
    faults = Faults(cut_per_hour=60, crash_per_hour=20, refused_dials=0.1)
    world = World(specs, 5, faults, observers=[seen])
    world.run(600)
    for name in NAMES[:2]:
        world.nodes[name].feed(ev.Stopping())
    world.run(60)
    seen.close()
    return world, seen, sorted(folder.iterdir())


def words(*arguments: object) -> Any:
    return CliRunner().invoke(application(), [str(one) for one in arguments], catch_exceptions=True)


def test_every_life_of_every_node_repeats_to_the_same_commands_and_the_same_state(run: Any) -> None:
    world, seen, paths = run
    assert len(paths) > 6 and world.counts["crash"] and world.counts["cut"]
    for path in paths:
        recording = Recording(path)
        found = replay(recording.life, recording)
        assert found.difference is None, found.difference
        assert found.events > 1 and not recording.torn
        assert found.status == seen.says[path.stem]
    stopped = [recording for recording in map(Recording, paths) if replay(recording.life, recording).finished]
    assert len(stopped) >= 1


def test_each_life_begins_with_what_the_one_before_left_on_disk(run: Any) -> None:
    _, _, paths = run
    lives = [(path.stem.split("-")[0], replay(Recording(path).life, Recording(path))) for path in paths]
    pairs = [(before, after) for (a, before), (b, after) in pairwise(lives) if a == b]
    assert pairs
    assert all(behind(before, after.began_with) is not None for before, after in pairs)


def test_a_recording_holds_no_key_and_no_row_of_the_disk_but_the_cores(run: Any) -> None:
    _, _, paths = run
    content = b"".join(path.read_bytes() for path in paths)
    for name in NAMES:
        secret = keys_of(name).secret
        assert secret not in content and secret[:32] not in content and secret[32:] not in content
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    rows = {("membership", "document"): b"the federation file", ("data", "fingerprint"): b"of the rows"}
    made = io.BytesIO()
    peer, _ = recorded_peer(made)
    peer.handle(ev.Started(rows, b"x" * 32, b"s" * 32, b"b" * 32), ev.Instant(1, 2))
    assert b"the federation file" not in made.getvalue() and b"of the rows" not in made.getvalue()


def recorded_peer(file: io.BytesIO, **more: Any) -> tuple[Peer, Recorder]:
    from random import Random

    from worlds import settings

    members = federation(dict.fromkeys(NAMES, 10), local_rounds=60)
    recorder = Recorder(file.write, settings(members, "anna", Random(1)), Shape(8, 0, "float64"), "a test", **more)
    peer = Peer(recorder.listening.inner)
    recorder.listen(peer)
    return peer, recorder


def test_any_changed_byte_is_noticed_and_a_torn_end_is_left_out_and_said(run: Any, tmp_path: Path) -> None:
    _, _, paths = run
    path = min(paths, key=lambda one: one.stat().st_size)
    whole = path.read_bytes()
    entries = list(Recording(path))
    changed = tmp_path / "changed.recording"
    for at in range(0, len(whole), max(1, len(whole) // 500)):
        changed.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises((Damaged, ConfigError)):
            list(Recording(changed))
    for size in range(len(whole) - 60, len(whole)):
        changed.write_bytes(whole[:size])
        torn = Recording(changed)
        kept = list(torn)
        assert kept == entries[: len(kept)] and len(entries) - len(kept) <= 2
        assert torn.torn or len(kept) < len(entries)
    changed.write_bytes(whole + b"\0" * 5000)
    zeros = Recording(changed)
    assert list(zeros) == entries and zeros.torn, "room that a file system reserved"
    changed.write_bytes(MAGIC)
    with pytest.raises(Damaged, match="no whole frame"):
        Recording(changed)


def test_what_is_said_of_a_damaged_recording_helps(run: Any, tmp_path: Path) -> None:
    """Marks are frames, too, and no events: the number of the frame is not that of the event before it."""
    path = max(run[2], key=lambda one: sum(not isinstance(entry, Fed) for entry in Recording(one)))
    whole, changed, out = path.read_bytes(), tmp_path / "changed.recording", tmp_path / "cut.recording"
    changed.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    with pytest.raises(Damaged) as error:
        list(Recording(changed))
    _, _, remedy = str(error.value).partition("gossipfl ")
    assert CliRunner().invoke(application(), remedy.replace("OUT", str(out)).split()).exit_code == 0
    events = [entry for entry in Recording(path) if isinstance(entry, Fed)]
    assert len(events) - 1 <= sum(isinstance(entry, Fed) for entry in Recording(out)) <= len(events)
    changed.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    with pytest.raises(Damaged) as error:
        Recording(changed)
    assert "--until" not in str(error.value), "there is no event before it"


def test_a_core_that_decides_otherwise_is_found_at_the_event_and_the_cut_still_shows_it(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, paths = run
    recording = Recording(max(paths, key=lambda one: one.stat().st_size))
    honest = Peer.tau
    monkeypatch.setattr(Peer, "tau", lambda self, space: honest(self, space) * (2.0 if self.local_round > 20 else 1.0))
    found = replay(recording.life, recording)
    assert found.difference is not None and 1 < found.difference.event < 10**6
    assert found.difference.recorded != found.difference.replayed
    out = tmp_path / "short.recording"
    answer = words("replay", recording.path, "--cut", out)
    assert answer.exit_code == Exit.FAILED and "difference: event" in answer.output, answer.output
    short = Recording(out)
    again = replay(short.life, short)
    assert again.difference == found.difference and len(list(short)) == found.entries
    one_less = tmp_path / "less.recording"
    cut(recording, found.entries - 1, one_less)
    assert replay(short.life, Recording(one_less)).difference is None, "the shortest that still shows it"


def test_the_command_shows_a_table_or_one_object_and_lists_events(run: Any) -> None:
    _, _, paths = run
    shown = words("replay", paths[0].parent)
    assert shown.exit_code == 0 and "the same commands and the same state" in shown.output and "exchanges" in shown.output
    told = words("replay", paths[0], "--json")
    result = json.loads(told.stdout)
    assert result["same"] and result["recordings"][0]["difference"] is None and result["recordings"][0]["links"]
    listed = words("replay", paths[0], "--list", "--until", 5)
    assert "Started with" in listed.output and "Wake" in listed.output
    assert words("replay", paths[0], "--cut", paths[1]).exit_code != 0, "never over another file"


def test_a_violation_is_shown_and_cut_down_to(run: Any, tmp_path: Path) -> None:
    made = io.BytesIO()
    peer, recorder = recorded_peer(made)
    peer.handle(ev.Started({}, b"x" * 32, b"s" * 32, b"b" * 32), ev.Instant(1, 2))
    recorder.mark(ev.Instant(2, 2), "fault", "cut bert")
    recorder.mark(ev.Instant(2, 3), "violation", "exactly-once: a sum moved")
    peer.handle(ev.Alarm(), ev.Instant(3, 4))
    path, out = tmp_path / "anna.recording", tmp_path / "cut.recording"
    path.write_bytes(made.getvalue())
    answer = words("replay", path, "--cut", out)
    assert answer.exit_code == 0 and "exactly-once: a sum moved" in answer.output
    assert len(list(Recording(out))) == 3


def test_what_a_law_says_is_noted_once_at_the_event_that_shows_it(tmp_path: Path) -> None:
    members = federation(dict.fromkeys(NAMES, 10), local_rounds=5)
    learners, _ = quadratics(NAMES)
    found: list[tuple[str, str]] = []

    class Law(Observer):
        def did(self, world: World, node: Any, command: ev.Command) -> None:
            if node.name == "bert" and node.peer.local_round == 3 and not found:
                found.append(("bert", "no third round"))

    seen = Recorded(tmp_path, lambda: found)
    World(toy_specs(members, lambda name: learners[name]), 1, observers=[Law(), seen]).run(60)
    seen.close()
    for path in sorted(tmp_path.iterdir()):
        life = replay(Recording(path).life, Recording(path))
        assert len(life.violations) == (path.name.startswith("bert")) and life.difference is None
    assert words("replay", tmp_path / "bert-0001.recording", "--cut", tmp_path / "out").exit_code == 0
    short = Recording(tmp_path / "out")
    assert replay(short.life, short).status["local_round"] == 3


def test_a_seed_of_the_swarm_is_recorded_with_all_its_faults_and_every_life_repeats(tmp_path: Path) -> None:
    drawn = next(one for seed in range(50) if (one := trial.draw(seed, 0.1, (4, 4))).faults.cut_per_hour > 100)
    outcome = trial.run(drawn, twice=False, record=tmp_path)
    assert outcome.trace_digest == trial.run(drawn, twice=False).trace_digest
    faults, noted = 0, set()
    for path in sorted(tmp_path.iterdir()):
        life = replay(Recording(path).life, Recording(path))
        assert life.difference is None
        faults += len(life.faults)
        noted |= {one.mark.text.partition(":")[0] for one in life.violations}
    assert faults > 0 and noted == set(outcome.violations)


def test_a_core_that_raises_raises_the_same_again(tmp_path: Path) -> None:
    made = io.BytesIO()
    peer, _ = recorded_peer(made)
    peer.handle(ev.Started({}, b"x" * 32, b"s" * 32, b"b" * 32), ev.Instant(1, 2))
    with pytest.raises(KeyError):
        peer.handle(ev.Absorbed(99, b"m" * 32), ev.Instant(2, 3))
    path = tmp_path / "anna.recording"
    path.write_bytes(made.getvalue())
    found = replay(Recording(path).life, Recording(path))
    assert found.difference is None and found.events == 2


def full(after: int) -> Iterator[int]:
    for number in range(1000):
        if number > after:
            raise OSError(28, "No space left on device")
        yield number


def test_a_recording_ends_where_disk_or_limit_ends_and_the_core_goes_on() -> None:
    room = full(2)
    made = io.BytesIO()
    peer, recorder = recorded_peer(made)
    recorder._write = lambda data: (next(room), made.write(data))
    recorder._frames.write = recorder._write  # type: ignore[union-attr]
    started = ev.Started({}, b"x" * 32, b"s" * 32, b"b" * 32)
    assert peer.handle(started, ev.Instant(1, 2))
    for at in range(2, 9):
        peer.handle(ev.Alarm(), ev.Instant(at, at))
    assert "No space left" in recorder.failure
    peer, recorder = recorded_peer(io.BytesIO(), limit=3000)
    peer.handle(started, ev.Instant(1, 2))
    for at in range(2, 99):
        peer.handle(ev.Alarm(), ev.Instant(at, at))
    assert "limit" in recorder.failure


def test_jobs_are_done_again_where_tensors_are_at_hand(run: Any) -> None:
    """The modelled disks keep what is live: a replay over a disk that keeps everything gives every name again."""
    from gossipfl.recompute import Recompute
    from gossipfl.store import Store

    names = ("anna", "bert")
    members = federation(dict.fromkeys(names, 10), local_rounds=8)
    learners, _ = quadratics(names)
    specs = toy_specs(members, lambda name: learners[name], begin=lambda name: np.full(8, float(len(name))))
    every = Store.modelled().files

    class Collected(Recorded):
        def fed(self, world: Any, node: Any, event: Any, commands: Any) -> None:
            super().fed(world, node, event, commands)
            for name in ev.names(event):
                if node.store.files.has(name) and not every.has(name):
                    content = node.store.files.read(name)
                    every.adopt_as(name, memoryview(bytearray(content)), sums.sum_of(content))

    folder = Path(str(run[2][0].parent) + "-all")
    seen = Collected(folder)
    world = World(specs, 1, observers=[seen])
    world.run(60)
    seen.close()
    for path in sorted(folder.iterdir()):
        recording = Recording(path)
        found = replay(recording.life, recording, Recompute(every, recording.life.shape))
        assert found.difference is None and found.recomputed > 20 and found.absent == 0, found
    recording = Recording(next(folder.glob("anna*")))
    mixed = next(entry.event for entry in recording if isinstance(entry, Fed) and isinstance(entry.event, ev.Mixed))
    other = Store.modelled().files
    for entry in recording:
        for name in ev.names(entry.event) if isinstance(entry, Fed) else ():
            if every.has(name):
                content = bytearray(every.read(name))
                content[0] ^= name == mixed.model
                other.adopt_as(name, memoryview(content), sums.sum_of(content))
    rotten = replay(recording.life, recording, Recompute(other, recording.life.shape))
    assert rotten.difference is not None and "another content is on file" in rotten.difference.replayed


def _changed(path: Path, out: Path, life: Any = None, entry: Any = None) -> Path:
    """The recording anew, its first frame changed by `life`, each of the others by `entry`."""
    recording = Recording(path)
    first = msgspec.msgpack.decode(recording.first)
    if life is not None:
        life(first)
    with out.open("wb") as file:
        frames = Frames(file.write)
        frames.add(first)
        for number, body in enumerate(recording.bodies()):
            values = msgspec.msgpack.decode(body)
            if entry is not None:
                entry(number, values)
            frames.add(values)
    return out


def _deep() -> Any:
    value: list[Any] = []
    for _ in range(200):
        value = [value]
    return ["Wake", value]


@pytest.mark.parametrize("life", [
    lambda life: life[4].pop("members"), lambda life: life[4].pop("theta"), lambda life: life[4].update(zzz=1),
    lambda life: life[4].update({"\x1b[31m": 1}), lambda life: life[4].update(local_rounds="x"),
    lambda life: life[4].update(me="A B"), lambda life: life.__setitem__(1, "zoe\n"), lambda life: life.__setitem__(2, 1),
    lambda life: life.__setitem__(3, ["x", "y", "z"]), lambda life: life.__setitem__(3, [8, -1, "float64"]),
    lambda life: life.__setitem__(3, [8, 0, "O"]), lambda life: life[4].update(certificate=b"x"), list.clear,
])  # fmt: skip
def test_a_recording_whose_settings_mean_nothing_is_refused_in_plain_words(run: Any, tmp_path: Path, life: Any) -> None:
    path = _changed(run[2][0], tmp_path / "odd.recording", life)
    with pytest.raises(Damaged, match="means nothing") as found:
        Recording(path)
    assert found.value.exit_code == Exit.CONFIG and str(found.value).isprintable()


@pytest.mark.parametrize("at, value", [
    (1, "now"), (2, 1.5), (3, ["Closed", "x", "why"]), (3, ["Closed", 1, 2]), (3, ["Started", 1]), (3, ["Nothing"]),
    (3, ["Mixed"]), (3, 7), (4, 7), (4, [["random", "x"]]), (4, [["neighbours", ["anna", ["be\nrt"]]]]), (4, [["x", 1]]),
    (4, [["mass", 1]]), (5, 7), (6, 7), (6, [7]), (6, [[]]), (6, [[7]]), (6, [_deep()]), (7, 7),
])  # fmt: skip
def test_an_entry_that_means_nothing_is_refused_in_plain_words(run: Any, tmp_path: Path, at: int, value: Any) -> None:
    def entry(number: int, values: Any) -> None:
        if number == 1:
            values[at] = value

    path = _changed(run[2][0], tmp_path / "odd.recording", entry=entry)
    done = words("replay", path)
    assert isinstance(done.exception, Damaged) and done.exception.exit_code == Exit.CONFIG
    assert "frame 2 is whole, and means nothing" in str(done.exception)


def test_no_text_of_a_recording_reaches_the_terminal_as_control(run: Any, tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202e\x7f"

    def entry(number: int, values: Any) -> None:
        if number == 1:
            values[3], values[6] = ["Closed", 1, evil], [["Wake" + evil]]
        if number == 0:
            values[7] = ""

    path = _changed(run[2][0], tmp_path / "odd.recording", lambda life: life.__setitem__(2, evil), entry)
    for words_ in (("--list",), (), ("--json",)):
        said = words("replay", path, *words_).output
        assert "owned" in said and not set(evil[:1] + "\x07\x9b\u202e\x7f") & set(said)


def test_a_state_folder_is_only_looked_at(tmp_path: Path) -> None:
    from gossipfl.store import Store

    folder = tmp_path / "state"
    with Store.open(folder) as store:
        name = store.files.put(b"a tensor")
        store.commit([("course", "anna", b"row")], [name], [], 1, frozenset({name}))
    (folder / "blobs" / "00000001.tmp").write_bytes(b"evidence")

    def all_of() -> dict[str, tuple[int, bytes]]:
        return {str(file): (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else b"")
                for file in (folder, *folder.rglob("*"))}  # fmt: skip

    before = all_of()
    with Store.looking(folder) as store:
        assert store.load() == {("course", "anna"): b"row"} and bytes(store.files.read(name)) == b"a tensor"
        with pytest.raises(ConfigError, match="in use"):
            Store.open(folder)
    assert all_of() == before
    with Store.open(folder), pytest.raises(ConfigError, match="in use"):
        Store.looking(folder)
    with pytest.raises(ConfigError, match="no state folder"):
        (tmp_path / "empty").mkdir()
        Store.looking(tmp_path / "empty")
