"""Who gets which rows, in demos and simulations: iid, Dirichlet label skew, by column, quantity skew. Numpy only.

Everything returns arrays of row indices; no row is given twice and none is left over. A real site never needs this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.tasks.task import Indices

FIT_STEPS = 2000
"""Of proportional fitting; 50 to 500 reach 1e-9 at alpha .1, and what is left over the rounding absorbs."""


def stratified(y: NDArray[Any], share: float, rng: np.random.Generator) -> tuple[Indices, Indices]:
    """(train, test): `share` of every class is held out, rounded to whole rows; both in ascending order."""
    test: list[Indices] = []
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        test.append(members[: round(share * len(members))])
    held_out = np.sort(np.concatenate(test))
    return np.setdiff1d(np.arange(len(y)), held_out), held_out


def skewed_sizes(rows: int, sites: int, ratio: float = 8.0) -> list[int]:
    """Sizes in geometric progression, smallest first, the last `ratio` times the first, summing to `rows`.

    >>> skewed_sizes(398, 5)
    [22, 37, 61, 104, 174]
    """
    weights = np.geomspace(1.0, ratio, sites) if sites > 1 else np.ones(1)
    sizes = whole(weights * (rows / weights.sum()))
    if min(sizes) < 1:
        raise Misuse(f"{rows} rows in {sites} sites at ratio {ratio} leave one empty; ask for fewer sites")
    return [int(size) for size in sizes]


def whole(shares: NDArray[np.float64]) -> Indices:
    """Integers that sum to the (whole) sum of `shares`, each off by less than one: largest remainders get the rest."""
    floor = np.floor(shares + 1e-9)
    order = np.argsort(floor - shares, kind="stable")
    floor[order[: round(float(shares.sum() - floor.sum()))]] += 1
    return floor.astype(np.int64)


def iid(rows: int, sizes: Sequence[int], rng: np.random.Generator) -> list[Indices]:
    """Rows at random; quantity skew is `sizes` from `skewed_sizes`. **Raises**: Misuse unless sizes sum to rows."""
    if sum(sizes) != rows:
        raise Misuse(f"sizes sum to {sum(sizes)}, not to the {rows} rows there are")
    return [np.sort(part) for part in np.split(rng.permutation(rows), np.cumsum(sizes)[:-1])]


def by_column(values: NDArray[Any]) -> dict[str, Indices]:
    """The rows of each distinct value: natural sites, for instance a column that names the hospital."""
    return {str(value): np.flatnonzero(values == value) for value in np.unique(values)}


def dirichlet(
    y: NDArray[Any], sizes: Sequence[int], alpha: float, rng: np.random.Generator, *, least: int = 0
) -> list[Indices]:
    """Label skew with given sizes: site i's class proportions are drawn from Dirichlet(alpha * prior * classes).

    The draws are then scaled so that rows meet `sizes` and columns meet the class counts (proportional fitting keeps
    every odds ratio of the draws, hence their skew). `least` rows of every class go to every site first: with 2, no
    site has a single class, which `table` would refuse and on which AUC is undefined.

    **Randomness**: one Dirichlet a site, one permutation a class.
    **Raises**: Misuse unless sizes sum to the rows and `least` can be met.
    **Source**: Hsu, Qi, Brown, "Measuring the effects of non-identical data distribution" (2019).
    **Differs**: they draw until classes run out, so that late sites get what is left; here sizes and classes are exact.
    """
    labels, codes = np.unique(y, return_inverse=True)
    counts = np.bincount(codes, minlength=len(labels))
    rest_sizes = np.asarray(sizes, dtype=np.int64) - least * len(labels)  # (N,)
    rest_counts = counts - least * len(sizes)  # (C,)
    if sum(sizes) != len(y) or rest_sizes.min() < 0 or rest_counts.min() < 0:
        raise Misuse(
            f"sizes {list(sizes)} of {len(y)} rows cannot hold {least} of each class (counts {counts.tolist()})"
        )
    prior = counts / counts.sum() * len(labels)
    drawn = np.stack([rng.dirichlet(alpha * prior) for _ in sizes]) + 1e-9  # (N, C)
    table = _fit_whole(_fit(drawn, rest_sizes, rest_counts), rest_counts) + least
    parts: list[list[Indices]] = [[] for _ in sizes]
    for code in range(len(labels)):
        members = rng.permutation(np.flatnonzero(codes == code))
        for part, rows in zip(parts, np.split(members, np.cumsum(table[:, code])[:-1]), strict=True):
            part.append(rows)
    return [np.sort(np.concatenate(part)) for part in parts]


def _fit(table: NDArray[np.float64], rows: Indices, columns: Indices) -> NDArray[np.float64]:
    """`table` scaled by rows and columns in turn until its margins are these; rows are exact at the end."""
    for _ in range(FIT_STEPS):
        table = table * (columns / np.maximum(table.sum(axis=0), 1e-300))
        table = table * (rows / np.maximum(table.sum(axis=1), 1e-300))[:, None]
        if np.abs(table.sum(axis=0) - columns).max() < 1e-9:
            break
    return table


def _fit_whole(table: NDArray[np.float64], columns: Indices) -> Indices:
    """Whole numbers near `table` with its row sums and these column sums: rows move where it costs least."""
    rounded = np.stack([whole(row) for row in table])
    while (surplus := rounded.sum(axis=0) - columns).any():
        give, take = int(surplus.argmax()), int(surplus.argmin())
        cost = np.where(
            rounded[:, give] > 0, rounded[:, take] - rounded[:, give] - table[:, take] + table[:, give], np.inf
        )
        site = int(cost.argmin())
        rounded[site, give] -= 1
        rounded[site, take] += 1
    return rounded
