"""One simulation in several processes (torch.distributed, gloo): each trains its own rows, only models over cut edges travel.

Every process draws the same absences and meetings, for they are functions of seed and round; it takes its own nodes' steps,
asks for the models of their neighbours elsewhere that they meet now, and applies its own halves. Arrays keep their full
length, and pages that nobody touches cost nothing. Not here: how the processes are started (torchrun).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch

from gossipfl.errors import Misuse
from gossipfl.simulator.vectorized.draws import Integers
from gossipfl.simulator.vectorized.meetings import Floats, Mask, Meetings
from gossipfl.simulator.vectorized.methods import Method
from gossipfl.simulator.vectorized.state import State

PATIENCE_S: Final = 1800
"""Seconds that a process waits for the others before it gives up."""


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

    def holds(self, nodes: Integers) -> Mask:
        """Which of these are here."""
        return np.asarray((nodes >= self.own.start) & (nodes < self.own.stop))

    def mine(self, met: Meetings) -> Meetings:
        """The exchanges that touch own nodes, with the halves that are applied here."""
        lo, hi = self.holds(met.lo), self.holds(met.hi)
        halves = replace(met, at_lo=lo if met.at_lo is None else met.at_lo & lo,
                         at_hi=hi if met.at_hi is None else met.at_hi & hi)  # fmt: skip
        return halves.only(lo | hi)

    def fetch(self, state: State, met: Meetings) -> None:
        """Bring the models, and gradient norms, of nodes elsewhere that own nodes meet; send what others ask of these."""
        rank, dist = self.group.rank, self.group.dist
        owner_lo, owner_hi = (np.searchsorted(self.bounds, ends, side="right") - 1 for ends in (met.lo, met.hi))
        waits, arrivals, sent = [], [], []
        for other in range(self.group.size):
            out = (owner_lo == rank) & (owner_hi == other), (owner_hi == rank) & (owner_lo == other)
            if other == rank or not (out[0].any() or out[1].any()):
                continue
            mine = np.unique(np.concatenate([met.lo[out[0]], met.hi[out[1]]]))
            theirs = np.unique(np.concatenate([met.hi[out[0]], met.lo[out[1]]]))
            parcel = torch.from_numpy(self._packed(state, mine))
            room = torch.empty((len(theirs), parcel.shape[1]), dtype=torch.uint8)
            waits += [dist.isend(parcel, other), dist.irecv(room, other)]
            arrivals.append((theirs, room))
            sent.append(parcel)  # kept until it has gone
            self.moved += parcel.numel()
        for one in waits:
            one.wait()
        for theirs, room in arrivals:
            self._unpack(state, theirs, room.numpy())

    def _packed(self, state: State, nodes: Integers) -> np.ndarray:
        """(k, bytes): gradient norm and model of each."""
        rows = [state.gradient[nodes, None].view(np.uint8)]
        rows += [np.ascontiguousarray(state.flat(state.shared, name)[nodes]).view(np.uint8) for name in state.shared]
        return np.concatenate(rows, axis=1)

    def _unpack(self, state: State, nodes: Integers, parcel: np.ndarray) -> None:
        state.gradient[nodes] = np.ascontiguousarray(parcel[:, :8]).view(np.float64)[:, 0]
        at = 8
        for name in state.shared:
            rows = state.flat(state.shared, name)
            width = rows.shape[1] * rows.itemsize
            rows[nodes] = np.ascontiguousarray(parcel[:, at : at + width]).view(rows.dtype)
            at += width

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

    @staticmethod
    def require(method: Method, compression: str) -> None:
        """**Raises**: Misuse for a method whose rounds are more than exchanges over edges."""
        if method.combine not in ("pairs", "edges", "none") or method.post != "plain" or compression != "none":
            raise Misuse(
                f"several processes take methods of pairs and of edges that exchange plain models, not {method.name}"
                + ("" if compression == "none" else f" with {compression}")
                + "; run it in one process, without torchrun"
            )
