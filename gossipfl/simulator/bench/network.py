"""How long rounds would last under a stated network: latency, lines, machines, one slow site. A model in closed form; no run.

The networks below were fixed before any run, and are printed with every figure that rests on them. For the simulation of
messages in time, with what goes wrong there, see the event simulator (gossipfl.simulator.network).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

OVERHEAD: Final = 1000
"""Bytes beside a model in a message, whoever sends it: manifest, signature and receipt of a gossip exchange are 600 to 1,000;
an HTTPS request with a token is no smaller."""

LATENCIES: Final = {"pairs": 3, "edges": 3, "push": 1, "server": 2, "none": 0}
"""Times that a message crosses, by how models are combined: proposal, reply, receipt; a push; down and up. Pairs exchange one
after the other, so that several exchanges a round are as many times that; edges do so all at once."""

OPERATIONS: Final = 6
"""A parameter and row of a local step: two of the forward pass, four of the backward, as in a product of matrices."""


@dataclass(frozen=True)
class Network:
    """What the sites and the server have."""

    name: str
    says: str
    latency_s: float
    """one way"""
    site_mbit_s: float
    """a site's line, each way"""
    server_mbit_s: float
    """the server's line, each way, shared by all who are present"""
    operations_per_s: float
    """of a site's machine"""
    slow_times: int = 1
    """the site with most rows needs so many times as long for everything"""

    def __str__(self) -> str:
        slow = f"; the largest site is {self.slow_times} times slower" if self.slow_times > 1 else ""
        return (
            f"{self.latency_s * 1000:g} ms one way, {self.site_mbit_s:g} Mbit/s a site, {self.server_mbit_s:g} Mbit/s "
            f"the server, {self.operations_per_s:.0e} operations/s{slow}"
        )


NETWORKS: Final = (
    Network("usual", "hospitals on ordinary lines, a well-connected server", 0.02, 100, 1000, 1e9),
    Network("narrow server", "the server's line is the narrowest", 0.02, 100, 10, 1e9),
    Network("slow site", "as usual, but one site is twenty times slower", 0.02, 100, 1000, 1e9, slow_times=20),
    Network("far", "sites on several continents, a server in a data centre: it suits a server", 0.1, 100, 10_000, 1e9),
)


@dataclass(frozen=True, eq=False)
class Work:
    """What each node did in each round. **Shapes**: steps, sent (T, N); rows (N,)."""

    combine: str
    steps: Counts
    sent: Counts
    """bytes of models"""
    message: float
    """bytes of a model, or of what goes in its place, on average"""
    parameters: int
    rows: Counts
    """of a local step"""
    down: float = 1.0
    """bytes that a server sends for each that it is sent: more than one where only what goes up is compressed"""


def seconds(network: Network, work: Work) -> Floats:
    """(T,) how long each round lasts.

        compute = 6 P B steps / operations_per_s                of the slowest who is waited for
        line    = (bytes + 1000 a message) 8 / line             of the busiest site; through a server also its own, both
                                                              ways, and what comes down is not compressed
        round   = compute + crossings latency + line

    A server waits for everybody who is present, the slow site, too, which takes `slow_times` as long for all three. Without a
    server nobody waits for it: its exchanges run beside its partners' others, as in a node; the rounds that it takes part in
    are few (Faults.slow_sites).
    """
    times = np.ones(len(work.rows))
    times[int(np.argmax(work.rows))] = network.slow_times
    waited = times if work.combine == "server" else np.where(times > 1, 0.0, 1.0)  # (N,)
    compute = OPERATIONS * work.parameters * work.rows * work.steps / network.operations_per_s  # (T, N)
    messages = work.sent / (work.message or 1.0)
    line = (work.sent + OVERHEAD * messages) * 8e-6 / network.site_mbit_s
    crossing = (
        LATENCIES[work.combine] * network.latency_s * (np.ceil(messages - 0.5) if work.combine == "pairs" else 1.0)
    )
    there = (work.steps > 0) | (work.sent > 0)
    if work.combine != "server":
        return np.asarray(((compute + line + crossing) * there * waited).max(axis=1))
    # a client waits for what comes before it trains
    both = ((1 + work.down) * work.sent + 2 * OVERHEAD * messages) * 8e-6
    own = ((compute + both / network.site_mbit_s + crossing) * there * waited).max(axis=1)
    served = both.sum(axis=1) / network.server_mbit_s
    return np.asarray(own + np.maximum(0.0, served - both.max(axis=1) / network.site_mbit_s))
