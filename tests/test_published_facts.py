"""What papers and closed forms say of mixing, held against the engine's own rounds: exchanges, products, ticks, lost halves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from gossipfl import topology
from gossipfl.learning.parameters import Layout
from gossipfl.simulator.vectorized import meetings
from gossipfl.simulator.vectorized.faults import Faults, Weather
from gossipfl.simulator.vectorized.meetings import Links
from gossipfl.simulator.vectorized.mixing import Mixer, Terms
from gossipfl.simulator.vectorized.state import State
from gossipfl.topology import schedules


def holding(x: np.ndarray, masses: np.ndarray | None = None, links: Links | None = None) -> Mixer:
    """Nodes at the rows of x, which nobody trains."""
    state = State.start(Layout.flat(x.shape[1], "float64"), np.zeros(x.shape[1]), len(x), None, ())
    state.shared["x"].copy_(torch.from_numpy(x))
    return Mixer(state, np.ones(len(x)) if masses is None else masses, links)


def models(mixer: Mixer) -> np.ndarray:
    return mixer.state.vectors()


def follow(mixer: Mixer, schedule: Any, rounds: int, *, by_product: bool = False) -> None:
    """Rounds of a schedule, as the engine makes them."""
    everybody = np.ones(mixer.state.nodes, dtype=bool)
    for t in range(rounds):
        edges, theta, is_directed = schedule.round(t)
        met = meetings.drawn(edges, theta, mixer.masses, everybody, is_directed=is_directed)
        if by_product and not is_directed:
            mixer.product(met, Terms(), lambda do, items: [do(item) for item in items], 5)
        else:
            mixer.exchange(met, Terms())


def waves(n: int) -> np.ndarray:
    """The eigenvectors of every circulant: columns cos and sin of each frequency. (n, 2 (n // 2))."""
    angles = 2 * np.pi * np.outer(np.arange(n), np.arange(1, n // 2 + 1)) / n
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1)


def sizes(x: np.ndarray) -> np.ndarray:
    """Of each frequency's pair of waves."""
    return np.hypot(*np.split(np.sqrt(np.square(x).sum(axis=0)), 2))


# ---- eigenvalues -------------------------------------------------------------------------------------------------------


def ring(n: int, f: np.ndarray) -> np.ndarray:
    return (1 + 2 * np.cos(2 * np.pi * f / n)) / 3


def exponential(n: int, f: np.ndarray) -> np.ndarray:
    steps = sorted({min(2**i, n - 2**i) for i in range((n - 1).bit_length())})
    both = [1 if 2 * step == n else 2 for step in steps]
    waves = sum(count * np.cos(2 * np.pi * step * f / n) for step, count in zip(steps, both, strict=True))
    return (1 + waves) / (1 + sum(both))


CIRCULANT: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {"ring": ring, "exponential": exponential}


@pytest.mark.parametrize("by_product", [False, True])
@pytest.mark.parametrize("text", CIRCULANT)
@pytest.mark.parametrize("n", [16, 21])
def test_each_wave_on_a_ring_or_exponential_graph_shrinks_by_its_eigenvalue(text: str, n: int, by_product: bool) -> None:
    mixer, rounds = holding(waves(n)), 7
    follow(mixer, schedules.static(topology.graph(text, n), "metropolis"), rounds, by_product=by_product)
    value = CIRCULANT[text](n, np.arange(1, n // 2 + 1))
    np.testing.assert_allclose(models(mixer), waves(n) * np.tile(value, 2) ** rounds, atol=1e-13)


def test_each_wave_on_a_torus_shrinks_by_its_eigenvalue() -> None:
    tall, wide, rounds = 5, 6, 6
    mixer = holding(np.einsum("af,bg->abfg", waves(tall), waves(wide)).reshape(tall * wide, -1))
    start = models(mixer)
    follow(mixer, schedules.static(topology.graph(f"torus:{tall}x{wide}"), "metropolis"), rounds, by_product=True)
    one, other = (np.tile(2 * np.cos(2 * np.pi * np.arange(1, n // 2 + 1) / n), 2) for n in (tall, wide))
    value = (1 + one[:, None] + other[None, :]).ravel() / 5
    np.testing.assert_allclose(models(mixer), start * value**rounds, atol=1e-13)


@pytest.mark.parametrize("n", [8, 12, 25, 64])
def test_one_peer_exponential_multiplies_each_wave_by_the_cosines_of_its_rounds(n: int) -> None:
    """Round t is circulant with eigenvalue (1 + w^(f 2^t)) / 2, of size |cos(pi f 2^t / n)|: one of them is 0 where n = 2^k.

    Source: Ying, Yuan, Chen, Hu, Pan, Yin, "Exponential graph is provably efficient for decentralized deep training", 2021.
    """
    length = (n - 1).bit_length()
    mixer, f = holding(waves(n)), np.arange(1, n // 2 + 1)
    follow(mixer, topology.schedule("one-peer-exponential", n), 2 * length)
    left = np.prod([np.cos(np.pi * f * 2**t / n) for t in range(length)], axis=0) ** 2
    np.testing.assert_allclose(sizes(models(mixer)), sizes(waves(n)) * left, atol=1e-12)
    assert (sizes(models(mixer)).max() < 1e-12) == (n in (8, 64))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_base_graph_ends_at_exactly_the_mean_for_every_n_up_to_fifty(k: int) -> None:
    """Source: Takezawa, Sato, Bao, Niwa, Yamada, "Beyond exponential graph", 2023."""
    for n in range(2, 51):
        start = np.random.default_rng(n).standard_normal((n, 3))
        made, mixer = schedules.base_graph(n, k), holding(start)
        assert made.exact_after is not None
        follow(mixer, made, made.exact_after)
        np.testing.assert_allclose(models(mixer), np.broadcast_to(start.mean(axis=0), start.shape), atol=1e-13)


WEIGHTED = ["ring", "scale-free:2", "random-matching", "edge-colouring of torus:4x6", "epidemic-oracle:4"]
EQUAL = ["base:2", "one-peer-exponential", "epidemic-local:3"]


@pytest.mark.parametrize("text", WEIGHTED + EQUAL)
def test_the_engine_makes_each_round_of_a_schedule_as_its_reference_does(text: str) -> None:
    rng = np.random.default_rng(1)
    masses = np.ones(24) if text in EQUAL else rng.uniform(0.2, 5, 24)
    made, x = topology.schedule(text, 24, seed=3, masses=masses), rng.standard_normal((24, 4))
    mixer, other = holding(x, masses), holding(x, masses)
    follow(mixer, made, 6)
    follow(other, made, 6, by_product=True)
    for t in range(6):
        x = schedules.mix(x, made.round(t), masses)
    np.testing.assert_allclose(models(mixer), x, atol=1e-13)
    np.testing.assert_allclose(models(other), x, atol=1e-13)


# ---- what is drawn -----------------------------------------------------------------------------------------------------


def disagreement(x: np.ndarray) -> np.ndarray:
    """Of each coordinate: the sum of squares around the nodes' mean."""
    return np.asarray(np.square(x - x.mean(axis=0)).sum(axis=0))


def within(found: list[float], wanted: float) -> None:
    """The mean is what it should be, to five standard errors that are themselves small."""
    error = float(np.std(found)) / math.sqrt(len(found))
    assert abs(float(np.mean(found)) - wanted) < 5 * error < 0.15 * wanted, (np.mean(found), wanted, error)


def test_a_matching_of_all_leaves_its_share_of_the_squared_disagreement() -> None:
    """(n - 2) / (2 (n - 1)), n even: a node's partner is uniform among the others."""
    n = 12
    links, everybody = Links.of(topology.graph("complete", n).edges, n), np.ones(n, dtype=bool)
    start = np.random.default_rng(0).standard_normal((n, 40))
    left = []
    for t in range(400):
        mixer = holding(start)
        mixer.exchange(meetings.matching(links, everybody, 5, t), Terms())
        left.append(float(disagreement(models(mixer)).sum() / disagreement(start).sum()))
    within(left, (n - 2) / (2 * (n - 1)))


PAIRS: dict[str, Callable[[int], float]] = {
    "complete": lambda n: 1 - 1 / (n - 1),
    "ring": lambda n: 1 - (1 - math.cos(2 * math.pi / n)) / n,
}
"""What one random pair leaves of the slowest wave's squared disagreement: 1 - lambda_2(L) / (2 E), L of the graph."""


@pytest.mark.parametrize("text", PAIRS)
def test_one_random_pair_after_the_other_leaves_what_its_mean_matrix_says(text: str) -> None:
    """W^2 = W for a pair that averages, so that the mean of |W x|^2 is x (I - L / (2 E)) x.

    Source: Boyd, Ghosh, Prabhakar, Shah, "Randomized gossip algorithms", 2006.
    """
    n = 10
    links, everybody = Links.of(topology.graph(text, n).edges, n), np.ones(n, dtype=bool)
    start = waves(n)[:, :1]
    left = []
    for t in range(300):
        for awake, met in meetings.ticks(links, everybody, 3, t):
            for at in range(len(awake)):
                mixer = holding(start)
                mixer.exchange(met.only(np.array([at])), Terms())
                left.append(float(disagreement(models(mixer)).sum() / disagreement(start).sum()))
    assert len(left) > 2500
    within([1 - one for one in left], 1 - PAIRS[text](n))


# ---- lost replies ------------------------------------------------------------------------------------------------------


def test_lost_replies_move_the_mean_by_the_variance_that_a_recursion_gives() -> None:
    """Only one end of a share p of the exchanges applies its half. In random matchings of n equal nodes, S the squared
    disagreement: the mean's variance grows by p S / (4 n (n - 1)) in a round, and S shrinks to
    S (1 - n (1 - p / 2) / (2 (n - 1)) - p / (4 (n - 1))). Nothing is lost: nothing moves.

    Source of the question: Jelasity, Montresor, Babaoglu, "Gossip-based aggregation in large dynamic networks", 2005.
    """
    n, p, rounds, width = 16, 0.3, 10, 200
    links, everybody = Links.of(topology.graph("complete", n).edges, n), np.ones(n, dtype=bool)
    moved, still = [], 0.0
    for seed in range(300):
        start = np.random.default_rng(seed).standard_normal((n, width))
        for faults in (Faults(half=p), Faults(lost=p)):
            mixer, weather = holding(start), Weather(faults, n, rounds, seed)
            for t in range(rounds):
                mixer.exchange(weather.strike(meetings.matching(links, everybody, seed, t), t), Terms())
            shift = models(mixer).mean(axis=0) - start.mean(axis=0)
            if faults.half:
                moved.append(float(np.square(shift).mean() / (disagreement(start).mean() / n**2)))
            else:
                still = max(still, float(np.abs(shift).max()))
    kept = 1 - n * (1 - p / 2) / (2 * (n - 1)) - p / (4 * (n - 1))
    within(moved, p * n / (4 * (n - 1)) * (1 - kept**rounds) / (1 - kept))
    assert still < 1e-14


def test_a_site_whose_halves_are_lost_weighs_more_than_its_share() -> None:
    """Node 0 applies a share 1 - q of its halves, the others all: in the mean everybody ends where node 0 weighs
    1 / (1 - q), because its pull on the others goes on while theirs on it is lost."""
    n, q, rounds = 8, 0.5, 30
    links, everybody = Links.of(topology.graph("complete", n).edges, n), np.ones(n, dtype=bool)
    start = np.zeros((n, 1))
    start[0] = 1
    ends = []
    for seed in range(400):
        rng, mixer = np.random.default_rng(seed), holding(start)
        for t in range(rounds):
            met = meetings.matching(links, everybody, seed, t)
            mixer.exchange(replace(met, at_lo=(met.lo > 0) | (rng.random(len(met)) >= q)), Terms())
        ends.append(float(models(mixer).mean()))
    weight = 1 / (1 - q)
    within(ends, weight / (weight + n - 1))
