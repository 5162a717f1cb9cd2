"""One session with one peer: records in, events out; messages and chunks in, records out. No I/O, clock or randomness.

It stands between the bytes of a WebSocket and the core, the same in a node and in the simulator. The driver gives it
every binary message that arrives, writes what it returns, and closes without a word when it raises `Refused`. Not here:
what messages mean (peer.py), the handshake's arithmetic (noise.py), who belongs (the caller's `admit`).

    initiator                                      responder
    open      message 1: certificate        ->     receive: Reply
    receive   <-                                   message 2: certificate
    (up)      first record                  ->     receive: Up and what the record says
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from gossipfl import digest
from gossipfl.errors import Misuse, Refused
from gossipfl.protocol import messages
from gossipfl.protocol.events import Instant, Value
from gossipfl.protocol.limits import (
    HANDSHAKE_MAX,
    HANDSHAKE_S,
    INCOMING_MAX,
    PATH_MAX,
    PLAIN_MAX,
    SESSION_RECORDS_MAX,
    SESSION_S,
)
from gossipfl.protocol.messages import Message
from gossipfl.protocol.noise import Agree, Cipher, Handshake, agree
from gossipfl.trust.identity import Certificate, NodeKeys

MAJOR: Final = 1
SUBPROTOCOL: Final = f"gossipfl.v{MAJOR}"
"""The WebSocket subprotocol. It stands in the prologue, too: who alters it on the way gets no session."""

CHUNK: Final = digest.CHUNK
"""Bytes of payload in every chunk but the last."""

_MESSAGE: Final = b"\0"
"""First byte of a plain record: a control message follows."""

_CHUNK: Final = b"\1"
"""First byte of a plain record: root (32), index (4, big endian), hashes in the path (1), path (32 each), data."""

_CHUNK_HEAD: Final = 1 + 32 + 4 + 1
_SECOND: Final = 10**9


class Reply(Value, frozen=True):
    """Write this record: message 2, the only thing that a responder writes before the keys are confirmed."""

    record: bytes


class Up(Value, frozen=True):
    """The keys are confirmed: `peer` is there, with this certificate, which is valid now."""

    peer: str
    certificate: Certificate


class Arrived(Value, frozen=True):
    message: Message


class Chunk(Value, frozen=True):
    """The next chunk of an expected payload, proven. `data` is a view of the record; write it before the next."""

    root: bytes
    index: int
    data: memoryview


SessionEvent = Reply | Up | Arrived | Chunk


@dataclass(slots=True)
class _Incoming:
    size: int
    count: int
    next: int
    memo: digest.Memo = field(default_factory=dict)

    def length(self, index: int) -> int:
        return CHUNK if index < self.count - 1 else self.size - index * CHUNK


def prologue(federation: bytes) -> bytes:
    """What both sides must agree upon before the first byte: subprotocol, a zero byte, federation id (32)."""
    if len(federation) != 32:
        raise Misuse(f"a federation id has 32 bytes, not {len(federation)}")
    return SUBPROTOCOL.encode() + b"\0" + federation


class Session:
    """One session, from the first byte to the last. After one `Refused` it is dead for ever.

    `admit(certificate)` returns the member's id or raises Refused("not-member"); it must change nothing, for message 1
    may be a replay. `expect` is (member id, its X25519 public key) for who dials, None for who answers.

    **Randomness**: `ephemeral` is 32 fresh bytes from the operating system; there is no default.
    **Raises**: Refused from `receive`, the peer's fault: before Up the driver says nothing of it to the peer. Refused
    from the constructor and `open`: it dials itself, or its own certificate is not valid now. Misuse: sending before Up
    or after the end.
    """

    __slots__ = (
        "_admit", "_dead", "_dialled", "_handshake", "_incoming", "_own", "_receiving", "_sending", "_started",
        "certificate", "peer", "up",
    )  # fmt: skip

    def __init__(
        self,
        *,
        initiator: bool,
        federation: bytes,
        keys: NodeKeys,
        certificate: bytes,
        psk: bytes,
        ephemeral: bytes,
        admit: Callable[[Certificate], str],
        expect: tuple[str, bytes] | None,
        started: Instant,
        agree: Agree = agree,
    ) -> None:
        self._own = Certificate.decode(certificate)
        if (self._own.noise, self._own.signing) != (keys.noise_public, keys.signing.public):
            raise Misuse("the certificate is not that of these keys; load the two that belong together")
        if expect is not None and expect[1] == keys.noise_public:
            raise Refused("auth", "this node's own key at a peer's address; correct the peer's certificate or address")
        remote = None if expect is None else expect[1]
        self._handshake: Handshake | None = Handshake(
            initiator, prologue(federation), keys.noise_private, ephemeral, remote, psk, agree
        )
        """none when it is over: its secrets go with it"""
        self._admit = admit
        self._dialled = None if expect is None else expect[0]
        self._started: Final = started
        self._sending: Cipher | None = None
        self._receiving: Cipher | None = None
        self._incoming: dict[bytes, _Incoming] = {}
        self._dead = False
        self.up = False
        self.peer: str | None = None
        """the member's id, once its certificate is verified; not to be believed before `up`"""
        self.certificate: Certificate | None = None

    # ---- what the driver calls

    def open(self, now: Instant) -> bytes:
        """Message 1. Raises Misuse for a responder or the second time; Refused("auth") if a certificate or key is bad."""
        if self._handshake is None:
            raise Misuse("a session is opened once")
        self._must_be_valid(self._own, now)
        return self._handshake.write(self._own.encoded)

    def receive(self, record: digest.Buffer, now: Instant) -> list[SessionEvent]:
        """What one binary message says. Raises Refused; then the driver closes, and every later call raises again."""
        if self._dead:
            raise Refused("auth", "this session is over; the peer must connect anew")
        self._dead = True
        handshake = self._handshake
        events = self._read_record(record) if handshake is None else [self._meet(handshake, record, now)]
        self._dead = False
        return events

    def send(self, message: Message) -> bytes:
        """The record that carries `message`."""
        return self._seal(_MESSAGE + messages.encode(message))

    def seal_chunk(self, root: bytes, index: int, path: Sequence[bytes], data: digest.Buffer) -> bytes:
        """The record that carries chunk `index` of payload `root`; `path` as Tree.path gives it."""
        head = _CHUNK + root + index.to_bytes(4, "big") + bytes([len(path)])
        return self._seal(b"".join((head, *path, data)))

    def expect(self, root: bytes, size: int, from_chunk: int = 0) -> None:
        """From now on accept the chunks of this payload, from `from_chunk` on, in order. Asked again it begins anew.

        **Raises**: Refused("quota") when more payloads were left unfinished than one session may await: close it.
        """
        count = digest.chunk_count(size)
        if from_chunk >= count:
            return
        if root not in self._incoming and len(self._incoming) >= INCOMING_MAX:
            raise Refused("quota", f"{INCOMING_MAX} payloads of this session were left unfinished; connect anew")
        self._incoming[root] = _Incoming(size, count, from_chunk)

    def expired(self, now: Instant) -> bool:
        """Is it time to close? 10 s without Up; then 10 minutes or 2^20 records in one direction."""
        age = now.mono_ns - self._started.mono_ns
        if not self.up or self._sending is None or self._receiving is None:
            return age >= HANDSHAKE_S * _SECOND
        return age >= SESSION_S * _SECOND or max(self._sending.count, self._receiving.count) >= SESSION_RECORDS_MAX

    # ---- inside

    def _seal(self, plain: bytes) -> bytes:
        if not self.up or self._dead or self._sending is None:
            raise Misuse("nothing is sent before a session is up or after its end")
        if len(plain) > PLAIN_MAX:
            raise Misuse(f"a record of {len(plain)} bytes; at most {PLAIN_MAX} fit")
        return self._sending.seal(plain)

    def _meet(self, handshake: Handshake, record: digest.Buffer, now: Instant) -> SessionEvent:
        """The other side's certificate has come: message 1 for a responder, message 2 for an initiator."""
        if len(record) > HANDSHAKE_MAX:
            raise Refused("size", f"handshake message of {len(record)} bytes; at most {HANDSHAKE_MAX} are accepted")
        certificate = Certificate.decode(handshake.read(record))
        self.peer = self._identified(certificate, handshake.remote_static, now)
        self.certificate = certificate
        event: SessionEvent
        if handshake.initiator:
            self.up = True
            event = Up(self.peer, certificate)
        else:
            self._must_be_valid(self._own, now)
            event = Reply(handshake.write(self._own.encoded))
        self._sending, self._receiving = handshake.split()
        self._handshake = None
        return event

    def _identified(self, certificate: Certificate, static: bytes | None, now: Instant) -> str:
        """The member that this certificate and this session's key belong to."""
        if certificate.noise != static:
            raise Refused("auth", f"the certificate of {certificate.member!r} came over another key than it names")
        own = self._own
        if certificate.member == own.member or not own.keys.isdisjoint(certificate.keys):
            raise Refused(
                "auth", "this node's own key or name came back; two nodes share it, or a message was reflected"
            )
        self._must_be_valid(certificate, now)
        member = self._admit(certificate)
        if member != certificate.member or (self._dialled is not None and member != self._dialled):
            raise Refused("auth", f"{self._dialled or certificate.member!r} was meant and {member!r} answered")
        return member

    def _must_be_valid(self, certificate: Certificate, now: Instant) -> None:
        if not certificate.valid_at(now.wall_ns):
            who = certificate.member
            raise Refused("auth", f"the certificate of {who!r} is not valid now; renew it, or correct the wrong clock")

    def _read_record(self, record: digest.Buffer) -> list[SessionEvent]:
        assert self._receiving is not None
        plain = self._receiving.open(record)
        events: list[SessionEvent] = []
        if not self.up:
            assert self.peer is not None and self.certificate is not None
            self.up = True
            events.append(Up(self.peer, self.certificate))
        kind = plain[:1]
        if kind == _MESSAGE:
            events.append(Arrived(messages.decode(plain[1:])))
        elif kind == _CHUNK:
            events.append(self._proven(plain))
        else:
            raise Refused("malformed", f"a record of unknown kind {kind.hex()!r}; the peer runs another version")
        return events

    def _proven(self, plain: bytes) -> Chunk:
        """The chunk in a record: asked for, in order, of the right length, and proven to be of its payload."""
        if len(plain) < _CHUNK_HEAD:
            raise Refused("malformed", f"a chunk of {len(plain)} bytes; its head alone has {_CHUNK_HEAD}")
        root, index, hashes = plain[1:33], int.from_bytes(plain[33:37], "big"), plain[37]
        incoming = self._incoming.get(root)
        if incoming is None:
            raise Refused("malformed", "a chunk of a payload that nobody asked for; the peer is faulty")
        if index != incoming.next:
            raise Refused("malformed", f"chunk {index} came and {incoming.next} was due; the peer is faulty")
        start = _CHUNK_HEAD + 32 * hashes
        if hashes > PATH_MAX or len(plain) - start != incoming.length(index):
            raise Refused("size", f"chunk {index} has another length than its payload implies; the peer is faulty")
        path, data = plain[_CHUNK_HEAD:start], memoryview(plain)[start:]
        if not digest.proves(root, incoming.count, index, digest.leaf(data), path, incoming.memo):
            raise Refused("malformed", f"chunk {index} is not of the payload that was announced; the peer is faulty")
        incoming.next += 1
        if incoming.next == incoming.count:
            del self._incoming[root]
        return Chunk(root, index, data)
