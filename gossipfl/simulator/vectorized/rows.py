"""Everybody's training rows in one pool, and the batch of every node at a step. No models here.

A site's rows are a list of places in the pool, so that a hundred thousand bootstraps of one data set cost their indices
only. The batches are those of learning.training: a new permutation for each pass, the short rest of a pass left out.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from gossipfl.errors import Misuse
from gossipfl.simulator.vectorized.draws import Draws, Integers

Nodes = slice | Integers
"""Which nodes: a range, whose state is a view, or places in any order, whose state is copied."""

UNPACK_BYTES: Final = 512 * 2**20
"""Rows of all nodes are laid out one node after the other up to this size; above it every step gathers its own."""

TURN_BYTES: Final = 64 * 2**20
"""Up to this size they are laid out a second time with each node's rows last."""


def places(nodes: Nodes) -> Integers:
    return np.arange(nodes.start, nodes.stop) if isinstance(nodes, slice) else nodes


@dataclass(frozen=True)
class Batch:
    """One step's rows of some nodes. **Shapes**: x (n, B, d), y (n, B), weight (n, B): 1 / rows, and 0 where there is none;
    None when every row counts 1 / B."""

    x: Tensor
    y: Tensor
    weight: Tensor | None
    turned: Tensor | None = None
    """x with the rows last, (n, d, B), where it is at hand"""


@dataclass
class Rows:
    """**Shapes**: x (R, d), y (R,) of the pool; index (sum of counts,) places in the pool, counts (N,)."""

    x: Tensor
    y: Tensor
    index: Integers
    counts: Integers
    starts: Integers = field(init=False)
    is_turned: bool = False
    """is x wanted with the rows last as well: a linear model's product is then three times as fast"""
    _turned: Tensor | None = field(default=None, init=False)
    _unpacked: tuple[Tensor, Tensor] | None = field(default=None, init=False)
    _scratch: threading.local = field(default_factory=threading.local, init=False)

    def __post_init__(self) -> None:
        if self.counts.min(initial=1) < 1 or int(self.counts.sum()) != len(self.index):
            raise Misuse("every node trains on one row or more, and the index holds all of them")
        self.starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    @classmethod
    def of(cls, sites: Sequence[tuple[Tensor, Tensor]]) -> Rows:
        """The rows (x, y) of each site."""
        counts = np.array([len(y) for _, y in sites])
        x, y = torch.cat([x for x, _ in sites]), torch.cat([y for _, y in sites])
        return cls(x, y, np.arange(len(y)), counts)

    @property
    def nodes(self) -> int:
        return len(self.counts)

    @property
    def nbytes(self) -> int:
        pool = self.x.nbytes + self.y.nbytes + self.index.nbytes
        return pool + (sum(part.nbytes for part in self._unpacked) if self._unpacked else 0)

    def site(self, node: int) -> tuple[Tensor, Tensor]:
        """The rows of one node."""
        chosen = torch.from_numpy(self.index[self.starts[node] : self.starts[node] + self.counts[node]])
        return self.x[chosen], self.y[chosen]

    def sizes(self, batch_size: int | None) -> Integers:
        """(N,) rows in a step of each node."""
        return self.counts if batch_size is None else np.minimum(self.counts, batch_size)

    def unpack(self) -> None:
        """Lay all rows out, (N, n, d), where every node has as many; for steps over all rows."""
        n = int(self.counts[0])
        size = self.nodes * n * (self.x[0].nbytes + self.y.itemsize)
        if self._unpacked is None and (self.counts == n).all() and size <= UNPACK_BYTES:
            chosen = torch.from_numpy(self.index)
            x = self.x.index_select(0, chosen).view(self.nodes, n, *self.x.shape[1:])
            self._unpacked = x, self.y.index_select(0, chosen).view(self.nodes, n)
            if self.is_turned and x.ndim == 3 and x.nbytes <= TURN_BYTES:
                self._turned = x.transpose(1, 2).contiguous()

    @property
    def is_laid_out(self) -> bool:
        """Are the rows of all nodes at hand, one node after the other."""
        return self._unpacked is not None

    def taken(self, block: Tensor, nodes: Nodes) -> Tensor:
        """The part of some nodes: a view of a range, else in this thread's array: fresh ones of this size fault pages every
        time."""
        if isinstance(nodes, slice):
            return block[nodes]
        held: dict[int, np.ndarray] | None = getattr(self._scratch, "held", None)
        if held is None:
            held = self._scratch.held = {}
        room = held.get(id(block))
        if room is None or len(room) < len(nodes):
            room = held[id(block)] = np.empty((len(nodes), *block.shape[1:]), block.numpy().dtype)
        return torch.from_numpy(block.numpy().take(nodes, axis=0, out=room[: len(nodes)], mode="clip"))

    def batches(self, nodes: Nodes, batch_size: int | None, draws: Draws, round: int) -> Batches:
        return Batches(self, nodes, batch_size, draws, round)


class Batches:
    """The batches of some nodes in one round, asked for step by step: `step(h, n)` for the first n of the nodes."""

    def __init__(self, rows: Rows, nodes: Nodes, batch_size: int | None, draws: Draws, round: int) -> None:
        self.rows, self.nodes, self.draws, self.round = rows, nodes, draws, round
        self.places = places(nodes)
        self.counts = rows.counts[self.places]
        self.sizes = rows.sizes(batch_size)[self.places]
        self.per_pass = self.counts // self.sizes
        self.is_even = bool((self.sizes == self.sizes[0]).all())
        self.is_whole = bool((self.sizes == self.counts).all())
        self.is_alike = self.is_even and bool((self.counts == self.counts[0]).all())
        self._whole: Batch | None = None
        self._order: Integers = np.empty((0, 0), dtype=np.int64)

    def step(self, h: int, n: int) -> Batch:
        if self.is_whole:
            if self._whole is None:
                self._whole = self._everything()
            whole = self._whole
            if n == len(self.places):
                return whole
            weight, turned = (None if part is None else part[:n] for part in (whole.weight, whole.turned))
            return Batch(whole.x[:n], whole.y[:n], weight, turned)
        return self._gather(self._shuffled(h, n), n)

    def _everything(self) -> Batch:
        unpacked = self.rows._unpacked
        if unpacked is not None and self.is_even:
            x, y = (self.rows.taken(part, self.nodes) for part in unpacked)
            turned = self.rows._turned
            return Batch(x, y, None, None if turned is None else self.rows.taken(turned, self.nodes))
        return self._gather(np.arange(int(self.sizes.max()))[None, :], len(self.places))

    def _shuffled(self, h: int, n: int) -> Integers:
        """(n, B) places among the own rows; nodes with few rows take all of them, in order."""
        if self.is_alike:
            turn, at = divmod(h, int(self.per_pass[0]))
            if not at:
                self._order = self.draws.orders(self.round, turn, self.places[:n], self.counts[:n])
            return self._order[:n, at * int(self.sizes[0]) : (at + 1) * int(self.sizes[0])]
        widest = int(self.sizes.max())
        if not self._order.size:
            self._order = np.zeros((len(self.places), int(self.counts.max())), dtype=np.int64)
        whole = self.sizes == self.counts
        fresh = np.flatnonzero((h % self.per_pass[:n] == 0) & ~whole[:n])
        for turn in np.unique(h // self.per_pass[fresh]):
            of = fresh[h // self.per_pass[fresh] == turn]
            drawn = self.draws.orders(self.round, int(turn), self.places[of], self.counts[of])
            self._order[of, : drawn.shape[1]] = drawn
        if not h and whole.any():
            self._order[whole] = np.arange(self._order.shape[1])
        first = (h % self.per_pass[:n]) * self.sizes[:n]
        if (first == first[0]).all() and first[0] + widest <= self._order.shape[1]:
            return self._order[:n, first[0] : first[0] + widest]
        columns = np.minimum(first[:, None] + np.arange(widest), self._order.shape[1] - 1)
        return np.take_along_axis(self._order[:n], columns, axis=1)

    def _gather(self, local: Integers, n: int) -> Batch:
        if self.is_even:
            chosen = self.rows.index[self.rows.starts[self.places[:n], None] + local]
            return self._batch(chosen, None)
        widest = int(self.sizes[:n].max())
        local = local[:, :widest]
        there = np.arange(widest) < self.sizes[:n, None]
        chosen = self.rows.index[self.rows.starts[self.places[:n], None] + np.where(there, local, 0)]
        return self._batch(chosen, np.where(there, 1.0 / self.sizes[:n, None], 0.0))

    def _batch(self, chosen: Integers, weight: np.ndarray | None) -> Batch:
        flat = torch.from_numpy(chosen.reshape(-1))
        x = self.rows.x.index_select(0, flat).view(*chosen.shape, *self.rows.x.shape[1:])
        y = self.rows.y.index_select(0, flat).view(chosen.shape)
        return Batch(x, y, None if weight is None else torch.from_numpy(weight).to(self.rows.x.dtype))
