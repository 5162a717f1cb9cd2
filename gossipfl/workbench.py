"""The hands: carries out the core's O(P) jobs with learning/'s functions, on tensors that the core knows by name only.

Shared by the node (in threads, over memory-mapped files) and the simulator (inline). One door, `carry_out(job) -> event`. Not
here: what to do next (protocol.peer), durability (the store makes tensors durable when the core commits). What a peer sent
is decoded by total parsers; its fault becomes `Failed`, never an exception.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from gossipfl import digest, loops, sums
from gossipfl.errors import Misuse, Refused
from gossipfl.learning import checks, compression, correction, mixing
from gossipfl.learning.blocks import factor, is_finite, require_alike, slices, square_sum
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.store.errors import ROTTED, Damaged, Gone, Missing, StateError
from gossipfl.tasks import normalisation

Vector = NDArray[Any]

Codes = compression.Codes | compression.SparseCodes

PIECE: Final = 16 * digest.CHUNK
"""Bytes of a vector that are dealt with at a time: whole chunks, no more than a block of learning.blocks, and the five or six
arrays of a pass stay in cache."""

THREADS: Final = min(4, os.cpu_count() or 1)
"""That walk a large vector together: numpy and hashlib let go of the interpreter's lock for a piece."""

FREED: Final = 16 << 20
"""Bytes: more than the temporaries of all threads that walk a vector."""

BYTE: Final = np.dtype(np.uint8)

HEARD: Final = 1e-3
"""A member is in the statistics once so much of its share has come."""

ROUNDING: Final = 1e-6
"""Relative slack when a norm that the peer has bounded is checked: both computed it from the same bits."""


class Tensors(Protocol):
    """What the hands ask of the store: tensors in and out, by name (store.Files is one)."""

    def array(self, name: bytes, dtype: Any) -> Vector: ...
    def read(self, name: bytes) -> memoryview: ...
    def due_sum(self, name: bytes) -> bytes: ...
    def unsound(self, names: Iterable[bytes]) -> frozenset[bytes]: ...
    def put(self, blob: Any, *, pinned: bool = False) -> bytes: ...
    def unpin(self, names: Iterable[bytes]) -> None: ...
    def scratch(self, size: int) -> memoryview: ...
    def writer(self, scratch: memoryview) -> Callable[[int, Any], None] | None: ...
    def settle(self, scratch: memoryview) -> None: ...
    def adopt(self, scratch: memoryview, *, pinned: bool = False, leaves: Sequence[bytes] | None = None) -> bytes: ...
    def adopt_as(self, name: bytes, scratch: memoryview, summed: bytes, *, pinned: bool = False) -> None: ...


class Room:
    """Space of the store's to compute into: in RAM when small, else a mapped file, so that O(P) work needs no O(P) memory.

    Kept under a name by `Workbench.keep`; dropped, it is gone. What it will be named by, or checked by, is taken piece by
    piece while each is in cache: `written` says that one is done. One of a single piece, which stays in cache, is looked at when
    it is asked for. Where writing costs less than computing in the file's pages, a `part` is computed beside it."""

    __slots__ = ("_beside", "_free", "_write", "array", "is_small", "known_sum", "leaves", "sums", "view")

    def __init__(self, tensors: Tensors, size: int, dtype: np.dtype[Any]) -> None:
        n_bytes = size * dtype.itemsize
        self.view = tensors.scratch(n_bytes)
        self.array: Vector = np.frombuffer(self.view, dtype)
        self.is_small = n_bytes <= PIECE
        self.leaves: list[bytes] | None = None
        """the hashes of its chunks, where its name is that of its content"""
        self.sums: sums.Sums | None = None
        """where its name says what it was computed from"""
        self.known_sum = b""
        """empty where nobody has asked for it"""
        if not self.is_small:
            self._write = tensors.writer(self.view)
            self._beside: dict[int, Vector] = {}
            """parts that are being computed, by where they begin"""
            self._free: list[Vector] = []
            """used again: new ones would fault on every page, too"""

    def hashed(self) -> Room:
        """This room, whose every piece will be hashed when it is written."""
        if not self.is_small:
            self.leaves = [b""] * digest.chunk_count(len(self.view))
        return self

    def summed(self) -> Room:
        """This room, whose every piece will be summed when it is written."""
        if not self.is_small:
            self.sums = sums.Sums(len(self.view))
        return self

    def part(self, piece: slice) -> Vector:
        """Where these elements are to be computed, and may be read until they are `written`."""
        place = self.array[piece]
        if self.is_small or self._write is None:
            return place
        beside = self._free.pop() if self._free else np.empty(PIECE // place.itemsize, place.dtype)
        self._beside[piece.start] = beside
        return beside[: place.size]

    def sums_of(self, piece: slice) -> loops.Words:
        """Where the sums of these elements stand: for who takes them himself, and says so when they are `written`."""
        if self.sums is None:
            raise Misuse("a room is summed from its first piece on, or not at all")
        return self.sums.of_chunks(piece.start * self.array.itemsize, (piece.stop - piece.start) * self.array.itemsize)

    def written(self, piece: slice, *, summed: bool = False) -> None:
        """These elements, from where a chunk begins, will not change any more."""
        if self.is_small:
            return
        values = self.array[piece]
        at = piece.start * values.itemsize
        beside = self._beside.pop(piece.start, None)
        if beside is not None and self._write is not None:
            values = beside[: values.size]
            self._write(at, values.data.cast("B"))
        if self.sums is not None and not summed:
            self.sums.take(at, values)
        if self.leaves is not None and values.size:
            raw = values.data.cast("B")
            for index, start in enumerate(range(0, len(raw), digest.CHUNK), at // digest.CHUNK):
                self.leaves[index] = digest.leaf(raw[start : start + digest.CHUNK])
        if beside is not None:
            self._free.append(beside)

    def sum(self) -> bytes:
        """Of all that was written."""
        if not self.known_sum:
            if self.sums is None and not self.is_small:
                raise Misuse("a room is summed from its first piece on, or not at all")
            self.known_sum = sums.sum_of(self.array) if self.sums is None else self.sums.digest
        return self.known_sum


def write_codes(room: Room, codes: Codes, model: Vector, reference: Vector, piece: slice) -> None:
    """A piece of the payload in this room."""
    if isinstance(codes, compression.Codes) and codes.deltas is not None:
        part, fast = room.part(piece), loops_for(piece, model, reference)
        if fast is None or fast.differ(model[piece], reference[piece], part):
            codes.encode(model, reference, piece, part)
    else:
        codes.encode(model, reference, piece)
    room.written(piece)


def write_replicas(piece: slice, own: tuple[Room, Codes, Vector], theirs: tuple[Room, Codes, Vector]) -> Vector:
    """A piece of both replicas, each (where it is written, what came over the link, the replica before); theirs - own."""
    (room, sent, out), (room_in, came, into) = own, theirs
    mine, peers = room.part(piece), room_in.part(piece)
    gone, got = sent.deltas, came.deltas
    fast = None if gone is None or got is None else loops_for(piece, out, into, gone, got)
    if fast is None or gone is None or got is None:
        sent.decode(out, piece, mine)
        came.decode(into, piece, peers)
        apart = np.subtract(peers, mine)
    else:
        apart = np.empty_like(mine)
        found = room.sums_of(piece), room_in.sums_of(piece)
        fast.meet(out[piece], gone[piece], into[piece], got[piece], mine, peers, apart, sums.weights(), *found)
    room.written(piece, summed=fast is not None)
    room_in.written(piece, summed=fast is not None)
    return apart


def move_by_flow(
    piece: slice, lo: Vector, hi: Vector, share: Any, model: Vector, mass: Any, lower: bool, moved: Room, flow_sums: sums.Sums
) -> tuple[Vector, bool]:
    """A piece of the model after its half of an exchange; the flow that moved it, and is all finite? `share` and `mass` are of
    the model's dtype."""
    after, fast = moved.part(piece), loops_for(piece, model)
    at = piece.start * after.itemsize
    if fast is None:
        q = mixing.carry_piece(lo[piece], hi[piece], share)
        flow_sums.take(at, q)
        all_finite = is_finite(mixing.apply_piece(model[piece], q, mass, lower, after))
    else:
        q, found = np.empty_like(after), (flow_sums.of_chunks(at, after.nbytes), moved.sums_of(piece))
        factors = share, mass if lower else -mass
        all_finite = not fast.move(lo[piece], hi[piece], model[piece], *factors, q, after, sums.weights(), *found)
    moved.written(piece, summed=fast is not None)
    return q, all_finite


def loops_for(piece: slice, *vectors: Vector) -> loops.Loops | None:
    """What deals with this piece of long float32 vectors in one loop, where that can be and the piece is whole chunks; else numpy
    does."""
    if (piece.stop - piece.start) * 4 % digest.CHUNK:
        return None
    if any(one.nbytes < loops.LARGE or one.dtype != np.float32 or not one.flags.aligned for one in vectors):
        return None
    return loops.compiled()


class Own:
    """What a job reads of its node's own vectors: each piece is summed while it is in cache, so that nothing is made of a file
    that has changed on the disk since it was written (ADR 29). What is in memory cannot have, and costs nothing."""

    __slots__ = ("seen", "tensors")

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.seen: list[tuple[Vector, sums.Sums, bytes]] = []

    def vector(self, name: bytes, dtype: Any) -> Vector:
        """That vector. Every piece of it must be `used`, by itself or among others."""
        vector = self.tensors.array(name, dtype)
        if due := self.tensors.due_sum(name):
            self.seen.append((vector, sums.Sums(vector.nbytes), due))
        return vector

    def used(self, piece: slice) -> tuple[float, ...]:
        """These elements have just been read, of each vector that has so many."""
        for vector, summed, _ in self.seen:
            values = vector[piece]
            if values.size:
                summed.take(piece.start * values.itemsize, values)
        return ()

    def require_sound(self) -> None:
        """Raises: StateError where a file no longer holds what was written."""
        for _, summed, due in self.seen:
            if not summed.digest.startswith(due):
                raise StateError(ROTTED)


class Ledger:
    """One link's flow and the running correction, before and after an exchange, dealt with piece by piece.

    Under a sparse codec the flow, P numbers, is followed by P counts (learning.correction.since_last), signed as the flow; one
    that was booked under another codec has none yet, and they begin at 0."""

    __slots__ = ("after", "before", "drift", "gain", "job", "keep", "mass", "ran", "size")

    def __init__(self, job: ev.Mix, before: Vector | None, ran: Vector | None, after: Room, drift: Room) -> None:
        self.job, self.before, self.ran, self.after, self.drift = job, before, ran, after, drift
        self.size = drift.array.size
        self.gain, self.keep, self.mass = correction.factors(job.kappa, job.leak, job.mass, like=drift.array)

    def gathered(self, piece: slice, q: Vector, came: NDArray[np.bool_]) -> Vector:
        """q over the exchanges in which each coordinate's difference has gathered; the counts go on."""
        part, size = self.of(piece), self.size
        counts = slice(size + part.start, size + part.stop)
        q, came, after = (one[: part.stop - part.start] for one in (q, came, self.after.array[counts]))
        has_counts = self.before is not None and self.before.size > size
        idle = np.abs(self.before[counts]) if self.before is not None and has_counts else np.zeros_like(after)
        n, kept = correction.since_last(idle, came)
        np.copyto(after, kept) if self.job.lower else np.negative(kept, out=after)
        return np.divide(q, n)

    def book(self, piece: slice, q: Vector) -> float:
        """The flow with q booked and nothing capped; its sum of squares."""
        part = self.of(piece)
        before = None if self.before is None else self.before[part]
        after, q = self.after.array[part], q[: part.stop - part.start]
        return square_sum(correction.book_piece(before, q, self.gain, self.keep, self.job.lower, after))

    def close(self, piece: slice, cap: float) -> tuple[float, ...]:
        """Cap the flow, and move the correction by what the flow has changed."""
        after = self.after.array[piece]
        if cap != 1:
            np.multiply(after, after.dtype.type(cap), out=after)
        ran, before = None if self.ran is None else self.ran[piece], None if self.before is None else self.before[piece]
        correction.advance_piece(ran, before, after, self.mass, self.drift.part(piece))
        if self.after.array.size == self.size:
            self.after.written(piece)
        self.drift.written(piece)
        return ()

    def of(self, piece: slice) -> slice:
        """Those of these elements that are parameters."""
        return slice(min(piece.start, self.size), min(piece.stop, self.size))


class Learner(Protocol):
    """What trains: one site's data, model and loss (learning.training.Trainer, or a task's own)."""

    def train(self, vector: Vector, correction: Vector | None, plan: Any, rng: Any) -> Any:
        """`rng` is a generator, or None where the learner says `draws = False`: seeding takes longer than a small model."""


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
    absurdity: Callable[[Vector], str] = lambda vector: ""
    """what in a peer's statistics vector no members' rows can have made; empty where nothing is"""


def origin(job: ev.Job) -> digest.Origin:
    """All that a job makes its results from, which are names and numbers, as text."""
    return digest.Origin(f"({msgspec.structs.replace(job, job=0)!r}, ")


def result(origin: digest.Origin, part: str = "", *found: float) -> bytes:
    """The name of what a job makes: the hash of its `origin`, and of what the job itself `found` on its way (norms, in the
    order of this CPU's sums)."""
    return origin.name(f"{part!r}, {found!r})")


def keep_what_is_freed() -> None:
    """From now on the allocator gives back to the system only what is more than twice `FREED`.

    glibc takes the largest block that was freed, up to 32 MiB, for the size below which blocks come from its heap, and twice that
    for what it leaves free at the heap's end. Where no larger one has been, the temporaries of every piece are given back and
    fault on each of their pages again: a third of the CPU of an exchange with the correction. Elsewhere this does nothing."""
    block = bytes(FREED)  # nobody touches its pages
    del block


def statistics_reader(
    federation: bytes, me: str, members: Sequence[str], active: Sequence[str]
) -> Callable[[Vector], tuple[tuple[float, ...], ms.Normalisation | None]]:
    """What reads a statistics vector for the core: (presence of each active member, this node's candidate).

    The vector has a coordinate for every member of the document, so that who leaves shifts nobody. A member of whom less
    than `HEARD` has come is not among the candidate's; None while only this site's rows are in, or a value is not finite."""
    places = [members.index(one) for one in active]
    share = len(active) / len(members)

    def read(vector: Vector) -> tuple[tuple[float, ...], ms.Normalisation | None]:
        state = normalisation.estimate(vector, len(members))
        presence = tuple(float(state.presence[place] * share) for place in places)
        inside = tuple(one for one, there in zip(active, presence, strict=True) if there > HEARD)
        finite = all(np.isfinite(row).all() for row in (state.count, state.mean, state.spread))
        if not finite or len(inside) < min(2, len(active)):
            return presence, None
        said = normalisation.candidate(dataclasses.replace(state, count=state.count * share))
        parts = (tuple(float(value) for value in row) for row in (said.count, said.mean, said.spread))
        return presence, ms.Normalisation(federation, me, inside, *parts)

    return read


METHODS: Final[dict[type, str]] = {
    ev.Train: "train", ev.Absorb: "absorb", ev.Encode: "encode", ev.Mix: "mix", ev.Undo: "undo", ev.GiveBack: "give_back",
    ev.Correct: "correct", ev.Estimate: "estimate", ev.Prepare: "prepare",
}  # fmt: skip


def made_again(tensors: Tensors, own: Vector, bookings: Sequence[bytes]) -> Vector:
    """The statistics vector of a node: its own rows and what its links have brought."""
    vector = np.array(own)
    for name in bookings:
        np.add(vector, tensors.array(name, vector.dtype), out=vector)
    return vector


class Workbench:
    """Carries out jobs on the tensors of one node."""

    def __init__(self, bench: Bench, tensors: Tensors) -> None:
        self.bench = bench
        self.tensors = tensors
        self.dtypes: dict[str, np.dtype[Any]] = {"model": np.dtype(bench.dtype), "statistics": np.dtype("float64")}
        """of the vectors of each space"""
        if bench.dtype == "float32" and 4 * bench.n_parameters >= loops.LARGE:
            loops.compiled()  # now, and not amid the first exchange
        self._learner: Learner | None = None
        self._made: defaultdict[int, list[bytes]] = defaultdict(list)
        self._threads: ThreadPoolExecutor | None = None
        self.straightness: dict[str, checks.Straightness] = {}
        """of each link, since this process began"""
        self._watched: Vector | None = None

    @np.errstate(over="ignore", invalid="ignore")  # what is not finite is found by looking
    def carry_out(self, job: ev.Job) -> ev.Event:
        """Do one job. Never raises on what a peer sent: that is `Failed` with the reason of the refusal.

        What the job made is pinned until `release`: a commit between its end and the core's hearing of it must not
        remove what the core does not know of yet. May be called from several threads, for different jobs."""
        try:
            event: ev.Event = getattr(self, METHODS[type(job)])(job)
        except Refused as refusal:
            event = ev.Failed(job.job, refusal.reason, refusal.detail)
        except Missing as lost:
            return ev.Failed(job.job, "disk", str(lost))
        except Gone:
            raise
        except Damaged as lost:
            raise StateError(ROTTED) from lost
        except Misuse as wrong:
            if not self.tensors.unsound(ev.names(job)):
                raise
            raise StateError(ROTTED) from wrong
        if isinstance(event, ev.Failed) and self.tensors.unsound(ev.names(job)):
            raise StateError(ROTTED)
        return event

    def release(self, job: int) -> None:
        """The core has heard of the end of this job, and its commands are carried out."""
        self.tensors.unpin(self._made.pop(job, ()))

    def keep(self, job: int, room: Room, name: bytes = b"") -> bytes:
        """The name of what was computed into this room: `name`, or that of its content."""
        if name:
            self.tensors.adopt_as(name, room.view, room.known_sum if room.is_small else room.sum(), pinned=True)
        else:
            name = self.tensors.adopt(room.view, pinned=True, leaves=room.leaves)
        self._made[job].append(name)
        return name

    # ---- tensors -------------------------------------------------------------------------------------------------

    def vector(self, name: bytes, space: str = "model") -> Vector:
        return self.tensors.array(name, self.dtypes[space])

    def checked(self, name: bytes, space: str) -> Vector:
        """That own vector, of which every piece was looked at before it is used."""
        own = Own(self.tensors)
        vector = own.vector(name, self.dtypes[space])
        if own.seen:
            self.over(vector, own.used)
            own.require_sound()
        return vector

    def room(self, like: Vector) -> Room:
        return Room(self.tensors, like.size, like.dtype)

    def split(self, space: str, vector: Vector) -> int:
        """How many leading elements the codec and the ledger act on."""
        return self.bench.n_parameters if space == "model" else vector.size

    def over(self, vector: Vector, work: Callable[[slice], tuple[float, ...]]) -> list[float]:
        """`work` on every piece of a vector; the sums of what it returns. In threads where that is worth it."""
        if vector.nbytes <= PIECE:
            return list(work(slice(0, vector.size)))
        pieces = list(slices(vector.size, PIECE // vector.itemsize))
        if len(pieces) < 2 * THREADS or THREADS == 1:
            found = [work(piece) for piece in pieces]
        else:
            if self._threads is None:
                keep_what_is_freed()
                self._threads = ThreadPoolExecutor(THREADS, "gossipfl-mix")
            share = -(-len(pieces) // THREADS)
            shares = [pieces[at : at + share] for at in range(0, len(pieces), share)]

            @np.errstate(over="ignore", invalid="ignore")  # each thread has its own
            def work_quietly(mine: list[slice]) -> list[tuple[float, ...]]:
                return [work(piece) for piece in mine]

            found = [one for some in self._threads.map(work_quietly, shares) for one in some]
        return [math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in zip(*found, strict=True)]

    # ---- jobs ----------------------------------------------------------------------------------------------------

    def prepare(self, job: ev.Prepare) -> ev.Prepared:
        self._learner = self.bench.learner(ms.decode_normalisation(job.statistics) if job.statistics else None)
        return ev.Prepared(job.job)

    def train(self, job: ev.Train) -> ev.Event:
        if self._learner is None:
            self._learner = self.bench.learner(None)
        start = self.checked(job.model, "model")
        drift = self.checked(job.correction, "model") if job.correction else None
        seed, draws = [*self.bench.seed, job.local_round], getattr(self._learner, "draws", True)
        rng = np.random.Generator(np.random.PCG64(seed)) if draws else None
        outcome = self._learner.train(start, drift, self.bench.plan(job.steps, job.eta), rng)
        moved = self.room(start)
        np.subtract(outcome.vector, start, out=moved.array)
        if not is_finite(moved.array):
            return ev.Failed(
                job.job,
                "nonfinite",
                f"local training diverged in local round {job.local_round}; the node has paused: lower the study's eta, or look "
                f"for wrong units in this site's data",
            )
        return ev.Trained(
            job.job, self.keep(job.job, moved), outcome.steps, float(outcome.gradient), float(outcome.loss)
        )

    def absorb(self, job: ev.Absorb) -> ev.Event:
        own = Own(self.tensors)
        model, displacement = own.vector(job.model, self.dtypes["model"]), self.vector(job.displacement)
        moved = self.room(model).summed()

        def add(piece: slice) -> tuple[float, ...]:
            after = np.add(model[piece], displacement[piece], out=moved.part(piece))
            fault = 0.0 if is_finite(after) else math.inf
            moved.written(piece)
            own.used(piece)
            return (fault,)

        faults = any(self.over(model, add))
        own.require_sound()
        if faults:
            return ev.Failed(job.job, "nonfinite", "the model with what was learned would not be finite; lower the study's eta")
        return ev.Absorbed(job.job, self.keep(job.job, moved, result(origin(job))))

    def encode(self, job: ev.Encode) -> ev.Encoded:
        held = Own(self.tensors)
        # of a rotten one the peer would take in what it then has to give back, and with that lose the digits of its own rows
        seen = self.checked if job.space == "statistics" else self.vector
        reference = seen(job.reference, job.space)
        model = held.vector(job.model, self.dtypes[job.space])
        require_alike(model, reference)
        if compression.millionths(job.codec):
            reference = self.expected(job, reference, self.vector(job.reference_in, job.space))[0].array
        payload, codes = self.payload(job, model)

        def write(piece: slice) -> tuple[float, ...]:
            write_codes(payload, codes, model, reference, piece)
            held.used(piece)
            return ()

        self.over(model, write)
        held.require_sound()
        return ev.Encoded(job.job, self.keep(job.job, payload), len(payload.view))

    def expected(self, job: ev.Encode | ev.Mix, own: Vector, theirs: Vector) -> tuple[Room, Room]:
        """The references of a sparse codec: both replicas moved as an exchange that nothing clips moves them."""
        rooms = self.room(own), self.room(own)
        lo, hi = (own, theirs) if job.lower else (theirs, own)
        m_lo, m_hi = (job.mass, job.mass_peer) if job.lower else (job.mass_peer, job.mass)

        def move(piece: slice) -> tuple[float, ...]:
            moved = mixing.predict(lo, hi, job.gamma, m_lo, m_hi, piece)
            for room, part in zip(rooms, moved if job.lower else moved[::-1], strict=True):
                room.array[piece] = part
            return ()

        self.over(own, move)
        return rooms

    def payload(self, job: ev.Encode | ev.Mix, model: Vector) -> tuple[Room, Codes]:
        """Room for C(model - reference), the reference being the replica of this node at the peer."""
        p = self.split(job.space, model)
        size = compression.payload_size(job.codec, p, model.size - p, model.itemsize)
        room = Room(self.tensors, size, BYTE)
        codes = compression.codes_of(job.codec, room.array, like=model, n_parameters=p)
        if codes.deltas is not None:
            room.array = codes.deltas
            room.hashed()
        return room, codes

    def mix(self, job: ev.Mix) -> ev.Event:
        """One half of an exchange; see events.Mix.

        Two walks over the vectors, each piece written and summed while it is in cache: first both replicas and their
        distance, which decides the clip; then the flow q, which nobody needs but for its sum, and the model."""
        held = Own(self.tensors)
        model = held.vector(job.model, self.dtypes[job.space])
        p = self.split(job.space, model)
        # replicas of models are not summed again: q compares them with the peer's; those of statistics are, for what is given
        # back is subtracted, and what stood under an absurd amount would have lost its digits (ADR 29)
        read = self.tensors.array if job.space == "model" else held.vector
        out, into = read(job.reference_out, model.dtype), read(job.reference_in, model.dtype)
        require_alike(model, out, into)
        sparse = compression.millionths(job.codec) > 0
        if sparse:
            out, into = (room.array for room in self.expected(job, out, into))
        came = compression.codes_of(job.codec, self.tensors.read(job.incoming), like=model, n_parameters=p)
        came.require_sound()
        answer: Room | None = None
        if job.payload:
            sent = compression.codes_of(job.codec, self.tensors.read(job.payload), like=model, n_parameters=p)
        else:
            answer, sent = self.payload(job, model)
        own, theirs = self.room(model).summed(), self.room(model).summed()

        def meet(piece: slice) -> tuple[float, ...]:
            if answer is not None:
                write_codes(answer, sent, model, out, piece)
            apart = write_replicas(piece, (own, sent, out), (theirs, came, into))
            inner = min(max(p - piece.start, 0), apart.size)
            return square_sum(apart[:inner]), square_sum(apart[inner:])

        squares = self.over(model, meet)
        for room in (own, theirs) if answer is None else (answer, own, theirs):
            self.tensors.settle(room.view)
        limit = checks.LIMIT if job.space == "model" else math.inf
        checks.check(theirs.array, own.array, limit=limit, distance=math.sqrt(sum(squares)))
        if job.space == "statistics" and (absurd := self.bench.absurdity(theirs.array)):
            raise Refused("implausible", f"the peer's statistics hold {absurd}; a unit, a sentinel value or the member is wrong")
        distance = math.sqrt(squares[0])
        clip = self.clip(job, distance)
        lo, hi = (own, theirs) if job.lower else (theirs, own)
        m_lo, m_hi = (job.mass, job.mass_peer) if job.lower else (job.mass_peer, job.mass)
        share, mass = factor(mixing.flow_share(job.gamma, m_lo, m_hi, clip), model), factor(job.mass, model)
        moved, flow_sums, flows = self.room(model).summed(), sums.Sums(len(own.view)), []
        ledger = self.ledger(job, model[:p], held)

        def move(piece: slice) -> tuple[float, ...]:
            q, all_finite = move_by_flow(piece, lo.array, hi.array, share, model, mass, job.lower, moved, flow_sums)
            if moved.is_small:
                flows.append(q)
            if ledger is not None and sparse:
                fresh = np.not_equal(own.array[piece], out[piece]) | np.not_equal(theirs.array[piece], into[piece])
                q = ledger.gathered(piece, q, fresh)
            square = 0.0 if ledger is None else ledger.book(piece, q)
            held.used(piece)
            return square, 0.0 if all_finite else math.inf

        booked, faults = self.over(model, move)
        held.require_sound()
        agreed = sums.agreement(lo.sum(), hi.sum(), flow_sums.digest)
        if job.q and agreed != job.q:
            raise Refused(
                "numeric",
                "this node and the peer computed different replicas or flows from the same bytes; both must run the same "
                "version of gossipfl on little-endian IEEE hardware",
            )
        if faults:
            raise Refused("nonfinite", "the mixed model would not be finite; the model stays as it was")
        flow, drift, cap, made_from = job.flow, job.correction, 1.0, origin(job)
        if ledger is not None:
            cap = self.cap(job, math.sqrt(booked))
            self.over(model[:p], lambda piece: ledger.close(piece, cap))
            if sparse:  # the counts do not begin where a chunk does
                for piece in slices(ledger.after.array.size, PIECE // model.itemsize):
                    ledger.after.written(piece)
            flow = self.keep(job.job, ledger.after, result(made_from, "flow", clip, cap))
            drift = self.keep(job.job, ledger.drift, result(made_from, "correction", clip, cap))
        if job.space == "model" and job.peer:
            seen = self.watched(p)
            q = flows[0][seen] if flows else mixing.carry_piece(lo.array[seen], hi.array[seen], share)
            if job.peer not in self.straightness:
                self.straightness[job.peer] = checks.Straightness()
            self.straightness[job.peer].add(q)
        payload = job.payload if answer is None else self.keep(job.job, answer)
        before = job.reference_out, job.reference_in
        if sparse:
            before = (
                digest.expected_name(*before, job.gamma, job.mass, job.mass_peer),
                digest.expected_name(*before[::-1], job.gamma, job.mass_peer, job.mass),
            )
        mine = digest.replica_name(before[0], payload, job.space, job.codec)
        peers = digest.replica_name(before[1], job.incoming, job.space, job.codec)
        return ev.Mixed(
            job.job,
            model=self.keep(job.job, moved, result(made_from, "model", clip)),
            flow=flow,
            correction=drift,
            own=self.keep(job.job, own, mine),
            theirs=self.keep(job.job, theirs, peers),
            q=agreed,
            clip=clip,
            cap=cap,
            distance=distance,
            payload=b"" if answer is None else payload,
            size=sent.size,
        )

    def watched(self, p: int) -> Vector | slice:
        """The coordinates by which links are watched, all of a small model: drawn once, and nobody else knows them."""
        if p <= checks.SAMPLE:
            return slice(p)
        if self._watched is None:
            rng = np.random.Generator(np.random.PCG64([*self.bench.seed, checks.SAMPLE]))
            self._watched = np.sort(rng.choice(p, checks.SAMPLE, replace=False, shuffle=False))
        return self._watched

    def clip(self, job: ev.Mix, distance: float) -> float:
        """The responder computes the clip; the initiator takes the reply's, if it lets no more through than it should."""
        if not job.q:
            return mixing.clip_factor(distance, job.tau)
        if job.clip * distance > job.tau * (1 + ROUNDING):
            raise Refused("implausible", "the reply's clip lets more through than tau; the peer is faulty or hostile")
        return job.clip

    def cap(self, job: ev.Mix, norm: float) -> float:
        """The same for the norm of the link's flow and its bound."""
        cap = job.cap if job.q else correction.cap_factor(norm, job.cap_norm)
        if cap * norm > job.cap_norm * (1 + ROUNDING):
            raise Refused(
                "implausible", "the reply's cap leaves more flow than the study allows; the peer is faulty or hostile"
            )
        return cap

    def ledger(self, job: ev.Mix, parameters: Vector, held: Own) -> Ledger | None:
        """Where the flow of this exchange is booked; None where none is."""
        if not job.kappa:
            return None
        before = ran = None
        if job.flow:
            before = self.tensors.array(job.flow, parameters.dtype)
            # counts that stand behind it do not begin where a chunk does
            is_plain = before.size == parameters.size
            before = held.vector(job.flow, parameters.dtype) if is_plain else self.checked(job.flow, job.space)
            require_alike(parameters, before[: parameters.size])
        if job.correction:
            ran = held.vector(job.correction, parameters.dtype)
            require_alike(parameters, ran)
        width = 2 if compression.millionths(job.codec) else 1
        after = Room(self.tensors, width * parameters.size, parameters.dtype).summed()
        return Ledger(job, before, ran, after, self.room(parameters).summed())

    def undo(self, job: ev.Undo) -> ev.Undone:
        own, theirs, model = (self.checked(name, job.space) for name in (job.own, job.theirs, job.model))
        y_lo, y_hi = (own, theirs) if job.lower else (theirs, own)
        m_lo, m_hi = (job.mass, job.mass_peer) if job.lower else (job.mass_peer, job.mass)
        moved = self.room(model).summed()

        def take_back(piece: slice) -> tuple[float, ...]:
            q = mixing.flow_step(y_lo[piece], y_hi[piece], job.gamma, m_lo, m_hi, job.clip)
            mixing.apply(model[piece], q, job.mass, not job.lower, out=moved.part(piece))
            moved.written(piece)
            return ()

        self.over(model, take_back)
        return ev.Undone(job.job, self.keep(job.job, moved, result(origin(job))))

    def give_back(self, job: ev.GiveBack) -> ev.GivenBack:
        left = np.array(self.checked(job.model, "statistics"))
        for name in job.flows:
            np.subtract(left, self.checked(name, "statistics"), out=left)
        own = self.room(left)
        np.copyto(own.array, left)
        return ev.GivenBack(job.job, self.keep(job.job, own))

    def correct(self, job: ev.Correct) -> ev.Corrected:
        if not job.flows:
            return ev.Corrected(job.job, b"")
        p = self.bench.n_parameters
        flows: Sequence[Vector] = [self.checked(name, "model")[:p] for name in job.flows]
        drift = self.room(flows[0])
        correction.from_flows(flows, job.mass, out=drift.array)
        return ev.Corrected(job.job, self.keep(job.job, drift))

    def estimate(self, job: ev.Estimate) -> ev.Estimated:
        return ev.Estimated(job.job, *self.bench.estimate(self.checked(job.model, "statistics")))
