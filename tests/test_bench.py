"""`gossipfl bench`: what is asked, one run, the summary over splits, going on where it stopped, and the command."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl import cli
from gossipfl.errors import ConfigError, Exit, Misuse
from gossipfl.learning.comparing import corrected_t
from gossipfl.simulator.bench import folder as folders
from gossipfl.simulator.bench import one
from gossipfl.simulator.bench.question import Question
from gossipfl.simulator.bench.recipe import changed, recipe
from gossipfl.simulator.bench.summary import summarise
from gossipfl.tasks import load


def asked(*methods: str, **settings: Any) -> Question:
    return Question.of(
        "breast-cancer", methods, **{"nodes": 6, "topology": "ring", "rounds": 10, "seeds": 2, **settings}
    )


def made_line(method: str, seed: int, worst: float | None, whole: float = 0.9, **more: Any) -> dict[str, Any]:
    """A line as `one.run` makes it, of given figures."""
    score = dict.fromkeys(("worst", "low", "median", "mean", "best"), worst)
    return {
        "key": f"{method} {seed}", "task": "t", "method": method, "seed": seed, "metric": "auc", "nodes": 2, "train_rows": 70,
        "test_rows": 30, "centralized": whole, "diverged": 0 if worst is not None else 1, "score": score, "brier": 0.1,
        "calibration": 0.0, "log_loss": 0.3, "against_centralized": None, "cpu_s": 1.0, "curve": [], **more,
    }  # fmt: skip


# ---- what is asked ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "method", "topology", "named"),
    [
        ("storke", "gossip", None, ("'stroke'", "breast-cancer", "icu")),
        ("stroke", "fedavgg", None, ("'fedavg'", "ledger", "centralized")),
        ("stroke", "gossip", "random-regullar:6", ("'random-regular'", "small-world", "ring")),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(
    task: str, method: str, topology: str | None, named: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as refused:
        Question.of(task, [method], topology=topology)
    assert all(name in str(refused.value) for name in named)


def test_numbers_that_do_not_fit_are_refused_before_a_run() -> None:
    for wrong in ({"dropout": 1.0}, {"seeds": 0}, {"nodes": 1}):
        with pytest.raises(Misuse):
            asked("gossip", **wrong)
    with pytest.raises(ConfigError, match="whole number"):
        asked("gossip", nodes=5, topology="random-regular:3")


def test_a_run_has_another_key_where_its_result_may_differ_and_only_there() -> None:
    base = asked("gossip").key("gossip", 0)
    assert base == asked("ledger", "gossip", seeds=4).key("gossip", 0)
    others = [asked("gossip", rounds=11), asked("gossip", dropout=0.2), asked("gossip", topology="complete")]
    assert len({base, *(other.key("gossip", 0) for other in others), asked("gossip").key("gossip", 1)}) == 5
    assert asked("local").key("local", 0) == asked("local", rounds=11).key("local", 0)


def test_every_method_gets_the_same_plan_and_a_change_is_of_plan_or_method() -> None:
    task = load("breast-cancer")
    assert recipe(task, "fedavg", 50).plan == recipe(task, "ledger", 50).plan
    tried = changed(recipe(task, "ledger", 50), eta=0.5, theta=0.1)
    assert (tried.plan.eta, tried.method.theta) == (0.5, 0.1)


# ---- one run ---------------------------------------------------------------------------------------------------------


def test_centralized_is_itself_and_a_site_alone_has_no_rounds() -> None:
    question = asked("centralized", "local")
    whole, alone = (one.run(question, method, 0) for method in question.methods)
    assert whole["score"]["worst"] == whole["centralized"] == whole["score"]["mean"]
    assert whole["against_centralized"] == {"difference": 0.0, "low": 0.0, "high": 0.0}
    assert len(alone["sites"]["score"]) == 6 and "rounds" not in alone
    assert alone["score"]["worst"] == min(alone["sites"]["score"])


def test_a_run_is_the_same_again_and_its_curve_ends_where_it_is_judged() -> None:
    question = asked("gossip")
    first, second = (one.run(question, "gossip", 0) for _ in range(2))
    assert first | {"cpu_s": 0} == second | {"cpu_s": 0}
    last = first["curve"][-1]
    assert last["round"] == 10 and math.isclose(last["worst"], first["score"]["worst"])
    assert last["bytes_per_node"] == first["bytes_per_node"]


def test_a_model_that_runs_away_is_counted_as_diverged_and_has_no_figure() -> None:
    from dataclasses import replace

    wild = replace(asked("gossip"), changes={"gossip": {"eta": 1e4}})
    line = one.run(wild, "gossip", 0)
    assert line["diverged"] > 0 and line["score"]["mean"] is None
    row = summarise([line, made_line("gossip", 1, 0.9)], ["gossip"]).rows[0]
    assert row.diverged == 1 and math.isnan(row.score["mean"]) and math.isnan(row.share.middle)


# ---- over splits -----------------------------------------------------------------------------------------------------


def test_the_interval_over_splits_is_the_corrected_t_of_the_shares() -> None:
    worst = [0.88, 0.89, 0.9]
    found = summarise([made_line("gossip", seed, value) for seed, value in enumerate(worst)], ["gossip"])
    assert found.rows[0].share == corrected_t([value / 0.9 for value in worst], 70, 30)


def test_the_goal_is_reached_where_the_curve_stays_above_it() -> None:
    def curve(*values: float) -> list[dict[str, Any]]:
        return [
            {"round": at + 1, "bytes_per_node": 10.0 * at, "worst": value, "mean": value}
            for at, value in enumerate(values)
        ]

    early = made_line("gossip", 0, 0.9, curve=curve(0.5, 0.9, 0.5, 0.895, 0.9))
    late = made_line("gossip", 1, 0.9, curve=curve(0.5, 0.5, 0.5, 0.5, 0.9))
    never = made_line("gossip", 2, 0.9, curve=curve(0.9, 0.9, 0.9, 0.9, 0.5))
    both = summarise([early, late], ["gossip"]).rows[0].worst_reached
    assert (both.rounds, both.splits) == (4.5, 2)
    some = summarise([early, never], ["gossip"]).rows[0].worst_reached
    assert (some.rounds, some.splits) == (None, 1)


def test_a_method_without_a_line_for_every_seed_is_named() -> None:
    lines = [made_line("gossip", 0, 0.9), made_line("gossip", 1, 0.9), made_line("ledger", 0, 0.9)]
    assert summarise(lines, ["gossip", "ledger", "fedavg"]).missing == ["ledger", "fedavg"]


# ---- the folder and the command --------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_taken_away_and_a_strange_file_is_refused(tmp_path: Path) -> None:
    folders.append(tmp_path, made_line("gossip", 0, 0.9))
    with (tmp_path / folders.RUNS).open("a") as file:
        file.write('{"key": "cut')
    assert list(folders.lines(tmp_path)) == ["gossip 0"]
    assert (tmp_path / folders.RUNS).read_bytes().endswith(b"}\n")
    (tmp_path / folders.RUNS).write_text("round,loss\n")
    with pytest.raises(ConfigError, match="not a line of a benchmark"):
        folders.lines(tmp_path)


def typed(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *arguments])
    return int(ended.value.code or 0)


def test_the_command_prints_an_object_a_method_and_goes_on_where_it_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    command = [
        "breast-cancer",
        "--nodes",
        "6",
        "--topology",
        "ring",
        "--rounds",
        "6",
        "--seeds",
        "2",
        "--out",
        str(out),
    ]
    assert typed(*command, "--methods", "centralized,gossip", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["method"] for one in found["methods"]] == ["centralized", "gossip"]
    assert typed(*command, "--methods", "centralized,fedavg,gossip") == 0
    said = capsys.readouterr()
    assert "4 of 6 runs" in said.err and "fedavg" in said.out
    assert len((out / folders.RUNS).read_text().splitlines()) == 6
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {"centralized", "fedavg", "gossip"}
    assert np.isfinite([float(row["value"]) for row in rows if row["measure"] == "auc"]).all()


def test_a_wrong_name_ends_with_the_code_of_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("storke") == Exit.CONFIG
    assert "did you mean 'stroke'" in capsys.readouterr().err
