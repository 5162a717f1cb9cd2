"""Laws of the model that leaves a node: its file, `predict`, `train-local`, and what each refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import places
import pytest

from gossipfl import cli, released, tasks
from gossipfl.errors import ConfigError, Exit
from gossipfl.simulator import baselines
from gossipfl.tasks import fitting
from gossipfl.tasks.normalisation import Normaliser

TASK: Any = tasks.load("breast-cancer")
SITES, TEST = TASK.demo_sites(2, 0)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main([str(one) for one in arguments])
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def model() -> released.Released:
    fitted = baselines.fit(TASK, SITES[0].train, 0.01)
    facts = {"node": "a", "stage": "finished"}
    return released.Released("breast-cancer", {}, TASK, fitted.layout, fitted.vector, fitted.normaliser, facts)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["who", *TASK.features])
        writer.writerows([f"p{n}", *row] for n, row in enumerate(TEST.x.tolist()))
    return path


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_model_comes_back_from_its_file_bit_for_bit(model: released.Released, tmp_path: Path) -> None:
    released.save(model, tmp_path / "m.safetensors")
    back = released.read(tmp_path / "m.safetensors")
    assert np.array_equal(back.vector, model.vector)
    assert np.array_equal(back.normaliser.mean, model.normaliser.mean)
    assert np.array_equal(back.normaliser.spread, model.normaliser.spread)
    assert dict(back.facts) == dict(model.facts)
    assert np.array_equal(back.scores(TEST.x), model.scores(TEST.x))


def test_a_task_without_a_module_keeps_its_plain_vector(tmp_path: Path) -> None:
    toy = tasks.load("toy")
    layout, vector = fitting.layout_of(toy), np.arange(8.0)
    released.save(released.Released("toy", {}, toy, layout, vector, Normaliser.none()), tmp_path / "m")
    assert np.array_equal(released.read(tmp_path / "m").vector, vector)


def test_any_program_finds_the_modules_own_names_in_the_file(model: released.Released, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    released.save(model, tmp_path / "m.safetensors")
    assert set(load_file(tmp_path / "m.safetensors")) == set(TASK.model().state_dict())


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"x" * 1000])
def test_a_file_that_is_no_model_is_refused_with_a_remedy(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(ConfigError, match="node model"):
        released.read(tmp_path / "m")


def test_T31_a_model_file_runs_no_code_that_the_operator_did_not_name(model: released.Released, tmp_path: Path) -> None:
    spec = "gossipfl.tasks.breast_cancer:BreastCancer"
    foreign = released.Released(spec, {}, TASK, model.layout, model.vector, model.normaliser, {})
    released.save(foreign, tmp_path / "m")
    with pytest.raises(ConfigError, match="--task"):
        released.read(tmp_path / "m")
    assert np.array_equal(released.read(tmp_path / "m", spec).vector, model.vector)


# ---- predict ---------------------------------------------------------------------------------------------------------


def test_predict_scores_rows_as_the_task_does(
    model: released.Released, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released.save(model, tmp_path / "m")
    assert run("predict", tmp_path / "m", rows, "--json") == 0
    said = json.loads(capsys.readouterr().out)["rows"]
    assert [row["id"] for row in said][:2] == ["1", "2"]
    assert np.allclose([row["score"] for row in said], model.scores(TEST.x), rtol=0, atol=1e-12)
    assert run("predict", tmp_path / "m", rows, "--out", tmp_path / "risks.csv") == 0
    assert (tmp_path / "risks.csv").read_text().startswith("id,score\n1,")


def test_no_rows_to_predict_are_no_scores(
    model: released.Released, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released.save(model, tmp_path / "m")
    (tmp_path / "none.csv").write_text(rows.read_text().splitlines()[0] + "\n")
    assert run("predict", tmp_path / "m", tmp_path / "none.csv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == []
    assert run("predict", tmp_path / "m", tmp_path / "none.csv") == 0
    assert capsys.readouterr().out == "id,score\n"


def test_a_model_that_cannot_be_written_leaves_nothing_behind(model: released.Released, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "absent" / "m"):
        with pytest.raises(ConfigError, match="cannot be written") as error:
            released.save(model, path)
        assert error.value.exit_code == Exit.STATE
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_predict_says_which_columns_are_missing(
    model: released.Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released.save(model, tmp_path / "m")
    (tmp_path / "few.csv").write_text("mean radius\n12.0\n")
    assert run("predict", tmp_path / "m", tmp_path / "few.csv") == Exit.CONFIG
    assert "'mean texture' is missing" in capsys.readouterr().err


# ---- train-local, node model -----------------------------------------------------------------------------------------


def test_train_local_and_a_model_are_judged_by_the_same_holdout(
    model: released.Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tomls = places.deploy(tmp_path, ["a", "b"], "breast-cancer", places.breast_cancer(["a", "b"]), l2=0.01)
    released.save(model, tmp_path / "m")
    assert run("train-local", tomls["a"], "--against", tmp_path / "m", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["holdout_rows"] == len(TEST)
    assert said["methods"]["m"]["auc"] == pytest.approx(said["methods"]["local only"]["auc"]), "the same rows, the same l2"
    assert said["auc_gain"]["m"] == pytest.approx((0.0, 0.0, 0.0), abs=1e-3)
    assert run("train-local", tomls["a"], "--against", tmp_path / "m") == 0
    table = capsys.readouterr().out
    assert "AUC" in table and " to " in table and "auc_low" not in table and "cannot tell the two apart" in table


def test_a_node_that_never_ran_has_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tomls = places.deploy(tmp_path, ["a", "b"], "breast-cancer", places.breast_cancer(["a", "b"]))
    assert run("node", "model", tomls["a"], "--out", tmp_path / "m") == Exit.CONFIG
    assert "node run" in capsys.readouterr().err
    assert not (tomls["a"].parent / "state").exists(), "asking changes nothing"
