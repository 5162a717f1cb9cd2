"""Laws of generators, specs and topology files: one seed is one graph, degrees as promised, and every text has an answer."""

from __future__ import annotations

import doctest
import hashlib
import math
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl import topology
from gossipfl.errors import ConfigError, Misuse
from gossipfl.topology import draws, files, generate, graphs, spec
from gossipfl.topology.graphs import Graph

SPECS = {
    "ring": 16, "path": 9, "star": 9, "complete": 12, "grid": 24, "torus": 36, "grid:3x4x5": None, "torus:8x8": None,
    "hypercube": 32, "exponential": 23, "random-regular:6": 50, "random-regular:3": 20, "random-regular:2": 11,
    "random-regular:20": 25, "random-regular:24": 25, "erdos-renyi:0.2": 60, "small-world:4,0.3": 60,
    "scale-free:2": 60, "geometric:20": 60, "clustered:regions=5,inside=4,long=2": 47,
}  # fmt: skip


@pytest.mark.parametrize("text", SPECS)
def test_every_graph_is_simple_connected_ordered_and_the_same_again(text: str) -> None:
    made, again = (topology.graph(text, SPECS[text], seed=3) for _ in range(2))
    assert (made.edges[:, 0] < made.edges[:, 1]).all() and made.edges.min() >= 0 and made.edges.max() < made.n
    assert (np.diff(made.edges[:, 0] * made.n + made.edges[:, 1]) > 0).all()
    assert made.is_connected and nx.is_connected(made.to_networkx())
    assert np.array_equal(made.edges, again.edges) and made.n == again.n
    assert made.diameter() == (nx.diameter(made.to_networkx()), True)
    assert made.places is not None and made.places.shape == (made.n, 2)


ORACLES = {
    "ring": nx.cycle_graph(16), "path": nx.path_graph(16), "star": nx.star_graph(15), "complete": nx.complete_graph(16),
    "grid:4x4": nx.convert_node_labels_to_integers(nx.grid_graph((4, 4))),
    "torus:4x4": nx.convert_node_labels_to_integers(nx.grid_graph((4, 4), periodic=True)),
    "grid:2x4x2": nx.convert_node_labels_to_integers(nx.grid_graph((2, 4, 2))),
    "hypercube": nx.convert_node_labels_to_integers(nx.hypercube_graph(4)),
    "exponential": nx.circulant_graph(16, [1, 2, 4, 8]), "small-world:4,0": nx.watts_strogatz_graph(16, 4, 0),
}  # fmt: skip


@pytest.mark.parametrize("text", ORACLES)
def test_what_is_not_random_is_the_graph_of_networkx(text: str) -> None:
    assert nx.utils.graphs_equal(nx.Graph(topology.graph(text, 16).edges.tolist()), nx.Graph(ORACLES[text].edges))


GOLDEN = {
    "random-regular:6": "e4c7778c72ecabfc",
    "erdos-renyi:0.1": "0dc2562a10469a75",
    "small-world:6": "d43f15c8c706f63b",
    "scale-free:3": "c0d94d4cdd264b8a",
    "geometric:12": "fe960cf0552a49c6",
    "clustered:4": "0dbc8bf98af764d3",
}


@pytest.mark.parametrize("text", GOLDEN)
def test_a_seed_is_the_same_graph_on_any_machine(text: str) -> None:
    """The digest was written down once; a change here breaks everybody's scenario files."""
    made = topology.graph(text, 100, seed=7, whole=False)
    assert hashlib.sha256(made.edges.astype("<i8").tobytes()).hexdigest()[:16] == GOLDEN[text]
    assert not np.array_equal(made.edges, topology.graph(text, 100, seed=8, whole=False).edges)


@pytest.mark.parametrize(("n", "k"), [(10, 3), (11, 4), (16, 7), (16, 8), (16, 15), (2, 1), (9, 2), (301, 50), (8, 3)])
def test_a_random_regular_graph_has_the_same_degree_everywhere(n: int, k: int) -> None:
    for seed in range(5):
        made = generate.random_regular(n, k, seed)
        assert (made.degrees == k).all() and made.is_connected


def test_random_graphs_have_the_means_that_their_papers_say() -> None:
    n, p = 400, 0.03
    edges = [len(generate.erdos_renyi(n, p, seed).edges) for seed in range(40)]
    mean, spread = p * n * (n - 1) / 2, math.sqrt(p * (1 - p) * n * (n - 1) / 2)
    assert abs(np.mean(edges) - mean) < 4 * spread / math.sqrt(40)
    assert 0.6 < np.std(edges) / spread < 1.5
    assert len(generate.small_world(n, 6, 0.5, 1).edges) == 3 * n
    grown = generate.scale_free(3000, 3, 1)
    assert len(grown.edges) == 3 * (3000 - 4) + 3 and grown.degrees.max() > 60
    assert abs(generate.geometric(3000, 12, 1).degrees.mean() - 12) < 1.5


def test_every_pair_is_as_likely_as_another() -> None:
    """Counts of each pair over 2,000 seeds of G(8, 0.3) and of 3-regular graphs of eight nodes, against five sigma."""
    for text, p in (("erdos-renyi:0.3", 0.3), ("random-regular:3", 3 / 7)):
        seen = np.zeros((8, 8))
        for seed in range(2000):
            edges = topology.graph(text, 8, seed, whole=False).edges
            seen[edges[:, 0], edges[:, 1]] += 1
        assert (abs(seen[np.triu_indices(8, 1)] / 2000 - p) < 5 * math.sqrt(p * (1 - p) / 2000)).all()


def test_a_hundred_thousand_nodes_are_made_as_arrays() -> None:
    made = topology.graph("random-regular:4", 100_000, seed=1)
    assert (made.degrees == 4).all() and made.diameter() == (made.diameter()[0], False)


# ---- specs ---------------------------------------------------------------------------------------------------------

TEXTS = st.builds(":".join, st.tuples(st.sampled_from(list(spec.KINDS)), st.text("0123456789.,=xk-e ", max_size=9)))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rnig", "did you mean 'ring'"), ("regular:6", "did you mean 'random-regular'"), ("er:0.1", "'erdos-renyi'"),
        ("watts_strogatz", "'small-world'"), ("?", "known: ring"), ("", "known: ring"), ("ring:", "after the colon"),
        ("ring:4", "one too many"), ("random-regular:six", "no whole number"), ("random-regular:6.5", "no whole number"),
        ("erdos-renyi:2", "out of range"), ("erdos-renyi:nan", "out of range"), ("random-regular:0", "out of range"),
        ("small-world:k=4,0.1", "no name after a named one"), ("small-world:4,k=4", "stands twice"),
        ("clustered:region=3", "did you mean 'regions'"), ("torus:8by8", "not lengths"), ("torus:0x3", "take 1 to"),
        ("torus:99999999x99999999", "take 1 to"), ("x" * 5000, "5000 characters"),
    ],
)  # fmt: skip
def test_a_fault_in_a_spec_is_named_with_what_could_be_meant(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        topology.parse(text)


@given(st.text(max_size=30) | TEXTS)
def test_every_text_is_a_spec_or_a_fault_and_a_spec_is_read_back_alike(text: str) -> None:
    try:
        found = topology.parse(text)
    except ConfigError:
        return
    assert topology.parse(str(found)) == found


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([kind.name for kind in spec.kinds()]), st.integers(1, 40), st.integers(0, 2**63), st.integers(1, 9))
def test_any_size_and_figure_makes_a_graph_or_is_refused_with_a_way_out(name: str, n: int, seed: int, figure: int) -> None:
    text = f"{name}:{figure}" if spec.KINDS[name].parameters and name != "erdos-renyi" else name
    try:
        assert topology.graph(text, n, seed).n == n
    except ConfigError as error:
        assert " -- " in str(error)


@pytest.mark.parametrize(
    ("text", "n", "said"),
    [
        ("ring", None, "how many nodes"), ("torus", None, "or the lengths"), ("torus:8x8", 65, "leave one of the two"),
        ("torus", 419, "make no lattice but a line"), ("hypercube", 100, "take 64 or 128"),
        ("random-regular:3", 9, "take degree 4 or 10 nodes"), ("random-regular:9", 9, "take 1 to 8"),
        ("random-regular:1", 8, "never hear of each other"), ("erdos-renyi:0.001", 50, "not connected"),
        ("complete", 100_000, "5.*edges take"), ("clustered:40", 50, "take 2 to 25"), ("ring", 0, "take 1 to"),
        ("clustered:long=9", 40, "take at most 5"), ("small-world:5", 20, "even number"), ("scale-free:9", 9, "take 1 to 8"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_refused_with_what_can(text: str, n: int | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        topology.graph(text, n)


def test_edges_that_name_nobody_are_the_callers_fault() -> None:
    with pytest.raises(Misuse, match=r"nodes are 0\.\.2"):
        Graph.of(3, [(0, 3)])
    with pytest.raises(Misuse, match="one each"):
        Graph.of(3, [(0, 1)]).with_links(labels=["a"])


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".edges", ".graphml"])
def test_what_is_saved_is_loaded_alike(tmp_path: Path, ending: str) -> None:
    made = topology.graph("clustered:3", 20, seed=2)
    known = made.with_links(
        [f"h{node}" for node in range(20)],
        np.linspace(1, 30, len(made.edges)),
        np.where(np.arange(len(made.edges)) % 2, 100.0, np.nan),
        "made by a test",
    )
    for graph in (made, known, Graph.of(3, [(0, 2)])):
        topology.save(graph, tmp_path / f"g{ending}")
        read = topology.load(tmp_path / f"g{ending}")
        assert (read.n, read.labels, read.source) == (graph.n, graph.labels, graph.source)
        assert np.array_equal(read.edges, graph.edges)
        for name in ("latency_ms", "bandwidth_mbit_s"):
            one, other = getattr(read, name), getattr(graph, name)
            assert (one is None) == (other is None) and (one is None or np.allclose(one, other, equal_nan=True, atol=0))
        assert files.dumped(replace(read, name=graph.name), ending) == files.dumped(graph, ending)
    assert topology.graph(str(tmp_path / f"g{ending}"), whole=False).n == 3
    assert topology.graph(topology.parse(f"g{ending}", folder=tmp_path), 3, whole=False).n == 3


HEAD = '<graphml><key id="d" for="edge" attr.name="latency_ms" attr.type="{}"/><graph edgedefault="{}">'
FAULTY = {
    "a b\nb c 1 2 3\n": (".edges", 2, "5 columns"),
    "a b x\n": (".edges", 1, "latency_ms = 'x' is no number"),
    "a b -1\n": (".edges", 1, "out of range"),
    "a b 1 0\n": (".edges", 1, "bandwidth_mbit_s = 0 is out of range"),
    "a b nan\n": (".edges", 1, "out of range"),
    "a b\n\nb a\n": (".edges", 3, r"stands twice \(first on line 1\)"),
    "a a\n": (".edges", 1, "linked to itself"),
    "# nothing\n": (".edges", None, "no node"),
    "<graphml>\n<graph": (".graphml", 2, "not XML"),
    "<graphml/>": (".graphml", None, "holds no <graph>"),
    "{}": (".graphml", 1, "not XML"),
    '<!DOCTYPE x [\n<!ENTITY a "b">]>\n<graphml/>': (".graphml", 2, "entity"),
    HEAD.format("double", "directed") + '\n<edge source="a" target="b"/></graph></graphml>': (".graphml", 2, "directed: a -> b"),
    HEAD.format("double", "undirected") + '\n<edge source="a" target="a"/></graph></graphml>': (".graphml", 2, "itself"),
    HEAD.format("double", "undirected") + '\n<edge source="a" target="b"><data key="d">-3</data></edge></graph></graphml>': (
        ".graphml", 2, "out of range"),
    HEAD.format("string", "undirected") + '\n<edge source="a" target="b"><data key="d">3</data></edge></graph></graphml>': (
        ".graphml", 2, "no number"),
    HEAD.format("double", "undirected") + '<edge source="a" target="b"><data key="d">x</data></edge></graph></graphml>': (
        ".graphml", 1, "not GraphML"),
    HEAD.format("double", "undirected")
    + '\n<edge id="1" source="a" target="b"/>\n<edge id="2" source="b" target="a"/></graph></graphml>': (
        ".graphml", 2, "stands twice"),
}  # fmt: skip


@pytest.mark.parametrize("text", FAULTY)
def test_a_fault_in_a_file_has_file_line_cause_and_remedy(tmp_path: Path, text: str) -> None:
    ending, line, said = FAULTY[text]
    file = tmp_path / f"faulty{ending}"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        topology.load(file)
    (fault,) = error.value.faults
    assert fault.file == str(file) and fault.line == line and fault.remedy


def test_a_directed_file_is_taken_if_every_edge_goes_both_ways_or_if_asked_to(tmp_path: Path) -> None:
    file = tmp_path / "g.graphml"
    nx.write_graphml(nx.DiGraph([("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")]), file)
    assert topology.load(file).edges.tolist() == [[0, 1], [1, 2]]
    nx.write_graphml(nx.DiGraph([("a", "b"), ("b", "c")]), file)
    assert topology.load(file, both_ways=True).edges.tolist() == [[0, 1], [1, 2]]


def test_all_faults_are_told_at_once_but_not_more_than_twenty(tmp_path: Path) -> None:
    file = tmp_path / "g.edges"
    file.write_text("a\n" * 100)
    with pytest.raises(ConfigError) as error:
        topology.load(file)
    assert len(error.value.faults) == 21 and "80 more" in str(error.value.faults[-1])


@pytest.mark.parametrize("name", ["absent.edges", "g.txt", "noending"])
def test_a_file_that_is_not_there_or_of_another_kind_is_the_operators_fault(tmp_path: Path, name: str) -> None:
    (tmp_path / "g.txt").write_text("a b\n")
    (tmp_path / "noending").write_text("a b\n")
    with pytest.raises(ConfigError, match=name):
        topology.load(tmp_path / name)


GOOD = {
    ".edges": "# node: z\na b 1 2\nb c - 3\n",
    ".graphml": HEAD.format("double", "undirected")
    + '<node id="a"/><edge source="a" target="b"><data key="d">3</data></edge></graph></graphml>',
}
MUTANTS = st.text(max_size=6) | st.sampled_from(["<data>", '"', "<graph>", 'id="a"', "<edge/>", "directed"])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(GOOD)), st.integers(0, 300), st.integers(0, 12), MUTANTS)
def test_no_text_of_a_file_raises_anything_but_a_config_error(
    tmp_path_factory: pytest.TempPathFactory, ending: str, at: int, length: int, put: str
) -> None:
    good = GOOD[ending]
    file = tmp_path_factory.getbasetemp() / f"mutant{ending}"
    file.write_text(good[: at % len(good)] + put + good[at % len(good) + length :], encoding="utf-8", errors="ignore")
    try:
        assert topology.load(file).n >= 1
    except ConfigError as error:
        assert str(file) in str(error)


def test_the_docstrings_print_what_they_say() -> None:
    for module in (draws, files, generate, graphs, spec):
        assert doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL).failed == 0
