"""Laws that rounds can be asked, looked at in some of them: mixing moves no mass, every model is finite. Changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np

from gossipfl.simulator.vectorized.meetings import Floats
from gossipfl.simulator.vectorized.shards import Shard
from gossipfl.simulator.vectorized.state import State

Verdict = Literal["held", "violated", "unknown"]

ROUNDINGS: Final = 16.0
"""Times the format's precision, of the sum of magnitudes, that the sum may move: each exchange rounds at both ends."""

CHUNK: Final = 2**18
"""Numbers that are added up at once in float64."""

CONSERVED: Final = "mass-conserved"
FINITE: Final = "finite-models"

LAWS: Final = {
    CONSERVED: "Exchanges of a round leave the mass-weighted sum of all models where it was, to rounding.",
    FINITE: "Every model consists of finite numbers.",
}


@dataclass
class Watching:
    """What was seen so far. `judges_mass` False: this method's models move by more than exchanges, nobody can say."""

    masses: Floats
    judges_mass: bool
    seen: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LAWS, 0))
    shard: Shard | None = None
    """the nodes that are this process's; None: all"""
    first: dict[str, str] = field(default_factory=dict)
    """law -> the first violation, in words"""
    _before: Floats | None = None

    def before(self, state: State) -> None:
        """Ahead of a round's exchanges."""
        if self.judges_mass and CONSERVED not in self.first:
            self._before = self._sums(state)[0]

    def after(self, state: State, round: int) -> None:
        """Behind them."""
        sums, sizes, finite = self._sums(state)
        self.seen[FINITE] += 1
        if not finite.all():
            lost = np.flatnonzero(~finite)
            self.first.setdefault(FINITE, f"round {round + 1}: {len(lost)} nodes' models are not, the first node {lost[0]}")
            self._before = None
        if self._before is not None:
            self.seen[CONSERVED] += 1
            moved, size = float(np.abs(sums - self._before).sum()), float(sizes.sum())
            if moved > ROUNDINGS * float(np.finfo(state.layout.dtype).eps) * size:
                self.first[CONSERVED] = f"round {round + 1}: the sum moved by {moved:.2g}, of magnitudes of {size:.2g} in all"
        self._before = None

    def verdicts(self) -> dict[str, Verdict]:
        """Of each law; unknown where it was never looked at."""
        return {name: "violated" if name in self.first else "held" if self.seen[name] else "unknown" for name in LAWS}

    def _sums(self, state: State) -> tuple[Floats, Floats, np.ndarray]:
        """sum m x and sum m |x| of each coordinate, and (N,) whose model is finite."""
        sums, sizes = [], []
        own = slice(0, state.nodes) if self.shard is None else self.shard.own
        finite = np.ones(state.nodes, dtype=bool)
        with np.errstate(all="ignore"):
            for name in state.shared:
                rows = state.flat(state.shared, name)
                total, size = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
                step = max(1, CHUNK // rows.shape[1])
                for start in range(own.start, own.stop, step):
                    part = slice(start, min(start + step, own.stop))
                    wide = rows[part].astype(np.float64)
                    finite[part] &= np.isfinite(wide).all(axis=1)
                    total += self.masses[part] @ wide
                    size += self.masses[part] @ np.abs(wide)
                sums.append(total)
                sizes.append(size)
        if self.shard is None:
            return np.concatenate(sums), np.concatenate(sizes), finite
        every = self.shard.group.total
        return every(np.concatenate(sums)), every(np.concatenate(sizes)), every(~finite) == 0
