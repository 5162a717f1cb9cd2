"""T12: NaN, infinity, overflow and absurd scale stop at the door after decoding."""

from __future__ import annotations

import numpy as np
import pytest

from gossipfl.errors import Misuse, Refused
from gossipfl.learning import checks
from gossipfl.learning.blocks import BLOCK
from gossipfl.learning.checks import LIMIT, check

SIZE = 2 * BLOCK + 3
every_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@every_dtype
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, BLOCK, SIZE - 1])
@pytest.mark.parametrize("limit", [LIMIT, np.inf])
def test_t12_one_element_that_is_not_finite_is_refused_wherever_it_stands(dtype, bad, where, limit):
    vector, reference = np.zeros((2, SIZE), dtype)
    vector[where] = bad
    with pytest.raises(Refused, match="1 of") as refusal:
        check(vector, reference, limit=limit)
    assert refusal.value.reason == "nonfinite"


@pytest.mark.parametrize("huge", [3e38, 1e10])
def test_t12_absurd_scale_is_refused(huge):
    with pytest.raises(Refused) as refusal:
        check(np.full(SIZE, huge, np.float32), np.ones(SIZE, np.float32))
    assert refusal.value.reason == "implausible"


def test_t12_a_distance_that_overflows_float64_is_refused():
    with pytest.raises(Refused) as refusal:
        check(np.full(9, 1e300), np.zeros(9))
    assert refusal.value.reason == "implausible"


@every_dtype
def test_limit_is_met_at_and_refused_above(dtype):
    reference = np.zeros(100, dtype)
    check(np.full(100, 4, dtype), reference, limit=4.0)
    with pytest.raises(Refused):
        check(np.full(100, 4.001, dtype), reference, limit=4.0)


def test_honest_models_pass_also_from_zero_and_without_limit():
    rng = np.random.default_rng(0)
    own = rng.standard_normal(SIZE).astype(np.float32)
    check(own, own)
    check(own + rng.standard_normal(SIZE).astype(np.float32), own)
    check(own * 10, np.zeros_like(own))
    check(np.full(9, 1e12), np.zeros(9), limit=np.inf)
    check(np.zeros(0, np.float32), np.zeros(0, np.float32))


def test_a_reference_that_is_not_finite_is_our_own_fault():
    with pytest.raises(Misuse, match="reference"):
        check(np.zeros(3), np.array([0, np.nan, 0]))
    with pytest.raises(Misuse, match="limit"):
        check(np.zeros(3), np.zeros(3), limit=0.0)


# ---- straightness ----------------------------------------------------------------------------------------------------


def test_a_link_that_always_pushes_one_way_is_straight_and_one_that_goes_to_and_fro_is_not() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    way = rng.normal(size=200)
    straight, wandering, scaled = checks.Straightness(), checks.Straightness(), checks.Straightness()
    for k in range(checks.ENOUGH):
        assert straight.ratio is None, "too early to say"
        straight.add((1 + k) * way)
        wander = rng.normal(size=200)
        wandering.add(wander)
        scaled.add(1e-6 * wander)
    assert straight.ratio == pytest.approx(1.0) and "the same way" in checks.straight_alarm(straight.ratio)
    assert wandering.ratio is not None and wandering.ratio < 0.5 and not checks.straight_alarm(wandering.ratio)
    assert scaled.ratio == pytest.approx(wandering.ratio), "whatever the scale"


def test_a_link_on_which_nothing_moves_has_no_straightness() -> None:
    still = checks.Straightness()
    for _ in range(checks.ENOUGH):
        still.add(np.zeros(3))
    assert still.ratio is None and not checks.straight_alarm(still.ratio)
