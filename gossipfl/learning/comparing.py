"""Is one model better than another: over patients, over splits, over nodes. Own arithmetic on metrics; no model, no data.

For a single AUC and the gain of one over another on the same rows there is DeLong, in learning/evaluation.py.
A model that has diverged is NaN, and so is every mean and worst that it is part of: nothing is averaged away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.learning import evaluation
from gossipfl.learning.evaluation import Floats

LOWER_IS_BETTER: Final = ("brier", "log_loss", "loss", "error")
"""Metrics of which the largest value is the worst."""

Metric = Callable[[NDArray[Any], Floats], float]


@dataclass(frozen=True)
class Spread:
    """One metric over the nodes of a federation, or over sites."""

    worst: float
    low: float
    """the 5th percentile from the worst on: 5 % of the nodes are no better"""
    median: float
    mean: float
    best: float
    count: int


def spread(values: Sequence[float] | Floats, metric: str = "auc") -> Spread:
    """Worst, 5th percentile (linear between nodes), median, mean and best; all NaN where one value is, or there is none."""
    given = np.asarray(values, dtype=np.float64)
    if not len(given) or np.isnan(given).any():
        return Spread(math.nan, math.nan, math.nan, math.nan, math.nan, len(given))
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    worst, low, median, best = (sign * np.quantile(sign * given, [0, 0.05, 0.5, 1])).tolist()
    return Spread(worst, low, median, float(given.mean()), best, len(given))


def per_site(metric: Metric, y: Sequence[NDArray[Any]], scores: Sequence[Floats]) -> Floats:
    """The metric on each site's own rows: NaN where they do not define it (no row; AUC of one class). **Shapes**: (sites,)."""
    return np.array([metric(*pair) if len(pair[0]) else math.nan for pair in zip(y, scores, strict=True)], dtype=np.float64)


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval; `p` is two-sided, against no difference, where the method gives one."""

    middle: float
    low: float
    high: float
    p: float = math.nan


def bootstrap(
    y: NDArray[Any],
    scores: Floats,
    other: Floats,
    metric: Metric = evaluation.auc,
    *,
    patients: Sequence[str] = (),
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """metric(scores) - metric(other), and its percentile interval over patients drawn with replacement, the same for both.

    All rows of a patient are drawn together. Draws on which the metric is not defined are left out; NaN where they are more
    than a tenth, or a model has diverged.

    **Shapes**: y (n,), scores and other (n,) or (n, C), patients n ids or none: every row is a patient.
    **Randomness**: PCG64 of `seed`.
    **Source**: Efron, Tibshirani, "An introduction to the bootstrap" (1993), chapter 13; clusters as in its chapter 8.
    """
    if not len(y) == len(scores) == len(other) or (patients and len(patients) != len(y)):
        raise Misuse(f"one score and id a label: got {len(y)} labels, {len(scores)} and {len(other)} scores, {len(patients)} ids")
    middle = metric(y, scores) - metric(y, other)
    _, at = np.unique(np.array(patients, dtype=str) if patients else np.arange(len(y)), return_inverse=True)
    order = np.argsort(at, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(at))[:-1])
    rng = np.random.Generator(np.random.PCG64(seed))
    gains = []
    for _ in range(draws):
        drawn = rng.integers(0, len(groups), len(groups))
        rows = order[drawn] if len(groups) == len(y) else np.concatenate([groups[one] for one in drawn])
        gains.append(metric(y[rows], scores[rows]) - metric(y[rows], other[rows]))
    known = np.array(gains)[~np.isnan(gains)]
    if math.isnan(middle) or len(known) < 0.9 * draws:
        return Interval(middle, math.nan, math.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return Interval(middle, low, high)


def corrected_t(differences: Sequence[float] | Floats, train: float, test: float, level: float = 0.95) -> Interval:
    """The mean of paired differences over k random splits, with the interval and p of the corrected resampled t-test.

    Its variance is (1/k + test/train) s^2, k - 1 degrees of freedom: splits of the same rows overlap, and the plain t-test,
    (1/k) s^2, would find what is not there. `train` and `test` are the rows of one split, or their shares.

    NaN where a difference is, or k < 2. Differences that are all the same have an interval without width.

    **Source**: Nadeau, Bengio, "Inference for the generalization error" (Machine Learning, 2003).
    """
    from scipy import stats

    given = np.asarray(differences, dtype=np.float64)
    if not train > 0 or test < 0:
        raise Misuse(f"corrected_t() takes training rows above 0 and test rows of 0 or more; got {train} and {test}")
    if len(given) < 2 or np.isnan(given).any():
        return Interval(math.nan, math.nan, math.nan)
    middle, error = float(given.mean()), math.sqrt((1 / len(given) + test / train) * given.var(ddof=1))
    if error == 0.0:
        return Interval(middle, middle, middle, 1.0 if middle == 0.0 else 0.0)
    half = float(stats.t.ppf((1 + level) / 2, len(given) - 1)) * error
    return Interval(middle, middle - half, middle + half, float(2 * stats.t.sf(abs(middle) / error, len(given) - 1)))
