"""Who may talk to whom: graphs, their weights and speed, and schedules of rounds. No models, no messages, no clock.

The rules by which deployed nodes make the same graph from member ids are here at once (gossipfl.topology.rules: light,
no numpy). What researchers use is loaded when first asked for: specs (`parse`, `kinds`), what they mean (`graph`,
`schedule`), files (`load`, `save`), `conductances`. Speed is in
gossipfl.topology.spectrum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from gossipfl.topology.rules import (
    COMPLETE_UP_TO,
    DEGREE,
    RESIDUE,
    SLOWEST,
    Adjacency,
    by_rule,
    complete,
    contraction,
    degree_of,
    is_connected,
    lambda2,
    regular,
    release_exchanges,
    ring,
    speed,
    to_networkx,
    warn,
)

if TYPE_CHECKING:
    from gossipfl.topology.files import load, save
    from gossipfl.topology.graphs import Graph
    from gossipfl.topology.schedules import Round, Schedule
    from gossipfl.topology.spec import Spec, graph, kinds, parse, schedule
    from gossipfl.topology.spectrum import Spectrum
    from gossipfl.topology.weights import conductances

__all__ = [
    "COMPLETE_UP_TO",
    "DEGREE",
    "RESIDUE",
    "SLOWEST",
    "Adjacency",
    "Graph",
    "Round",
    "Schedule",
    "Spec",
    "Spectrum",
    "by_rule",
    "complete",
    "conductances",
    "contraction",
    "degree_of",
    "graph",
    "is_connected",
    "kinds",
    "lambda2",
    "load",
    "parse",
    "regular",
    "release_exchanges",
    "ring",
    "save",
    "schedule",
    "speed",
    "to_networkx",
    "warn",
]

_WHERE: Final = {
    "Graph": "graphs",
    "Round": "schedules",
    "Schedule": "schedules",
    "Spectrum": "spectrum",
    "conductances": "weights",
    "Spec": "spec",
    "graph": "spec",
    "kinds": "spec",
    "parse": "spec",
    "schedule": "spec",
    "load": "files",
    "save": "files",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gossipfl.topology' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(f"gossipfl.topology.{_WHERE[name]}"), name)
