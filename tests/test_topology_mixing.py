"""Laws of weights, spectra and schedules: what is predicted is what x <- W x does, and what papers state as figures."""

from __future__ import annotations

import doctest
import math

import networkx as nx
import numpy as np
import pytest

from gossipfl import topology
from gossipfl.errors import ConfigError, Misuse
from gossipfl.topology import base_graph, draws, generate, schedules, spectrum, weights
from gossipfl.topology.graphs import Graph
from gossipfl.topology.schedules import Round, Schedule

GRAPHS = ["ring", "path", "star", "complete", "torus", "exponential", "random-regular:3", "erdos-renyi:0.2", "small-world:4",
          "scale-free:2", "geometric:14", "clustered:3"]  # fmt: skip
MASSES = 0.2 + draws.Draws(1, "masses").uniform(36) * 5


def norm(x: np.ndarray, masses: np.ndarray) -> float:
    """The mass-weighted size of the disagreement."""
    mean = (masses @ x) / masses.sum()
    return math.sqrt(float(masses @ (x - mean) ** 2))


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", weights.RULES)
@pytest.mark.parametrize("text", GRAPHS)
def test_every_rule_is_stochastic_and_keeps_the_weighted_mean(text: str, rule: str) -> None:
    graph = topology.graph(text, 36, seed=1)
    masses = np.ones(36) if rule == "metropolis" else MASSES
    theta = topology.conductances(graph, rule, masses)
    found = weights.matrix(graph, theta, masses)
    weights.require_stochastic(found, masses)
    assert found.diagonal().min() > (0.499 if rule == "lazy" else 0)
    x = draws.Draws(2, "x").uniform(36)
    assert np.allclose(found @ x, schedules.mix(x, Round(graph.edges, theta), masses), atol=1e-13)
    assert weights.matrix(graph, theta, masses, np.float32).dtype == np.float32


def test_metropolis_is_that_of_the_paper_and_mass_metropolis_with_equal_masses_the_same() -> None:
    graph = topology.graph("scale-free:2", 36)
    degree = dict(graph.to_networkx().degree())
    wanted = [1 / (max(degree[i], degree[j]) + 1) for i, j in graph.edges.tolist()]
    for rule in ("metropolis", "mass-metropolis"):
        assert np.allclose(topology.conductances(graph, rule), wanted, rtol=1e-15)
    assert np.allclose(topology.conductances(graph, "metropolis", MASSES), wanted, rtol=1e-15)


REFUSED = {
    "row 0 sums to 0.8": ([[0.5, 0.3], [0.5, 0.5]], None),
    "node 1 for node 0 is negative": ([[0.5, 0.5], [-0.5, 1.5]], None),
    "column 0 counts for 1.4": ([[0.9, 0.1], [0.5, 0.5]], None),
    "column . counts for .* its mass": ([[0.5, 0.5], [0.5, 0.5]], [1.0, 3.0]),
    "not finite": ([[math.nan, 1], [0, 1]], None),
    "one row and one column": ([[1.0, 0.0]], None),
}


@pytest.mark.parametrize("said", REFUSED)
def test_weights_that_do_not_average_are_refused_with_row_figure_and_way_out(said: str) -> None:
    found, masses = REFUSED[said]
    with pytest.raises(Misuse, match=said) as error:
        weights.require_stochastic(np.array(found), None if masses is None else np.array(masses))
    assert " -- " in str(error.value)


def test_unknown_weights_and_wrong_masses_are_refused() -> None:
    graph = generate.ring(4)
    with pytest.raises(Misuse, match="did you mean 'metropolis'"):
        weights.conductances(graph, "metropols")
    for bad in ([1.0, 1, 1], [1.0, 1, 1, 0], [1.0, 1, 1, math.inf]):
        with pytest.raises(Misuse, match="finite and above 0"):
            weights.conductances(graph, masses=np.array(bad))


# ---- spectrum ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", GRAPHS)
def test_the_spectrum_is_that_of_numpy_and_networkx_dense_or_by_lanczos(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = topology.graph(text, 36, seed=1)
    theta = topology.conductances(graph, masses=MASSES)
    values = np.sort(np.linalg.eigvals(weights.matrix(graph, theta, MASSES).toarray()).real)
    connectivity = nx.laplacian_spectrum(graph.to_networkx())[1]
    for dense in (600, 5):
        monkeypatch.setattr(spectrum, "DENSE", dense)
        found = spectrum.of(graph, theta, MASSES)
        assert (found.second, found.lowest) == pytest.approx((values[-2], values[0]), abs=1e-8)
        assert found.exact and spectrum.lambda2(graph)[0] == pytest.approx(connectivity, rel=1e-6)


CLOSED = {
    "ring": (1000, (1 + 2 * math.cos(2 * math.pi / 1000)) / 3),
    "path": (1000, (1 + 2 * math.cos(math.pi / 1000)) / 3),
    "torus:30x40": (None, (3 + 2 * math.cos(2 * math.pi / 40)) / 5),
    "hypercube": (1024, 1 - 2 / 11),
    "star": (1000, 1 - 1 / 1000),
    "exponential": (1023, (1 + 2 * sum(math.cos(2 * math.pi * 2**i / 1023) for i in range(10)) - 2) / 21),
}


@pytest.mark.parametrize("text", CLOSED)
def test_the_second_eigenvalue_is_the_closed_form(text: str) -> None:
    n, value = CLOSED[text]
    graph = topology.graph(text, n)
    if text == "exponential":  # offset 512 is offset 511 the other way: the largest over all frequencies
        size, steps = graph.n, [2**i for i in range(10)]
        value = max((1 + sum(2 * math.cos(2 * math.pi * s * f / size) for s in steps)) / 21 for f in range(1, size))
    found = spectrum.of(graph, topology.conductances(graph, "metropolis"))
    assert found.exact and found.second == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("text", GRAPHS)
def test_the_measured_contraction_is_the_predicted_one_and_no_start_is_slower(text: str) -> None:
    graph = topology.graph(text, 36, seed=1)
    for masses in (np.ones(36), MASSES):
        theta = topology.conductances(graph, masses=masses)
        found = spectrum.of(graph, theta, masses)
        start = x = draws.Draws(3, "start").uniform(36)
        rounds = found.rounds()
        assert rounds is not None
        for _ in range(rounds):
            x = schedules.mix(x, Round(graph.edges, theta), masses)
        assert norm(x, masses) <= 1e-3 * norm(start, masses) * (1 + 1e-9)
        if found.rho > 0.05:
            for _ in range(300):
                x = x / norm(x, masses)
                x = schedules.mix(x - masses @ x / masses.sum(), Round(graph.edges, theta), masses)
            assert norm(x, masses) == pytest.approx(found.rho, abs=0.004)


def test_a_ring_of_415_is_too_slow_and_what_is_proposed_is_not() -> None:
    ring = topology.graph("ring", 415)
    said = spectrum.slow(ring)
    assert said is not None and "add 411 random links (--add-rings 1" in said and "random-regular:6" in said
    assert spectrum.slow(spectrum.with_random_rings(ring, 1, seed=1)) is None
    assert "-- use random-regular:6" in (spectrum.slow(topology.graph("star", 415)) or "")
    assert spectrum.slow(topology.graph("random-regular:6", 415 + 1)) is None
    assert (spectrum.slow(ring) is None) == (topology.warn(topology.ring(f"h{n}" for n in range(415))) is None)


def test_an_eigenvalue_that_d2_cannot_take_is_refused_and_lazy_weights_are_not() -> None:
    ring = topology.graph("ring", 16)
    with pytest.raises(Misuse, match=r"D2 needs .* -0\.3333 -- use the weights 'lazy'"):
        spectrum.require_lowest(spectrum.of(ring, topology.conductances(ring)))
    spectrum.require_lowest(spectrum.of(ring, topology.conductances(ring, "lazy")))


def test_no_rate_is_said_of_a_graph_that_is_not_connected() -> None:
    with pytest.raises(Misuse, match=r"2 parts.*add edges"):
        spectrum.of(Graph.of(4, [(0, 1), (2, 3)]), np.full(2, 0.5))


def test_ten_thousand_nodes_have_a_spectrum() -> None:
    graph = topology.graph("random-regular:4", 10_000, seed=1)
    found = spectrum.of(graph, topology.conductances(graph))
    assert found.exact and found.second == pytest.approx((1 + 2 * math.sqrt(3)) / 5, abs=0.003)


# ---- schedules -----------------------------------------------------------------------------------------------------

SCHEDULES = ["ring", "complete", "one-peer-exponential", "base:1", "base:3", "random-matching", "epidemic-oracle:3",
             "random-matching of random-regular:4", "edge-colouring of torus:6x6", "edge-colouring of complete",
             "epidemic-oracle:4", "epidemic-local:3"]  # fmt: skip
WEIGHTED = [text for text in SCHEDULES if not text.startswith(("one-peer", "base", "epidemic-local"))]


@pytest.mark.parametrize("text", SCHEDULES)
def test_every_round_is_stochastic_the_same_again_and_undirected_ones_keep_the_mean(text: str) -> None:
    made: Schedule = topology.schedule(text, 36, seed=5)
    for t in (7, 0, 1, 50):
        edges, theta, directed = made.round(t)
        again = topology.schedule(text, 36, seed=5).round(t)
        assert np.array_equal(edges, again.edges) and np.array_equal(theta, again.theta)
        assert edges.shape == (len(theta), 2) and edges.dtype == np.int64 and (theta > 0).all()
        if not directed:
            assert (edges[:, 0] < edges[:, 1]).all()
            assert len(np.unique(edges[:, 0] * 36 + edges[:, 1])) == len(edges)
        found = schedules.mix(np.eye(36), made.round(t))
        assert np.allclose(found.sum(axis=1), 1) and found.min() > -1e-12
        if text != "epidemic-local:3":
            assert np.allclose(found.sum(axis=0), 1)
    if made.period is not None:
        assert np.array_equal(made.round(made.period + 1).edges, made.round(1).edges)
    else:
        assert not np.array_equal(made.round(0).edges, made.round(1).edges)


@pytest.mark.parametrize("text", WEIGHTED)
def test_a_schedule_with_masses_keeps_the_weighted_mean(text: str) -> None:
    made = topology.schedule(text, 36, seed=5, masses=MASSES)
    x = start = draws.Draws(1, "x").uniform(36)
    for t in range(12):
        x = schedules.mix(x, made.round(t), MASSES)
        assert x.min() >= start.min() and x.max() <= start.max()
    assert MASSES @ x == pytest.approx(MASSES @ start, rel=1e-12)
    assert norm(x, MASSES) < norm(start, MASSES)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_the_base_graph_holds_exactly_the_mean_after_its_rounds_for_every_n(k: int) -> None:
    """All n <= 200: exact to rounding, at most k neighbours a round, at most 2 log_{k+1} n + 2 rounds (the theorem)."""
    for n in range(1, 201):
        x = draws.Draws(n, "base").uniform(2 * n).reshape(n, 2)
        mean = x.mean(axis=0)
        made = schedules.base_graph(n, k)
        assert made.exact_after is not None and made.exact_after == made.period
        assert made.exact_after <= max(1, 2 * math.log(n, k + 1) + 2 + 1e-9)
        for t in range(made.exact_after):
            found = made.round(t)
            assert np.bincount(found.edges.ravel(), minlength=n).max() <= k
            x = schedules.mix(x, found)
        assert np.abs(x - mean).max() < 1e-13, (n, k)


def test_the_base_graph_has_the_lengths_that_the_paper_draws() -> None:
    """Figures 2 to 4: five rounds of the simple Base-2 graph for five nodes, four of the Base-2 graph for six."""
    assert [len(base_graph.base_graph(n, 1)) for n in (2, 4, 5, 6, 8)] == [1, 2, 5, 4, 3]
    assert len(base_graph.base_graph(12, 2)) == 3  # a hyper-hypercube of 2 x 2 x 3


@pytest.mark.parametrize("bits", range(1, 8))
def test_one_peer_exponential_is_exact_for_powers_of_two(bits: int) -> None:
    made = schedules.one_peer_exponential(2**bits)
    x = draws.Draws(1, "x").uniform(2**bits)
    mean = x.mean()
    for t in range(bits, 2 * bits):
        x = schedules.mix(x, made.round(t))
    assert made.exact_after == bits and np.abs(x - mean).max() < 1e-14
    assert schedules.one_peer_exponential(2**bits + 1).exact_after is None


LEFT = {
    "random-matching": 38 / (2 * 39),
    "epidemic-oracle:4": (1 - 4 / 39) / 5,
    "epidemic-oracle:3": (1 - 3 / 39) / 4,
    "epidemic-local:4": (1 - (1 - 4 / 39) ** 40) / 4 - 1 / 39,
}


@pytest.mark.parametrize("text", LEFT)
def test_a_drawn_round_leaves_what_the_papers_say_of_the_squared_disagreement(text: str) -> None:
    made = topology.schedule(text, 40, seed=1)
    x = draws.Draws(9, "start").uniform(40)
    x -= x.mean()
    left = [float((schedules.mix(x, made.round(t)) ** 2).sum() / (x @ x)) for t in range(1500)]
    assert abs(np.mean(left) - LEFT[text]) < 5 * np.std(left) / math.sqrt(len(left))


@pytest.mark.parametrize("text", ["random-regular:3", "star", "torus:6x6", "scale-free:2", "complete", "path"])
def test_a_colouring_has_every_edge_once_and_no_node_twice_in_a_round(text: str) -> None:
    for n in (36, 35) if text in ("star", "complete", "path") else (36,):
        graph = topology.graph(text, n)
        made = schedules.edge_colouring(graph)
        assert made.period is not None and made.period <= max(1, 2 * int(graph.degrees.max()) - 1)
        rounds = [made.round(t).edges for t in range(made.period)]
        assert all(np.bincount(edges.ravel()).max() == 1 for edges in rounds)
        together = np.concatenate(rounds)
        assert np.array_equal(together[np.lexsort((together[:, 1], together[:, 0]))], graph.edges)
        if text == "complete":
            assert made.period == n - 1 + n % 2


def test_a_matching_of_a_graph_is_disjoint_maximal_and_meets_every_edge_in_time() -> None:
    graph = topology.graph("random-regular:4", 30)
    made = topology.schedule("random-matching of random-regular:4", 30)
    seen = set()
    for t in range(120):
        edges = made.round(t).edges
        assert np.bincount(edges.ravel(), minlength=30).max() == 1
        free = np.setdiff1d(np.arange(30), edges)
        assert not np.isin(graph.edges, free).all(axis=1).any()
        seen |= {tuple(edge) for edge in edges.tolist()}
    assert seen == {tuple(edge) for edge in graph.edges.tolist()}


def test_the_measured_rate_of_a_schedule_is_that_of_its_spectrum() -> None:
    graph = topology.graph("torus:6x6")
    found = spectrum.of(graph, topology.conductances(graph))
    assert schedules.contraction(topology.schedule("torus:6x6"), rounds=400) == pytest.approx(found.rho, abs=0.005)
    assert schedules.contraction(topology.schedule("base:2", 25)) == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("edge-colouring", "of what"), ("base of ring", "does not choose among"), ("random-matching of base:1", "changes from"),
        ("random-matching of rign", "did you mean 'ring'"), ("el-local", "did you mean 'epidemic-local'"),
        ("epidemic-oracle:40", "take 1 to 35"), ("epidemic-local:36", "take 1 to 35"), ("ring of ring", "does not choose"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        topology.schedule(text, 36)


def test_a_schedule_is_no_graph_needs_a_number_and_some_need_equal_masses() -> None:
    with pytest.raises(ConfigError, match="use it as a schedule"):
        topology.graph("base:1", 5)
    with pytest.raises(ConfigError, match="how many nodes"):
        topology.schedule("base:1")
    for text in ("base:1", "one-peer-exponential"):
        with pytest.raises(ConfigError, match="averages equal masses"):
            topology.schedule(text, 36, masses=MASSES)
    assert topology.schedule("base:1", 36, masses=np.full(36, 2.0)).n == 36


def test_the_docstrings_print_what_they_say() -> None:
    for module in (base_graph, schedules, spectrum, weights):
        assert doctest.testmod(module).failed == 0
