"""A graph of a simulation as arrays: nodes 0..n-1, undirected edges (E, 2), and what is known of its links.

Arrays, because networkx takes a microsecond of Python and hundreds of bytes an edge: above 10,000 nodes that is what a
simulation would wait for. networkx reads, writes and analyses (`to_networkx`). Not here: how a graph is drawn
(gossipfl.topology.generate), weights (gossipfl.topology.weights), files (gossipfl.topology.files).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gossipfl.errors import Misuse
from gossipfl.topology.draws import Integers

if TYPE_CHECKING:
    import networkx

Floats = NDArray[np.float64]

EDGES_MAX: Final = 50_000_000
"""Edges of one graph at most: 0.8 GB as int64; what has more (complete of 10,000 and up) needs no list of edges."""

EXACT_DIAMETER: Final = 1_000
"""Nodes up to which the diameter is exact; above it is a lower bound by repeated sweeps: n searches cost n E."""


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """An undirected simple graph. Made by `Graph.of`, which orders and checks the edges.

    **Shapes**: edges (E, 2) int64, each row (lower, higher), rows in order, none twice; latency_ms and bandwidth_mbit_s
    (E,) or None; places (n, 2) for a drawing, or None.
    """

    n: int
    edges: Integers
    name: str = ""
    """The spec or file it came from."""
    labels: tuple[str, ...] = ()
    """Names of the nodes; empty: their numbers."""
    latency_ms: Floats | None = None
    """One way, milliseconds."""
    bandwidth_mbit_s: Floats | None = None
    """Each way, 10^6 bits a second."""
    places: Floats | None = None
    source: str = ""
    """Where it comes from or how it was made."""

    @staticmethod
    def of(n: int, edges: ArrayLike, name: str = "", places: Floats | None = None) -> Graph:
        """The graph of any list of pairs: loops and repetitions fall out.

        >>> Graph.of(3, [(1, 0), (0, 1), (2, 2), (1, 2)]).edges.tolist()
        [[0, 1], [1, 2]]

        **Raises**: Misuse if an end is not one of 0..n-1, n < 1, or there are more than 50 million edges.
        """
        pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
        if n < 1:
            raise Misuse(f"a graph of {n} nodes -- give at least 1")
        if pairs.size and (pairs.min() < 0 or pairs.max() >= n):
            raise Misuse(f"an edge names node {pairs.min() if pairs.min() < 0 else pairs.max()} -- nodes are 0..{n - 1}")
        require_room(len(pairs))
        lower, higher = pairs.min(axis=1, initial=n), pairs.max(axis=1, initial=-1)
        keys = np.unique(lower[lower != higher] * n + higher[lower != higher])
        made = np.stack([keys // n, keys % n], axis=1)
        made.setflags(write=False)
        return Graph(n, made, name, places=places)

    def with_links(
        self,
        labels: Sequence[str] = (),
        latency_ms: Floats | None = None,
        bandwidth_mbit_s: Floats | None = None,
        source: str = "",
    ) -> Graph:
        """The same graph with what is known of its nodes and links, in the order of `edges`."""
        if labels and len(labels) != self.n:
            raise Misuse(f"{len(labels)} labels for {self.n} nodes -- give one each")
        for known in (latency_ms, bandwidth_mbit_s):
            if known is not None and known.shape != (len(self.edges),):
                raise Misuse(f"{known.shape} figures for {len(self.edges)} edges -- give one an edge, in their order")
        return replace(
            self, labels=tuple(labels), latency_ms=latency_ms, bandwidth_mbit_s=bandwidth_mbit_s, source=source
        )

    @property
    def degrees(self) -> Integers:
        """(n,) neighbours of each."""
        return np.bincount(self.edges.ravel(), minlength=self.n).astype(np.int64)

    def label(self, node: int) -> str:
        """The name of a node."""
        return self.labels[node] if self.labels else str(node)

    def adjacency(self) -> Any:
        """The symmetric adjacency as scipy CSR of ones, float64."""
        from scipy.sparse import coo_array

        ends = np.concatenate([self.edges, self.edges[:, ::-1]])
        return coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(self.n, self.n)).tocsr()

    def components(self) -> Integers:
        """(n,) number of the connected part that each node is in."""
        from scipy.sparse.csgraph import connected_components

        parts: Integers = connected_components(self.adjacency(), directed=False)[1].astype(np.int64)
        return parts

    @property
    def is_connected(self) -> bool:
        """Can news from anybody reach everybody?"""
        return not self.components().any()

    def diameter(self) -> tuple[int, bool]:
        """The longest shortest path in hops, and whether that is exact: above 1,000 nodes it is a lower bound.

        **Raises**: Misuse if not connected.
        """
        require_connected(self)
        if self.n == 1:
            return 0, True
        adjacency = self.adjacency()
        if self.n > EXACT_DIAMETER:
            return self._swept(adjacency), False
        reached = (int(_hops(adjacency, start).max()) for start in range(self.n))
        return max(reached), True

    def _swept(self, adjacency: Any, sweeps: int = 6) -> int:
        """The largest of some eccentricities, each from the node that was farthest in the sweep before."""
        start, found = 0, 0
        for _ in range(sweeps):
            hops = _hops(adjacency, start)
            start, reached = int(hops.argmax()), int(hops.max())
            if reached <= found:
                break
            found = reached
        return found

    def to_networkx(self) -> networkx.Graph:
        """The same graph for networkx, nodes by number, with labels, latency_ms and bandwidth_mbit_s as attributes."""
        import networkx as nx

        made = nx.Graph(name=self.name)
        made.add_nodes_from(range(self.n))
        for node, label in enumerate(self.labels):
            made.nodes[node]["label"] = label
        if self.places is not None:
            for node, (x, y) in enumerate(self.places.tolist()):
                made.nodes[node].update(x=x, y=y)
        made.add_edges_from(self.edges.tolist())
        for key, known in (("latency_ms", self.latency_ms), ("bandwidth_mbit_s", self.bandwidth_mbit_s)):
            if known is not None:
                pairs = zip(self.edges.tolist(), known.tolist(), strict=True)
                nx.set_edge_attributes(made, {(one, other): value for (one, other), value in pairs}, key)
        return made


def require_room(count: int) -> None:
    """Refuses a list of edges that does not fit: Misuse with its size."""
    if count > EDGES_MAX:
        raise Misuse(
            f"{count:,} edges take {count * 16 / 2**30:.1f} GiB -- at most {EDGES_MAX:,}: choose fewer nodes or links"
        )


def require_connected(graph: Graph) -> None:
    """Refuses a graph of several parts, says which, and how to join them: Misuse."""
    parts = graph.components()
    if not parts.any():
        return
    sizes = np.bincount(parts)
    smallest = int(sizes.argmin())
    alone = [graph.label(int(node)) for node in np.flatnonzero(parts == smallest)[:5]]
    more = ", ..." if sizes[smallest] > 5 else ""
    raise Misuse(
        f"the graph is not connected: {len(sizes)} parts, the smallest is {{{', '.join(alone)}{more}}} "
        "-- parts never hear of each other: add edges, raise the degree, or try another seed"
    )


def _hops(adjacency: Any, start: int) -> Integers:
    """(n,) hops from one node of a connected graph."""
    from scipy.sparse.csgraph import dijkstra

    hops: Integers = dijkstra(adjacency, directed=False, indices=start, unweighted=True).astype(np.int64)
    return hops
