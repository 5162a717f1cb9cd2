"""Tasks on real hospitals: who has which rows, what is left out, and the reference figures of the data sets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipfl.errors import ConfigError, Misuse
from gossipfl.learning import evaluation
from gossipfl.simulator.baselines import centralized, fit
from gossipfl.tasks import Data, Site, icu, load, pooled, stroke
from gossipfl.tasks.hospitals import Table
from gossipfl.tasks.sites import facts, sentences
from gossipfl.tasks.split import by_patient, tuning

DATA = Path(os.environ.get("GOSSIPFL_DATA") or Path(__file__).parents[2] / "shared" / "data")
FOLDERS = {"stroke": "ist", "stroke-259": "ist", "icu": "eicu-demo", "heart": "uci-heart", "heart-920": "uci-heart"}


def needs(*names: str) -> list[Any]:
    def mark(name: str) -> Any:
        return pytest.mark.skipif(not (DATA / FOLDERS[name]).is_dir(), reason=f"{FOLDERS[name]}/ is not under {DATA}")

    return [pytest.param(name, marks=mark(name)) for name in names]


def whole(name: str, seed: int) -> tuple[Any, list[Site], Data]:
    task: Any = load(name)
    return task, *task.demo_sites(task.all_sites, seed, DATA)


# ---- parting by patient --------------------------------------------------------------------------------------------


def test_a_share_of_each_places_patients_is_held_out_never_all_and_no_patient_is_on_both_sides() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    places = [f"h{one}" for one in rng.integers(0, 20, 600)]
    ids = [f"p{one}" for one in rng.integers(0, 300, 600)]  # about two stays each, often at two places
    apart = by_patient(places, ids, 0.3, "test 0")
    sides = {one: {bool(apart[row]) for row in range(600) if ids[row] == one} for one in ids}
    assert all(len(side) == 1 for side in sides.values()) and 0.25 < apart.mean() < 0.35
    assert (by_patient(places, ids, 0.3, "test 1") != apart).any()
    assert not by_patient(["a", "b"], ["1", "2"], 0.9, "test 0").any()


def test_another_order_or_more_places_change_no_patients_side() -> None:
    ids = [f"p{one}" for one in range(90)]
    places = [f"h{one // 30}" for one in range(90)]
    apart = dict(zip(ids, by_patient(places, ids, 0.3, "x"), strict=True))
    assert [apart[one] for one in ids[29::-1]] == by_patient(places[:30], ids[29::-1], 0.3, "x").tolist()


def test_validation_rows_are_training_rows_and_the_test_rows_are_in_neither() -> None:
    sites, test = load("breast-cancer").demo_sites(5, 0)
    inner, judged = tuning(sites, 0)
    for before, after in zip(sites, inner, strict=True):
        assert sorted(before.train.ids) == sorted([*after.train.ids, *after.holdout.ids]) and before.name == after.name
    assert not set(judged.ids) & set(test.ids) and len(judged) == sum(len(site.holdout) for site in inner) == 79


# ---- what is at each site ------------------------------------------------------------------------------------------


def test_a_site_with_one_class_or_few_rows_is_named() -> None:
    def rows(*y: int) -> Data:
        return Data(np.ones((len(y), 30)), np.array(y, dtype=np.int64), names=load("breast-cancer").features)

    small, large = Site("small", rows(1, 1), rows(0)), Site("large", rows(*[0, 1] * 10), rows(0, 1))
    assert [(one.one_class, one.few, one.undefined) for one in facts([small, large])] == [(True, True, True), (False,) * 3]
    said = "\n".join(sentences(load("breast-cancer"), [small, large]))
    assert "2 sites, 22 training rows: 2 to 20" in said and "only malignant among its training rows: 1 (small)" in said
    assert "fewer than 10 rows" in said and "no AUC of its own" in said
    assert np.isfinite(fit(load("breast-cancer"), small.train).metrics(large.train)["log_loss"])


def test_hospitals_below_the_least_are_counted_with_their_rows() -> None:
    data = Data(np.arange(6.0)[:, None], np.array([0, 1, 0, 1, 0, 1]))
    table = Table(data, ("10", "9", "9", "10", "2", "9"), np.arange(6.0), {"unknown": 7}).of_hospitals(2)
    assert table.hospital == ("9", "9", "9", "10", "10") and table.data.x[:, 0].tolist() == [1, 2, 5, 0, 3]
    assert table.left_out == {"unknown": 7, "at 1 hospitals with fewer than 2 patients": 1}


@pytest.mark.parametrize("alpha", [0.1, 0.5])
@pytest.mark.parametrize("nodes", [16, 100])
def test_digits_is_dealt_by_dirichlet_to_as_many_sites_as_the_benchmark_asks(alpha: float, nodes: int) -> None:
    sites, test = load("digits", {"alpha": alpha}).demo_sites(nodes, 0)
    rows = np.array([np.bincount(site.train.y, minlength=10) for site in sites])
    assert rows.sum() + len(test) == 1797 and rows.sum(axis=1).min() >= 4
    commonest = (rows.max(axis=1) / rows.sum(axis=1)).mean()
    assert (commonest > 0.5) == (alpha == 0.1)


# ---- the data sets -------------------------------------------------------------------------------------------------


UNKNOWN = "outcome at six months unknown"
COUNTS = {
    "stroke": (415, 13402, 5779, {UNKNOWN: 150, "at 49 hospitals with fewer than 4 patients": 104}),
    "stroke-259": (259, 12267, 5282, {UNKNOWN: 150, "at 205 hospitals with fewer than 20 patients": 1736}),
    "icu": (186, 1735, 757, {"outcome unknown": 28}),
    "heart": (4, 486, 254, {"a value missing": 180}),
    "heart-920": (4, 606, 314, {}),
}


@pytest.mark.parametrize("name", needs(*COUNTS))
def test_every_row_is_at_a_hospital_or_counted_as_left_out_and_no_patient_is_on_both_sides(name: str) -> None:
    task, sites, test = whole(name, 0)
    assert (len(sites), sum(len(site.train) for site in sites), len(test), task.left_out(DATA)) == COUNTS[name]
    assert not {one for site in sites for one in site.train.ids} & set(test.ids)
    assert all(len(site.train) for site in sites) and test.names == task.features
    assert [site.holdout.digest for site in sites] != [site.holdout.digest for site in whole(name, 1)[1]] or name == "heart"


@pytest.mark.parametrize("name", needs("stroke", "icu"))
def test_a_node_reads_what_the_demo_gave_its_site_and_fewer_sites_are_the_largest_with_the_same_rows(name: str) -> None:
    task, every, _ = whole(name, 3)
    sites, test = task.demo_sites(5, 3, DATA)
    sources = task.demo_sources(5, 3, DATA)
    assert min(len(site.train) + len(site.holdout) for site in sites) >= sorted(len(s.train) + len(s.holdout) for s in every)[-5]
    by_name = {site.name: site for site in every}
    for site, source in zip(sites, sources, strict=True):
        assert task.data(source).digest == site.train.digest == by_name[site.name].train.digest
        assert task.data({**source, "part": "test"}).digest == site.holdout.digest
        assert task.judged_by(source).digest == test.digest == pooled([one.holdout for one in sites]).digest
    assert len(task.published(5, 3, DATA)) == len(test)
    with pytest.raises(Misuse, match=f"has {task.all_sites} hospitals, not 999"):
        task.demo_sites(999, 0, DATA)
    with pytest.raises(ConfigError, match=r"hospital = '999'.*the number of one of"):
        task.data({"hospital": "999", "data_dir": str(DATA)})


@pytest.mark.parametrize("name", needs("stroke-259"))
def test_a_hospitals_patients_are_on_the_same_sides_in_both_stroke_tasks(name: str) -> None:
    every = {site.name: site.holdout.ids for site in whole("stroke", 2)[1]}
    assert all(every[site.name] == site.holdout.ids for site in whole(name, 2)[1])


def test_a_file_that_is_absent_or_altered_is_named_with_its_sha256_source_and_licence(tmp_path: Path) -> None:
    for task, files, says in ((load("stroke"), stroke.FILES, "ds/104.*ODC-By"), (load("icu"), icu.FILES, "physionet.*ODbL")):
        with pytest.raises(ConfigError, match=f"no such folder.*{says}"):
            task.demo_sites(5, 0, tmp_path)  # type: ignore[attr-defined]
        folder = tmp_path / files.folder
        folder.mkdir()
        first = "apacheapsvar.csv.gz" if files.folder == "eicu-demo" else "ist_baseline.csv.gz"
        with pytest.raises(ConfigError, match=f"{first}: cannot be read.*{says}.*{files.sha256[first]}"):
            task.demo_sites(5, 0, tmp_path)  # type: ignore[attr-defined]
        (folder / first).write_bytes(b"other")
        with pytest.raises(ConfigError, match=f"{first}: is not the published file.*expected {files.sha256[first]}.*{says}"):
            task.demo_sites(5, 0, tmp_path)  # type: ignore[attr-defined]
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", needs("icu"))
def test_no_feature_of_icu_is_the_outcome_in_disguise(name: str) -> None:
    _, sites, test = whole(name, 0)
    rows = pooled([*(site.train for site in sites), test])
    filled = np.where(np.isnan(rows.x), np.nanmean(rows.x, axis=0), rows.x)
    alone = [evaluation.auc(rows.y, column) for column in filled.T]
    assert min(alone) > 0.25 and max(alone) < 0.75


# ---- reference figures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", needs("stroke"))
def test_stroke_reproduces_the_reference_figures(name: str) -> None:
    """Reference: centralized .7995, the trial's own score .7887, hence .0108 between them; five splits, other than ours."""
    found = []
    for seed in range(5):
        task, sites, test = whole(name, seed)
        ours = centralized(task, sites).metrics(test)["auc"]
        found.append((ours, evaluation.auc(test.y, task.published(task.all_sites, seed, DATA))))
    ours, trial = np.mean(found, axis=0)
    assert ours == pytest.approx(0.7995, abs=0.006) and trial == pytest.approx(0.7887, abs=0.006)
    assert ours - trial == pytest.approx(0.0108, abs=0.003)


@pytest.mark.parametrize("name", needs("icu"))
def test_icu_reproduces_the_reference_figure(name: str) -> None:
    """Reference: centralized .823. One split has an error of about .02, so that this takes forty; 0 to 4 are lucky ones."""
    found = []
    for seed in range(40):
        task, sites, test = whole(name, seed)
        found.append(centralized(task, sites).metrics(test)["auc"])
    assert np.mean(found) == pytest.approx(0.823, abs=0.01)
    risks = task.published(task.all_sites, seed, DATA)
    scored = np.isfinite(risks)
    assert 0.6 < scored.mean() < 0.75 and 0.82 < evaluation.auc(test.y[scored], risks[scored]) < 0.92


@pytest.mark.parametrize("name", needs("heart"))
def test_heart_reproduces_flambys_pooled_accuracy_and_the_reference_auc(name: str) -> None:
    from gossipfl.tasks.heart import PUBLISHED

    task, sites, test = whole(name, 0)
    best = centralized(task, sites).metrics(test)
    middle, deviation = PUBLISHED["pooled"]
    assert deviation is not None and abs(best["accuracy"] - middle) <= 2 * deviation
    assert best["auc"] == pytest.approx(0.881, abs=0.002)


@pytest.mark.parametrize("name", needs("heart"))
def test_heart_can_be_parted_anew_by_seed_and_its_first_such_parting_is_the_published_one(name: str) -> None:
    task: Any = load(name, {"split": "seeded"})
    test = [task.demo_sites(4, seed, DATA)[1].digest for seed in range(5)]
    assert len(set(test)) == 5 and test[0] == whole(name, 4)[2].digest
    source = task.demo_sources(4, 3, DATA)[1]
    assert task.judged_by(source).digest == test[3]
    with pytest.raises(ConfigError, match="split = 'x'"):
        load(name, {"split": "x"})


@pytest.mark.parametrize("name", needs("heart-920"))
def test_in_all_rows_of_heart_no_cholesterol_is_zero_and_none_of_the_swiss_has_one(name: str) -> None:
    _, sites, test = whole(name, 0)
    cholesterol = {site.name: np.concatenate([site.train.x[:, 3], site.holdout.x[:, 3]]) for site in sites}
    missing = {name: int(np.isnan(values).sum()) for name, values in cholesterol.items()}
    assert missing["switzerland"] == 123 and missing["va"] == 49 + 7
    assert all(np.nanmin(values, initial=1e9) > 0 for values in cholesterol.values()) and len(test) == 314
