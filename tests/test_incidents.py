"""Real outages, re-enacted: nobody else stops, nothing is lost, and what is expected of each can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossipfl.simulator import expect, play, scenario, story, tell
from gossipfl.simulator.expect import Judged
from gossipfl.simulator.run import Run

FOLDER = Path(__file__).parents[1] / "simulations"
INCIDENTS = sorted((FOLDER / "incidents").glob("*.toml"))


OVER = ("release", "finished")
"""Stages of who trains no more."""


def played(path: Path, *changes: str) -> tuple[scenario.Read, Run, list[Judged]]:
    read = scenario.load(path, changes)
    run = play.play(play.Stage(read.scenario, scenario.federation(read)))
    return read, run, expect.judge(read.scenario.expect, run)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_is_valid_expects_something_and_names_its_source(path: Path) -> None:
    found = scenario.load(path).scenario
    assert found.expect.model_fields_set
    assert found.question.endswith("?")
    if path in INCIDENTS:
        assert found.source.startswith("https://github.com/")
        assert found.source in path.read_text().split('question = "', 1)[0]
        assert found.story


def test_there_are_ten_incidents() -> None:
    assert len(INCIDENTS) == 10


@pytest.mark.parametrize("path", INCIDENTS, ids=lambda path: path.stem)
def test_nobody_else_stops_and_nothing_is_lost(path: Path) -> None:
    read, run, judged = played(path)
    assert not [one for one in judged if not one.holds]
    assert len(run.invariants) > 9
    assert set(run.invariants.values()) == {"held"}
    for one in run.planned():  # what comes after the end proves nothing
        assert not [life.name for life in run.lives if any(at < one.begin_s and stage in OVER for at, stage in life.stages)]
    told = tell.told(run, read.scenario.at)
    assert len(told) == len(read.scenario.at)
    page = story.page(run, read.scenario, judged, {"began": "", "command": [], "seed": 0, "platform": "", "python": "",
                                                   "packages": {}})  # fmt: skip
    assert "What was expected held." in page
    assert all(one.at in page for one in told)


@pytest.mark.parametrize(
    ("name", "changes", "broken"),
    [
        ("heartbeat-storm", ["topology.rule=complete", "nodes.count=16"], "no node sends more than 75 KiB an hour"),
        ("restarted-and-forgotten", ["at.1.seconds=100000"], "who was struck exchanges again within 2 min"),
        ("power-cut-for-all", ["at.0.seconds=100000"], "every node finishes the study"),
    ],
)
def test_where_the_world_is_worse_the_expectation_breaks(name: str, changes: list[str], broken: str) -> None:
    _, _, judged = played(FOLDER / "incidents" / f"{name}.toml", *changes)
    assert broken in [one.asked for one in judged if not one.holds]
