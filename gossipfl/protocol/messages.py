"""Typed control messages and the signed documents inside them: strict encode and decode, nothing else.

One message is one msgpack array whose first element is its tag. Accepted is exactly the canonical encoding: a message
is decoded, encoded again and compared, so unknown fields, duplicates, slack bytes, long integer forms and truncation are
all refused by one rule. Signatures are over the exact bytes sent, never over a re-encoding. No state, no I/O, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

from gossipfl.errors import Refused

CERTIFICATE_MAX: Final = 928
"""Bytes of a certificate with its signature: what a first handshake message of 1,024 B has left (32 + 48 + 16 go)."""

CONTROL_MAX: Final = 65_000
"""Bytes of one control message at most: it must fit one record."""

STAGES: Final = ("statistics", "training", "release", "finished", "observing")

Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
OptionalDigest = Annotated[bytes, Meta(max_length=32)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Counter = Annotated[int, Meta(ge=0, le=2**53)]
MemberId = Annotated[str, Meta(min_length=1, max_length=32)]
Word = Annotated[str, Meta(min_length=1, max_length=32)]
Text = Annotated[str, Meta(max_length=1000)]
Scalar = float
Document = Annotated[bytes, Meta(max_length=16_384)]


class Frozen(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True, gc=False):
    """Positional, immutable, nothing unknown; in no circle, so that nothing need look for one."""


# ---- documents: signed as bytes ------------------------------------------------------------------------------------


class Manifest(Frozen, frozen=True):
    """What one half of an exchange is: signed once, the same in every retry.

    `reference` and `root` are names (see gossipfl.digest). In a reply the last five fields say what the responder
    computed; in a proposal they are the neutral values that `is_neutral` checks.
    """

    federation: Digest
    membership: Counter
    """version of the membership that both sides hold"""
    certificate: Digest
    """digest of the sender's certificate under which this is signed"""
    sender: MemberId
    recipient: MemberId
    epoch: Counter
    k: Counter
    prev: Counter
    """the last k done on this link, before this one"""
    role: Word
    """propose | reply"""
    space: Word
    """what is mixed: statistics | model"""
    stage: Word
    """the sender's: statistics | training | release | finished | observing"""
    codec: Word
    reference: Digest
    size: Counter
    """payload bytes"""
    root: Digest
    """payload name"""
    statistics: OptionalDigest
    """digest of the frozen normalisation in use; empty in the statistics space"""
    mass: Scalar
    gamma: Scalar
    kappa: Scalar
    """flow booked per unit of q; 0 where either side does not train"""
    tau: Scalar
    """largest norm of the difference that is let through; infinity where there is no clip"""
    gradient: Scalar
    """moving average of the sender's own gradient norm; without a correction it never falls"""
    answers: OptionalDigest = b""
    """reply: digest of the proposal's manifest bytes"""
    clip: Scalar = 1.0
    """reply: factor on the difference, in (0, 1]"""
    leak: Scalar = 1.0
    """reply: factor on the old flow, in [0, 1]"""
    cap: Scalar = 1.0
    """reply: factor on the new flow, in [0, 1]"""
    q: OptionalDigest = b""
    """reply: name of q's bytes"""


class Receipt(Frozen, frozen=True):
    """`signer` has verified, decoded and applied the payload that manifest `of` describes."""

    federation: Digest
    signer: MemberId
    sender: MemberId
    epoch: Counter
    k: Counter
    of: Digest
    """digest of the manifest bytes"""
    root: Digest


class AbortNote(Frozen, frozen=True):
    """The initiator cannot accept the reply to its proposal k: the responder takes its half back, a new epoch follows."""

    federation: Digest
    sender: MemberId
    recipient: MemberId
    epoch: Counter
    k: Counter
    of: Digest
    """digest of the initiator's own proposal manifest"""
    reason: Word


class Normalisation(Frozen, frozen=True):
    """One member's candidate for the study's frozen mean and spread, per feature, float64."""

    federation: Digest
    author: MemberId
    members: tuple[MemberId, ...]
    """whose rows are in"""
    count: tuple[float, ...]
    mean: tuple[float, ...]
    spread: tuple[float, ...]


# ---- messages: what a record carries -------------------------------------------------------------------------------


class LinkView(Frozen, frozen=True):
    """One side's durable state of the link, enough to settle it."""

    epoch: Counter
    done: Counter
    pending: Counter
    """k of the own proposal in doubt, 0 for none"""
    doubt: OptionalDigest
    """digest of that proposal's manifest"""
    last: OptionalDigest
    """digest of the proposal manifest of the last exchange done"""


class Hello(Frozen, frozen=True, tag="hello"):
    membership: Counter
    membership_digest: Digest
    layout: Digest
    stage: Word
    """statistics | training | release | finished | observing"""
    statistics: OptionalDigest
    link: LinkView
    capabilities: Annotated[tuple[Word, ...], Meta(max_length=32)]
    wall_s: Counter
    """sender's clock, unix seconds: only to tell the operator of a wrong one"""


class Propose(Frozen, frozen=True, tag="propose"):
    manifest: Document
    signature: Signature


class Fetch(Frozen, frozen=True, tag="fetch"):
    """Send me this payload from this chunk on."""

    root: Digest
    from_chunk: Counter


class Reply(Frozen, frozen=True, tag="reply"):
    manifest: Document
    signature: Signature
    receipt: Document
    receipt_signature: Signature


class Done(Frozen, frozen=True, tag="done"):
    """The initiator's receipt for the reply: the exchange is over on both sides."""

    receipt: Document
    signature: Signature


class Abort(Frozen, frozen=True, tag="abort"):
    note: Document
    signature: Signature


class Aborted(Frozen, frozen=True, tag="aborted"):
    epoch: Counter
    k: Counter


class Refusal(Frozen, frozen=True, tag="refusal"):
    """`k` of the proposal that is refused, 0 for the session as a whole."""

    k: Counter
    reason: Word
    detail: Text


class Candidate(Frozen, frozen=True, tag="candidate"):
    normalisation: Annotated[bytes, Meta(max_length=60_000)]
    certificate: Annotated[bytes, Meta(max_length=CERTIFICATE_MAX)]
    """the author's own, whole: the author need not be the sender, nor known to the recipient by its newest"""
    signature: Signature
    """by the author"""


class Ping(Frozen, frozen=True, tag="ping"):
    pass


Message = Hello | Propose | Fetch | Reply | Done | Abort | Aborted | Refusal | Candidate | Ping
Signed = Manifest | Receipt | AbortNote | Normalisation

_message: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_T = TypeVar("_T", bound=Message | Signed)


encode: Final[Callable[[Message | Signed], bytes]] = msgspec.msgpack.Encoder().encode
"""The one canonical encoding."""


def _exact(data: bytes, decoder: msgspec.msgpack.Decoder[_T], what: str) -> _T:
    try:
        value = decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("malformed", f"{what}: {error}; the peer runs another version or is faulty") from None
    if encode(value) != data:
        raise Refused("malformed", f"{what}: not in canonical form; the peer runs another version or is faulty")
    return value


def decode(data: bytes) -> Message:
    """The message that `data` is. Raises `Refused("malformed")` on everything else, `Refused("size")` above the limit."""
    if len(data) > CONTROL_MAX:
        raise Refused("size", f"control message of {len(data)} bytes; at most {CONTROL_MAX} are accepted")
    message = _exact(data, _message, "control message")
    if type(message) is Hello and message.stage not in STAGES:
        raise Refused("malformed", f"control message: unknown stage {message.stage!r}")
    return message


_manifest = msgspec.msgpack.Decoder(Manifest)
_receipt = msgspec.msgpack.Decoder(Receipt)
_abort = msgspec.msgpack.Decoder(AbortNote)
_normalisation = msgspec.msgpack.Decoder(Normalisation)


@lru_cache(maxsize=64)  # a node reads its own again when the answer comes, and when the receipt does
def decode_manifest(data: bytes) -> Manifest:
    """The manifest that `data` is; every scalar finite or, for tau, infinite, and in its range."""
    manifest = _exact(data, _manifest, "manifest")
    if manifest.role not in ("propose", "reply"):
        raise Refused("malformed", f"manifest: unknown role {manifest.role!r}")
    if manifest.space not in ("statistics", "model"):
        raise Refused("malformed", f"manifest: unknown space {manifest.space!r}")
    if manifest.stage not in STAGES:
        raise Refused("malformed", f"manifest: unknown stage {manifest.stage!r}")
    for name, value in (("mass", manifest.mass), ("gamma", manifest.gamma)):
        if not 0 < value < math.inf:
            raise Refused("malformed", f"manifest: {name} = {value}; it must be finite and above 0")
    for name, value in (("kappa", manifest.kappa), ("gradient", manifest.gradient)):
        if not 0 <= value < math.inf:
            raise Refused("malformed", f"manifest: {name} = {value}; it must be finite and not below 0")
    if not manifest.tau > 0:
        raise Refused("malformed", f"manifest: tau = {manifest.tau}; it must be above 0")
    for name, value in (("clip", manifest.clip), ("leak", manifest.leak), ("cap", manifest.cap)):
        if not 0 <= value <= 1:
            raise Refused("malformed", f"manifest: {name} = {value}; it must lie between 0 and 1")
    neutral = (manifest.answers, manifest.clip, manifest.leak, manifest.cap, manifest.q) == (b"", 1.0, 1.0, 1.0, b"")
    if manifest.role == "propose" and not neutral:
        raise Refused("malformed", "manifest: a proposal carries fields that only a reply has")
    if manifest.role == "reply" and not (len(manifest.answers) == 32 and len(manifest.q) == 32):
        raise Refused("malformed", "manifest: a reply must name what it answers and q")
    return manifest


def decode_receipt(data: bytes) -> Receipt:
    return _exact(data, _receipt, "receipt")


def decode_abort(data: bytes) -> AbortNote:
    return _exact(data, _abort, "abort")


def decode_normalisation(data: bytes) -> Normalisation:
    value = _exact(data, _normalisation, "statistics")
    if not len(value.count) == len(value.mean) == len(value.spread):
        raise Refused("malformed", "statistics: count, mean and spread differ in length")
    if not all(math.isfinite(x) for row in (value.count, value.mean, value.spread) for x in row):
        raise Refused("nonfinite", "statistics: a value is not finite")
    return value


def to_sign(kind: str, payload: bytes) -> bytes:
    """What is signed: b"gossipfl/<kind>/v1\\0" + length (8 bytes, big endian) + payload, so that no signature can be
    read as one of another kind. Kinds: manifest, receipt, abort, statistics, certificate."""
    return b"gossipfl/" + kind.encode() + b"/v1\0" + len(payload).to_bytes(8, "big") + payload
