"""Spec strings: what a person writes for a topology, `random-regular:6` or `torus:8x8`, and the graph that it means.

    SPEC   = NAME [":" VALUE {"," VALUE}]        random-regular:6   erdos-renyi:0.1   clustered:regions=8,inside=4
           | NAME [":" LENGTH {"x" LENGTH}]      torus:8x8   grid:4x5x6
           | FILE                                what ends in .graphml or .edges
           | CHANGING ["of" SPEC]                base:1   epidemic-oracle:6   random-matching of random-regular:6
    VALUE  = [NAME "="] NUMBER                   in the order of the parameters until one is named

The parser is total: a `Spec`, or a ConfigError that says what is wrong and what could be meant. One line of `KINDS` is
one generator or schedule. Not here: how edges are made (gossipfl.topology.generate, gossipfl.topology.schedules), files
(gossipfl.topology.files).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NoReturn

from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.topology import generate, schedules
from gossipfl.topology.graphs import Floats, Graph, require_connected
from gossipfl.topology.schedules import Schedule

Number = int | float

LONGEST: Final = 4096
"""Characters of a spec at most: a path fits."""

NODES_MAX: Final = 10_000_000
"""Nodes at most: what is more is a slip of the hand; memory is estimated before that by the engine."""

FILES: Final = (".graphml", ".edges")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One figure of a generator."""

    name: str
    default: Number
    says: str
    least: Number = 1
    most: Number = NODES_MAX

    @property
    def whole(self) -> bool:
        """Is it a whole number?"""
        return isinstance(self.default, int)


@dataclass(frozen=True, slots=True)
class Kind:
    """A name that a spec may begin with."""

    name: str
    says: str
    make: Callable[..., Any]
    """(n, seed, **figures), or (shape,) of a lattice -> Graph; (n, seed, masses, of, **figures) of a schedule."""
    parameters: tuple[Parameter, ...] = ()
    shaped: bool = False
    """Are its figures the lengths of a lattice?"""
    random: bool = False
    changes: bool = False
    """Is it a schedule, other edges in other rounds?"""
    of: str = ""
    """Of a schedule: may, must or cannot ("") choose among the edges of a graph."""

    @property
    def usage(self) -> str:
        """How it is written."""
        if self.shaped:
            return f"{self.name}[:AxB...]"
        written = self.name + (":" + ",".join(one.name for one in self.parameters) if self.parameters else "")
        return written + {"": "", "may": " [of GRAPH]", "must": " of GRAPH"}[self.of]


def _fixed(make: Callable[..., Graph]) -> Callable[..., Graph]:
    return lambda n, seed, **figures: make(n, **figures)


def _seeded(make: Callable[..., Graph]) -> Callable[..., Graph]:
    return lambda n, seed, **figures: make(n, seed=seed, **figures)


_DEGREE = Parameter("k", 6, "neighbours each")
_GRAPHS: Final = (
    Kind("ring", "one cycle; mixes slowly", _fixed(generate.ring)),
    Kind("path", "a ring with one edge taken out", _fixed(generate.path)),
    Kind("star", "one in the middle, as with a server", _fixed(generate.star)),
    Kind("complete", "everybody with everybody", _fixed(generate.complete)),
    Kind("grid", "a lattice of any dimensions", lambda shape: generate.lattice(shape, False), shaped=True),
    Kind("torus", "a lattice whose borders are joined", lambda shape: generate.lattice(shape, True), shaped=True),
    Kind("hypercube", "2^d nodes, linked if one bit differs", _fixed(generate.hypercube)),
    Kind("exponential", "neighbours 1, 2, 4, ... steps away, both ways", _fixed(generate.exponential)),
    Kind("random-regular", "random, k neighbours each", _seeded(generate.random_regular), (_DEGREE,), random=True),
    Kind(
        "erdos-renyi",
        "every pair with probability p",
        _seeded(generate.erdos_renyi),
        (Parameter("p", 0.1, "probability of a pair", 1e-9, 1.0),),
        random=True,
    ),
    Kind(
        "small-world",
        "a ring of k nearest, a share p of edges rewired",
        _seeded(generate.small_world),
        (_DEGREE, Parameter("p", 0.1, "share of edges that go elsewhere", 0.0, 1.0)),
        random=True,
    ),
    Kind(
        "scale-free",
        "newcomers prefer the well-connected",
        _seeded(generate.scale_free),
        (Parameter("m", 3, "links of a newcomer"),),
        random=True,
    ),
    Kind(
        "geometric",
        "random places in a square, the near are linked",
        _seeded(generate.geometric),
        (Parameter("degree", 12.0, "neighbours on average", 1e-3),),
        random=True,
    ),
    Kind(
        "clustered",
        "regions with few long links between them",
        _seeded(generate.clustered),
        (
            Parameter("regions", 8, "regions, in a ring", 2),
            Parameter("inside", 4, "neighbours within the region"),
            Parameter("long", 2, "links from a region to the next"),
        ),
        random=True,
    ),
)
_S = (Parameter("s", 6, "neighbours a round"),)


def _matching(n: int, seed: int, masses: Floats | None, of: Graph | None) -> Schedule:
    return schedules.random_matching(n, seed, of, masses)


def _colouring(n: int, seed: int, masses: Floats | None, of: Graph) -> Schedule:
    return schedules.edge_colouring(of, masses)


_CHANGING: Final = (
    Kind(
        "one-peer-exponential",
        "one neighbour a round, 1, 2, 4, ... steps ahead",
        lambda n, seed, masses, of: schedules.one_peer_exponential(n, masses),
        changes=True,
    ),
    Kind(
        "base",
        "Base-(k+1): the exact mean after few rounds, for any number of nodes",
        lambda n, seed, masses, of, k: schedules.base_graph(n, k, masses),
        (Parameter("k", 1, "neighbours a round at most", 1, 1000),),
        changes=True,
    ),
    Kind("random-matching", "disjoint random pairs each round", _matching, random=True, changes=True, of="may"),
    Kind("edge-colouring", "every edge of a graph in turn, in disjoint pairs", _colouring, changes=True, of="must"),
    Kind(
        "epidemic-oracle",
        "a new random s-regular graph each round",
        lambda n, seed, masses, of, s: schedules.epidemic_oracle(n, s, seed, masses),
        _S,
        random=True,
        changes=True,
    ),
    Kind(
        "epidemic-local",
        "everybody sends to s random others each round",
        lambda n, seed, masses, of, s: schedules.epidemic_local(n, s, seed, masses),
        _S,
        random=True,
        changes=True,
    ),
)
KINDS: Final = {kind.name: kind for kind in (*_GRAPHS, *_CHANGING)}
ALIASES: Final = {
    "cycle": "ring", "line": "path", "chain": "path", "full": "complete", "cube": "hypercube", "regular": "random-regular",
    "er": "erdos-renyi", "gnp": "erdos-renyi", "watts-strogatz": "small-world", "barabasi-albert": "scale-free",
    "k-regular": "random-regular", "matching": "random-matching", "el-oracle": "epidemic-oracle", "el-local": "epidemic-local",
    "round-robin": "edge-colouring", "edge-coloring": "edge-colouring", "one-peer-exp": "one-peer-exponential",
    "base-graph": "base", "torus2d": "torus", "grid2d": "grid", "lattice": "grid",
}  # fmt: skip
"""What others call them; suggested, not accepted: one thing has one name in a scenario."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A spec that was understood. `str(spec)` writes it with every figure; parsing that gives the same spec."""

    name: str
    figures: tuple[tuple[str, Number], ...] = ()
    shape: tuple[int, ...] = ()
    file: Path | None = None
    of: Spec | None = None
    """The graph among whose edges a schedule chooses."""

    def __str__(self) -> str:
        if self.of is not None:
            return f"{self._alone} of {self.of}"
        return self._alone

    @property
    def _alone(self) -> str:
        if self.file is not None:
            return str(self.file)
        if self.shape:
            return f"{self.name}:{'x'.join(str(length) for length in self.shape)}"
        written = ",".join(f"{value:g}" if float(f"{value:g}") == value else str(value) for _, value in self.figures)
        return f"{self.name}:{written}" if written else self.name

    @property
    def n(self) -> int | None:
        """Nodes, if the spec says so."""
        if self.of is not None:
            return self.of.n
        return math.prod(self.shape) if self.shape else None

    @property
    def changes(self) -> bool:
        """Is it a schedule, other edges in other rounds?"""
        return self.file is None and KINDS[self.name].changes


def kinds() -> tuple[Kind, ...]:
    """Every generator and schedule, with what it takes: for a list."""
    return (*_GRAPHS, *_CHANGING)


def parse(text: str, where: str = "topology", folder: Path | None = None) -> Spec:
    """What a spec string means; a relative file is looked for beside `folder`. Total: never raises but

    **Raises**: ConfigError (operator) with the fault, named after `where`, and what could be meant.

    >>> str(parse("small-world:4")), parse("torus:8x8").n
    ('small-world:4,0.1', 64)
    >>> parse("rnadom-regular:6")
    Traceback (most recent call last):
    gossipfl.errors.ConfigError: topology: unknown topology 'rnadom-regular' -- did you mean 'random-regular'?
    """
    text = text.strip()
    if len(text) > LONGEST:
        _refuse(where, f"a spec of {len(text)} characters", f"write at most {LONGEST}")
    head, of, tail = text.partition(" of ")
    if of:
        return _parse_of(head.strip(), tail.strip(), where, folder)
    if text.endswith(FILES):
        return Spec("file", file=(folder or Path()) / text)
    return _parse(text, where)


def _parse_of(head: str, tail: str, where: str, folder: Path | None) -> Spec:
    outer, inner = _parse(head, where), parse(tail, where, folder)
    if not KINDS[outer.name].of:
        can = " or ".join(kind.name for kind in _CHANGING if kind.of)
        _refuse(where, f"{head!r} does not choose among the edges of a graph", f"leave the rest out, or write {can}")
    if inner.changes:
        _refuse(where, f"{tail!r} changes from round to round", f"write {head} of a graph: {head} of random-regular:6")
    return replace(outer, of=inner)


def _parse(text: str, where: str) -> Spec:
    name, colon, rest = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        _refuse(where, f"unknown topology {name!r}", _meant(name))
    if colon and not rest.strip():
        _refuse(where, f"{text!r} ends after the colon", f"write {kind.usage}, or leave the colon out")
    if kind.shaped:
        return Spec(name, shape=_shape(where, kind, rest) if colon else ())
    return Spec(name, _figures(where, kind, rest))


def _meant(name: str) -> str:
    known = [*KINDS, *ALIASES]
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, 1, 0.5)
    if near:
        return f"did you mean {ALIASES.get(near[0], near[0])!r}?"
    return f"known: {', '.join(KINDS)}, or a file that ends in .graphml or .edges"


def _shape(where: str, kind: Kind, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split("x")]
    if not all(re.fullmatch(r"[0-9]{1,8}", part) for part in parts) or len(parts) > 6:
        _refuse(where, f"{kind.name}:{text}: not lengths", f"write up to six whole numbers: {kind.name}:8x8")
    shape = tuple(int(part) for part in parts)
    if min(shape) < 1 or math.prod(shape) > NODES_MAX:
        _refuse(where, f"{kind.name}:{text}: {math.prod(shape):,} nodes", f"take 1 to {NODES_MAX:,}")
    return shape


def _figures(where: str, kind: Kind, text: str) -> tuple[tuple[str, Number], ...]:
    given: dict[str, Number] = {}
    named = False
    parameters = {one.name: one for one in kind.parameters}
    for at, part in enumerate(text.split(",") if text else ()):
        key, equals, written = (one.strip() for one in part.rpartition("="))
        named = named or bool(equals)
        if not equals and named:
            _refuse(where, f"{kind.name}: {written!r} has no name after a named one", f"write {kind.usage}")
        if not equals and at >= len(parameters):
            takes = f"takes {len(parameters)} figures" if parameters else "takes none"
            _refuse(where, f"{kind.name}: {written!r} is one too many", f"{kind.name} {takes}: write {kind.usage}")
        key = key if equals else list(parameters)[at]
        if key not in parameters:
            near = difflib.get_close_matches(key, list(parameters), 1, 0.5)
            meant = f"did you mean {near[0]!r}?" if near else f"write {kind.usage}"
            _refuse(where, f"{kind.name} has no {key!r}", meant)
        if key in given:
            _refuse(where, f"{kind.name}: {key} stands twice", "leave one")
        given[key] = _figure(where, kind, parameters[key], written)
    return tuple((name, given.get(name, one.default)) for name, one in parameters.items())


def _figure(where: str, kind: Kind, parameter: Parameter, text: str) -> Number:
    shown = f"{kind.name}: {parameter.name} = {text!r}"
    try:
        value: Number = int(text, 10) if parameter.whole and len(text) < 20 else float(text)
    except ValueError:
        _refuse(where, f"{shown} is no {'whole ' * parameter.whole}number", f"{parameter.name}: {parameter.says}")
    if not (math.isfinite(value) and parameter.least <= value <= parameter.most):
        _refuse(where, f"{shown} is out of range", f"take {parameter.least:g} to {parameter.most:g} ({parameter.says})")
    return value


def graph(spec: Spec | str, n: int | None = None, seed: int = 0, *, whole: bool = True, where: str = "topology") -> Graph:
    """The graph of a spec, for n nodes; n may be left out where the spec or the file says it.

    **Randomness**: raw generator bits keyed by (seed, generator, figures); the same graph on any machine.
    **Raises**: ConfigError (operator): no such graph, n missing or another than the spec's, a file at fault, or, unless
    `whole` is False, a graph that is not connected.

    >>> len(graph("random-regular:6", 415 + 1).edges), graph("torus:8x8").n
    (1248, 64)
    """
    spec = parse(spec, where) if isinstance(spec, str) else spec
    try:
        made = _made(spec, n, seed)
        if whole:
            require_connected(made)
    except Misuse as error:
        _refuse(f"{where} {spec}", *_parted(error))
    return made


def schedule(
    spec: Spec | str,
    n: int | None = None,
    seed: int = 0,
    *,
    masses: Floats | None = None,
    weights: str = "mass-metropolis",
    where: str = "topology",
) -> Schedule:
    """The schedule of any spec: a graph is all its edges in every round, by a rule of `weights.RULES`.

    **Raises**: as `graph`; and if the masses are not what the schedule can average.

    >>> schedule("base:2", 25).period, schedule("ring", 5).round(7).theta[0].round(4).tolist()
    (6, 0.3333)
    """
    spec = parse(spec, where) if isinstance(spec, str) else spec
    if not spec.changes:
        found = graph(spec, n, seed, where=where)
    of = graph(spec.of, n, seed, where=where) if spec.of is not None else None
    try:
        if not spec.changes:
            return schedules.static(found, weights, masses)
        nodes = of.n if of is not None else n
        kind = KINDS[spec.name]
        if kind.of == "must" and of is None:
            raise Misuse(f"{spec.name} of what? -- write {kind.usage}: {spec.name} of random-regular:6")
        _require_nodes(nodes)
        made: Schedule = kind.make(nodes, seed, masses, of, **dict(spec.figures))
    except Misuse as error:
        _refuse(f"{where} {spec}", *_parted(error))
    return made


def _require_nodes(n: int | None, hint: str = "") -> int:
    if n is None:
        raise Misuse(f"how many nodes? -- give their number{hint}")
    if not 1 <= n <= NODES_MAX:
        raise Misuse(f"{n:,} nodes -- take 1 to {NODES_MAX:,}")
    return n


def _made(spec: Spec, n: int | None, seed: int) -> Graph:
    if spec.changes:
        raise Misuse(f"{spec.name} changes from round to round: it is no one graph -- use it as a schedule")
    if spec.file is not None:
        from gossipfl.topology.files import load

        made = load(spec.file)
        if n is not None and n != made.n:
            raise Misuse(f"the file has {made.n} nodes, {n} are asked for -- leave the number out, or take another file")
        return made
    if n is not None and spec.n is not None and n != spec.n:
        raise Misuse(f"{spec} has {spec.n} nodes, {n} are asked for -- leave one of the two out")
    kind = KINDS[spec.name]
    n = _require_nodes(spec.n if n is None else n, ", or the lengths: 8x8" if kind.shaped else "")
    drawn: Graph = kind.make(spec.shape or squarest(n)) if kind.shaped else kind.make(n, seed, **dict(spec.figures))
    said = f"made by gossipfl from {spec}, {n} nodes" + (f", seed {seed}" if kind.random else "")
    return replace(drawn, name=str(spec), source=said)


def squarest(n: int) -> tuple[int, int]:
    """The lengths a <= b with a b = n that are nearest to each other.

    >>> squarest(12), squarest(400)
    ((3, 4), (20, 20))

    **Raises**: Misuse if that is a line (n prime), with the nearest numbers that are not.
    """
    a = next(a for a in range(math.isqrt(n), 0, -1) if n % a == 0)
    if a == 1 and n > 3:
        side = math.isqrt(n)
        raise Misuse(f"{n} nodes make no lattice but a line -- take {side}x{-(-n // side)}, or give lengths: 8x8")
    return a, n // a


def _parted(error: Misuse) -> tuple[str, str]:
    what, _, remedy = str(error).partition(" -- ")
    return what, remedy


def _refuse(where: str, what: str, remedy: str) -> NoReturn:
    raise ConfigError(Fault(where, None, what, remedy))
