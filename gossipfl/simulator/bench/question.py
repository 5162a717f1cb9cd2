"""What a benchmark asks: task, methods, graph, budget, absence, seeds. Every fault in it is found here, before a run.

Not here: how a method trains (recipe.py), what comes out (one.py).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from gossipfl import topology as topologies
from gossipfl.errors import ConfigError, Fault, Misuse
from gossipfl.simulator.bench.network import NETWORKS
from gossipfl.simulator.bench.recipe import Recipe, changed, recipe
from gossipfl.simulator.vectorized.methods import METHODS, method_of
from gossipfl.simulator.vectorized.simulate import COMPRESSIONS, is_compression
from gossipfl.tasks import Site, Task, load
from gossipfl.tasks.task import BUILT_IN, Data
from gossipfl.topology.graphs import Graph

REFERENCES: Final = {
    "centralized": "one model on all rows pooled, trained to convergence: what no hospital can have",
    "local": "each hospital's own model on its own rows, trained to convergence: what it has without a federation",
}

VERSION: Final = 2
"""Of a line of results; one of another version is not gone on from. To be raised by whatever changes a line or its figures: a
recipe is in the key anyway, the arithmetic of engine, networks and judges is not. 2: exchanges in a node's own time, DeLong."""


@dataclass(frozen=True)
class Ask:
    """One run of a question."""

    method: str
    seed: int
    is_slow: bool = False
    """the largest site needs many rounds of the others for one of theirs, and nobody waits for it"""

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}" + (", one slow site" if self.is_slow else "")


@dataclass(frozen=True)
class Setting:
    """How a task is benchmarked where nobody says otherwise."""

    nodes: int
    topology: str
    rounds: int
    options: Mapping[str, Any] = field(default_factory=dict)


SETTINGS: Final = {
    "stroke": Setting(415, "random-regular:6", 400),
    "stroke-259": Setting(259, "random-regular:6", 400),
    "icu": Setting(186, "random-regular:4", 400),
    "heart": Setting(4, "complete", 50, {"split": "seeded"}),
    "heart-920": Setting(4, "complete", 50),
    "breast-cancer": Setting(16, "random-regular:4", 100),
    "digits": Setting(100, "random-regular:6", 300, {"alpha": 0.1}),
    "toy": Setting(16, "random-regular:4", 100),
}
"""Those of the bar: sparse graphs, no server. heart is parted anew by each seed, for its one published split says nothing
over splits."""

OTHER: Final = Setting(16, "auto", 100)
"""Of a task that is not in the table."""


@dataclass(frozen=True)
class Dealt:
    """A task's rows, dealt to so many sites."""

    task: str
    nodes: int
    options: tuple[tuple[str, Any], ...] = ()
    """of the task"""

    def loaded(self) -> Task:
        return load(self.task, dict(self.options))

    def federation(self, seed: int, data_dir: str | None) -> tuple[list[Site], Data]:
        """Sites and the pooled test rows of this seed. **Raises**: ConfigError for data files that are absent or altered."""
        deal: Any = getattr(self.loaded(), "demo_sites", None)
        if deal is None:
            raise Misuse(f"{self.task} has no rows of its own to deal; a benchmark takes a task with demo_sites")
        try:
            sites, test = deal(self.nodes, seed, data_dir) if data_dir else deal(self.nodes, seed)
        except Misuse as error:
            remedy = f"leave --nodes out, or give a number that the rows of {self.task} can be dealt to"
            raise ConfigError(Fault("nodes", None, str(error), remedy)) from error
        return list(sites), test


@dataclass(frozen=True)
class Question:
    """Methods on one task, alike in rows, graph, rounds, absence and seeds. Made by `Question.of`, which fills in and checks."""

    rows: Dealt
    methods: tuple[str, ...]
    topology: str
    rounds: int
    dropout: float
    seeds: tuple[int, ...]
    stragglers: float = 0.0
    """share of sites that manage half of the local steps of a round, the same all along"""
    changes: Mapping[Ask, Mapping[str, float]] = field(default_factory=dict)
    """of a method's recipe with one seed: what `--tune` has chosen"""

    @classmethod
    def of(
        cls,
        task: str,
        methods: Sequence[str],
        *,
        nodes: int | None = None,
        topology: str | None = None,
        rounds: int | None = None,
        dropout: float = 0.3,
        stragglers: float = 0.0,
        seeds: int | Sequence[int] = 5,
        options: Mapping[str, Any] | None = None,
    ) -> Question:
        """**Raises**: ConfigError for a name that nobody has, the nearest and all; Misuse for numbers that do not fit."""
        if ":" not in task:
            known("dataset", task, BUILT_IN)
        if not methods:
            raise ConfigError(Fault("methods", None, "none is named", "name one or more, such as ledger,fedavg,centralized"))
        for method in methods:
            known("method", base(method), {*METHODS, *REFERENCES})
            for codec in method.split("+")[1:]:
                if not is_compression(codec):
                    what = f"{method}: unknown compression {codec!r}"
                    raise ConfigError(Fault("method", None, what, f"use {COMPRESSIONS}"))
            if base(method) in REFERENCES and "+" in method:
                remedy = f"name {base(method)} alone, or compress a method that exchanges models, such as ledger+int8"
                raise ConfigError(Fault("method", None, f"{method}: a reference sends nothing to be compressed", remedy))
            if method.count("+") > 2:
                remedy = "name one of the training and one of the release, such as ledger+sign:0.1+int4"
                raise ConfigError(Fault("method", None, f"{method} says three codecs", remedy))
        usual = SETTINGS.get(task, OTHER)
        graph = topology or usual.topology
        if graph != "auto" and not Path(graph).exists():
            known("topology", graph.partition(":")[0].split(" ")[0], [kind.name for kind in topologies.kinds()])
        chosen = tuple(range(seeds)) if isinstance(seeds, int) else tuple(seeds)
        said = {**usual.options, **(options or {})}
        dealt = Dealt(task, nodes or usual.nodes, tuple(sorted(said.items())))
        asked = cls(dealt, tuple(dict.fromkeys(methods)), graph, rounds or usual.rounds, dropout, chosen, stragglers)
        if not chosen or asked.rounds < 1 or asked.nodes < 2 or not 0 <= dropout < 1 or not 0 <= stragglers <= 1:
            raise Misuse(
                f"{asked.nodes} nodes, {asked.rounds} rounds, dropout {dropout}, stragglers {stragglers}, {len(chosen)} seeds: a "
                "benchmark takes 2 nodes, 1 round and 1 seed or more, a dropout in [0, 1) and stragglers in [0, 1]"
            )
        asked.meeting(chosen[0])
        return asked

    # ---- what it stands for ------------------------------------------------------------------------------------------

    @property
    def task(self) -> str:
        return self.rows.task

    @property
    def nodes(self) -> int:
        return self.rows.nodes

    def meeting(self, seed: int) -> Graph | str:
        """The graph of this seed; of a schedule that has other edges in other rounds its spec, for its weights depend on the
        sites' masses, which `simulate` knows."""
        spec = self.topology
        if spec == "auto":
            spec = "complete" if self.nodes <= topologies.COMPLETE_UP_TO else f"random-regular:{topologies.DEGREE}"
        if topologies.parse(spec).changes:
            topologies.schedule(spec, self.nodes, seed)  # its faults are found here
            return spec
        return topologies.graph(spec, self.nodes, seed)

    def recipe(self, ask: Ask) -> Recipe:
        """The settings of one method, with what was chosen for it."""
        meeting = None if method_of(base(ask.method)).has_server else self.meeting(ask.seed)
        graph = meeting if isinstance(meeting, Graph) else None
        given = recipe(self.rows.loaded(), base(ask.method), self.rounds, graph, self.nodes)
        return changed(given, **self.changes.get(Ask(ask.method, ask.seed), {}))

    def key(self, ask: Ask) -> str:
        """What decides a run's result, as a short name: equal keys are one run, whatever else was asked."""
        settings: dict[str, Any] = {
            "version": VERSION,
            "task": self.task,
            "options": dict(self.rows.options),
            "nodes": self.nodes,
            "ask": asdict(ask),
        }
        if ask.method not in REFERENCES:
            settings |= {
                "topology": self.topology,
                "rounds": self.rounds,
                "dropout": self.dropout,
                "stragglers": self.stragglers,
                "recipe": asdict(self.recipe(ask)),
                "networks": [asdict(network) for network in NETWORKS],
            }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def runs(self) -> list[Ask]:
        """Every run, seed by seed, so that what is done early can be compared early. Who waits for nobody is run once more with
        a slow site; what waits for it has the same models then, later."""
        asks = [Ask(method, seed) for seed in self.seeds for method in self.methods]
        rounds = [
            method for method in self.methods if method not in REFERENCES and not method_of(base(method)).has_server
        ]
        return asks + [Ask(method, seed, True) for seed in self.seeds for method in rounds]

    def __str__(self) -> str:
        slow = f"{self.stragglers:.0%} stragglers, " if self.stragglers else ""
        return (
            f"{self.task}, {self.nodes} nodes, {self.topology}, {self.rounds} rounds, {self.dropout:.0%} absent each round, "
            f"{slow}seeds {_span(self.seeds)}"
        )


def base(method: str) -> str:
    """The method of a name that says a compression, too: ledger of "ledger+int8"."""
    return method.partition("+")[0]


def compression(method: str) -> str:
    """The codec of such a name; none where it says none.

    >>> base("ledger+topk:0.1"), compression("ledger+topk:0.1"), compression("fedavg")
    ('ledger', 'topk:0.1', 'none')
    """
    return (*method.split("+"), "none")[1]


def release_compression(method: str) -> str:
    """The codec of the release, which such a name may say behind the other; empty where it says none.

    >>> compression("ledger+sign:0.1+int4"), release_compression("ledger+sign:0.1+int4"), release_compression("ledger+int8")
    ('sign:0.1', 'int4', '')
    """
    return (*method.split("+"), "", "")[2]


def known(what: str, name: str, names: Iterable[str]) -> None:
    """**Raises**: ConfigError for a name that is not among these: the nearest, and the list."""
    there = sorted(names)
    if name in there:
        return
    near = difflib.get_close_matches(name, there, 1)
    remedy = (f"did you mean {near[0]!r}? " if near else "") + f"there are {', '.join(there)}"
    raise ConfigError(Fault(what, None, f"unknown {what} {name!r}", remedy))


def _span(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))
