"""Laws of comparisons over patients, splits and nodes; scipy, numpy and closed forms are the oracles."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from gossipfl.errors import Misuse
from gossipfl.learning import comparing, evaluation


def two_models(rng: np.random.Generator, n: int, better: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    y = rng.integers(0, 2, n)
    shared = rng.normal(size=n) + y
    return y, shared + 0.4 * rng.normal(size=n) + better * y, shared + 0.4 * rng.normal(size=n)


def test_the_spread_over_nodes_is_numpys_and_the_worst_of_a_loss_is_the_largest() -> None:
    values = np.random.Generator(np.random.PCG64(0)).uniform(size=41)
    good, bad = comparing.spread(values), comparing.spread(values, "brier")
    assert (good.worst, good.best, good.count) == (values.min(), values.max(), 41)
    assert good.low == pytest.approx(np.percentile(values, 5)) and bad.low == pytest.approx(np.percentile(values, 95))
    assert (bad.worst, bad.best, bad.median, bad.mean) == (good.best, good.worst, good.median, pytest.approx(values.mean()))


def test_one_diverged_node_is_not_averaged_away() -> None:
    told = comparing.spread([0.8, math.nan, 0.9])
    assert all(map(math.isnan, (told.worst, told.low, told.median, told.mean, told.best))) and told.count == 3
    y, broken = np.array([0, 1, 1, 0]), np.array([0.1, math.nan, 0.9, 0.2])
    for metric in evaluation.binary(y, broken).values():
        assert math.isnan(metric)
    assert math.isnan(comparing.bootstrap(y, broken, np.arange(4.0), draws=10).middle)
    assert math.isnan(comparing.corrected_t([0.1, math.nan], 7, 3).middle)


def test_per_site_metrics_are_those_of_the_rows_and_undefined_ones_are_named_by_nan() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    y, scores, _ = two_models(rng, 60)
    parts = [(y, scores), (np.ones(3, int), np.arange(3.0)), (np.empty(0, int), np.empty(0))]
    got = comparing.per_site(evaluation.auc, [a for a, _ in parts], [b for _, b in parts])
    assert got[0] == pytest.approx(roc_auc_score(y, scores)) and np.isnan(got[1:]).all()


def test_the_bootstrap_of_a_mean_has_its_closed_form_width() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    y, a, b = rng.integers(0, 2, 400), rng.uniform(size=400), rng.uniform(size=400)
    got = comparing.bootstrap(y, a, b, evaluation.brier, draws=4000)
    gains = (a - y) ** 2 - (b - y) ** 2
    half = 1.959964 * gains.std() / math.sqrt(400)
    assert got.middle == pytest.approx(gains.mean())
    assert (got.low, got.high) == pytest.approx((gains.mean() - half, gains.mean() + half), abs=0.1 * half)


def test_the_bootstrap_of_an_auc_gain_agrees_with_delong() -> None:
    y, a, b = two_models(np.random.Generator(np.random.PCG64(3)), 500, 0.2)
    got, (gain, low, high) = comparing.bootstrap(y, a, b), evaluation.auc_gain(y, b, a)
    assert got.middle == pytest.approx(gain)
    assert abs(got.low - low) < 0.15 * (high - low) and abs(got.high - high) < 0.15 * (high - low)
    assert comparing.bootstrap(y, a, b) == got != comparing.bootstrap(y, a, b, seed=1)
    assert comparing.bootstrap(y, a, a, draws=20).high == 0.0


def test_rows_of_one_patient_are_drawn_together_as_their_number_says() -> None:
    rng = np.random.Generator(np.random.PCG64(4))
    y, a, b = rng.integers(0, 2, 100), rng.uniform(size=100), rng.uniform(size=100)
    fourfold = [np.tile(part, 4) for part in (y, a, b)]
    patients = [f"p{one}" for one in range(100)] * 4
    brier = partial(comparing.bootstrap, metric=evaluation.brier, draws=2000)
    honest, naive, once = brier(*fourfold, patients=patients), brier(*fourfold), brier(y, a, b)
    assert honest.high - honest.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low == pytest.approx((once.high - once.low) / 2, rel=0.1)


def test_the_bootstrap_covers_no_difference_about_as_often_as_it_says() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    covered = 0
    for _ in range(120):
        got = comparing.bootstrap(*two_models(rng, 80), draws=200)
        covered += got.low <= 0 <= got.high
    assert 0.88 <= covered / 120 <= 1.0


def test_the_corrected_t_with_no_test_rows_is_the_plain_paired_t_of_scipy() -> None:
    gains = np.random.Generator(np.random.PCG64(6)).normal(0.1, 1, 8)
    plain, got = stats.ttest_1samp(gains, 0.0), comparing.corrected_t(gains, 100, 0)
    interval = plain.confidence_interval(0.95)
    assert (got.middle, got.p) == (pytest.approx(gains.mean()), pytest.approx(plain.pvalue))
    assert (got.low, got.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


def test_the_corrected_t_is_wider_by_nadeau_and_bengios_factor_and_errs_less() -> None:
    rng = np.random.Generator(np.random.PCG64(7))
    gains = rng.normal(0.1, 1, 5)
    plain, got = comparing.corrected_t(gains, 70, 0), comparing.corrected_t(gains, 70, 30)
    assert (got.high - got.low) / (plain.high - plain.low) == pytest.approx(math.sqrt((1 / 5 + 3 / 7) / (1 / 5)))
    wrong = {0: 0, 30: 0}
    for _ in range(300):  # means of overlapping random halves of one sample whose true mean is zero
        sample = rng.normal(size=100)
        halves = [rng.permutation(sample)[:30].mean() for _ in range(10)]
        for test in wrong:
            wrong[test] += comparing.corrected_t(halves, 70, test).p < 0.05
    assert wrong[0] > 2 * wrong[30] and wrong[30] / 300 < 0.1


def test_what_does_not_fit_is_misuse_and_one_split_has_no_interval() -> None:
    with pytest.raises(Misuse, match="one score and id"):
        comparing.bootstrap(np.array([0, 1]), np.zeros(2), np.zeros(3))
    with pytest.raises(Misuse, match="training rows"):
        comparing.corrected_t([1.0, 2.0], 0, 1)
    assert math.isnan(comparing.corrected_t([1.0], 7, 3).low)
    assert comparing.corrected_t([0.0, 0.0], 7, 3) == comparing.Interval(0.0, 0.0, 0.0, 1.0)
