"""T12: NaN, infinity, overflow and absurd scale stop at the door after decoding."""

from __future__ import annotations

import numpy as np
import pytest

from gossipfl.errors import Misuse, Refused
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
