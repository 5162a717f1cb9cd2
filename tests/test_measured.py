"""A scenario made from recordings says what was: latencies, speeds, outages, cuts; and it can be simulated."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner
from worlds import federation, quadratics, toy_specs

from gossipfl.cli import application
from gossipfl.simulator import scenario as scenarios
from gossipfl.simulator.faults import Faults
from gossipfl.simulator.lines import Line, Lines
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
