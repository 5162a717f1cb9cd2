"""Topology files: GraphML and edge lists, with latency and bandwidth of a link, read totally and written the same each time.

An edge list (.edges) is text: lines `FROM TO [LATENCY_MS [BANDWIDTH_MBIT_S]]`, parted by blanks or tabs, `-` where a
figure is not known; a line that begins with # is a comment, of which `# source:` says how it was made and `# node: ID`
names a node that has no link (yet). GraphML is read and written by networkx; `latency_ms` and `bandwidth_mbit_s` of an
edge, `x` and `y` of a node are known, other data is left alone. Not here: what a graph is good for.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import numpy as np

from gossipfl.documents import read_text
from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.topology.graphs import Floats, Graph

if TYPE_CHECKING:
    import networkx

FAULTS_MAX: Final = 20
"""Faults that are told of one file; the rest are counted."""

KNOWN: Final = ("latency_ms", "bandwidth_mbit_s")
Link = tuple[str, str, float, float, int | None]
"""From, to, latency_ms, bandwidth_mbit_s (NaN: not known), line."""


def load(path: Path | str, *, both_ways: bool = False) -> Graph:
    """The graph of a file, nodes in the order in which the file names them (numbers in their order if all are numbers).

    A directed file is taken if every edge is there both ways, or with `both_ways`, which adds what is missing.

    **Raises**: ConfigError (operator) with every fault: file, line, cause, remedy. Nothing else.
    """
    path = Path(path)
    text = read_text(path)
    if path.suffix == ".graphml":
        return _from_graphml(path, text, both_ways)
    if path.suffix != ".edges":
        _refuse(path, None, f"{path.suffix or 'no ending'}: not a topology file", "name a .graphml or .edges file")
    return _from_edges(path, text)


# ---- edge lists ----------------------------------------------------------------------------------------------------


def _from_edges(path: Path, text: str) -> Graph:
    nodes: dict[str, None] = {}
    source, faults = "", []
    links: list[Link] = []
    for number, line in enumerate(text.splitlines(), 1):
        content, comment = line.strip(), line.strip().removeprefix("#")
        if content != comment:
            key, _, value = (part.strip() for part in comment.partition(":"))
            if key == "source":
                source = value
            if key == "node" and value:
                nodes[value] = None
            continue
        if not content:
            continue
        read = _link(path, number, content.split())
        if isinstance(read, Fault):
            faults.append(read)
        else:
            links.append(read)
            nodes |= {read[0]: None, read[1]: None}
    return _graph(path, nodes, links, faults, source, None)


def _link(path: Path, line: int, cells: list[str]) -> Link | Fault:
    if not 2 <= len(cells) <= 4:
        remedy = "write FROM TO [LATENCY_MS [BANDWIDTH_MBIT_S]], parted by blanks; names without blanks"
        return Fault(str(path), line, f"{len(cells)} columns", remedy)
    figures = [math.nan, math.nan]
    for at, cell in enumerate(cells[2:]):
        if cell == "-":
            continue
        try:
            figures[at] = float(cell)
        except ValueError:
            return Fault(str(path), line, f"{KNOWN[at]} = {cell!r} is no number", "write a number, or - if not known")
        if fault := _implausible(path, line, KNOWN[at], figures[at]):
            return fault
    return cells[0], cells[1], figures[0], figures[1], line


def _implausible(path: Path, line: int | None, name: str, value: float) -> Fault | None:
    least = 0 if name == "latency_ms" else 1e-9
    if math.isfinite(value) and least <= value <= 1e9:
        return None
    return Fault(str(path), line, f"{name} = {value:g} is out of range", f"take {least:g} to 1e9, or leave it out")


# ---- GraphML -------------------------------------------------------------------------------------------------------


def _from_graphml(path: Path, text: str, both_ways: bool) -> Graph:
    made = _parsed(path, text)
    if made.is_multigraph():
        made = _simple(path, text, made)
    pairs: Iterable[tuple[Any, Any, dict[str, Any]]] = made.edges(data=True)
    if made.is_directed():
        pairs = list(_undirected(path, text, made, both_ways))
    faults: list[Fault] = []
    links: list[Link] = []
    for one, other, data in pairs:
        latency, bandwidth = (_datum(path, text, (str(one), str(other)), name, data, faults) for name in KNOWN)
        line = _line_of(text, str(one), str(other)) if one == other else None
        links.append((str(one), str(other), latency, bandwidth, line))
    return _graph(path, {str(node): None for node in made}, links, faults, str(made.graph.get("source", "")), _places(made))


def _datum(
    path: Path, text: str, ends: tuple[str, str], name: str, data: dict[str, Any], faults: list[Fault]
) -> float:
    """One figure of a link, NaN if there is none; what is wrong with it is added to the faults."""
    value = data.get(name, math.nan)
    if name not in data:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool):
        fault = Fault(str(path), _line_of(text, *ends), f"{name} = {value!r} is no number", 'declare attr.type="double"')
        faults.append(fault)
        return math.nan
    if _implausible(path, None, name, value):
        faults += [one for one in [_implausible(path, _line_of(text, *ends), name, value)] if one]
    return float(value)


def _parsed(path: Path, text: str) -> networkx.Graph:
    from xml.etree.ElementTree import ParseError

    import networkx as nx

    try:
        if "<!ENTITY" in text:
            _refuse(path, 1 + text[: text.index("<!ENTITY")].count("\n"), "declares an entity", "write the text itself")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an undeclared type is read as text, and told as a fault below
            return nx.parse_graphml(text)
    except ParseError as error:
        _refuse(path, error.position[0], f"not XML: {error}", "save it as GraphML again")
    except (nx.NetworkXException, KeyError, ValueError, TypeError, AttributeError, IndexError, RecursionError) as error:
        line = _line_of(text, *re.findall(r"[\w.:-]+", str(error))[-1:])
        what = f"not GraphML: {error}" if "<graph " in text else "holds no <graph>"
        _refuse(path, line, what, "each <data> needs its <key> with attr.type, each <edge> source and target")


def _simple(path: Path, text: str, made: Any) -> networkx.Graph:
    """The graph of a multigraph without parallel edges: an `id` on an edge makes networkx read one."""
    import networkx as nx

    for one, other, key in made.edges(keys=True):
        if made.number_of_edges(one, other) > 1:
            _refuse(path, _line_of(text, str(one), str(other)), f"{one} - {other} stands twice (edge {key})", "leave one")
    return nx.DiGraph(made) if made.is_directed() else nx.Graph(made)


def _undirected(path: Path, text: str, made: Any, both_ways: bool) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    order = {node: at for at, node in enumerate(made)}
    for one, other, data in made.edges(data=True):
        if not made.has_edge(other, one) and not both_ways:
            remedy = 'add it, write edgedefault="undirected", or read it with both ways (--both-ways)'
            _refuse(path, _line_of(text, str(one), str(other)), f"directed: {one} -> {other}, but no way back", remedy)
        if order[one] < order[other] or not made.has_edge(other, one):
            yield one, other, data


def _places(made: networkx.Graph) -> dict[str, tuple[float, float]] | None:
    found = {str(node): (data.get("x"), data.get("y")) for node, data in made.nodes(data=True)}
    if not all(isinstance(one, int | float) and math.isfinite(one) for place in found.values() for one in place):
        return None
    return {node: (float(x), float(y)) for node, (x, y) in found.items()}


def _line_of(text: str, *names: str) -> int | None:
    """The first line on which all names stand as values: for the message only."""
    wanted = [re.compile(rf"""["'>]{re.escape(name)}["'<]""") for name in names]
    for number, line in enumerate(text.splitlines(), 1):
        if wanted and all(one.search(line) for one in wanted):
            return number
    return None


# ---- both ----------------------------------------------------------------------------------------------------------


def _graph(
    path: Path,
    nodes: dict[str, None],
    links: list[Link],
    faults: list[Fault],
    source: str,
    places: dict[str, tuple[float, float]] | None,
) -> Graph:
    seen: dict[tuple[str, str], int | None] = {}
    for one, other, *_, line in links:
        pair = (one, other) if one < other else (other, one)
        if one == other:
            faults.append(Fault(str(path), line, f"{one} is linked to itself", "leave the line out"))
        elif pair in seen:
            first = f" (first on line {seen[pair]})" if seen[pair] else ""
            faults.append(Fault(str(path), line, f"{one} - {other} stands twice{first}", "links go both ways: leave one"))
        seen.setdefault(pair, line)
    if not nodes and not faults:
        faults.append(Fault(str(path), None, "no node in it", "write one line FROM TO for each link"))
    if faults:
        rest = f"{len(faults) - FAULTS_MAX} more faults" if len(faults) > FAULTS_MAX else ""
        raise ConfigError(*faults[:FAULTS_MAX], *[Fault(str(path), None, rest, "mend these first")] * bool(rest))
    labels = sorted(nodes, key=int) if all(re.fullmatch(r"[0-9]{1,18}", node) for node in nodes) else list(nodes)
    index = {label: at for at, label in enumerate(labels)}
    ends = np.array([(index[one], index[other]) for one, other, *_ in links], np.int64).reshape(-1, 2)
    made = Graph.of(len(labels), ends, path.name)
    order = np.lexsort((ends.max(axis=1, initial=-1), ends.min(axis=1, initial=len(labels))))
    figures = np.array([link[2:4] for link in links], np.float64).reshape(-1, 2)[order]
    known = [_column(figures[:, at]) for at in range(2)]
    if places is not None:
        from dataclasses import replace

        made = replace(made, places=np.array([places[label] for label in labels]))
    plain = labels == [str(at) for at in range(len(labels))]
    return made.with_links(() if plain else labels, known[0], known[1], source)


def _column(figures: Floats) -> Floats | None:
    """NaN where one link's figure is not known; None where all are not."""
    return None if bool(np.isnan(figures).all()) else np.ascontiguousarray(figures)


def dumped(graph: Graph, ending: str) -> str:
    """The text of a .graphml or .edges file: the same bytes for the same graph, and `load` gives it back.

    **Raises**: ConfigError for another ending.
    """
    if ending == ".edges":
        return "".join(f"{line}\n" for line in _lines(graph))
    if ending == ".graphml":
        import networkx as nx

        made = nx.relabel_nodes(graph.to_networkx(), graph.label)
        for _, data in made.nodes(data=True):
            data.pop("label", None)
        for *_, link in made.edges(data=True):
            for name in [name for name, value in link.items() if value != value]:
                del link[name]
        made.graph = {"name": graph.name, "source": graph.source}
        return "\n".join(nx.generate_graphml(made)) + "\n"
    raise ConfigError(Fault(ending or "no ending", None, "not a kind of topology file", "write .graphml or .edges"))


def _lines(graph: Graph) -> Iterator[str]:
    yield f"# {graph.name}: {graph.n} nodes, {len(graph.edges)} links"
    if graph.source:
        yield f"# source: {graph.source}"
    figures = (graph.latency_ms, graph.bandwidth_mbit_s)
    if any(known is not None for known in figures):
        yield "# from to latency_ms bandwidth_mbit_s"
    named = range(graph.n) if graph.labels else np.flatnonzero(graph.degrees == 0).tolist()  # all: their order is kept
    yield from (f"# node: {graph.label(node)}" for node in named)
    columns = [known.tolist() if known is not None else None for known in figures]
    for at, (one, other) in enumerate(graph.edges.tolist()):
        cells = ["-" if column is None or math.isnan(column[at]) else f"{column[at]:.12g}" for column in columns]
        while cells and cells[-1] == "-":
            cells.pop()
        yield " ".join([graph.label(one), graph.label(other), *cells])


def save(graph: Graph, path: Path | str) -> None:
    """Writes a topology file. **Raises**: ConfigError: another ending, or it cannot be written."""
    path = Path(path)
    text = dumped(graph, path.suffix)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        fault = Fault(str(path), None, f"cannot be written: {error.strerror}", "free space or choose another place")
        raise ConfigError(fault, exit_code=Exit.STATE) from None


def _refuse(path: Path, line: int | None, what: str, remedy: str) -> NoReturn:
    raise ConfigError(Fault(str(path), line, what, remedy))
