"""What goes into the core and what comes out of it: events, commands, instants. Plain frozen values, no behaviour.

Tensors and payloads appear by name (32 bytes, see gossipfl.digest) and size only. An empty name stands for zeros where a
flow or a correction is meant. Commands of one list are carried out in order; those marked *job* run elsewhere and end in
the event that is named.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from gossipfl.protocol.messages import Message, Normalisation
from gossipfl.trust.identity import Certificate

Space = Literal["statistics", "model"]
NONE: Final = b""


class Value(msgspec.Struct, frozen=True, gc=False):
    """Made by the dozen for each exchange: a struct costs a fifth of a frozen dataclass. None is in a circle."""


class Instant(Value, frozen=True):
    """Integers: mono for every timeout, wall for expiry and for people."""

    mono_ns: int
    wall_ns: int


# ---- events --------------------------------------------------------------------------------------------------------


class Started(Value, frozen=True):
    """The first event. `rows` are all durable rows of the core: (kind, key) -> value, checksums verified."""

    rows: dict[tuple[str, str], bytes]
    model: bytes
    """name of x^0"""
    statistics: bytes
    """name of this site's own statistics vector; where what it had grown to cannot be read, or a booking of it, its own and what
    the bookings that can be read have brought (`peer.bookings`)"""
    statistics_base: bytes
    """name of the zero statistics vector: first reference of that space"""
    begin: bytes = NONE
    """name of the model that this node begins with, where it is not x^0"""
    missing: frozenset[bytes] = frozenset()
    """names in rows whose files are absent or damaged"""


class Opened(Value, frozen=True):
    """A session with a member is up: handshake over, keys confirmed."""

    conn: int
    peer: str
    initiator: bool
    """did this node dial?"""
    certificate: Certificate
    """the peer's, verified and valid now"""


class DialFailed(Value, frozen=True):
    peer: str
    why: str


class Received(Value, frozen=True):
    conn: int
    message: Message


class BulkReceived(Value, frozen=True):
    """The payload that ReceiveBulk asked for is complete, proven and readable under its name."""

    conn: int
    root: bytes


class Closed(Value, frozen=True):
    conn: int
    why: str
    """for the operator"""


class Alarm(Value, frozen=True):
    """The instant of the last Wake has come."""


class Stopping(Value, frozen=True):
    """Drain: finish what is under way, start nothing, then `Stopped` is commanded."""


class Operator(Value, frozen=True):
    """pause | resume | leave | mix (a user's own loop hands in a displacement and wants an exchange) | finish (it is done)"""

    order: str
    displacement: bytes = NONE
    steps: int = 0
    gradient: float = 0.0


class Trained(Value, frozen=True):
    job: int
    displacement: bytes
    steps: int
    gradient: float
    """mean norm of the raw local gradient over the steps"""
    loss: float


class Absorbed(Value, frozen=True):
    job: int
    model: bytes


class Encoded(Value, frozen=True):
    job: int
    root: bytes
    size: int


class Mixed(Value, frozen=True):
    job: int
    model: bytes
    flow: bytes
    correction: bytes
    own: bytes
    """replica of mine at the peer: next reference of what I send"""
    theirs: bytes
    """replica of the peer's: next reference of what I receive"""
    q: bytes
    clip: float
    cap: float
    distance: float
    """norm of the difference, before the clip"""
    payload: bytes = NONE
    """responder: name of the encoded reply"""
    size: int = 0


class Undone(Value, frozen=True):
    job: int
    model: bytes


class GivenBack(Value, frozen=True):
    job: int
    model: bytes


class Corrected(Value, frozen=True):
    job: int
    correction: bytes


class Estimated(Value, frozen=True):
    """What the statistics vector says now."""

    job: int
    presence: tuple[float, ...]
    """share of each active member (in id order) in the vector, times the number present: 1 for all when converged"""
    normalisation: Normalisation | None
    """None while nobody but this site is in"""


class Prepared(Value, frozen=True):
    """The local data stand normalised by the given statistics; training may begin."""

    job: int


class Failed(Value, frozen=True):
    """A job could not be done: bad bytes of a peer (reason of `Refused`) or a damaged own file (reason `disk`)."""

    job: int
    reason: str
    detail: str


Event = (
    Started | Opened | DialFailed | Received | BulkReceived | Closed | Alarm | Stopping | Operator | Trained | Absorbed
    | Encoded | Mixed | Undone | GivenBack | Corrected | Estimated | Prepared | Failed
)  # fmt: skip


# ---- commands ------------------------------------------------------------------------------------------------------


class Dial(Value, frozen=True):
    """Ends in Opened or DialFailed. The driver knows the addresses (from the signed certificates)."""

    peer: str


class Send(Value, frozen=True):
    conn: int
    message: Message


class SendBulk(Value, frozen=True):
    conn: int
    root: bytes
    from_chunk: int


class ReceiveBulk(Value, frozen=True):
    """Expect this payload on conn. The driver asks the peer for it (message Fetch) from the first chunk that it does
    not yet hold, and ends in BulkReceived or Closed."""

    conn: int
    root: bytes
    size: int


class Close(Value, frozen=True):
    conn: int
    why: str


class Wake(Value, frozen=True):
    """One alarm at a time: replaces the one before. None: no alarm."""

    at_ns: int | None


class Note(Value, frozen=True):
    """One fact for the record: kind, fields (JSON values; never tensors, keys, rows)."""

    kind: str
    fields: dict[str, Any] = msgspec.field(default_factory=dict)


class Commit(Value, frozen=True):
    """One transaction, on disk before the next command: tensors `keep` durable first, then rows (None deletes) and
    facts together. `live` are all names that the core still needs: what is in none of them may be removed."""

    rows: tuple[tuple[str, str, bytes | None], ...]
    keep: tuple[bytes, ...]
    facts: tuple[Note, ...]
    live: frozenset[bytes]


class Train(Value, frozen=True):
    """Job -> Trained. Local steps from `model` with correction `correction`."""

    job: int
    model: bytes
    correction: bytes
    local_round: int
    steps: int
    eta: float


class Absorb(Value, frozen=True):
    """Job -> Absorbed. model + displacement."""

    job: int
    model: bytes
    displacement: bytes


class Encode(Value, frozen=True):
    """Job -> Encoded. The payload C(model - reference); what follows `seed` says where a sparse codec expects the model."""

    job: int
    space: Space
    model: bytes
    reference: bytes
    codec: str
    seed: bytes
    reference_in: bytes = NONE
    lower: bool = False
    mass: float = 1.0
    mass_peer: float = 1.0
    gamma: float = 1.0


class Mix(Value, frozen=True):
    """Job -> Mixed or Failed. One half of an exchange.

    Initiator (`payload` set): own replica = reference_out + decode(payload). Responder (`payload` empty): encodes `model`
    first. Then q = gamma mu c (y_hi - y_lo); model and flow move by it; `lower` says which end this node is. The
    initiator is given clip, leak, cap and q by the reply, checks clip, cap and q before it applies anything.
    """

    job: int
    space: Space
    lower: bool
    incoming: bytes
    reference_in: bytes
    reference_out: bytes
    model: bytes
    flow: bytes
    correction: bytes
    codec: str
    seed: bytes
    mass: float
    mass_peer: float
    gamma: float
    kappa: float
    tau: float
    leak: float
    cap_norm: float
    """largest norm of the flow; infinity for no cap"""
    payload: bytes = NONE
    clip: float = 1.0
    cap: float = 1.0
    q: bytes = NONE
    peer: str = ""
    """whose exchange it is: for what the hands watch, not for what they compute"""


class Undo(Value, frozen=True):
    """Job -> Undone. Take the responder's half back: q again from both replicas, taken out of the model."""

    job: int
    space: Space
    lower: bool
    own: bytes
    theirs: bytes
    model: bytes
    mass: float
    mass_peer: float
    gamma: float
    clip: float
    q: bytes


class GiveBack(Value, frozen=True):
    """Job -> GivenBack. The statistics vector `model` without what these flows brought, in the given order."""

    job: int
    model: bytes
    flows: tuple[bytes, ...]


class Correct(Value, frozen=True):
    """Job -> Corrected. F = -(1/mass) * sum of flows, in the given order."""

    job: int
    flows: tuple[bytes, ...]
    mass: float


class Estimate(Value, frozen=True):
    """Job -> Estimated. Read the statistics vector `model`."""

    job: int
    model: bytes


class Prepare(Value, frozen=True):
    """Job -> Prepared. Normalise the local data by these frozen statistics."""

    job: int
    statistics: bytes
    """the encoded Normalisation"""


class Stopped(Value, frozen=True):
    """All is drained and on disk."""


Job = Train | Absorb | Encode | Mix | Undo | GiveBack | Correct | Estimate | Prepare
Command = Dial | Send | SendBulk | ReceiveBulk | Close | Wake | Note | Commit | Stopped | Job


def names(value: Job | Event) -> frozenset[bytes]:
    """Every name of a tensor or payload that a job reads or an event brings."""
    found: set[bytes] = set()
    for held in msgspec.structs.astuple(value):
        kind = type(held)
        if kind is bytes and len(held) == 32:
            found.add(held)
        elif kind is tuple:
            found.update(name for name in held if type(name) is bytes)
    return frozenset(found)
