"""Federated normalisation: a site's sums in, the federation's mean and spread out, and where the two disagree.

No row and no value of a row leaves: only a count, a sum and a sum of squares per feature, each from ten or more values.
Who is asked, and how the vectors are mixed, is the protocol's business; here is only arithmetic, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Misuse
from gossipfl.tasks.task import Data, Floats

MINIMUM: Final = 10
"""Values of a feature below which a site adds nothing: the sums over one or two patients are their rows."""

DIGITS: Final = 6
"""Significant digits of a candidate: mixing leaves 1e-8 and less, so that the candidates of all nodes coincide.
Mixing weighs all sums of one site alike, so what it leaves is not magnified where spread is small beside mean."""

ROUNDING: Final = 1e-5
"""Relative error that a square of such a candidate can have."""

FLAT: Final = 1e-6
"""A spread below this share of the mean is rounding of a constant (sum of squares minus square of sum): taken as 1."""

FACTORS: Final = {
    18.02: "glucose, mg/dL against mmol/L",
    38.67: "cholesterol, mg/dL against mmol/L",
    88.4: "creatinine, umol/L against mg/dL",
    10.0: "a power of ten, for instance g/L against g/dL, or mm against cm",
    100.0: "a power of ten, for instance a share against per cent, or cm against m",
    1000.0: "a power of ten, for instance g against mg",
}
"""Ratios that two units of one quantity have, largest over smallest."""

STRANGE: Final = 3.0
"""Means this many times apart, spreads too, are worth a word though no known pair of units differs so: a scale may be wrong."""

KINDS: Final = 5
"""Fewer kinds of values than these are codes, not measurements."""


@dataclass(frozen=True, eq=False)
class Normaliser:
    """The study's frozen preprocessing: (x - mean) / spread, and 0, which is the mean, where a value is missing.

    Without features (a task that does not standardise) values pass unchanged, and a missing one is 0.
    """

    mean: Floats
    spread: Floats

    def __post_init__(self) -> None:
        mean, spread = (np.array(value, dtype=np.float64) for value in (self.mean, self.spread))
        if mean.shape != spread.shape or mean.ndim != 1:
            raise Misuse(f"mean and spread are one value a feature; got shapes {mean.shape} and {spread.shape}")
        if not (np.isfinite(mean).all() and np.isfinite(spread).all() and (spread > 0).all()):
            raise Misuse("a mean is not finite, or a spread not above 0")
        for name, array in {"mean": mean, "spread": spread}.items():
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    @classmethod
    def none(cls) -> Normaliser:
        return cls(np.empty(0), np.empty(0))

    def apply(self, x: Floats) -> NDArray[np.float32]:
        """**Shapes**: (n, d) -> (n, d). The same bits on any machine: one ufunc at a time in float64, rounded once."""
        if not len(self.mean):
            return np.nan_to_num(x, nan=0.0).astype(np.float32)
        if x.shape[-1] != len(self.mean):
            raise Misuse(f"rows of {x.shape[-1]} features and statistics of {len(self.mean)}")
        centred = np.subtract(x, self.mean)
        return np.nan_to_num(np.divide(centred, self.spread), nan=0.0).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Estimate:
    """What a mixed statistics vector says. **Shapes**: presence (N,), the others (d,)."""

    presence: Floats
    """one a member: 1 when its rows are in, and fully mixed; 0 when nothing of it has come"""
    count: Floats
    """values of the whole federation"""
    mean: Floats
    spread: Floats

    @property
    def unevenness(self) -> float:
        """How far mixing is from done: the largest distance of a presence from 1."""
        return float(np.abs(self.presence - 1).max(initial=0.0))

    @property
    def normaliser(self) -> Normaliser:
        return Normaliser(self.mean, self.spread)


def site_statistics(data: Data, minimum: int = MINIMUM) -> tuple[Floats, Floats, Floats]:
    """(n, sum, sum of squares) per feature, of the values that are there; all zero below `minimum` of them.

    **Shapes**: three of (d,), float64.
    """
    there = ~np.isnan(data.x)
    enough = there.sum(axis=0) >= minimum
    values = np.where(there & enough, data.x, 0.0)
    return np.where(enough, there.sum(axis=0), 0).astype(np.float64), values.sum(axis=0), np.square(values).sum(axis=0)


def statistics_size(n_members: int, n_features: int) -> int:
    """Length of a statistics vector."""
    return n_members + 3 * n_features


def statistics_vector(member_index: int, n_members: int, data: Data, minimum: int = MINIMUM) -> Floats:
    """One member's vector before mixing: [one coordinate a member, in id order][n][sum][sum of squares], float64.

    Mixed with mass 1 and gamma 1, every vector tends to the mean over members: presence 1/N, and sums / N.
    """
    if not 0 <= member_index < n_members:
        raise Misuse(f"member {member_index} of {n_members}: it is counted from 0 in the order of the ids")
    presence = np.zeros(n_members)
    presence[member_index] = 1.0
    return np.concatenate([presence, *site_statistics(data, minimum)])


def estimate(vector: Floats, members: int) -> Estimate:
    """What the vector says now: means are ratios of mixed sums, so they are useful long before mixing ends.

    Mean 0 and spread 1 where nobody has ten values; spread 1 where all values are alike.

    **Raises**: Misuse on a length that is not members + 3 * features.
    """
    d, left_over = divmod(len(vector) - members, 3)
    if d < 0 or left_over:
        raise Misuse(f"{len(vector)} values are no statistics of {members} members")
    n, total, squares = vector[members:].reshape(3, d)
    known = n > 1e-9
    divisor = np.where(known, n, 1.0)
    mean = np.where(known, total / divisor, 0.0)
    variance = np.where(known, squares / divisor - mean * mean, 0.0)
    flat = variance <= np.maximum((FLAT * mean) ** 2, 1e-300)
    spread = np.where(flat, 1.0, np.sqrt(np.where(flat, 1.0, variance)))
    return Estimate(vector[:members] * members, n * members, mean, spread)


def absent(state: Estimate, members: Sequence[str], share: float = 0.5) -> tuple[str, ...]:
    """The members of whose rows less than `share` has come."""
    return tuple(member for member, there in zip(members, state.presence, strict=True) if there < share)


def round6(values: Floats) -> Floats:
    """Each value at six significant digits: what candidates publish, so that those of all nodes coincide.

    >>> round6(np.array([1234567.0, 0.012345678])).tolist()
    [1234570.0, 0.0123457]
    """
    return np.array([float(f"{value:.{DIGITS}g}") for value in values], dtype=np.float64)


def candidate(state: Estimate) -> Estimate:
    """`state` as it is published: counts whole, mean and spread at six digits."""
    return Estimate(state.presence, np.rint(state.count), round6(state.mean), round6(state.spread))


def alike(a: Normaliser, b: Normaliser, tolerance: float = 1e-3) -> bool:
    """Do two candidates agree: every mean within `tolerance` spreads, every spread within that share of itself?"""
    if a.mean.shape != b.mean.shape:
        return False
    scale = np.minimum(a.spread, b.spread) * tolerance
    return bool((np.abs(a.mean - b.mean) <= scale).all() and (np.abs(a.spread - b.spread) <= scale).all())


def own_normaliser(data: Data, minimum: int = 2) -> Normaliser:
    """Mean and spread of these rows alone: what a site has without a federation, and pooled rows have."""
    state = estimate(statistics_vector(0, 1, data, minimum), 1)
    return Normaliser(state.mean, state.spread)


# ---- own against the federation's ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One feature at this site beside the federation; `warning` is empty where nothing looks wrong."""

    feature: str
    own_count: int
    own_mean: float
    own_spread: float
    mean: float
    spread: float
    warning: str = ""


Range = tuple[float, float] | None
"""Lowest and highest value that the study lets a feature have; None: it says nothing."""

ABSURD: Final = 10.0
"""How many times what any member can have is refused. Mixed vectors leave the hull of the members' own a little where
exchanges overlap: by a factor of two, never ten."""


def absurdity(vector: Floats, members: int, names: Sequence[str], ranges: Sequence[Range], most: float) -> str:
    """What in a peer's statistics vector no members' rows can have made, by the study's ranges and the declared counts; empty
    where nothing is. `most`: the largest declared count, infinity where a member has declared none."""
    d = len(names)
    reach = np.array([math.inf if one is None else max(abs(one[0]), abs(one[1])) for one in ranges or [None] * d])
    rows = np.full(d, ABSURD * most)
    reach, rows = np.where(reach == 0, 1.0, reach), np.maximum(rows, 1.0)
    parts = vector[members:].reshape(3, d)
    if (np.abs(vector[:members]) > ABSURD).any():
        return f"a member's share of {np.abs(vector[:members]).max():.3g}, at most 1 is possible"
    for row, limit, what in zip(parts, (rows, rows * reach, rows * reach**2), ("count", "sum", "sum of squares"), strict=True):
        beyond = np.flatnonzero(np.abs(row) > limit)
        if len(beyond):
            k = int(beyond[0])
            return f"a {what} of {row[k]:.3g} for {names[k]}, ten times what the study's ranges and declared counts allow"
    return ""


def compare(
    own: Data, count: Floats, mean: Floats, spread: Floats, minimum: int = MINIMUM, ranges: Sequence[Range] = ()
) -> list[Comparison]:
    """The table that a site sees before training, one row a feature.

    The site is compared with the *others*, the federation less its own sums: else a wrong unit hides in the mean that
    it has itself moved. `minimum` is the study's, below which this site has added nothing.
    """
    n, total, squares = site_statistics(own, minimum=1)
    shared = site_statistics(own, minimum)
    everybody = count, mean * count, (spread * spread + mean * mean) * count
    others = [whole - mine for whole, mine in zip(everybody, shared, strict=True)]
    names = own.names or tuple(f"column {k}" for k in range(len(n)))
    rows = []
    for k, name in enumerate(names):
        values = own.x[~np.isnan(own.x[:, k]), k]
        mine = _moments(n[k], total[k], squares[k], 0.0)
        rest = _moments(others[0][k], others[1][k], others[2][k], ROUNDING * everybody[2][k])
        warning = _range_warning(float(mean[k]), float(spread[k]), ranges[k] if ranges else None)
        warning = warning or _count_warning(len(values), len(own), minimum) or _warning(values, mine, rest, minimum)
        rows.append(Comparison(name, len(values), mine.mean, mine.spread, float(mean[k]), float(spread[k]), warning))
    return rows


@dataclass(frozen=True)
class _Moments:
    n: float
    mean: float
    spread: float
    least: float
    most: float
    """the spread lies between these: rounding leaves that much of a difference of large sums"""


def _moments(n: float, total: float, squares: float, blur: float) -> _Moments:
    if n < 0.5:
        return _Moments(0.0, 0.0, 0.0, 0.0, 0.0)
    mean = float(total / n)
    variance = max(float(squares / n) - mean * mean, 0.0)
    doubt = float(blur / n)
    least, most = math.sqrt(max(variance - doubt, 0.0)), math.sqrt(variance + doubt)
    return _Moments(float(n), mean, math.sqrt(variance), least, most)


def _range_warning(mean: float, spread: float, allowed: Range) -> str:
    """Values between two bounds have their mean there, and a spread of at most half the distance (Popoviciu)."""
    if allowed is None:
        return ""
    low, high = allowed
    if low - ROUNDING * abs(low) <= mean <= high + ROUNDING * abs(high) and spread <= max(1.0, (high - low) / 2) * (1 + 1e-3):
        return ""
    return (
        f"mean {mean:.4g} and spread {spread:.4g} of the federation cannot come of values from {low:g} to {high:g}: some "
        f"member's sums are wrong; compare the sites' own figures before you train, and begin a new study"
    )


def _count_warning(there: int, rows: int, minimum: int) -> str:
    if not there:
        return "no value at this site: the federation's mean stands in; check the column map if you do record it"
    if there < minimum:
        return f"only {there} values: fewer than {minimum} are not added to the federation's statistics"
    if 2 * there < rows:
        return f"{rows - there} of {rows} rows have no value here; check the sentinel values"
    return ""


def _warning(values: Floats, own: _Moments, others: _Moments, minimum: int) -> str:
    if others.n < minimum:
        return ""
    kinds = set(np.unique(values).tolist())
    if kinds <= {1.0, 2.0} and 2.0 in kinds and _is_zero_one(others, 0.0):
        return "coded 1/2 here and 0/1 elsewhere: map the codes in node.toml"
    if kinds <= {0.0, 1.0} and 0.0 in kinds and _is_zero_one(others, 1.0):
        return "coded 0/1 here and 1/2 elsewhere: ask the other hospitals, or map the codes in node.toml"
    if kinds <= {0.0, 1.0} and (len(kinds) > 1 or 0 <= others.mean <= 1):
        nobody_else = own.mean > 0 and abs(others.mean) < 1e-4 and others.spread < 0.01
        return "a category or finding that no other site has: check its code" if nobody_else else ""
    return _unit_warning(own, others) or _distance_warning(own, others) or _zero_warning(values)


def _is_zero_one(others: _Moments, shift: float) -> bool:
    """Less `shift`, are they 0/1? Such values alone have E[x^2] = E[x], hence variance p (1 - p); all 0 or all 1 say
    nothing of the coding."""
    p = others.mean - shift
    doubt = 1e-3 + others.most**2 - others.spread**2
    return 1e-4 < p < 1 - 1e-4 and abs(others.spread**2 - p * (1 - p)) < doubt


def _unit_warning(own: _Moments, others: _Moments) -> str:
    """A known factor between the means (within 30 %), with a spread that is off by the same (within a factor of 2).

    Or an unknown one, three or more: then mean and spread are off alike, and the means lie apart by more than the wider
    spread, measured at one site; the pooled spread would be as wide as the difference that is looked for."""
    if own.mean <= 0 or others.mean <= 0:
        return ""
    ratio = own.mean / others.mean
    larger = max(ratio, 1 / ratio)
    which = "above" if ratio > 1 else "below"
    factor = min(FACTORS, key=lambda f: abs(math.log(larger / f)))
    if abs(math.log(larger / factor)) <= math.log(1.3) and _spread_fits(own, others, factor if ratio > 1 else 1 / factor, 2):
        return f"about {factor:g} times {which} the other sites: another unit? ({FACTORS[factor]}); set scale in node.toml"
    apart = abs(own.mean - others.mean) > (own.spread if ratio > 1 else others.least)
    if larger >= STRANGE and apart and _spread_fits(own, others, ratio, 3):
        return f"about {larger:.2g} times {which} the other sites, the spread too: another unit, or a wrong scale in node.toml?"
    return ""


def _spread_fits(own: _Moments, others: _Moments, factor: float, slack: float) -> bool:
    """Can own.spread / (factor * others.spread) lie between 1/slack and slack?"""
    return own.least <= slack * factor * others.most and own.most >= factor * others.least / slack


def _distance_warning(own: _Moments, others: _Moments) -> str:
    """Far apart in units of the narrower spread of the two: the wider one may be wide by the very fault."""
    if own.spread == 0 and abs(own.mean - others.mean) > others.most:
        return f"every value is {own.mean:g} here, elsewhere they differ: a code for not measured? list it in missing_in"
    if abs(own.mean - others.mean) > 4 * min(own.spread, others.most):
        return "the mean is more than four spreads from the other sites': check unit and coding"
    if own.least > 10 * others.most or others.least > 10 * own.most:
        return "the spread differs more than ten times from the other sites': check for outliers and sentinel values"
    return ""


def _zero_warning(values: Floats) -> str:
    """Zeros that stand apart from all other values, which begin further from 0 than they are wide."""
    rest = values[values != 0]
    zeros = len(values) - len(rest)
    if not zeros or len(np.unique(rest)) < KINDS or np.abs(rest).min() <= max(rest.std(), np.abs(rest).mean() / 4):
        return ""
    said = "one value is 0" if zeros == 1 else f"{zeros} values are 0"
    return f"{said}, the next is {np.abs(rest).min():g}: a code for not measured? list it in missing_in"
