"""Laws that every task meets, and what is particular to each built-in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gossipfl.errors import ConfigError, Misuse
from gossipfl.learning.training import Plan
from gossipfl.simulator.baselines import centralized, local_only
from gossipfl.tasks import Data, Task, fitting, load, pooled
from gossipfl.tasks.normalisation import Normaliser, own_normaliser

DATA = Path(os.environ.get("GOSSIPFL_DATA") or Path(__file__).parents[2] / "shared" / "data")
needs_heart = pytest.mark.skipif(not (DATA / "uci-heart").is_dir(), reason=f"UCI heart files are not under {DATA}")
needs_ist = pytest.mark.skipif(not (DATA / "ist").is_dir(), reason=f"the stroke trial's file is not under {DATA}")
MARKS = {"heart": [needs_heart], "heart-920": [needs_heart], "stroke": [needs_ist]}
SITES = {"breast-cancer": 5, "digits": 5, "toy": 5, "heart": 4, "heart-920": 4, "stroke": 6}
EVERY = [pytest.param(name, marks=MARKS.get(name, [])) for name in SITES]


@pytest.mark.parametrize("name", EVERY)
def test_every_task_meets_the_protocol_and_its_demo_sites_share_no_row(name: str) -> None:
    task = load(name)
    assert isinstance(task, Task) and task.name == name
    sites, test = task.demo_sites(SITES[name], 0, DATA)
    again, _ = load(name).demo_sites(SITES[name], 0, DATA)
    assert [site.train.digest for site in sites] == [site.train.digest for site in again]
    taken = [identity for site in sites for identity in site.train.ids]
    assert len(sites) == SITES[name] and len(taken) == len(set(taken))
    if name != "toy":
        assert not set(taken) & set(test.ids)


@pytest.mark.parametrize("name", EVERY)
def test_every_task_trains_from_its_start_and_is_judged(name: str) -> None:
    task = load(name)
    sites, test = task.demo_sites(SITES[name], 0, DATA)
    layout = fitting.layout_of(task)
    start = fitting.start(task, layout, 7)
    assert start.shape == (layout.size,) and start.tolist() == fitting.start(task, layout, 7).tolist()
    raw = sites[-1].train
    rows = fitting.prepare(task, own_normaliser(raw), raw)
    plan = Plan(steps=5, eta=0.1, batch_size=None, optimizer="sgd", momentum=0.0, proximal=0.0, l2=0.0)
    rng = np.random.Generator(np.random.PCG64(0))
    outcome = fitting.trainer(task, layout, rows, raw.y).train(start, None, plan, rng)
    assert outcome.steps == 5 and outcome.vector.dtype == start.dtype and (outcome.vector != start).any()
    assert task.metric in fitting.evaluate(task, layout, outcome.vector, Normaliser.none(), test)


@pytest.mark.parametrize("seed", range(5))
def test_centralized_breast_cancer_is_good_and_local_only_visibly_worse(seed: int) -> None:
    task = load("breast-cancer")
    sites, test = task.demo_sites(5, seed)
    best = centralized(task, sites).metrics(test)
    alone = [fitted.metrics(test) for fitted in local_only(task, sites)]
    assert best["auc"] >= 0.985
    assert np.mean([each["auc"] for each in alone]) < best["auc"] - 0.003
    assert min(each["auc"] for each in alone) < best["auc"] - 0.007
    assert np.mean([each["accuracy"] for each in alone]) < best["accuracy"] - 0.03


def test_convergence_is_a_point_where_the_gradient_with_l2_vanishes_as_scikit_learn_finds_it() -> None:
    from sklearn.linear_model import LogisticRegression

    rng = np.random.Generator(np.random.PCG64(0))
    x = rng.normal(size=(200, 30)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=200) > 0).astype(np.int64)
    task = load("breast-cancer")
    vector = fitting.train_to_convergence(task, x, y, 0.05)
    oracle = LogisticRegression(C=1 / (0.05 * 200), tol=1e-10, max_iter=5000)  # its intercept is free, too
    oracle.fit(x.astype(np.float64), y)  # of float32 rows it computes, and stops, in float32
    np.testing.assert_allclose(vector, [*oracle.coef_[0], *oracle.intercept_], atol=5e-6)


def test_sites_sizes_span_one_to_eight_and_every_site_has_both_classes() -> None:
    sites, test = load("breast-cancer").demo_sites(5, 3)
    assert [len(site.train) for site in sites] == [22, 37, 61, 104, 174] and len(test) == 171
    assert all(set(site.train.y) == {0, 1} for site in sites)
    assert sites[0].holdout.digest == sites[4].holdout.digest == test.digest


def test_a_node_reads_the_rows_that_the_demo_gave_its_site() -> None:
    task = load("breast-cancer")
    sites, test = task.demo_sites(4, 2)
    source = {"sites": 4, "site": 3, "seed": 2}
    assert task.data(source).digest == sites[3].train.digest
    assert task.data(source | {"part": "test"}).digest == test.digest
    with pytest.raises(ConfigError, match="site = 4"):
        task.data(source | {"site": 4})


# ---- heart ---------------------------------------------------------------------------------------------------------


@needs_heart
def test_heart_has_the_published_split() -> None:
    sites, test = load("heart").demo_sites(4, 0, DATA)
    counts = [(site.name, len(site.train), len(site.holdout)) for site in sites]
    assert counts == [("cleveland", 199, 104), ("hungarian", 172, 89), ("switzerland", 30, 16), ("va", 85, 45)]
    assert len(test) == 254 and test.x.shape[1] == 13
    source = {"hospital": "va", "data_dir": str(DATA)}
    assert load("heart").data(source).digest == sites[3].train.digest
    assert load("heart").data(source | {"part": "test"}).digest == sites[3].holdout.digest
    assert load("heart").data(source | {"part": "pooled-test"}).digest == test.digest


@needs_heart
def test_centralized_heart_reaches_the_reproduced_figure_and_local_only_does_not() -> None:
    task = load("heart")
    sites, test = task.demo_sites(4, 0, DATA)
    best = centralized(task, sites).metrics(test)["auc"]
    alone = [fitted.metrics(test)["auc"] for fitted in local_only(task, sites)]
    assert best >= 0.875 and np.mean(alone) < best - 0.03


def test_a_heart_file_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        load("heart").demo_sites(4, 0, tmp_path)
    (tmp_path / "uci-heart").mkdir()
    (tmp_path / "uci-heart" / "processed.cleveland.data").write_text("1,2,3\n")
    with pytest.raises(ConfigError, match=r"cleveland.data: is not the published file.*expected a74b7ef.*Repository.*CC BY"):
        load("heart").demo_sites(4, 0, tmp_path)
    (tmp_path / "uci-heart" / "processed.cleveland.data").unlink()
    with pytest.raises(ConfigError, match=r"cleveland.data: cannot be read.*UCI.*sha256 is a74b7ef"):
        load("heart").demo_sites(4, 0, tmp_path)
    with pytest.raises(Misuse, match="--nodes 4"):
        load("heart").demo_sites(5, 0, tmp_path)


# ---- toy -----------------------------------------------------------------------------------------------------------


def test_the_pooled_optimum_of_toy_is_that_of_its_sites_weighted_by_rows() -> None:
    task = load("toy", {"dimension": 3})
    sites, everything = task.demo_sites(3, 0)
    layout, optimum = fitting.layout_of(task), centralized(task, sites).vector
    weights = np.array([len(site.train) for site in sites])
    plan = Plan(steps=1, eta=1.0, batch_size=None, optimizer="sgd", momentum=0.0, proximal=0.0, l2=0.0)
    rng = np.random.Generator(np.random.PCG64(0))
    moved = [fitting.trainer(task, layout, s.train.x, s.train.y).train(optimum, None, plan, rng).vector for s in sites]
    np.testing.assert_allclose(weights @ np.array(moved) / weights.sum(), optimum, atol=1e-12)
    assert fitting.evaluate(task, layout, optimum, Normaliser.none(), everything)["error"] < 1e-12
    assert all(np.abs(fitted.vector - optimum).max() > 0.1 for fitted in local_only(task, sites))


def test_ten_times_as_many_sites_of_toy_have_ten_times_as_many_rows() -> None:
    task = load("toy", {"dimension": 1})
    few, many = (task.demo_sites(sites, 0) for sites in (20, 200))
    assert [len(site.train) for site in few[0]] == [10 * (at + 1) for at in range(20)]
    assert len(many[1]) == 10 * len(few[1])
    assert not np.array_equal(many[0][0].train.x, many[0][20].train.x)


# ---- naming, data --------------------------------------------------------------------------------------------------


def test_t31_a_task_is_only_what_the_operator_named_and_mistakes_are_explained(tmp_path: Path) -> None:
    for spec, says in {
        "breast-cancr": "did you mean 'breast-cancer'",
        "no_such_module:Task": "cannot be imported",
        "gossipfl.tasks.toy:Nothing": "cannot be imported",
        "pathlib:Path": "is no gossipfl.Task",
    }.items():
        with pytest.raises(ConfigError, match=says):
            load(spec)
    with pytest.raises(ConfigError, match="has no option dimensions -- it has dimension, "):
        load("toy", {"dimensions": 3})


@pytest.mark.parametrize("lines, says", [("x = = 1\n", "SyntaxError.*line 1"), ("\n1 / 0\n", "ZeroDivisionError.*line 2")])
def test_a_module_whose_own_lines_fail_is_named_with_its_line(
    lines: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_risk.py").write_text(lines)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"broken_risk.*{says}"):
        load("broken_risk:risk")


def test_options_of_a_wrong_type_are_all_told_before_the_task_is_made() -> None:
    with pytest.raises(ConfigError) as caught:
        load("toy", {"dimension": "x", "l2": True, "standardise": 1})
    assert [fault.path[1] for fault in caught.value.faults] == ["dimension", "standardise", "l2"]  # type: ignore[union-attr]
    assert "is not a whole number" in str(caught.value.faults[0]) and "write true or false" in str(caught.value.faults[1])
    assert load("toy", {"dimension": 4, "l2": 1}).l2 == 1  # type: ignore[attr-defined]


CALLED: list[str] = []


def unmarked() -> Task:
    CALLED.append("unmarked")
    return load("toy")


del unmarked.__annotations__["return"]


def marked(which: str = "toy") -> Task:
    return load(which)


@pytest.mark.parametrize("spec", ["os:system", "subprocess:run", "subprocess:Popen", "builtins:exec", "test_tasks:unmarked",
                                  "test_tasks:CALLED.append", "pathlib:Path", "functools:partial"])  # fmt: skip
def test_t31_nothing_is_called_that_does_not_declare_a_task(spec: str, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for options in ({"command": f"touch {made}"}, {"args": ["touch", str(made)]}, {}):
        with pytest.raises(ConfigError, match=r"is no gossipfl\.Task"):
            load(spec, options)
    assert not made.exists() and not CALLED


def test_a_function_that_declares_a_task_is_called_with_the_options() -> None:
    assert load("test_tasks:marked", {"which": "digits"}).name == load("digits").name
    assert isinstance(load("test_tasks:marked"), Task)


def test_importing_tasks_and_the_schema_loads_no_torch() -> None:
    code = (
        "import sys, gossipfl.tasks, gossipfl.tasks.table; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "x, y, ids", [(np.ones(3), np.ones(3), ()), (np.ones((3, 1)), np.ones(2), ()), (np.full((1, 1), np.inf), [0], ()),
                  (np.full((1, 1), -1e31), [0], ()),
                  (np.ones((1, 1)), [np.nan], ()), (np.ones((2, 1)), [0, 1], ("a",))],
)  # fmt: skip
def test_data_that_do_not_fit_together_cannot_exist(x: np.ndarray, y: np.ndarray, ids: tuple[str, ...]) -> None:
    with pytest.raises(Misuse):
        Data(x, y, ids)


def test_any_change_of_data_changes_its_digest() -> None:
    base = Data(np.eye(2), np.array([0, 1]), ("a", "b"), ("p", "q"))
    x = np.eye(2)
    x[0, 0] = np.nan
    others = [
        Data(x, base.y, base.ids, base.names),
        Data(base.x, base.y[::-1], base.ids, base.names),
        Data(base.x, base.y, ("a", "c"), base.names),
        Data(base.x, base.y, base.ids, ("p", "r")),
        base.rows(np.array([1, 0])),
        pooled([base, base]),
    ]
    assert len({base.digest, *(other.digest for other in others)}) == 7


class _NoLoss:
    name, features, standardise, metric = "x", (), False, "loss"

    def model(self) -> None: ...

    def data(self, source: object) -> None: ...


NO_LOSS = _NoLoss()


@pytest.mark.parametrize("spec", ["test_tasks:NO_LOSS", "test_tasks:_NoLoss"])
def test_a_task_without_a_loss_is_told_what_it_lacks(spec: str) -> None:
    with pytest.raises(ConfigError, match="has no loss"):
        load(spec)


def test_a_table_without_a_schema_is_told_where_it_is_written() -> None:
    with pytest.raises(ConfigError, match=r"task_options\.schema"):
        load("table")
