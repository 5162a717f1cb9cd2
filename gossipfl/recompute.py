"""The jobs of a recording done again, on the tensors that are at hand: a stopped node's state folder, or a copy of one.

What is computed stays in memory as long as the recorded core had need of it; the folder is only read. Not here: training,
which needs the site's rows, and what a recording is (gossipfl.recording, gossipfl.replay).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Never

from gossipfl.errors import Misuse
from gossipfl.protocol import events as ev
from gossipfl.recording import Shape
from gossipfl.store import Files, StateError, Store
from gossipfl.workbench import Bench, Vector, Workbench

REDONE: Final = (ev.Absorb, ev.Encode, ev.Mix, ev.Undo, ev.GiveBack, ev.Correct)
"""What follows from tensors alone; Train and Prepare need rows of data, Estimate the order of the members."""


class Beside:
    """Tensors found in one place, and new ones beside them in memory (a workbench.Tensors)."""

    def __init__(self, found: Files) -> None:
        self.found = found
        self.made = Store.modelled().files

    def holder(self, name: bytes) -> Files:
        return self.made if self.made.has(name) else self.found

    def has(self, name: bytes) -> bool:
        return self.made.has(name) or self.found.has(name)

    def differs(self, name: bytes) -> bool:
        """Is it here twice, made and found, and not alike? A name may say what it was made from, not what it holds."""
        return self.made.has(name) and self.found.has(name) and self.made.read(name) != self.found.read(name)

    def array(self, name: bytes, dtype: Any) -> Vector:
        return self.holder(name).array(name, dtype)

    def read(self, name: bytes) -> memoryview:
        return self.holder(name).read(name)

    def due_sum(self, name: bytes) -> bytes:
        return self.holder(name).due_sum(name)

    def unsound(self, names: Iterable[bytes]) -> frozenset[bytes]:
        return frozenset(name for name in names if self.holder(name).unsound([name]))

    def put(self, blob: Any, *, pinned: bool = False) -> bytes:
        return self.made.put(blob, pinned=pinned)

    def unpin(self, names: Iterable[bytes]) -> None:
        self.made.unpin(names)

    def scratch(self, size: int) -> memoryview:
        return self.made.scratch(size)

    def writer(self, scratch: memoryview) -> Callable[[int, Any], None] | None:
        return self.made.writer(scratch)

    def settle(self, scratch: memoryview) -> None:
        """Nothing: a replay makes nothing durable."""

    def adopt(self, scratch: memoryview, *, pinned: bool = False, leaves: Sequence[bytes] | None = None) -> bytes:
        return self.made.adopt(scratch, pinned=pinned, leaves=leaves)

    def adopt_as(self, name: bytes, scratch: memoryview, summed: bytes, *, pinned: bool = False) -> None:
        self.made.adopt_as(name, scratch, summed, pinned=pinned)


class Recompute:
    """The hands of a replay."""

    def __init__(self, found: Files, shape: Shape) -> None:
        self.tensors = Beside(found)
        bench = Bench(shape.n_parameters, shape.n_moments, shape.dtype, learner=_never, plan=_never, seed=())
        self.bench = Workbench(bench, self.tensors)

    def carry_out(self, job: ev.Job) -> ev.Event | None:
        if not isinstance(job, REDONE) or not all(self.tensors.has(name) for name in needs(job)):
            return None
        try:
            event = self.bench.carry_out(job)
        except StateError as error:
            event = ev.Failed(job.job, "disk", str(error))
        for name in ev.names(event):
            if self.tensors.differs(name):
                event = ev.Failed(job.job, "disk", f"another content is on file: {name.hex()}")
        self.bench.release(job.job)
        return event

    def forget(self, live: frozenset[bytes]) -> None:
        self.tensors.made.remove_except(live)


def needs(job: ev.Job) -> frozenset[bytes]:
    """The names that a job reads: all but q, which is only compared."""
    held = ev.names(job)
    return held - {job.q} if isinstance(job, ev.Mix | ev.Undo) else held


def _never(*_: object) -> Never:
    raise Misuse("a replay trains nothing: it has no rows of data")
