"""Push-sum over directed edges with running sums: the weighted mean is exact whatever is lost, because nothing ever is.

Node i holds a sum s_i and a weight w_i, its model is s_i / w_i. Each round it parts both in equal shares for itself and for
everybody it sends to. What goes over an edge is not the share but the sum of all shares so far; the receiver takes what is
new in it. A lost message is thus made up for by the next one that arrives. Here an edge holds what its receiver has not seen
yet (the sender's running sum less the last one received: the same algebra, without numbers that grow for ever).

    local      s_i <- s_i + m_i (y_i - s_i / w_i)
    send       owed_ij <- owed_ij + s_i / (d_i + 1) for each j;  s_i <- s_i / (d_i + 1)
    arrives    s_j <- s_j + owed_ij;  owed_ij <- 0              and w alike, from w_i = m_i

A weight may fall far below its mean where much is lost over few edges, and a local step then counts for more: the mean stays
exact, but a large rate may diverge.

**Laws**: the sums of s and w over all nodes and edges change only through local steps, whoever is away and whatever is lost.
**Source**: Kempe, Dobra, Gehrke, "Gossip-based computation of aggregate information", 2003; Assran, Loizou, Ballas, Rabbat,
"Stochastic gradient push for distributed deep learning", 2019; Hadjicostis, Vaidya, Dominguez-Garcia, "Robust distributed
average consensus via exchange of running sums", 2016.
**Differs**: masses weigh the nodes; a round may have many local steps, whose displacement is added as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import Vector
from gossipfl.simulator.vectorized.draws import Integers, stream, uniform
from gossipfl.simulator.vectorized.meetings import Floats, Links, Mask
from gossipfl.simulator.vectorized.shards import Held, Shard, own_nodes
from gossipfl.simulator.vectorized.state import State

LONGEST: Final = 10_000
"""Rounds after which a schedule may repeat at the latest: a link of its own is kept for each of its edges."""


@dataclass(frozen=True)
class Edges:
    """Who sends to whom in one round of a period. **Shapes**: all (E,)."""

    sender: Integers
    receiver: Integers
    link: Integers
    """number of the pair among all pairs of the period"""

    def only(self, kept: Mask) -> Edges:
        """Some of them."""
        return Edges(self.sender[kept], self.receiver[kept], self.link[kept])


def edges_of(links: Links | None, meet: Any, nodes: int) -> list[Edges]:
    """The rounds of a period: a static graph both ways, or a schedule as it says. **Raises**: Misuse for one without an end."""
    if links is not None:
        rounds = [(np.concatenate([links.lo, links.hi]), np.concatenate([links.hi, links.lo]))]
    else:
        period = getattr(meet, "period", None)
        if not period or period > LONGEST:
            raise Misuse(
                "push-sum keeps a running sum for each link, and a schedule that is drawn anew each round has no links that "
                "stay; take a graph, or a schedule that repeats, such as one-peer-exponential"
            )
        rounds = []
        for found, _, is_directed in (meet.round(at) for at in range(period)):
            one, other = found[:, 0], found[:, 1]  # directed: who moves, towards whom
            rounds.append((other, one) if is_directed else (np.concatenate([one, other]), np.concatenate([other, one])))
    codes = [sender * nodes + receiver for sender, receiver in rounds]
    pairs = np.unique(np.concatenate(codes))
    return [Edges(s, r, np.searchsorted(pairs, code)) for (s, r), code in zip(rounds, codes, strict=True)]


@dataclass
class Push:
    """**Shapes**: masses, weight (N,); sums (N, size), owed (links, size) of each tensor."""

    state: State
    masses: Floats
    period: Sequence[Edges]
    shard: Shard | None = None
    """the nodes that are this process's; None: all. Weights are everywhere, what an edge owes is where its sender is"""
    weight: Floats = field(init=False)
    weight_owed: Floats = field(init=False)
    sums: dict[str, Vector] = field(init=False)
    owed: dict[str, Vector] = field(init=False)

    def __post_init__(self) -> None:
        links = 1 + max((int(edges.link.max(initial=-1)) for edges in self.period), default=-1)
        self.weight, self.weight_owed = self.masses.copy(), np.zeros(links)
        self.sums = {name: np.zeros_like(self._rows(name)) for name in self.state.shared}
        where = own_nodes(self.shard, self.state.nodes)
        for name, held in self.sums.items():
            held[where] = self._rows(name)[where] * _column(self.masses[where], held)
        self.owed = {name: np.zeros((links, held.shape[1]), held.dtype) for name, held in self.sums.items()}

    def round(self, at: int, present: Mask, lost: float, seed: int) -> Integers:
        """Local displacements in, one exchange over this round's edges. **Returns**: (N,) messages that each node sent.

        **Randomness**: one number an edge, of the stream (seed, push, round).
        """
        edges, nodes = self.period[at % len(self.period)], self.state.nodes
        share = 1.0 / (1 + np.bincount(edges.sender, minlength=nodes))
        share[~present] = 1.0
        sends = edges.only(present[edges.sender])
        reachable = present[sends.receiver]
        came = sends.only(reachable & (uniform(stream(seed, "push", at), sends.link) >= lost))
        before, mine = self.weight.copy(), present
        if self.shard is not None:
            mine = present & self.shard.holds(np.arange(nodes))
        _part(self.weight[:, None], self.weight_owed[:, None], share[:, None], sends)
        _deliver(self.weight[:, None], self.weight_owed[:, None], came)
        here = sends if self.shard is None else sends.only(self.shard.holds(sends.sender))
        for name, held in self.sums.items():
            moved = self._rows(name)[mine] - held[mine] / _column(before[mine], held)
            held[mine] += _column(self.masses[mine], held) * moved
            _part(held, self.owed[name], _column(share, held), here, own_nodes(self.shard, nodes))
        if self.shard is not None:
            came = self._forward(self.shard, came)
        for name, held in self.sums.items():
            _deliver(held, self.owed[name], came)
            self._rows(name)[mine] = held[mine] / _column(self.weight[mine], held)
        return np.bincount(sends.sender[reachable], minlength=nodes)

    def _forward(self, shard: Shard, came: Edges) -> Edges:
        """Send what edges into other processes owe. **Returns**: the edges that this process has to do with."""
        owner, target, rank = shard.owner(came.sender), shard.owner(came.receiver), shard.group.rank
        others = [other for other in range(shard.group.size) if other != rank]
        given = {other: came.link[(owner == rank) & (target == other)] for other in others}
        asked = {other: came.link[(owner == other) & (target == rank)] for other in others}
        shard.swap(list(self.owed.values()), given, asked)
        return came.only((owner == rank) | (target == rank))

    def _rows(self, name: str) -> Vector:
        return self.state.flat(self.state.shared, name)

    def arrays(self) -> Iterator[Held]:
        """What a checkpoint holds of it."""
        yield from (("weight", self.weight, slice(None)), ("weight_owed", self.weight_owed, slice(None)))
        where, links = own_nodes(self.shard, self.state.nodes), self._links()
        yield from ((f"sums/{name}", held, where) for name, held in self.sums.items())
        yield from ((f"owed/{name}", held, links) for name, held in self.owed.items())

    def _links(self) -> Any:
        """The links whose sender is here."""
        if self.shard is None:
            return slice(None)
        return np.unique(np.concatenate([edges.link[self.shard.holds(edges.sender)] for edges in self.period]))


def _column(numbers: Floats, like: Vector) -> Vector:
    return numbers.astype(like.dtype)[:, None]


def _part(held: Vector, owed: Vector, share: Vector, sends: Edges, where: slice = slice(None)) -> None:
    """Part what each node holds: a share stays, as much is owed over each of its edges; in place."""
    np.multiply(held[where], share[where], out=held[where])
    owed[sends.link] += held[sends.sender]


def _deliver(held: Vector, owed: Vector, came: Edges) -> None:
    """What was owed over these edges is their receivers'; in place."""
    torch.from_numpy(held).index_add_(0, torch.from_numpy(came.receiver), torch.from_numpy(owed[came.link]))
    owed[came.link] = 0
