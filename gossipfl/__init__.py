"""gossipfl: hospitals train one model together without a coordinator, by encrypted, signed, exactly-once gossip.

Public are `Task`, `Site`, `Data` (what is learned), `Node` (run one, or mix inside a training loop of your own),
`simulate` (a federation in rounds, all nodes at once) and the errors of gossipfl.errors; each is loaded when first asked
for, so that `import gossipfl` costs nothing.

What this package is not: no server, no coordinator, no cloud service, no telemetry; no anonymiser (it moves models,
and a model can tell of the rows it saw); no medical device; no defence against a neighbour who reads the model it gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gossipfl.node import Node
    from gossipfl.simulator.vectorized.simulate import simulate
    from gossipfl.tasks import Data, Site, Task

__version__ = "0.1.0"
__all__ = ["Data", "Node", "Site", "Task", "__version__", "simulate"]

_WHERE: Final = {
    "Task": "gossipfl.tasks",
    "Site": "gossipfl.tasks",
    "Data": "gossipfl.tasks",
    "Node": "gossipfl.node",
    "simulate": "gossipfl.simulator.vectorized.simulate",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gossipfl' has no attribute {name!r}; it has {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
