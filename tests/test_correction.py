"""The ledger: antisymmetry to the bit, and the weighted optimum where plain gossip misses it."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import BLOCK
from gossipfl.learning.correction import (
    advance,
    book,
    booked_norm,
    cap_factor,
    cap_norm,
    from_flows,
    kappa,
    schedule,
)
from gossipfl.learning.mixing import apply, flow_step, norm

values = arrays(np.float32, 9, elements=st.floats(-1e6, 1e6, width=32))
shares = st.floats(0, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(values, st.floats(0, 100), shares, shares), min_size=1, max_size=5))
def test_flows_of_both_ends_are_each_others_negative_bit_for_bit(exchanges):
    lo = hi = None
    for q, rate, leak, cap in exchanges:
        lo, hi = book(lo, q, rate, leak, cap, True), book(hi, q, rate, leak, cap, False)
        assert (lo + 0.0).tobytes() == (0.0 - hi).tobytes()  # + 0.0 and 0.0 -: zeros lose their sign


def test_pieces_in_place_and_a_later_cap_give_the_same_bits():
    flow, q = np.random.default_rng(0).standard_normal((2, 2 * BLOCK + 11)).astype(np.float32)
    whole, half = book(flow, q, 0.3, 0.98, 0.7, False), BLOCK - 1
    parts = [book(flow[s], q[s], 0.3, 0.98, 0.7, False) for s in (slice(0, half), slice(half, None))]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    uncapped = book(flow, q, 0.3, 0.98, 1.0, False)
    assert (uncapped * np.float32(0.7)).tobytes() == whole.tobytes()
    assert booked_norm(flow, q, 0.3, 0.98, False) == pytest.approx(norm(uncapped), rel=1e-12)
    assert book(flow, q, 0.3, 0.98, 0.7, False, out=flow).tobytes() == whole.tobytes()


def test_no_flow_is_a_flow_of_zeros():
    q = np.random.default_rng(1).standard_normal(50)
    for lower in (True, False):
        assert np.array_equal(book(None, q, 2.0, 0.9, 0.5, lower), book(np.zeros(50), q, 2.0, 0.9, 0.5, lower))
    assert booked_norm(None, q, 2.0, 0.9, True) == pytest.approx(2 * norm(q))


def test_an_exchange_that_books_nothing_only_leaks():
    flow, q = np.random.default_rng(2).standard_normal((2, 50))
    assert np.array_equal(book(flow, q, 0.0, 1.0, 1.0, True), flow)


def test_a_capped_flow_is_no_longer_than_the_cap():
    flow, q = np.random.default_rng(3).standard_normal((2, 500))
    limit = cap_norm(4, 2.0, 3.0, 1.0, 5.0)
    assert limit == 2.5
    factor = cap_factor(booked_norm(flow, q, 0.3, 0.98, True), limit)
    assert norm(book(flow, q, 0.3, 0.98, factor, True)) == pytest.approx(2.5)
    assert cap_factor(1.0, np.inf) == cap_factor(0.0, 0.0) == 1.0


def test_mass_weighted_sum_of_corrections_is_zero_whatever_happens_on_the_links():
    rng = np.random.default_rng(4)
    mass = rng.uniform(1, 9, 5)
    flows: list[dict[int, np.ndarray]] = [{} for _ in mass]
    for _ in range(60):
        lo, hi = sorted(rng.choice(5, 2, replace=False).tolist())
        q, leak, cap = rng.standard_normal(20), rng.uniform(0.9, 1), rng.uniform(0.5, 1)
        flows[lo][hi] = book(flows[lo].get(hi), q, 0.4, leak, cap, True)
        flows[hi][lo] = book(flows[hi].get(lo), q, 0.4, leak, cap, False)
    flows[0].pop(1), flows[1].pop(0)  # a new epoch: both drop the link's flow
    total = sum(m * from_flows(list(f.values()), m) for m, f in zip(mass, flows, strict=True))
    assert np.abs(total).max() < 1e-13


def test_running_correction_follows_the_flows():
    rng = np.random.default_rng(5)
    old, new, other = rng.standard_normal((3, BLOCK + 5)).astype(np.float32)
    running = advance(from_flows([old, other], 3.0), old, new, 3.0)
    np.testing.assert_allclose(running, from_flows([new, other], 3.0), atol=1e-6)
    np.testing.assert_allclose(advance(None, None, new, 3.0), -new / 3, rtol=1e-6)


# ---- the fixed point -----------------------------------------------------------------------------------------------


def quadratics(seed: int, nodes: int = 12, size: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """f_i(x) = sum of a_i (x - b_i)^2 / 2 and masses; minimum of sum m_i f_i known in closed form."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.3, 2, (nodes, size)), rng.normal(0, 3, (nodes, size)), rng.uniform(1, 5, nodes)


def gossip(seed: int, theta: float, rounds: int, *, leak: float = 1.0, silent: frozenset[int] = frozenset()) -> float:
    """Worst distance of a node from the weighted optimum after random matchings of unequal, idle, failing nodes."""
    a, b, mass = quadratics(seed)
    rng, n = np.random.default_rng(seed + 1), len(mass)
    eta, steps = 0.05, rng.integers(1, 11, n)  # node i makes steps[i] +- 1 steps in a round
    rate = kappa(theta, 1.0, eta, float(steps.mean()))
    models, flows, corrections = list(np.zeros_like(b)), [{} for _ in range(n)], list(np.zeros_like(b))
    for _ in range(rounds):
        awake = [i for i in range(n) if rng.random() > 0.3]
        for i in sorted(set(awake) - silent):
            for _ in range(max(1, int(steps[i] + rng.integers(-1, 2)))):
                models[i] = models[i] - eta * (a[i] * (models[i] - b[i]) + corrections[i])
        rng.shuffle(awake)
        for first, second in zip(awake[::2], awake[1::2], strict=False):
            if rng.random() < 0.2:
                continue  # dropped, on both sides
            lo, hi = sorted((first, second))
            q = flow_step(models[lo], models[hi], 1.0, mass[lo], mass[hi], 1.0)
            booked = 0.0 if {lo, hi} & silent else rate
            for i, j, lower in ((lo, hi, True), (hi, lo, False)):
                models[i] = apply(models[i], q, mass[i], lower)
                flows[i][j] = book(flows[i].get(j), q, booked, leak, 1.0, lower)
                corrections[i] = from_flows(list(flows[i].values()), mass[i])
    trains = np.array([0.0 if i in silent else m for i, m in enumerate(mass)])[:, None]
    optimum = (trains * a * b).sum(0) / (trains * a).sum(0)
    return max(float(np.linalg.norm(model - optimum)) for model in models)


@pytest.mark.parametrize("seed", range(2))
def test_ledger_reaches_the_weighted_optimum_with_idle_nodes_dropped_exchanges_and_unequal_steps(seed):
    assert gossip(seed, 0.25, 1500) < 1e-9


def test_plain_gossip_misses_the_weighted_optimum():
    assert gossip(0, 0.0, 1500) > 0.3


def test_a_leak_biases_the_fixed_point_a_little():
    assert 1e-6 < gossip(0, 0.25, 1500, leak=0.98) < gossip(0, 0.0, 1500)


def test_members_that_do_not_train_do_not_hold_the_others_back():
    assert gossip(0, 0.25, 2500, silent=frozenset({3, 7})) < 1e-6


# ---- scalars -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cosine", "constant", "linear-tail"])
def test_schedule_starts_at_eta_never_rises_and_ends_at_its_floor(name):
    rates = [schedule(name, 0.1, r, 50) for r in range(60)]
    assert rates[0] == 0.1
    assert all(later <= sooner for sooner, later in pairwise(rates))
    assert rates[49] == rates[59] == pytest.approx(0.1 if name == "constant" else 0.002)


def test_linear_tail_is_flat_for_seven_tenths():
    assert schedule("linear-tail", 1.0, 70, 101) == pytest.approx(1.0)
    assert schedule("linear-tail", 1.0, 85, 101) == pytest.approx(0.51)


@pytest.mark.parametrize(
    "call",
    [
        lambda q: schedule("warm", 0.1, 0, 10),
        lambda q: schedule("cosine", 0.0, 0, 10),
        lambda q: kappa(0.25, 0.0, 0.1, 10),
        lambda q: book(None, q, -1.0, 1.0, 1.0, True),
        lambda q: book(None, q, 1.0, 1.1, 1.0, True),
        lambda q: book(q[:2], q, 1.0, 1.0, 1.0, True),
        lambda q: cap_factor(np.inf, 1.0),
        lambda q: cap_norm(0, 1.0, 1.0, 1.0, 1.0),
        lambda q: from_flows([], 1.0),
        lambda q: from_flows([q], 0.0),
        lambda q: advance(None, None, q, -1.0),
    ],
)
def test_what_is_no_correction_is_misuse(call):
    with pytest.raises(Misuse):
        call(np.ones(3))
