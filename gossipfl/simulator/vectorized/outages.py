"""What is known beforehand to go wrong: who is away, slow or cut off from whom in which rounds. Chance is faults.py's business.

Where the spans come from (a scenario's times, a trace) is not known here.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats, Mask, Meetings


@dataclass(frozen=True, eq=False)
class Outages:
    """Spans of rounds `from <= round < to`.

    **Shapes**: away (A, 3): node, from, to; cut (C, 4): one, other, from, to; apart: (from, to, group (N,)); slow (S, 3) as
    away, with the share of its steps (S,) that the node then manages; joins, leaves, pace (N,).
    """

    away: Integers
    cut: Integers
    apart: tuple[tuple[int, int, Integers], ...]
    slow: Integers
    slow_share: Floats
    joins: Integers
    """first round of each"""
    leaves: Floats
    """the round in which each is there no more; infinity: never"""
    pace: Floats
    """share of its local steps that each manages, all along"""

    @classmethod
    def none(cls, nodes: int, **known: Any) -> Outages:
        """Nothing goes wrong but what is given."""
        nothing: dict[str, Any] = {
            "away": np.empty((0, 3), np.int64),
            "cut": np.empty((0, 4), np.int64),
            "apart": (),
            "slow": np.empty((0, 3), np.int64),
            "slow_share": np.empty(0),
            "joins": np.zeros(nodes, np.int64),
            "leaves": np.full(nodes, np.inf),
            "pace": np.ones(nodes),
        }
        return cls(**(nothing | known))

    def here(self, round: int) -> Mask:
        """(N,) who is not away."""
        here = np.ones(len(self.pace), dtype=bool)
        here[self.away[_now(self.away, round), 0]] = False
        return here

    def share(self, round: int) -> Floats:
        """(N,) of the local steps that each manages."""
        share = self.pace.copy()
        now = _now(self.slow, round)
        np.minimum.at(share, self.slow[now, 0], self.slow_share[now])
        return share

    def reach(self, met: Meetings, round: int) -> Meetings:
        """Those of the exchanges whose ends reach each other."""
        kept = np.ones(len(met), dtype=bool)
        for first, last, group in self.apart:
            if first <= round < last:
                kept &= group[met.lo] == group[met.hi]
        closed = self.cut[_now(self.cut, round), :2]
        if len(closed):
            nodes = len(self.pace)
            kept &= ~np.isin(met.lo * nodes + met.hi, closed.min(axis=1) * nodes + closed.max(axis=1))
        return met if kept.all() else met.only(kept)

    @property
    def touches_links(self) -> bool:
        """Is anybody cut off from anybody."""
        return bool(self.apart) or len(self.cut) > 0

    @property
    def digest(self) -> str:
        """The same for the same spans."""
        held = [self.away, self.cut, self.slow, self.slow_share, self.joins, self.leaves, self.pace]
        for first, last, group in self.apart:
            held += [np.array([first, last]), group]
        return hashlib.sha256(b"|".join(np.ascontiguousarray(one).tobytes() for one in held)).hexdigest()


def _now(spans: Integers, round: int) -> Mask:
    return np.asarray((spans[:, -2] <= round) & (round < spans[:, -1]))
