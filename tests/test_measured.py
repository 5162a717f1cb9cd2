"""A scenario made from recordings says what was: latencies, speeds, outages, cuts; and it can be simulated."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner
from worlds import federation, quadratics, toy_specs

from gossipfl.cli import application
from gossipfl.errors import GossipError
from gossipfl.recording import Frames, Life, Recording, Shape
from gossipfl.simulator import scenario as scenarios
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.lines import Line, Lines
from gossipfl.simulator.measured import Measured
from gossipfl.simulator.network import Pace, World
from gossipfl.simulator.recorded import Recorded

NAMES = ("anna", "bert", "carl")
CUTS = 30.0


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Twenty minutes of three nodes: two far from each other, one slow, one down for six minutes."""
    folder = tmp_path_factory.mktemp("measured")
    members = federation(dict.fromkeys(NAMES, 10), local_rounds=200, local_round_s=10.0)
    learners, _ = quadratics(NAMES)
    specs = toy_specs(members, lambda name: learners[name], speed=lambda name: 0.25 if name == "bert" else 1.0,
                      begin=lambda name: np.zeros(8), turn_ns=10**10)  # fmt: skip
    seen = Recorded(folder / "recordings")
    far = Line(latency_s=0.2, jitter=0.1)
    lines = Lines(Line(latency_s=0.03, jitter=0.1), {("anna", "carl"): far})
    faults = Faults(cut_per_hour=CUTS, sessions=(("carl", 0.0, 0.1), ("carl", 0.2, 2.0)))
    world = World(specs, 1, faults, lines=lines, pace=Pace(step_s=0.1), observers=[seen])
    world.run(1200)
    seen.close()
    out = folder / "measured.toml"
    asked = ["replay", str(folder / "recordings"), "--scenario", str(out)]
    assert CliRunner().invoke(application(), asked).exit_code == 0
    return out, tomllib.loads(out.read_text())


def test_latencies_speeds_and_outages_are_those_of_the_world(measured: tuple[Path, dict[str, Any]]) -> None:
    _, said = measured
    between = {tuple(one["nodes"]): one for one in said["lines"]["between"]}
    assert between["hospital-1", "hospital-2"]["latency_s"] == pytest.approx(0.03, rel=0.2)
    assert between["hospital-1", "hospital-3"]["latency_s"] == pytest.approx(0.2, rel=0.1)
    step, slow = said["nodes"]["step_s"], said["nodes"]["speeds"]["hospital-2"]
    assert step == pytest.approx(0.1, rel=0.05) and slow == pytest.approx(0.25, rel=0.05)
    sessions = [row for row in said["faults"]["sessions"] if row[0] == "hospital-3"]
    assert [round(value, 1) for row in sessions for value in row[1:]] == [0.0, 0.1, 0.2, 0.3]
    assert CUTS / 2 < said["faults"]["cut_per_hour"] < 1.5 * CUTS
    assert said["study"]["local_rounds"] == 200 and said["study"]["local_round_s"] == 10.0


def test_it_is_a_scenario_that_can_be_simulated(measured: tuple[Path, dict[str, Any]]) -> None:
    out, _ = measured
    made = scenarios.federation(scenarios.load(out))
    assert len(made.membership.active) == 3
    done = CliRunner().invoke(
        application(), ["simulate", str(out), "--hours", "0.2", "--out", str(out.parent / "run"), "--record", "--json"]
    )
    assert '"exchanges"' in done.output, done.output
    again = CliRunner().invoke(application(), ["replay", str(out.parent / "run" / "recordings"), "--json"])
    assert again.exit_code == 0 and '"same": true' in again.output


@pytest.mark.parametrize("change", [
    lambda life: life.__setitem__(1, 'zoe\ntask = "os:system"\nhours = 1.0\nquestion = """'),
    lambda life: life[4].update(me="anna\n"),
    lambda life: life[4].update(local_rounds='x"""\n[study.task_options]\ncommand = "touch here"\n[study]\n#'),
    lambda life: life[4].update(local_rounds=2**40),
    lambda life: life[4].update(turn_ns=-1),
])  # fmt: skip
def test_no_text_of_a_recording_becomes_a_line_of_the_scenario(measured: Any, tmp_path: Path, change: Any) -> None:
    recording = Recording(sorted((measured[0].parent / "recordings").iterdir())[0])
    life = msgspec.msgpack.decode(recording.first)
    change(life)
    evil, out = tmp_path / "evil.recording", tmp_path / "out.toml"
    with evil.open("wb") as file:
        frames = Frames(file.write)
        for body in (life, *recording.bodies()):
            frames.add(body)
    done = CliRunner().invoke(application(), ["replay", str(evil), "--scenario", str(out)])
    assert done.exit_code and not isinstance(done.exception, KeyError | TypeError) and not out.exists(), done.output
    made = Measured()
    text = ""
    with suppress(GossipError):
        shape = Shape(8, 0, "float64")
        made.take(Life(life[1], "0", shape, life[4]), recording)
        text = made.text("a recording")
    assert "os:system" not in text and "touch" not in text


def test_no_scenario_is_written_of_a_replay_that_differs(measured: Any, tmp_path: Path) -> None:
    recording = Recording(sorted((measured[0].parent / "recordings").iterdir())[0])
    bodies = [msgspec.msgpack.decode(body) for body in recording.bodies()]
    bodies[3][5] = bytes(32)
    evil, out = tmp_path / "evil.recording", tmp_path / "out.toml"
    with evil.open("wb") as file:
        frames = Frames(file.write)
        for body in (recording.first, *bodies):
            frames.add(body)
    done = CliRunner().invoke(application(), ["replay", str(evil), "--scenario", str(out)])
    assert done.exit_code == 1 and not out.exists() and "not written" in done.output
