"""What both ends of every link hold of each other where models travel compressed: learning's codecs on many links at once.

Each end sends C(y - reference); both then hold reference + decoded as its replica, and the exchange is made of the replicas.
The next reference is the replica; with a sparse codec it is the replica moved as the exchange moves it (learning.mixing.predict),
because what was not sent would otherwise be moved again and again by the same stale difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gossipfl.errors import Misuse
from gossipfl.learning import compression, correction, mixing
from gossipfl.learning.blocks import Vector
from gossipfl.simulator.vectorized.meetings import Floats, Links, Meetings
from gossipfl.simulator.vectorized.shards import Held, Shard, own_nodes
from gossipfl.simulator.vectorized.state import State


@dataclass
class Replicas:
    """**Shapes**: lower, higher (E, P): what is agreed of the end with the lower number, and of the other."""

    codec: str
    """of the exchanges that are made now; the release may have another"""
    state: State
    links: Links
    shard: Shard | None = None
    """the nodes that are this process's; None: all. A link is wherever one of its ends is"""
    lower: Vector = field(init=False)
    higher: Vector = field(init=False)
    idle: Vector = field(init=False)
    """(E, P) exchanges that booked a flow since each coordinate last came; where the first codec is sparse, else (E, 0)"""
    _here: Any = field(init=False)

    def __post_init__(self) -> None:
        row = own_nodes(self.shard, self.state.nodes).start
        first = np.concatenate([self.state.flat(self.state.shared, name)[row] for name in self.state.parameters])
        self._here = slice(None) if self.shard is None else self.shard.links(self.links)
        self.lower, self.higher = (np.zeros((len(self.links), len(first)), first.dtype) for _ in range(2))
        self.lower[self._here] = self.higher[self._here] = first
        self.idle = np.zeros_like(self.lower if compression.millionths(self.codec) else self.lower[:, :0])

    def pass_through(
        self, pairs: dict[str, tuple[Vector, Vector]], met: Meetings, m_lo: Floats, m_hi: Floats, *, books: bool
    ) -> dict[str, Vector]:
        """Put replicas in the place of models, in `pairs` (tensor -> rows of both ends) and on the links. Moments stay.

        **Returns**: n of learning.correction.since_last for each tensor, where the codec is sparse and a flow is booked.
        """
        if met.edge is None:
            raise Misuse("compression is against what a link remembers, and this exchange has no link")
        names = self.state.parameters
        ends = [np.concatenate([pairs[name][end] for name in names], axis=1) for end in (0, 1)]
        references, is_sparse = (self.lower[met.edge], self.higher[met.edge]), compression.millionths(self.codec) > 0
        if is_sparse:
            references = mixing.predict(references[0], references[1], met.gamma, m_lo, m_hi)
        came = np.zeros(ends[0].shape, dtype=bool)
        for end, (models, reference, held) in enumerate(zip(ends, references, (self.lower, self.higher), strict=True)):
            replica = reference + compression.decoded_rows(self.codec, models - reference)
            came |= replica != reference
            held[met.edge] = replica
            for name, part in self._parts(replica):
                pairs[name][end][...] = part
        if not (is_sparse and books):
            return {}
        n, self.idle[met.edge] = correction.since_last(self.idle[met.edge], came)
        return dict(self._parts(n))

    def _parts(self, rows: Vector) -> Iterator[tuple[str, Vector]]:
        """The columns of each tensor."""
        at = 0
        for name in self.state.parameters:
            size = self.state.flat(self.state.shared, name).shape[1]
            yield name, rows[:, at : at + size]
            at += size

    def arrays(self) -> Iterator[Held]:
        """What a checkpoint holds of it."""
        yield from (("lower", self.lower, self._here), ("higher", self.higher, self._here), ("idle", self.idle, self._here))
