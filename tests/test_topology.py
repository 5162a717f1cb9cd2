"""Laws of topology: the graphs are the same at every node, connected, and their speed is what networkx says."""

from __future__ import annotations

import doctest
import random

import networkx
import pytest

from gossipfl import topology
from gossipfl.errors import Misuse
from gossipfl.topology import rules

IDS = [f"h{n}" for n in range(40)]
GRAPHS = {
    "complete": topology.complete(IDS),
    "ring": topology.ring(IDS),
    "regular-4": topology.regular(IDS, 4, b"salt"),
    "regular-6": topology.regular(IDS, 6, b"salt"),
    "two": topology.complete("ab"),
}


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_a_graph_is_symmetric_sorted_connected_and_without_loops(graph: topology.Adjacency) -> None:
    assert list(graph) == sorted(graph)
    for member, neighbours in graph.items():
        assert list(neighbours) == sorted(set(neighbours))
        assert member not in neighbours
        assert all(member in graph[other] for other in neighbours)
    assert topology.is_connected(graph)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
def test_lambda2_is_the_algebraic_connectivity_of_networkx(graph: topology.Adjacency) -> None:
    found = networkx.laplacian_spectrum(topology.to_networkx(graph))[1]
    assert topology.lambda2(graph) == pytest.approx(found, rel=1e-9)


def test_every_node_makes_the_same_graph_whatever_the_order_of_ids() -> None:
    shuffled = random.Random(5).sample(IDS, len(IDS))
    assert topology.regular(shuffled, 6, b"salt") == GRAPHS["regular-6"]
    assert topology.regular(IDS, 6, b"other") != GRAPHS["regular-6"]


def test_a_member_that_leaves_changes_only_edges_of_its_neighbours() -> None:
    before, gone = GRAPHS["regular-6"], "h7"
    after = topology.regular([member for member in IDS if member != gone], 6, b"salt")
    changed = {member for member in after if after[member] != before[member]}
    assert changed <= set(before[gone])


def test_the_rule_auto_is_complete_up_to_sixteen_and_regular_above() -> None:
    sixteen, seventeen = IDS[:16], IDS[:17]
    assert topology.by_rule("auto", sixteen, 6, b"") == topology.complete(sixteen)
    assert topology.by_rule("auto", seventeen, 6, b"") == topology.regular(seventeen, 6, b"")
    assert topology.by_rule("regular", IDS[:5], 6, b"") == topology.complete(IDS[:5])


def test_a_ring_of_hundreds_is_refused_for_training_and_a_regular_graph_is_not() -> None:
    many = [f"h{n}" for n in range(415)]
    assert "too slowly" in (topology.warn(topology.ring(many)) or "")
    assert topology.warn(topology.regular(many, 6, b"x")) is None
    assert topology.warn({"a": (), "b": ()}) is not None
    assert topology.warn({"a": ()}) is not None


def test_the_release_leaves_no_more_than_a_hundredth_in_simulated_matchings() -> None:
    """Two by two exchanges at gamma 1/2 on the complete graph of eight: the promised number is enough in the mean."""
    rng, ids = random.Random(1), IDS[:8]
    exchanges = topology.release_exchanges(topology.complete(ids), 0.5)
    left = []
    for _ in range(200):
        x = [float(n == 0) - 1 / 8 for n in range(8)]
        for _ in range(exchanges):
            order = rng.sample(range(8), 8)
            for a, b in zip(order[::2], order[1::2], strict=True):
                move = 0.25 * (x[b] - x[a])
                x[a], x[b] = x[a] + move, x[b] - move
        left.append(sum(one * one for one in x) / (7 / 8))
    assert sum(left) / len(left) <= topology.RESIDUE**2 * 1.5


@pytest.mark.parametrize("k", [0, 1, 3, -2])
def test_an_odd_or_empty_degree_is_the_callers_fault(k: int) -> None:
    with pytest.raises(Misuse, match="even degree"):
        topology.regular(IDS, k, b"")


def test_no_number_of_exchanges_joins_what_is_not_connected() -> None:
    with pytest.raises(Misuse, match="not connected"):
        topology.release_exchanges({"a": (), "b": ()})


def test_the_docstrings_print_what_they_say() -> None:
    assert doctest.testmod(rules).failed == 0
