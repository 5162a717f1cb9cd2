"""How good a model is: metrics of labels and scores, with intervals. Own numpy; no model, no data, no randomness.

A metric that the data do not define (AUC where only one class is present) is NaN, never a guess; so is every metric of a
model that has diverged. Comparisons of models, over patients, splits and nodes, are in learning/comparing.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse

Floats = NDArray[np.float64]

TINY: Final = 1e-15
"""A risk is kept this far from 0 and 1, so that one sure and wrong prediction does not make the loss infinite."""


def mean_ranks(values: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of theirs.

    >>> mean_ranks(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def auc(y: NDArray[Any], scores: Floats) -> float:
    """The chance that a positive scores above a negative, ties counted half; NaN where a class is absent.

    **Shapes**: y (n,) of 0 and 1, scores (n,) in any monotone unit.
    """
    positive = _positive(y, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n or np.isnan(scores).any():
        return math.nan
    return float((mean_ranks(scores)[positive].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(y: NDArray[Any], scores: Floats, level: float = 0.95) -> tuple[float, float]:
    """The interval of `auc` at `level`, cut to [0, 1]; NaN where a class has fewer than two rows.

    var = var(V10) / m + var(V01) / n, where V10, V01 are each row's share of pairs won (structural components).

    **Source**: DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves" (1988);
    components from ranks as in Sun, Xu, "Fast implementation of DeLong's algorithm" (2014).
    """
    middle, low, high = _interval(*_components(y, scores), level)
    return (max(0.0, low), min(1.0, high)) if math.isfinite(middle) else (math.nan, math.nan)


def auc_gain(y: NDArray[Any], before: Floats, after: Floats, level: float = 0.95) -> tuple[float, float, float]:
    """(auc(after) - auc(before), its interval) on the same rows: narrower than two intervals suggest, for the models err
    alike. NaN where a class has fewer than two rows. **Source**: as `auc_interval`, with the components' differences."""
    won, lost = _components(y, before)
    won_after, lost_after = _components(y, after)
    return _interval(won_after - won, lost_after - lost, level)


def _components(y: NDArray[Any], scores: Floats) -> tuple[Floats, Floats]:
    """Each positive's and each negative's share of pairs won: (m,), (n,). Their means are the AUC."""
    positive = _positive(y, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n or np.isnan(scores).any():
        return np.full(m, math.nan), np.full(n, math.nan)
    ranks = mean_ranks(scores)
    won = (ranks[positive] - mean_ranks(scores[positive])) / n  # (m,)
    lost = 1 - (ranks[~positive] - mean_ranks(scores[~positive])) / m  # (n,)
    return won, lost


def _interval(won: Floats, lost: Floats, level: float) -> tuple[float, float, float]:
    if len(won) < 2 or len(lost) < 2:
        return math.nan, math.nan, math.nan
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(won.var(ddof=1) / len(won) + lost.var(ddof=1) / len(lost))
    middle = float(won.mean())
    return middle, middle - half, middle + half


def accuracy(y: NDArray[Any], scores: Floats) -> float:
    """The share predicted right: at risk 1/2 for scores (n,), by the largest score for (n, C)."""
    if np.isnan(scores).any():
        return math.nan
    predicted = scores >= 0.5 if scores.ndim == 1 else scores.argmax(axis=1)
    return float((predicted == y).mean()) if len(y) else math.nan


def brier(y: NDArray[Any], risks: Floats) -> float:
    """Mean of (risk - y)^2."""
    return float(((risks - y) ** 2).mean()) if len(y) else math.nan


def log_loss(y: NDArray[Any], risks: Floats) -> float:
    """Mean of -log of the risk given to what happened. **Shapes**: risks (n,) or (n, C)."""
    if not len(y):
        return math.nan
    given = np.where(y == 1, risks, 1 - risks) if risks.ndim == 1 else risks[np.arange(len(y)), y.astype(np.int64)]
    return float(-np.log(np.clip(given, TINY, 1.0)).mean())


def calibration_in_the_large(y: NDArray[Any], risks: Floats) -> float:
    """Observed minus predicted mean risk: 0 is right, above 0 too low a prediction."""
    return float(y.mean() - risks.mean()) if len(y) else math.nan


def macro_auc(y: NDArray[Any], scores: Floats) -> float:
    """The mean over classes of one-against-the-rest AUC, of the classes that are present beside others.

    **Shapes**: y (n,) of 0 .. C-1, scores (n, C).
    """
    areas = [auc((y == c).astype(np.int64), scores[:, c]) for c in range(scores.shape[1]) if (y == c).any()]
    return float(np.mean(areas)) if areas else math.nan


def binary(y: NDArray[Any], risks: Floats) -> dict[str, float]:
    """All metrics of a model with two classes."""
    low, high = auc_interval(y, risks)
    return {
        "auc": auc(y, risks),
        "auc_low": low,
        "auc_high": high,
        "accuracy": accuracy(y, risks),
        "brier": brier(y, risks),
        "log_loss": log_loss(y, risks),
        "calibration": calibration_in_the_large(y, risks),
    }


def multiclass(y: NDArray[Any], chances: Floats) -> dict[str, float]:
    """All metrics of a model with more classes."""
    return {"accuracy": accuracy(y, chances), "auc": macro_auc(y, chances), "log_loss": log_loss(y, chances)}


LABELS: Final = {"auc": "AUC", "brier": "Brier score"}


def label(metric: str) -> str:
    """A metric's name as people write it.

    >>> label("auc"), label("log_loss")
    ('AUC', 'log loss')
    """
    return LABELS.get(metric, metric.replace("_", " "))


def figures(metrics: Mapping[str, float | None]) -> dict[str, str]:
    """Metrics as a person reads them: label -> figure, an interval beside the figure that it belongs to.

    >>> figures({"auc": 0.8211, "auc_low": 0.7144, "auc_high": 0.9279, "brier": 0.164})
    {'AUC': '0.8211 (0.714 to 0.928)', 'Brier score': '0.1640'}
    """
    said = {}
    for name, value in metrics.items():
        if name.removesuffix("_low") in metrics and name.endswith("_low"):
            continue
        if name.removesuffix("_high") in metrics and name.endswith("_high"):
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        known = value is not None and math.isfinite(value)
        both = low is not None and high is not None and math.isfinite(low) and math.isfinite(high)
        said[label(name)] = ("-" if not known else f"{value:.4f}") + (f" ({low:.3f} to {high:.3f})" if known and both else "")
    return said


def _positive(y: NDArray[Any], scores: Floats) -> NDArray[np.bool_]:
    if y.shape != scores.shape or y.ndim != 1:
        raise Misuse(f"one score a label: got shapes {y.shape} and {scores.shape}")
    return np.asarray(y == 1)
