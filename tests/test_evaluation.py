"""Laws of the metrics; scikit-learn and the plain pairwise sum are the oracles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle

from gossipfl.errors import Misuse
from gossipfl.learning import evaluation

LABELS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 8)), min_size=2, max_size=40)


def arrays(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    y, scores = np.array(rows).T
    return y, scores / 8.0


@settings(max_examples=60, deadline=None)
@given(LABELS)
def test_metrics_agree_with_scikit_learn_with_ties(rows: list[tuple[int, int]]) -> None:
    y, risks = arrays(rows)
    assert evaluation.accuracy(y, risks) == pytest.approx(oracle.accuracy_score(y, risks >= 0.5))
    assert evaluation.brier(y, risks) == pytest.approx(float(np.mean((risks - y) ** 2)))
    unsure = 0.01 + 0.98 * risks
    assert evaluation.log_loss(y, unsure) == pytest.approx(oracle.log_loss(y, unsure, labels=[0, 1]))
    if len(set(y)) == 2:
        assert evaluation.auc(y, risks) == pytest.approx(oracle.roc_auc_score(y, risks))
    else:
        assert math.isnan(evaluation.auc(y, risks))


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_delong_from_ranks_equals_delong_from_pairs(rows: list[tuple[int, int]]) -> None:
    y, risks = arrays(rows)
    a, b = risks[y == 1], risks[y == 0]
    low, high = evaluation.auc_interval(y, risks)
    if min(len(a), len(b)) < 2:
        assert math.isnan(low) and math.isnan(high)
        return
    won = (a[:, None] > b) + 0.5 * (a[:, None] == b)  # (m, n)
    error = math.sqrt(won.mean(axis=1).var(ddof=1) / len(a) + won.mean(axis=0).var(ddof=1) / len(b))
    assert low == pytest.approx(max(0.0, won.mean() - 1.959964 * error), abs=1e-6)
    assert high == pytest.approx(min(1.0, won.mean() + 1.959964 * error), abs=1e-6)


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says() -> None:
    rng = np.random.Generator(np.random.PCG64(5))
    truth, covered = 0.7602, 0  # Phi(1 / sqrt 2): normals one standard deviation apart
    for _ in range(400):
        y = np.repeat([0, 1], [60, 60])
        low, high = evaluation.auc_interval(y, rng.normal(size=120) + y)
        covered += low <= truth <= high
    assert 0.91 <= covered / 400 <= 0.98


def test_any_monotone_change_of_scores_leaves_auc_alone() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    y, scores = rng.integers(0, 2, 50), rng.normal(size=50)
    assert evaluation.auc(y, scores) == evaluation.auc(y, np.exp(3 * scores))
    assert evaluation.auc(y, scores) == pytest.approx(1 - evaluation.auc(y, -scores))


def test_macro_auc_and_accuracy_of_many_classes_agree_with_scikit_learn() -> None:
    rng = np.random.Generator(np.random.PCG64(2))
    y, chances = rng.integers(0, 4, 200), rng.dirichlet(np.ones(4), 200)
    got = evaluation.multiclass(y, chances)
    assert got["auc"] == pytest.approx(oracle.roc_auc_score(y, chances, multi_class="ovr", average="macro"))
    assert got["accuracy"] == pytest.approx(oracle.accuracy_score(y, chances.argmax(axis=1)))
    assert got["log_loss"] == pytest.approx(oracle.log_loss(y, chances))


def test_risks_that_are_too_low_show_as_calibration_above_zero() -> None:
    assert evaluation.calibration_in_the_large(np.array([0, 1]), np.array([0.1, 0.3])) == pytest.approx(0.3)


def test_a_sure_and_wrong_prediction_has_a_finite_loss() -> None:
    assert math.isfinite(evaluation.log_loss(np.array([1]), np.array([0.0])))


def test_scores_that_do_not_fit_the_labels_are_misuse() -> None:
    with pytest.raises(Misuse, match="one score a label"):
        evaluation.auc(np.array([0, 1]), np.zeros((2, 2)))


def test_the_gain_of_one_model_over_another_is_the_difference_and_its_interval_covers_the_truth() -> None:
    rng = np.random.Generator(np.random.PCG64(6))
    y = np.repeat([0, 1], [60, 60])
    covered, narrower = 0, 0
    for _ in range(300):
        shared = rng.normal(size=120)  # the two err alike, as two models on the same patients do
        before, after = (shared + shift * y + 0.3 * rng.normal(size=120) for shift in (1.0, 1.0))
        gain, low, high = evaluation.auc_gain(y, before, after)
        assert gain == pytest.approx(evaluation.auc(y, after) - evaluation.auc(y, before))
        covered += low <= 0.0 <= high
        narrower += high - low < np.diff(evaluation.auc_interval(y, after))[0]
    assert 0.90 <= covered / 300 <= 0.99 and narrower == 300
    assert evaluation.auc_gain(y, before, before) == (0.0, 0.0, 0.0)
    assert all(map(math.isnan, evaluation.auc_gain(np.ones(5, int), np.arange(5.0), np.arange(5.0))))
