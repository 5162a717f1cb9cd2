"""The hands: carries out the core's O(P) jobs with learning/'s functions, on tensors that the core knows by name only.

Shared by the node (in threads, over memory-mapped files) and the simulator (inline). One door, `carry_out(job) -> event`. Not
here: what to do next (protocol.peer), durability (the store makes tensors durable when the core commits). What a peer sent
is decoded by total parsers; its fault becomes `Failed`, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from gossipfl.errors import Refused
from gossipfl.learning import checks, compression, correction, mixing
from gossipfl.learning.blocks import difference_norm, slices
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.store.errors import Damaged, Missing
from gossipfl.tasks import normalisation

Vector = NDArray[Any]

ROUNDING: Final = 1e-6
"""Relative slack when a norm that the peer has bounded is checked: both computed it from the same bits."""


class Tensors(Protocol):
    """What the hands ask of the store: tensors in and out, by name (store.Files is one)."""

    def array(self, name: bytes, dtype: Any) -> Vector: ...
    def read(self, name: bytes) -> memoryview: ...
    def put(self, blob: Any, *, pinned: bool = False) -> bytes: ...
    def unpin(self, names: Iterable[bytes]) -> None: ...
    def name(self, blob: Any) -> bytes: ...
    def scratch(self, size: int) -> memoryview: ...
    def adopt(self, scratch: memoryview, *, pinned: bool = False) -> bytes: ...


class Room:
    """Space of the store's to compute into: in RAM when small, else a mapped file, so that O(P) work needs no O(P) memory.

    Kept under a name by `Workbench.keep`; dropped, it is gone."""

    def __init__(self, tensors: Tensors, size: int, dtype: Any) -> None:
        dtype = np.dtype(dtype)
        self.view = tensors.scratch(size * dtype.itemsize)
        self.array: Vector = np.frombuffer(self.view, dtype)


class Learner(Protocol):
    """What trains: one site's data, model and loss (learning.training.Trainer, or a task's own)."""

    def train(self, vector: Vector, correction: Vector | None, plan: Any, rng: np.random.Generator) -> Any: ...


@dataclass(frozen=True)
class Bench:
    """What the hands need to know of the study; one per node."""

    n_parameters: int
    """P: what the codec and the ledger act on"""
    n_moments: int
    """M: batch statistics, sent plain, never corrected"""
    dtype: str
    """of a model vector: float32, or float64 for the toy task"""
    learner: Callable[[ms.Normalisation | None], Learner]
    """makes the learner over the local data, normalised by the frozen statistics"""
    plan: Callable[[int, float], Any]
    """(steps, eta) -> the plan of one local round"""
    seed: tuple[int, ...]
    """of this node's own draws (minibatches); never shared"""
    estimate: Callable[[Vector], tuple[tuple[float, ...], ms.Normalisation | None]] = lambda vector: ((), None)
    """reads a statistics vector"""


def finite(vector: Vector) -> bool:
    return all(bool(np.isfinite(vector[piece]).all()) for piece in slices(vector.size))


def statistics_reader(
    federation: bytes, me: str, members: Sequence[str]
) -> Callable[[Vector], tuple[tuple[float, ...], ms.Normalisation | None]]:
    """What reads a statistics vector for the core: (presence of each active member, this node's candidate).

    A member whose rows are not in at all is not among the candidate's members; None while only this site's are."""

    def read(vector: Vector) -> tuple[tuple[float, ...], ms.Normalisation | None]:
        state = normalisation.estimate(vector, len(members))
        inside = tuple(name for name, there in zip(members, state.presence, strict=True) if there > 0)
        presence = tuple(float(there) for there in state.presence)
        if len(inside) < 2 <= len(members):
            return presence, None
        said = normalisation.candidate(state)
        parts = (tuple(float(value) for value in row) for row in (said.count, said.mean, said.spread))
        return presence, ms.Normalisation(federation, me, inside, *parts)

    return read


class Workbench:
    """Carries out jobs on the tensors of one node."""

    def __init__(self, bench: Bench, tensors: Tensors) -> None:
        self.bench = bench
        self.tensors = tensors
        self._learner: Learner | None = None
        self._made: dict[int, list[bytes]] = {}

    def carry_out(self, job: ev.Job) -> ev.Event:
        """Do one job. Never raises on what a peer sent: that is `Failed` with the reason of the refusal.

        What the job made is pinned until `release`: a commit between its end and the core's hearing of it must not
        remove what the core does not know of yet. May be called from several threads, for different jobs."""
        doing: dict[type, Callable[[Any], ev.Event]] = {
            ev.Train: self.train,
            ev.Absorb: self.absorb,
            ev.Encode: self.encode,
            ev.Mix: self.mix,
            ev.Undo: self.undo,
            ev.Correct: self.correct,
            ev.Estimate: self.estimate,
            ev.Prepare: self.prepare,
        }
        try:
            return doing[type(job)](job)
        except Refused as refusal:
            return ev.Failed(job.job, refusal.reason, refusal.detail)
        except (Missing, Damaged) as lost:
            return ev.Failed(job.job, "disk", str(lost))

    def release(self, job: int) -> None:
        """The core has heard of the end of this job, and its commands are carried out."""
        self.tensors.unpin(self._made.pop(job, ()))

    def keep(self, job: int, room: Room) -> bytes:
        """The name of what was computed into this room."""
        name = self.tensors.adopt(room.view, pinned=True)
        self._made.setdefault(job, []).append(name)
        return name

    # ---- tensors -------------------------------------------------------------------------------------------------

    def dtype(self, space: str) -> str:
        return self.bench.dtype if space == "model" else "float64"

    def vector(self, name: bytes, space: str = "model") -> Vector:
        return self.tensors.array(name, self.dtype(space))

    def room(self, like: Vector) -> Room:
        return Room(self.tensors, like.size, like.dtype)

    def split(self, space: str, vector: Vector) -> int:
        """How many leading elements the codec and the ledger act on."""
        return self.bench.n_parameters if space == "model" else vector.size

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def prepare(self, job: ev.Prepare) -> ev.Prepared:
        self._learner = self.bench.learner(ms.decode_normalisation(job.statistics) if job.statistics else None)
        return ev.Prepared(job.job)

    def train(self, job: ev.Train) -> ev.Event:
        if self._learner is None:
            self._learner = self.bench.learner(None)
        start = self.vector(job.model)
        drift = self.tensors.array(job.correction, start.dtype) if job.correction else None
        rng = np.random.Generator(np.random.PCG64([*self.bench.seed, job.local_round]))
        outcome = self._learner.train(start, drift, self.bench.plan(job.steps, job.eta), rng)
        moved = self.room(start)
        np.subtract(outcome.vector, start, out=moved.array)
        if not finite(moved.array):
            return ev.Failed(
                job.job,
                "nonfinite",
                f"local training diverged in local round {job.local_round}; the node has paused: lower the study's eta, or look "
                f"for wrong units in this site's data",
            )
        return ev.Trained(
            job.job, self.keep(job.job, moved), outcome.steps, float(outcome.gradient), float(outcome.loss)
        )

    def absorb(self, job: ev.Absorb) -> ev.Absorbed:
        model = self.vector(job.model)
        moved = self.room(model)
        np.add(model, self.vector(job.displacement), out=moved.array)
        return ev.Absorbed(job.job, self.keep(job.job, moved))

    def encode(self, job: ev.Encode) -> ev.Encoded:
        payload = self.payload(job)
        return ev.Encoded(job.job, self.keep(job.job, payload), len(payload.view))

    def payload(self, job: ev.Encode | ev.Mix) -> Room:
        """C(model - reference), the reference being the replica of this node at the peer."""
        name = job.reference if isinstance(job, ev.Encode) else job.reference_out
        model, reference = self.vector(job.model, job.space), self.vector(name, job.space)
        p = self.split(job.space, model)
        room = Room(self.tensors, compression.payload_size(job.codec, p, model.size - p, model.itemsize), np.uint8)
        compression.encode(job.codec, model, reference, n_parameters=p, seed=job.seed, out=room.array)
        return room

    def replica(self, job: ev.Mix, payload: Any, reference: Vector) -> Room:
        room = self.room(reference)
        compression.decode(
            job.codec, payload, reference, n_parameters=self.split(job.space, reference), out=room.array
        )
        return room

    def mix(self, job: ev.Mix) -> ev.Event:
        """One half of an exchange; see events.Mix."""
        model = self.vector(job.model, job.space)
        answer = None if job.payload else self.payload(job)
        sent = self.tensors.read(job.payload) if answer is None else answer.view
        own = self.replica(job, sent, self.vector(job.reference_out, job.space))
        theirs = self.replica(job, self.tensors.read(job.incoming), self.vector(job.reference_in, job.space))
        checks.check(theirs.array, model, limit=checks.LIMIT if job.space == "model" else math.inf)
        y_lo, y_hi = (own.array, theirs.array) if job.lower else (theirs.array, own.array)
        parameters = slice(0, self.split(job.space, model))
        distance = difference_norm(y_lo[parameters], y_hi[parameters])
        clip = self.clip(job, distance)
        q = self.flow_step(job, y_lo, y_hi, clip)
        q_name = self.tensors.name(q.array)
        if job.q and q_name != job.q:
            raise Refused(
                "numeric",
                "this node and the peer computed different flows from the same bytes; both must run the same version of "
                "gossipfl on little-endian IEEE hardware",
            )
        moved = self.room(model)
        mixing.apply(model, q.array, job.mass, job.lower, out=moved.array)
        if not finite(moved.array):
            raise Refused("nonfinite", "the mixed model would not be finite; the model stays as it was")
        flow, drift, cap = self.book(job, q.array)
        return ev.Mixed(
            job.job,
            model=self.keep(job.job, moved),
            flow=flow,
            correction=drift,
            own=self.keep(job.job, own),
            theirs=self.keep(job.job, theirs),
            q=q_name,
            clip=clip,
            cap=cap,
            distance=distance,
            payload=b"" if answer is None else self.keep(job.job, answer),
            size=len(sent),
        )

    def flow_step(self, job: ev.Mix | ev.Undo, y_lo: Vector, y_hi: Vector, clip: float) -> Room:
        """q, in the orientation that both sides share."""
        m_lo, m_hi = (job.mass, job.mass_peer) if job.lower else (job.mass_peer, job.mass)
        q = self.room(y_lo)
        mixing.flow_step(y_lo, y_hi, job.gamma, m_lo, m_hi, clip, out=q.array)
        return q

    def clip(self, job: ev.Mix, distance: float) -> float:
        """The responder computes the clip; the initiator takes the reply's, if it lets no more through than it should."""
        if not job.q:
            return mixing.clip_factor(distance, job.tau)
        if job.clip * distance > job.tau * (1 + ROUNDING):
            raise Refused("implausible", "the reply's clip lets more through than tau; the peer is faulty or hostile")
        return job.clip

    def book(self, job: ev.Mix, q: Vector) -> tuple[bytes, bytes, float]:
        """(flow, correction, cap) after this exchange, by name; unchanged where no flow is booked."""
        if job.space != "model" or not job.kappa:
            return job.flow, job.correction, 1.0
        q = q[: self.bench.n_parameters]
        before = self.tensors.array(job.flow, q.dtype) if job.flow else None
        norm = correction.booked_norm(before, q, job.kappa, job.leak, job.lower)
        cap = job.cap if job.q else correction.cap_factor(norm, job.cap_norm)
        if cap * norm > job.cap_norm * (1 + ROUNDING):
            raise Refused(
                "implausible", "the reply's cap leaves more flow than the study allows; the peer is faulty or hostile"
            )
        after, drift = self.room(q), self.room(q)
        correction.book(before, q, job.kappa, job.leak, cap, job.lower, out=after.array)
        ran = self.tensors.array(job.correction, q.dtype) if job.correction else None
        correction.advance(ran, before, after.array, job.mass, out=drift.array)
        return self.keep(job.job, after), self.keep(job.job, drift), cap

    def undo(self, job: ev.Undo) -> ev.Undone:
        own, theirs = self.vector(job.own, job.space), self.vector(job.theirs, job.space)
        q = self.flow_step(job, *((own, theirs) if job.lower else (theirs, own)), job.clip)
        model = self.vector(job.model, job.space)
        moved = self.room(model)
        mixing.apply(model, q.array, job.mass, not job.lower, out=moved.array)
        return ev.Undone(job.job, self.keep(job.job, moved))

    def correct(self, job: ev.Correct) -> ev.Corrected:
        if not job.flows:
            return ev.Corrected(job.job, b"")
        flows: Sequence[Vector] = [self.tensors.array(name, self.bench.dtype) for name in job.flows]
        drift = self.room(flows[0])
        correction.from_flows(flows, job.mass, out=drift.array)
        return ev.Corrected(job.job, self.keep(job.job, drift))

    def estimate(self, job: ev.Estimate) -> ev.Estimated:
        return ev.Estimated(job.job, *self.bench.estimate(self.vector(job.model, "statistics")))
