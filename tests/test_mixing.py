"""Laws of one pairwise exchange, and that its bits do not depend on CPU or threads."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import BLOCK
from gossipfl.learning.mixing import apply, clip_factor, clip_threshold, difference_norm, flow_step, mu, norm

masses = st.floats(0.1, 1e4)
models = arrays(np.float64, 7, elements=st.floats(-1e3, 1e3))


@settings(deadline=None)
@given(models, models, masses, masses, st.floats(0.01, 1), st.floats(0.01, 1))
def test_exchange_leaves_the_mass_weighted_sum_unchanged(y_lo, y_hi, m_lo, m_hi, gamma, clip):
    q = flow_step(y_lo, y_hi, gamma, m_lo, m_hi, clip)
    after = m_lo * apply(y_lo, q, m_lo, True) + m_hi * apply(y_hi, q, m_hi, False)
    np.testing.assert_allclose(after, m_lo * y_lo + m_hi * y_hi, atol=1e-11 * (m_lo + m_hi) * 1e3)


@settings(deadline=None)
@given(models, models, masses, masses)
def test_full_exchange_brings_both_ends_to_the_weighted_mean(y_lo, y_hi, m_lo, m_hi):
    q = flow_step(y_lo, y_hi, 1.0, m_lo, m_hi, 1.0)
    mean = (m_lo * y_lo + m_hi * y_hi) / (m_lo + m_hi)
    np.testing.assert_allclose(apply(y_lo, q, m_lo, True), mean, atol=1e-9)
    np.testing.assert_allclose(apply(y_hi, q, m_hi, False), mean, atol=1e-9)


def test_mixing_equal_models_changes_nothing():
    y = np.random.default_rng(0).standard_normal(2 * BLOCK + 3).astype(np.float32)
    q = flow_step(y, y.copy(), 0.5, 3.0, 5.0, 0.7)
    assert not q.any()
    assert apply(y, q, 3.0, False).tobytes() == y.tobytes()


def test_a_clipped_exchange_moves_no_further_than_tau():
    rng = np.random.default_rng(1)
    lo, hi = rng.standard_normal((2, 1000))
    clip = clip_factor(difference_norm(lo, hi), 0.5)
    q = flow_step(lo, hi, 1.0, 2.0, 6.0, clip)
    assert norm(q) == pytest.approx(mu(2.0, 6.0) * 0.5)
    assert norm(apply(lo, q, 2.0, True) - lo) <= 0.5


def test_late_halves_commute_with_training_that_went_on_meanwhile():
    y, q1, q2, step = np.random.default_rng(2).standard_normal((4, 50))
    one = apply(apply(y, q1, 2.0, True) + step, q2, 2.0, False)
    other = apply(apply(y + step, q2, 2.0, False), q1, 2.0, True)
    np.testing.assert_allclose(one, other, atol=1e-14)


def test_a_half_is_taken_back_by_its_opposite():
    y, q = np.random.default_rng(3).standard_normal((2, 50)).astype(np.float32)
    np.testing.assert_allclose(apply(apply(y, q, 3.0, True), q, 3.0, False), y, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pieces_and_in_place_give_the_same_bits_as_the_whole(dtype):
    lo, hi = np.random.default_rng(4).standard_normal((2, 3 * BLOCK + 17)).astype(dtype)
    q, half = flow_step(lo, hi, 0.5, 1.0, 3.0, 0.9), BLOCK + 5
    parts = [flow_step(lo[s], hi[s], 0.5, 1.0, 3.0, 0.9) for s in (slice(0, half), slice(half, None))]
    assert np.concatenate(parts).tobytes() == q.tobytes()
    moved = apply(lo, q, 3.0, True)
    assert q.dtype == moved.dtype == dtype
    assert flow_step(lo, hi, 0.5, 1.0, 3.0, 0.9, out=hi).tobytes() == q.tobytes()
    assert apply(lo, q, 3.0, True, out=lo).tobytes() == moved.tobytes()


def test_norms_are_those_of_numpy_for_arrays_and_for_pieces():
    a, b = np.random.default_rng(5).standard_normal((2, 2 * BLOCK + 9)).astype(np.float32)
    assert norm(a.astype(np.float64)) == pytest.approx(np.linalg.norm(a.astype(np.float64)), rel=1e-12)
    assert norm(iter([a[:100], a[100:]])) == pytest.approx(norm(a), rel=1e-7)
    assert difference_norm(a, b) == pytest.approx(np.linalg.norm(a.astype(np.float64) - b), rel=1e-12)
    for scale in (1e-44, 1e-25, 1e-18, 1.0, 1e25):  # squares of float32 end at 1e-45 and 3e38
        scaled = a * np.float32(scale)
        assert norm(scaled) == pytest.approx(np.linalg.norm(scaled.astype(np.float64)), rel=1e-7)
    assert norm(np.full(4, 3e38, np.float32)) == pytest.approx(6e38)
    assert np.isnan(norm(np.array([np.nan, 1.0])))


def test_clip_factor_is_one_inside_tau_and_never_above():
    assert clip_factor(1.0, 1.0) == clip_factor(5.0, np.inf) == 1.0
    assert clip_factor(8.0, 2.0) == 0.25
    assert clip_threshold(0.1, 10, 3.0) == pytest.approx(6.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda y: mu(0.0, 1.0),
        lambda y: mu(1.0, np.inf),
        lambda y: clip_factor(np.nan, 1.0),
        lambda y: clip_factor(1.0, 0.0),
        lambda y: flow_step(y, y[:2], 1.0, 1.0, 1.0, 1.0),
        lambda y: flow_step(y, y.astype(np.float64), 1.0, 1.0, 1.0, 1.0),
        lambda y: flow_step(y, y, np.nan, 1.0, 1.0, 1.0),
        lambda y: apply(y, y, 0.0, True),
        lambda y: flow_step(y.astype(np.int32), y.astype(np.int32), 1.0, 1.0, 1.0, 1.0),
    ],
)
def test_what_is_no_exchange_is_misuse(call):
    with pytest.raises(Misuse):
        call(np.ones(3, np.float32))


AGREED = """
import hashlib, sys
import numpy as np, torch
torch.set_num_threads(int(sys.argv[1]))
from gossipfl.learning.compression import CODECS, decode, encode
from gossipfl.learning.correction import book
from gossipfl.learning.mixing import apply, flow_step
from gossipfl.learning.parameters import Layout, initial
found = []
module = torch.nn.Sequential(torch.nn.Linear(300, 200), torch.nn.BatchNorm1d(200), torch.nn.Linear(200, 7))
layout = Layout.of(module)
x0 = initial(layout, module, 7)
found.append(x0)
noise = np.random.PCG64(3).random_raw(2 * x0.size).astype(np.float64).reshape(2, -1) / 2.0**64 - 0.5
lo, hi = (x0 + (noise * np.float64(0.1))).astype(np.float32)
lo[:200] *= np.float32(1e-38)  # subnormal differences, too
hi[:200] *= np.float32(1e-38)
for codec in CODECS:
    replicas = [decode(codec, encode(codec, y, x0, n_parameters=layout.n_parameters), x0,
                n_parameters=layout.n_parameters) for y in (lo, hi)]
    q = flow_step(*replicas, 0.5, 3.0, 7.0, 0.3)
    flow = book(book(None, q, 0.7, 0.98, 1.0, True), q, 0.7, 0.98, 0.9, True)
    found += [*replicas, q, flow, apply(lo, q, 3.0, True)]
print(layout.digest.hex(), *(hashlib.sha256(v.tobytes()).hexdigest() for v in found))
"""


def agreed(capability: str, threads: int, numpy_without: str) -> str:
    environment = {
        **os.environ,
        "ATEN_CPU_CAPABILITY": capability,
        "OMP_NUM_THREADS": str(threads),
        "NPY_DISABLE_CPU_FEATURES": numpy_without,
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    command = [sys.executable, "-W", "ignore", "-c", AGREED, str(threads)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


GOLDEN = "a1df3b229277412ec459d5304c873b601e839586d85d430dc47aba326391d962"
"""SHA-256 of what AGREED prints. A change breaks every running study: it needs a new codec name or protocol version."""


def test_what_two_hospitals_must_get_alike_is_the_same_on_any_cpu_with_any_threads_and_for_ever():
    newest = agreed("avx2", 2, "")
    assert len(newest.split()) == 27
    assert agreed("default", 1, numpy_features()) == newest
    assert hashlib.sha256(newest.encode()).hexdigest() == GOLDEN


def numpy_features() -> str:
    """All that numpy would use beyond its baseline on this machine."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
