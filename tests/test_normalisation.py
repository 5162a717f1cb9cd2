"""Laws of federated normalisation: what leaves a site, what comes out, and what looks wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from gossipfl.errors import Misuse
from gossipfl.tasks import normalisation as n
from gossipfl.tasks.heart import HOSPITALS, Heart
from gossipfl.tasks.task import Data, pooled


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def data(x: np.ndarray, names: tuple[str, ...] = ()) -> Data:
    return Data(x, np.zeros(len(x)), names=names)


def sites() -> list[Data]:
    parts = [rng(k).normal([5.0, -200.0, 1e4], [2.0, 30.0, 10.0], size=(20 + 30 * k, 3)) for k in range(4)]
    parts[2][::3, 1] = np.nan
    return [data(part) for part in parts]


def mixed(parts: list[Data]) -> np.ndarray:
    return np.mean([n.statistics_vector(k, len(parts), part) for k, part in enumerate(parts)], axis=0)


def test_the_mean_of_all_vectors_gives_the_pooled_mean_and_spread() -> None:
    parts = sites()
    got, everything = n.estimate(mixed(parts), 4), pooled(parts).x
    np.testing.assert_allclose(got.mean, np.nanmean(everything, axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.spread, np.nanstd(everything, axis=0), rtol=1e-7)
    np.testing.assert_allclose(got.count, (~np.isnan(everything)).sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.presence, 1.0)
    assert got.unevenness < 1e-12 and n.absent(got, "abcd") == ()


def test_a_member_that_has_not_mixed_is_seen_as_absent() -> None:
    parts = sites()
    vectors = [n.statistics_vector(k, 4, part) for k, part in enumerate(parts)]
    three = np.mean(vectors[:3], axis=0)
    assert n.absent(n.estimate(three, 4), ["a", "b", "c", "d"]) == ("d",)
    assert n.estimate(vectors[0], 4).unevenness == 3


def test_fewer_than_ten_values_of_a_feature_never_leave() -> None:
    x = np.ones((30, 2))
    x[9:, 0] = np.nan
    count, total, squares = n.site_statistics(data(x))
    assert count.tolist() == [0, 30] and total.tolist() == [0, 30] and squares.tolist() == [0, 30]
    assert not n.statistics_vector(0, 1, data(np.full((9, 3), 7.0)))[1:].any()


def test_a_feature_that_nobody_has_or_that_never_changes_gets_spread_one() -> None:
    x = np.column_stack([np.full(40, np.nan), np.full(40, 0.1), np.full(40, 1e6)])
    got = n.estimate(n.statistics_vector(0, 1, data(x)), 1)
    assert got.spread.tolist() == [1, 1, 1]
    np.testing.assert_allclose(got.mean, [0, 0.1, 1e6])


def test_candidates_of_nodes_that_mixed_almost_fully_coincide() -> None:
    vectors = np.array([n.statistics_vector(k, 4, part) for k, part in enumerate(sites())])
    weights = (1 + 1e-9 * rng(3).normal(size=(2, 4))) / 4  # what mixing leaves: the same error in all sums of a site
    a, b = (n.candidate(n.estimate(row @ vectors, 4)) for row in weights)
    assert a.mean.tolist() == b.mean.tolist() and a.spread.tolist() == b.spread.tolist()
    assert a.count.tolist() == b.count.tolist()


def test_alike_accepts_small_differences_and_no_large_one() -> None:
    a = n.Normaliser(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    assert n.alike(a, n.Normaliser(a.mean + np.array([5e-4, 3e-3]), a.spread))
    assert not n.alike(a, n.Normaliser(a.mean + np.array([0.1, 0]), a.spread))
    assert not n.alike(a, n.Normaliser(a.mean, a.spread * 1.1))
    assert not n.alike(a, n.Normaliser(np.zeros(3), np.ones(3)))


def test_a_missing_value_becomes_the_mean_and_values_are_float32() -> None:
    out = n.Normaliser(np.array([10.0, 1.0]), np.array([2.0, 1.0])).apply(np.array([[14.0, np.nan]]))
    assert out.dtype == np.float32 and out.tolist() == [[2.0, 0.0]]
    assert n.Normaliser.none().apply(np.array([[3.0, np.nan]])).tolist() == [[3.0, 0.0]]


@pytest.mark.parametrize("mean, spread", [([0.0], [0.0]), ([np.nan], [1.0]), ([0.0], [-1.0]), ([0.0], [1.0, 1.0])])
def test_an_impossible_normaliser_cannot_exist(mean: list[float], spread: list[float]) -> None:
    with pytest.raises(Misuse):
        n.Normaliser(np.array(mean), np.array(spread))


def test_a_vector_of_another_length_is_misuse() -> None:
    with pytest.raises(Misuse):
        n.estimate(np.zeros(9), 4)


# ---- what looks wrong ----------------------------------------------------------------------------------------------


def warnings(own: np.ndarray, others: list[np.ndarray]) -> list[str]:
    """Those of the first site, when the federation is that site and the others."""
    parts = [data(own), *map(data, others)]
    state = n.candidate(n.estimate(mixed(parts), len(parts)))
    return [row.warning for row in n.compare(parts[0], state.count, state.mean, state.spread)]


def normal(mean: float, spread: float, seed: int) -> np.ndarray:
    return rng(seed).normal(mean, spread, size=(80, 1))


def test_sites_alike_get_no_warning() -> None:
    assert warnings(normal(5.5, 1, 0), [normal(5.8, 1.2, k) for k in (1, 2, 3)]) == [""]


@pytest.mark.parametrize(
    "factor, says",
    [(18.02, "glucose"), (1 / 18.02, "glucose"), (38.67, "cholesterol"), (88.4, "creatinine"), (1000, "mg")],
)
def test_another_unit_is_named_though_the_site_itself_moved_the_mean(factor: float, says: str) -> None:
    (warning,) = warnings(normal(5.5, 1, 0) * factor, [normal(5.6, 1.1, k) for k in (1, 2)])
    assert says in warning and "scale" in warning


def test_coding_one_two_against_zero_one_is_seen_from_either_side() -> None:
    coded = [rng(k).integers(0, 2, size=(60, 1)).astype(float) for k in range(3)]
    assert "coded 1/2 here" in warnings(coded[0] + 1, coded[1:])[0]
    assert "coded 0/1 here" in warnings(coded[0], [part + 1 for part in coded[1:]])[0]
    assert warnings(coded[0], coded[1:]) == [""]


def test_a_category_that_no_other_site_has_is_seen() -> None:
    own = np.repeat([0.0, 1.0], 20)[:, None]
    assert "no other site has" in warnings(own, [np.zeros((40, 1))] * 2)[0]


def test_sentinels_and_empty_columns_are_seen() -> None:
    spoilt = normal(100, 10, 0)
    spoilt[:8] = -9999
    assert "spread" in warnings(spoilt, [normal(100, 10, k) for k in (1, 2)])[0]
    gaps = np.full((80, 1), np.nan)
    assert "no value" in warnings(gaps, [normal(1, 1, 1)])[0]
    gaps[:9] = 1.0
    assert "only 9 values" in warnings(gaps, [normal(1, 1, 1)])[0]


@pytest.mark.parametrize("factor", [18.02, 38.67, 88.4, 88.4 / 18.02, 3.5, 0.1])
@pytest.mark.parametrize("other", ["as many rows", "few rows", "many rows"])
def test_of_two_sites_in_different_units_both_are_warned(factor: float, other: str) -> None:
    """Each against the other alone: whoever compares with the pooled spread sees what the difference has made of it."""
    size = {"as many rows": 80, "few rows": 12, "many rows": 2000}[other]
    here, there = normal(95, 25, 0).clip(20), rng(1).normal(95, 25, size=(size, 1)).clip(20)
    for own, others in ((here * factor, there), (there, here * factor)):
        (warning,) = warnings(own, [others])
        assert "times above" in warning or "times below" in warning


def test_of_two_sites_coded_differently_both_are_warned_however_many_rows_the_other_has() -> None:
    few, many = (rng(k).integers(0, 2, size=(size, 1)).astype(float) for k, size in ((0, 14), (1, 3000)))
    assert "coded 1/2 here" in warnings(few + 1, [many])[0] and "coded 1/2 here" in warnings(many + 1, [few])[0]
    assert "coded 0/1 here" in warnings(few, [many + 1])[0] and "coded 0/1 here" in warnings(many, [few + 1])[0]


def test_zeros_that_stand_for_not_measured_are_seen() -> None:
    cholesterol = normal(240, 40, 0)
    assert "every value is 0 here" in warnings(np.zeros((40, 1)), [cholesterol])[0]
    spoilt = cholesterol.copy()
    spoilt[:9] = 0
    assert "9 values are 0" in warnings(spoilt, [normal(240, 40, 1), normal(250, 40, 2)])[0]
    counted = rng(3).poisson(2.0, size=(80, 1)).astype(float)
    assert warnings(counted, [rng(4).poisson(2.5, size=(80, 1)).astype(float)]) == [""]


def test_the_study_s_own_minimum_decides_what_this_site_has_added() -> None:
    parts = [data(normal(5, 1, 0)[:15]), data(normal(95, 18, 1))]
    state = n.candidate(n.estimate(np.mean([n.statistics_vector(k, 2, p, 20) for k, p in enumerate(parts)], axis=0), 2))
    (row,) = n.compare(parts[0], state.count, state.mean, state.spread, 20)
    assert "only 15 values: fewer than 20" in row.warning


def test_of_the_four_real_hospitals_only_the_hidden_missing_values_are_named() -> None:
    """Cholesterol 0 (all of Switzerland, 22 training rows of Long Beach), and one resting blood pressure of 0."""
    folder = Path(os.environ.get("GOSSIPFL_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "uci-heart").is_dir():
        pytest.skip(f"{folder}/uci-heart is not there")
    parts = [Heart().data({"hospital": name, "data_dir": str(folder)}) for name in HOSPITALS]
    state = n.candidate(n.estimate(mixed(parts), 4))
    said = {
        (name, row.feature): row.warning
        for name, part in zip(HOSPITALS, parts, strict=True)
        for row in n.compare(part, state.count, state.mean, state.spread)
        if row.warning
    }
    assert set(said) == {("switzerland", "cholesterol"), ("va", "cholesterol"), ("va", "resting blood pressure")}
    assert all("not measured" in warning for warning in said.values())


# ---- what no rows can have made --------------------------------------------------------------------------------------


RANGES: tuple[n.Range, ...] = ((18.0, 110.0), (0.0, 1.0), None)
NAMES = ("age", "sex=m", "anything")


def honest(rows: int = 80) -> np.ndarray:
    x = rng(1).uniform([18, 0, -1e9], [110, 1, 1e9], size=(rows, 3))
    return n.statistics_vector(0, 2, data(x))


def test_what_members_within_the_ranges_have_is_never_absurd_also_where_exchanges_overlapped() -> None:
    mine, other = honest(), n.statistics_vector(1, 2, data(rng(2).uniform([18, 0, -1e9], [110, 1, 1e9], size=(90, 3))))
    for mixed_vector in (mine, (mine + other) / 2, 1.5 * other - 0.5 * mine):
        assert not n.absurdity(mixed_vector, 2, NAMES, RANGES, 100.0)
        assert not n.absurdity(mixed_vector, 2, NAMES, (), np.inf)


@pytest.mark.parametrize(
    "place, value, says",
    [(0, 50.0, "share"), (2, 1e5, "count of 1e+05 for age"), (5, 1e7, "sum of 1e+07 for age"), (9, -1e9, "squares")],
)
def test_what_no_member_can_have_is_named(place: int, value: float, says: str) -> None:
    vector = honest()
    vector[place] = value
    assert says in n.absurdity(vector, 2, NAMES, RANGES, 100.0)


def test_a_mean_that_the_study_s_range_does_not_allow_is_named_to_the_site() -> None:
    own = data(rng(0).uniform(18, 110, size=(60, 1)), ("age",))
    count, spread = np.array([120.0]), np.array([20.0])
    (wrong,) = n.compare(own, count, np.array([250.0]), spread, ranges=RANGES[:1])
    (right,) = n.compare(own, count, np.array([60.0]), np.array([26.0]), ranges=RANGES[:1])
    assert "cannot come of values from 18 to 110" in wrong.warning and not right.warning
    (wide,) = n.compare(own, count, np.array([60.0]), np.array([400.0]), ranges=RANGES[:1])
    assert "cannot come" in wide.warning
