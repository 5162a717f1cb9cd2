"""Laws of partitioners and of a site's hold-out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import Misuse
from gossipfl.tasks import partition
from gossipfl.tasks.split import split
from gossipfl.tasks.task import Data


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def assert_parts_every_row_once(parts: list[np.ndarray], rows: int) -> None:
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.integers(2, 6), st.sampled_from([0.05, 0.3, 5.0]))
def test_dirichlet_gives_each_row_once_in_the_sizes_asked_for(
    seed: int, sites: int, classes: int, alpha: float
) -> None:
    y = rng(seed).permutation(np.arange(400) % classes)
    sizes = partition.skewed_sizes(400, sites)
    least = 1 if min(sizes) > 2 * classes else 0
    parts = partition.dirichlet(y, sizes, alpha, rng(seed), least=least)
    assert_parts_every_row_once(parts, 400)
    assert [len(part) for part in parts] == sizes
    assert all(np.bincount(y[part], minlength=classes).min() >= least for part in parts)


def test_a_small_alpha_skews_labels_more_than_a_large_one() -> None:
    y = np.arange(1000) % 2

    def skew(alpha: float) -> float:
        shares = [y[p].mean() for s in range(20) for p in partition.dirichlet(y, [200] * 5, alpha, rng(s))]
        return float(np.std(shares))

    assert skew(0.3) > 0.25 > 0.1 > skew(100.0)


def test_the_same_seed_gives_the_same_parts_and_another_seed_others() -> None:
    y = np.arange(300) % 3
    first, again, other = (partition.dirichlet(y, [100] * 3, 0.3, rng(seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_skewed_sizes_sum_to_the_rows_and_span_the_ratio() -> None:
    sizes = partition.skewed_sizes(398, 5, 8.0)
    assert sizes == [22, 37, 61, 104, 174] and sum(sizes) == 398
    assert sizes[-1] / sizes[0] == pytest.approx(8, rel=0.03)
    assert partition.skewed_sizes(10, 1) == [10]


def test_iid_parts_every_row_once_and_by_column_keeps_natural_sites() -> None:
    assert_parts_every_row_once(partition.iid(100, [10, 30, 60], rng()), 100)
    parts = partition.by_column(np.array(["b", "a", "b"]))
    assert {name: rows.tolist() for name, rows in parts.items()} == {"a": [1], "b": [0, 2]}


def test_a_stratified_hold_out_has_the_share_of_each_class() -> None:
    y = np.repeat([0, 1], [357, 212])
    train, test = partition.stratified(y, 0.3, rng())
    assert_parts_every_row_once([train, test], 569)
    assert np.bincount(y[test]).tolist() == [107, 64]


@pytest.mark.parametrize("sizes", [[5, 5], [0, 10], [8, 3]])
def test_sizes_that_cannot_be_met_are_misuse(sizes: list[int]) -> None:
    y = np.array([0] * 9 + [1])
    with pytest.raises(Misuse):
        partition.dirichlet(y, sizes, 0.3, rng(), least=1)


# ---- a site's own hold-out -----------------------------------------------------------------------------------------


def rows(ids: list[str]) -> Data:
    return Data(np.arange(len(ids), dtype=float)[:, None], np.zeros(len(ids)), tuple(ids))


def test_the_hold_out_depends_on_nothing_but_id_and_key() -> None:
    ids = [f"p{k}" for k in range(400)]
    site = split("a", rows(ids), b"study")
    turned = split("a", rows([*ids[::-1], "new"]), b"study")
    assert set(site.holdout.ids) == set(turned.holdout.ids) - {"new"}
    assert set(split("a", rows(ids), b"other").holdout.ids) != set(site.holdout.ids)
    assert 0.18 < len(site.holdout) / 400 < 0.32


def test_rows_of_one_patient_are_never_parted() -> None:
    site = split("a", rows([f"p{k // 3}" for k in range(300)]), b"study")
    assert not set(site.train.ids) & set(site.holdout.ids)
    assert len(site.train) + len(site.holdout) == 300


def test_a_share_of_zero_holds_nothing_out_and_an_empty_key_is_misuse() -> None:
    assert len(split("a", rows(["x", "y"]), b"k", 0.0).holdout) == 0
    with pytest.raises(Misuse, match="key"):
        split("a", rows(["x"]), b"")
