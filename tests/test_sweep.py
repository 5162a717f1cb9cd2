"""Sweeps: every combination once, kept a line each, gone on with after a stop, told in one table and one figure."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gossipfl.cli import application
from gossipfl.errors import ConfigError
from gossipfl.simulator import grid, pool, sweep

TEXT = """\
question = "Which rate bears how many absent?"
task = "toy"
engine = "vectorized"
[nodes]
count = 4
[study]
local_rounds = 6
[rounds]
release = 0
[expect]
consensus_below = 1e9
[sweep]
rounds.dropout = [0.0, 0.5]
"topology.graph" = ["ring", "complete"]
seed = [0, 1, 2]
"""


def write(folder: Path, text: str = TEXT) -> Path:
    path = folder / "many.toml"
    path.write_text(text)
    return path


def test_every_combination_is_one_run_of_the_scenario_that_it_names(tmp_path: Path) -> None:
    asked = sweep.asked(write(tmp_path))
    found = list(asked.combinations)
    assert len(found) == 12 == len({asked.key(settings) for settings in found})
    read = asked.read(found[-1]).scenario
    assert (read.rounds.dropout, read.topology.graph, read.seed, read.sweep) == (0.5, "complete", 2, {})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[0.0, 0.5]", "0.5", "rounds.dropout is no list of values -- write rounds.dropout = "),
        ("[0.0, 0.5]", "[0.5, 0.5]", "rounds.dropout has a value twice"),
        ("[0.0, 0.5]", "[0.0, 1.5]", r"rounds.dropout = 1.5.* should be less than or equal to 1"),
        ("rounds.dropout", "rounds.dropuot", "unknown key rounds.dropuot"),
        ("[0, 1, 2]", f"{list(range(40_000))}", "160,000 runs -- take 100,000 or fewer"),
    ],
)
def test_a_value_that_no_scenario_can_have_is_refused_before_the_first_run(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=rf"many.toml:1\d: .*{said}"):
        sweep.asked(write(tmp_path, TEXT.replace(old, new)))


def test_the_command_line_does_not_silently_lose_against_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="seed stands in \\[sweep\\]"):
        sweep.asked(write(tmp_path), seed=7)


def test_a_sweep_ends_in_one_table_one_figure_and_tidy_data_and_goes_on_where_it_was(tmp_path: Path) -> None:
    path, out = write(tmp_path), tmp_path / "out"
    command = ["simulate", str(path), "--out", str(out), "--processes", "1", "--json"]
    done = CliRunner().invoke(application(), command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert (said["runs"], said["of"], said["seeds"], len(said["rows"])) == (12, 12, 3, 4)
    for row in said["rows"]:
        assert row["share"]["low"] <= row["share"]["mean"] <= row["share"]["high"]
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    assert len(rows) == 12 and {row["held"] for row in rows} == {"True"}
    assert {json.loads(line)["seed"] for line in (out / "curves.jsonl").read_text().splitlines()} == {0, 1, 2}
    page = (out / "report.html").read_text()
    assert page.count("<polyline") == 2 and page.count("<circle") == 4
    assert "<script" not in page and "://" not in page
    kept = (out / "runs.jsonl").read_text().splitlines(keepends=True)
    (out / "runs.jsonl").write_text("".join(kept[:7]) + kept[7][:20])  # as if the power had failed in the eighth
    again = CliRunner().invoke(application(), command)
    assert "7 are in" in again.stderr and json.loads(again.stdout)["runs"] == 12

    def steady(line: str) -> str:
        return json.dumps(json.loads(line) | {"cpu_s": 0})

    assert sorted(map(steady, (out / "runs.jsonl").read_text().splitlines())) == sorted(map(steady, kept))


def test_a_sweep_that_is_stopped_before_its_first_run_shows_no_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> Iterator[dict[str, object]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(pool, "run", stopped)
    done = CliRunner().invoke(application(), ["simulate", str(write(tmp_path)), "--out", str(tmp_path / "out")])
    assert done.exit_code == 130 and "0 of 12 runs are there" in done.stderr and "means over" not in done.stdout
    page = (tmp_path / "out" / "report.html").read_text()
    assert "No run had ended" in page and "Every setting" not in page and "12 runs are missing" in page


def test_one_seed_is_one_line_in_whichever_process(tmp_path: Path) -> None:
    asked = sweep.asked(write(tmp_path, TEXT.replace("[0, 1, 2]", "[5]")))
    wanted = list(asked.combinations)
    here = {line["key"]: line | {"cpu_s": 0} for line in (sweep.one(asked, settings) for settings in wanted)}
    there = {line["key"]: line | {"cpu_s": 0} for line in pool.run(Bound(asked), wanted, 2)}
    assert here == there


class Bound:
    """sweep.one of these settings, as another process can import it."""

    def __init__(self, asked: sweep.Asked) -> None:
        self.asked = asked

    def __call__(self, settings: dict[str, object]) -> sweep.Line:
        return sweep.one(self.asked, settings)


def test_what_cannot_be_is_an_error_of_its_line_and_made_again_when_it_is_asked_again(tmp_path: Path) -> None:
    text = TEXT.replace('"topology.graph" = ["ring", "complete"]', 'rounds.method = ["d2", "gosip"]')
    asked = sweep.asked(write(tmp_path, text))
    lines = {line["key"]: line for line in (sweep.one(asked, settings) for settings in asked.combinations)}
    found = sweep.grid(asked, "?", lines)
    errors = {str(row.settings["rounds.method"]): row.error for row in found.rows}
    assert "did you mean 'gossip'" in errors["gosip"]
    for line in lines.values():
        pool.append(tmp_path / "runs.jsonl", line)
    assert len(sweep.done(tmp_path / "runs.jsonl", asked)) == sum("error" not in line for line in lines.values())
    assert "did you mean" in grid.page(found, {"began": "", "command": [], "platform": "", "python": "", "packages": {}})


def test_lines_of_another_scenario_are_not_taken_for_this_one(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    asked = sweep.asked(write(tmp_path))
    pool.append(path, sweep.one(asked, next(asked.combinations)))
    assert len(sweep.done(path, asked)) == 1
    assert not sweep.done(path, sweep.asked(write(tmp_path), ["study.eta=0.2"]))
    wider = sweep.asked(write(tmp_path, TEXT.replace("[0, 1, 2]", "[0, 1, 2, 3]")))
    assert len(sweep.done(path, wider)) == 1, "more values of a setting keep what there is"


def test_a_figure_over_seeds_is_students_interval() -> None:
    found = sweep.Figure.of([0.8, 0.9, 1.0])
    assert found.mean == pytest.approx(0.9)
    assert found.high - found.mean == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert math.isnan(sweep.Figure.of([0.8]).low)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "simulations").glob("*.toml")), ids=lambda path: path.stem)
def test_every_scenario_that_is_committed_can_be_read_with_all_its_combinations(path: Path) -> None:
    asked = sweep.asked(path)
    assert len(list(asked.combinations)) >= 1
    assert f"`{path.name}`" in (path.parent / "README.md").read_text()


def test_a_law_that_was_violated_is_told_beside_the_figures(tmp_path: Path) -> None:
    text = TEXT.replace("rounds.dropout = [0.0, 0.5]", "rounds.half = [0.0, 0.9]").replace("seed = [0, 1, 2]", "")
    asked = sweep.asked(write(tmp_path, text))
    lines = {line["key"]: line for line in (sweep.one(asked, settings) for settings in asked.combinations)}
    said = {row.settings["rounds.half"]: row.said() for row in sweep.grid(asked, "?", lines).rows}
    assert said == {0.0: "", 0.9: "not as expected in 1 of 1; violated: mass-conserved"}
