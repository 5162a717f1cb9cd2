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
    weight: Floats = field(init=False)
    weight_owed: Floats = field(init=False)
    sums: dict[str, Vector] = field(init=False)
    owed: dict[str, Vector] = field(init=False)

    def __post_init__(self) -> None:
        links = 1 + max((int(edges.link.max(initial=-1)) for edges in self.period), default=-1)
        self.weight, self.weight_owed = self.masses.copy(), np.zeros(links)
        self.sums = {name: self._rows(name) * _column(self.masses, self._rows(name)) for name in self.state.shared}
        self.owed = {name: np.zeros((links, held.shape[1]), held.dtype) for name, held in self.sums.items()}

    def round(self, at: int, present: Mask, lost: float, seed: int) -> Integers:
        """Local displacements in, one exchange over this round's edges. **Returns**: (N,) messages that each node sent.

        **Randomness**: one number an edge, of the stream (seed, push, round).
        """
        edges, nodes = self.period[at % len(self.period)], self.state.nodes
        share = 1.0 / (1 + np.bincount(edges.sender, minlength=nodes))
        share[~present] = 1.0
        sends = present[edges.sender]
        sender, receiver, link = edges.sender[sends], edges.receiver[sends], edges.link[sends]
        reachable = present[receiver]
        came = reachable & (uniform(stream(seed, "push", at), link) >= lost)
        before = self.weight[present]
        _pass(self.weight[:, None], self.weight_owed[:, None], share[:, None], sender, receiver, link, came)
        for name, held in self.sums.items():
            rows = self._rows(name)
            moved = rows[present] - held[present] / _column(before, held)
            held[present] += _column(self.masses[present], held) * moved
            _pass(held, self.owed[name], _column(share, held), sender, receiver, link, came)
            rows[present] = held[present] / _column(self.weight[present], held)
        return np.bincount(sender[reachable], minlength=nodes)

    def _rows(self, name: str) -> Vector:
        return self.state.flat(self.state.shared, name)

    def arrays(self) -> Iterator[tuple[str, Vector]]:
        """What a checkpoint holds of it."""
        yield from (("weight", self.weight), ("weight_owed", self.weight_owed))
        for group, vectors in (("sums", self.sums), ("owed", self.owed)):
            for name, vector in vectors.items():
                yield f"{group}/{name}", vector


def _column(numbers: Floats, like: Vector) -> Vector:
    return numbers.astype(like.dtype)[:, None]


def _pass(held: Vector, owed: Vector, share: Vector, sender: Integers, receiver: Integers, link: Integers, came: Mask) -> None:
    """Part what each holds, and deliver what comes through; in place."""
    np.multiply(held, share, out=held)
    owed[link] += held[sender]
    torch.from_numpy(held).index_add_(0, torch.from_numpy(receiver[came]), torch.from_numpy(owed[link[came]]))
    owed[link[came]] = 0
