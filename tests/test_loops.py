"""Laws of the loops that a compiler takes: whatever the numbers, each is what numpy makes of them one operation at a time."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from gossipfl import loops
from gossipfl.loops import ELEMENTS, Loops, compile_loops
from gossipfl.sums import Sums, weights

CHUNKS = 3
ODD = [0.0, -0.0, 1e-45, -3e-42, 1.1754944e-38, 3.4028235e38, -3.4028235e38, 1 / 3, -1 / 3, 1 + 2**-23, np.inf, -np.inf]


def plain() -> Loops:
    """As Python runs them: for what the compiler is not here."""
    return compile_loops(lambda function: function, lambda signature: lambda function: function)


@pytest.fixture(scope="module", params=["plain", "compiled"])
def made(request: pytest.FixtureRequest) -> Loops:
    if request.param == "plain":
        return plain()
    pytest.importorskip("numba", reason="numba is not installed; it comes with gossipfl[fast]")
    found = loops.compiled()
    assert found is not None
    return found


def drawn(seed: int, *, finite: bool = True) -> np.ndarray[Any, Any]:
    """Numbers of every magnitude, and odd ones among them."""
    rng = np.random.default_rng(seed)
    found = (rng.standard_normal(CHUNKS * ELEMENTS) * 10.0 ** rng.integers(-44, 38, CHUNKS * ELEMENTS)).astype(np.float32)
    found[rng.integers(0, found.size, 3000)] = rng.choice([one for one in ODD if np.isfinite(one) or not finite], 3000)
    found.flags.writeable = False
    return found


def sums_of(vector: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    sums = Sums(vector.nbytes)
    sums.take(0, vector)
    return sums.sums


def room() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return np.empty(CHUNKS * ELEMENTS, np.float32), np.zeros(CHUNKS, np.uint64)


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Bit for bit, signs of zeros too; what is not a number is alike, whichever it is."""
    numbers = ~np.isnan(one)
    bits = one.view(np.uint32)[numbers] == other.view(np.uint32)[numbers]
    return bool((numbers == ~np.isnan(other)).all() and bits.all())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("finite", [True, False])
def test_differences_are_numpys_and_what_is_not_finite_is_counted(made: Loops, finite: bool) -> None:
    y, reference = drawn(1, finite=finite), drawn(2, finite=finite)
    out, _ = room()
    wild = made.differ(y, reference, out)
    assert same(out, y - reference) and wild == (~np.isfinite(out)).sum()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_replicas_their_distance_and_their_sums_are_numpys(made: Loops) -> None:
    out, sent, into, came = (drawn(seed) for seed in range(4))
    (own, sums_own), (theirs, sums_theirs), (apart, _) = room(), room(), room()
    made.meet(out, sent, into, came, own, theirs, apart, weights(), sums_own, sums_theirs)
    assert same(own, out + sent) and same(theirs, into + came) and same(apart, theirs - own)
    assert (sums_own == sums_of(own)).all() and (sums_theirs == sums_of(theirs)).all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize(("share", "mass"), [(0.3, 3.0), (1.0, 0.1), (1e-30, 7e6)])
def test_the_flow_the_moved_model_and_their_sums_are_numpys(made: Loops, lower: bool, share: float, mass: float) -> None:
    """No product and sum in one rounding, and no division by a product with the inverse."""
    lo, hi, model = (drawn(seed) for seed in range(3))
    (q, sums_q), (moved, sums_moved) = room(), room()
    divisor = np.float32(mass if lower else -mass)
    wild = made.move(lo, hi, model, np.float32(share), divisor, q, moved, weights(), sums_q, sums_moved)
    flow = (hi - lo) * np.float32(share)
    step = flow / np.float32(mass)
    assert same(q, flow) and same(moved, model + step if lower else model - step)
    assert wild == (~np.isfinite(moved)).sum()
    if not np.isnan(moved).any():
        assert (sums_q == sums_of(q)).all() and (sums_moved == sums_of(moved)).all()


def test_sums_are_those_of_numpy(made: Loops) -> None:
    words, found = np.random.default_rng(8).integers(0, 2**63, CHUNKS * loops.WORDS, np.uint64), np.zeros(CHUNKS, np.uint64)
    with np.errstate(over="ignore"):
        made.sum_chunks(words, weights(), found)
    assert (found == sums_of(words)).all()


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)  # as if it were not installed
    assert loops.compiled.__wrapped__() is None
