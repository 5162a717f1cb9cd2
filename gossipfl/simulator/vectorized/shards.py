"""One simulation in several processes (torch.distributed, gloo): each trains its own rows, only models over cut edges travel.

Every process draws the same absences and meetings, for they are functions of seed and round; it takes its own nodes' steps,
asks for the models of their neighbours elsewhere that they meet now, and applies its own halves. What a link remembers is held
wherever one of its ends is; a server's model is held by all, its sums are added up over them. Arrays keep their full length,
and pages that nobody touches cost nothing. Not here: how the processes are started (torchrun).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from gossipfl.errors import Misuse
from gossipfl.learning.blocks import Vector
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats, Links, Mask, Meetings
from gossipfl.simulator.vectorized.state import State

Held = tuple[str, Vector, Any]
"""(name, vector, its rows that are this process's): of what a checkpoint holds"""

PATIENCE_S: Final = 1800
"""Seconds that a process waits for the others before it gives up."""

ALIGNED: Final = 8
"""Bytes: what a number of any kind may begin at."""


class Together:
    """Several processes; `rank` of `size` is this one."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.dist: Any = dist
        self.rank, self.size = int(dist.get_rank()), int(dist.get_world_size())
        self.here = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        """processes on this machine"""

    def agree(self, value: Any) -> Any:
        """What the first process has, for all."""
        held = [value]
        self.dist.broadcast_object_list(held, src=0)
        return held[0]

    def total(self, numbers: Floats) -> Floats:
        """The sum over all processes."""
        given = torch.from_numpy(np.array(numbers, dtype=np.float64))
        self.dist.all_reduce(given)
        found: Floats = given.numpy()
        return found

    def least(self, number: int) -> int:
        given = torch.tensor([number])
        self.dist.all_reduce(given, op=self.dist.ReduceOp.MIN)
        return int(given[0])

    def wait(self) -> None:
        """Until all are here."""
        self.dist.barrier()


def is_shared() -> bool:
    """Has torchrun started several of this process?"""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def together() -> Iterator[Together | None]:
    """The processes that torchrun has started; None where this one is alone. **Raises**: Misuse without torch.distributed."""
    if not is_shared():
        yield None
        return
    import datetime

    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise Misuse("this build of torch has no torch.distributed with gloo; run one process, without torchrun")
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=PATIENCE_S))
    try:
        yield Together()
    finally:
        dist.destroy_process_group()


class Shard:
    """The rows of this process: a range of nodes, as long as everybody's."""

    def __init__(self, group: Together, nodes: int) -> None:
        if nodes < group.size:
            raise Misuse(f"{nodes} nodes for {group.size} processes; take as many nodes as processes, or more")
        self.group, self.nodes = group, nodes
        self.bounds: Integers = np.arange(group.size + 1) * nodes // group.size
        self.own = slice(int(self.bounds[group.rank]), int(self.bounds[group.rank + 1]))
        self.moved = 0
        """bytes that were sent to other processes so far"""
        self._rooms: dict[tuple[str, int], Tensor] = {}

    def holds(self, nodes: Integers) -> Mask:
        """Which of these are here."""
        return np.asarray((nodes >= self.own.start) & (nodes < self.own.stop))

    def mine(self, met: Meetings) -> Meetings:
        """The exchanges that touch own nodes, with the halves that are applied here."""
        lo, hi = self.holds(met.lo), self.holds(met.hi)
        halves = replace(met, at_lo=lo if met.at_lo is None else met.at_lo & lo,
                         at_hi=hi if met.at_hi is None else met.at_hi & hi)  # fmt: skip
        return halves.only(lo | hi)

    def links(self, links: Links) -> Integers:
        """Numbers of the links with an end here."""
        return np.flatnonzero(self.holds(links.lo) | self.holds(links.hi))

    def owner(self, nodes: Integers) -> Integers:
        """The process whose each of these is."""
        return np.searchsorted(self.bounds, nodes, side="right") - 1

    def fetch(self, state: State, met: Meetings, beside: Sequence[Vector] = ()) -> None:
        """Bring the models, and gradient norms, of nodes elsewhere that own nodes meet; send what others ask of these.

        `beside`: further vectors (N, size) of which the same rows travel."""
        rank = self.group.rank
        owner_lo, owner_hi = self.owner(met.lo), self.owner(met.hi)
        given, asked = {}, {}
        for other in range(self.group.size):
            out = (owner_lo == rank) & (owner_hi == other), (owner_hi == rank) & (owner_lo == other)
            if other != rank:
                given[other] = np.unique(np.concatenate([met.lo[out[0]], met.hi[out[1]]]))
                asked[other] = np.unique(np.concatenate([met.hi[out[0]], met.lo[out[1]]]))
        models = [state.flat(state.shared, name) for name in state.shared]
        self.swap([state.gradient[:, None], *models, *beside], given, asked)

    def swap(self, vectors: Sequence[Vector], given: Mapping[int, Integers], asked: Mapping[int, Integers]) -> None:
        """Send rows of these vectors to other processes, and put those that come from them in their places.

        `given`, `asked`: process -> which rows go there, come from there; both sides name the same rows."""
        dist, waits, arrivals = self.group.dist, [], []
        for other, places in asked.items():
            if len(places):
                room, parts = self._parcel("from", other, vectors, len(places))
                waits.append(dist.irecv(room, other))
                arrivals.append((places, parts))
        for other, places in given.items():
            if len(places):
                room, parts = self._parcel("to", other, vectors, len(places))
                for rows, part in zip(vectors, parts, strict=True):
                    rows.take(places, axis=0, out=part, mode="clip")
                waits.append(dist.isend(room, other))
                self.moved += room.numel()
        for one in waits:
            one.wait()
        for places, parts in arrivals:
            for rows, part in zip(vectors, parts, strict=True):
                rows[places] = part

    def _parcel(self, way: str, other: int, vectors: Sequence[Vector], count: int) -> tuple[Tensor, list[Vector]]:
        """Room for so many rows of these vectors, one vector after the other, and its parts; used again each time, for fresh
        memory of this size costs page faults."""
        sizes = [-(-count * rows.shape[1] * rows.itemsize // ALIGNED) * ALIGNED for rows in vectors]
        room = self._rooms.get((way, other))
        if room is None or room.numel() < sum(sizes):
            room = self._rooms[way, other] = torch.empty(sum(sizes), dtype=torch.uint8)
        ends = np.cumsum(sizes).tolist()
        parts = [
            room[end - size : end - size + count * rows.shape[1] * rows.itemsize].numpy().view(rows.dtype).reshape(count, -1)
            for rows, size, end in zip(vectors, sizes, ends, strict=True)
        ]
        return room[: sum(sizes)], parts

    def total(self, numbers: Floats) -> Floats:
        """The sum over all processes, as part of a round: what it sends is counted."""
        found = self.group.total(numbers)
        self.moved += 2 * found.nbytes * (self.group.size - 1) // self.group.size  # of a ring: in parts, there and back
        return found

    def bring(self, state: State, nodes: Integers) -> None:
        """Everybody gets the models of these few nodes."""
        for node in nodes.tolist():
            owner = int(np.searchsorted(self.bounds, node, side="right")) - 1
            for block in state.shared.values():
                row = block[node].contiguous()
                self.group.dist.broadcast(row, src=owner)
                block[node] = row

    def collect(self, state: State) -> None:
        """Everybody gets all models: for small N, at the end."""
        for block in state.shared.values():
            for rank in range(self.group.size):
                part = block[int(self.bounds[rank]) : int(self.bounds[rank + 1])].contiguous()
                self.group.dist.broadcast(part, src=rank)
                block[int(self.bounds[rank]) : int(self.bounds[rank + 1])] = part


def here(shard: Shard | None, nodes: Integers) -> Integers:
    """Those of these nodes that are this process's; all, where it is alone."""
    return nodes if shard is None else nodes[shard.holds(nodes)]


def own_nodes(shard: Shard | None, nodes: int) -> slice:
    """The range of nodes that is this process's."""
    return slice(0, nodes) if shard is None else shard.own
