"""How long rounds would last under a stated network: latency, lines, machines, one slow site. A model of what a run did; no run.

The networks below were fixed before any run, and are printed with every figure that rests on them. For the simulation of
messages in time, with what goes wrong there, see the event simulator (gossipfl.simulator.network).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

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
    """the site with most rows needs so many times as long for everything: local steps, crossings, its line"""

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
class Batch:
    """Exchanges of one round that are made at once. **Shapes**: lo, hi (E,), and sender where only one end sends."""

    round: int
    lo: Counts
    hi: Counts
    sender: Counts | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """What each node did in each round. **Shapes**: steps, sent (T, N); rows, pace (N,)."""

    combine: str
    steps: Counts
    sent: Counts
    """bytes of models"""
    message: float
    """bytes of a model, or of what goes in its place, on average"""
    parameters: int
    rows: Counts
    """of a local step"""
    largest: int
    """the site with most rows, which is the slow one where one is"""
    down: float = 1.0
    """bytes that a server sends for each that it is sent: more than one where only what goes up is compressed"""
    met: Sequence[Batch] = ()
    """in the order in which they were made"""
    pace: Floats | None = None
    """how many times as long as the others' a node's local step takes: a straggler's, of which fewer fit into a round"""


def passed(network: Network, work: Work) -> Floats:
    """(T,) seconds from the start until every node has ended each round.

        compute_i = 6 P B_i steps_i pace_i / operations_per_s
        line_i    = (bytes + 1000 a message) 8 / line
        x_i       = crossings latency + line_i                  what a node spends on an exchange
        s_i       = slow_times for the slow site, else 1        it takes so many times as long for all three

    Through a server a round lasts as long as whoever is there needs longest, s_i (compute_i + both ways of line_i + 2 latency),
    and at least as long as the server's own line needs for all, both ways; what comes down is not compressed.

    Without one there is no such barrier; each node has a clock c_i, which stands still while it is absent:

        local steps   c_i <- c_i + s_i compute_i
        an exchange   c_i, c_j <- max(c_i + s_i x_i, c_j + s_j x_j)         each spends its own time; both go on from the later

    so that a delay reaches only those who meet it. Over all edges at once the maximum is over all neighbours. A slow site
    exchanges in every `slow_times`-th turn (Faults.slow_sites): the exchange ran beside its partner's others until then, as in a
    node. Push-sum, which waits for everybody's shares, and a method that exchanges nothing have the longest round for all.
    """
    times = np.ones(len(work.rows))
    times[work.largest] = network.slow_times
    pace = 1.0 if work.pace is None else work.pace
    compute = times * OPERATIONS * work.parameters * work.rows * work.steps * pace / network.operations_per_s  # (T, N)
    if work.combine == "server":
        return np.cumsum(_served(network, work, compute, times))
    if not work.met:
        line = _line(network, work.sent, work.sent / (work.message or 1.0))
        there = (work.steps > 0) | (work.sent > 0)
        spent = compute + times * (line + LATENCIES[work.combine] * network.latency_s)
        return np.cumsum((spent * there).max(axis=1))
    return _clocked(work, compute, times, LATENCIES[work.combine] * network.latency_s, _line(network, work.message, 1.0))


def _line(network: Network, sent: Any, messages: Any) -> Any:
    """Seconds on a site's line."""
    return (sent + OVERHEAD * messages) * 8e-6 / network.site_mbit_s


def _served(network: Network, work: Work, compute: Floats, times: Floats) -> Floats:
    """(T,) how long each round through a server lasts: a client waits for what comes before it trains."""
    messages = work.sent / (work.message or 1.0)
    both = ((1 + work.down) * work.sent + 2 * OVERHEAD * messages) * 8e-6
    there = (work.steps > 0) | (work.sent > 0)
    own = compute + times * (both / network.site_mbit_s + LATENCIES["server"] * network.latency_s)
    all_ = both.sum(axis=1) / network.server_mbit_s
    return np.asarray((own * there).max(axis=1) + np.maximum(0.0, all_ - both.max(axis=1) / network.site_mbit_s))


def _clocked(work: Work, compute: Floats, times: Floats, crossings: float, line: float) -> Floats:
    """(T,) the latest clock after each round. `line`: seconds of one message."""
    clock, latest, batches = np.zeros(len(times)), np.zeros(len(compute)), iter(work.met)
    batch = next(batches, None)
    for round in range(len(compute)):
        clock += compute[round]
        while batch is not None and batch.round == round:
            _meet(clock, batch, times, crossings, line)
            batch = next(batches, None)
        latest[round] = clock.max()
    return latest


def _meet(clock: Floats, batch: Batch, times: Floats, crossings: float, line: float) -> None:
    """These exchanges, in `clock`."""
    ends = np.concatenate([batch.lo, batch.hi]) if batch.sender is None else batch.sender
    messages = np.bincount(ends, minlength=len(clock))
    until = clock + times * (messages > 0) * (crossings + line * messages)
    before = until.copy()
    for one, other in ((batch.lo, batch.hi), (batch.hi, batch.lo)):
        hears = slice(None) if batch.sender is None else other == batch.sender
        np.maximum.at(until, one[hears], before[other[hears]])
    clock[:] = until
