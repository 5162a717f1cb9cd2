"""The Noise handshake IKpsk2 and its transport ciphers, and nothing else: no certificates, records, clock or I/O.

Exactly `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b`; without a psk exactly `Noise_IK_25519_ChaChaPoly_BLAKE2b`, which public
vectors cover more widely. Primitives: X25519 of libsodium (PyNaCl), HMAC and BLAKE2b of Python, ciphers of aead.py.

    <- s
    ...
    -> e, es, s, ss
    <- e, ee, se, psk

**Source**: Perrin, "The Noise Protocol Framework", revision 34 (2018): sections 5 (processing), 7.5 (IK), 9 (psk).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

from gossipfl.digest import Buffer
from gossipfl.errors import Misuse, Refused
from gossipfl.protocol.aead import CIPHER, Aead, Forged
from gossipfl.protocol.limits import RECORD_MAX, SESSION_RECORDS_MAX

KEY: Final = 32
"""Bytes of a public, private, shared or cipher key."""

TAG: Final = 16
"""Bytes that sealing adds."""

FIRST_OVERHEAD: Final = KEY + (KEY + TAG) + TAG
"""Message 1 less its payload: e, s sealed, tag of the payload."""

SECOND_OVERHEAD: Final = KEY + TAG
"""Message 2 less its payload: e, tag of the payload."""

_DEAD: Final = -1


@dataclass(frozen=True, slots=True)
class Pair:
    """An X25519 key."""

    private: bytes = field(repr=False)
    public: bytes


Agree = Callable[[Pair, bytes], bytes]
"""What an own key and the other side's public one agree on: `agree`, or what gives the same bytes."""


_nonce: Final = struct.Struct("<4xQ").pack
"""Of 4 zero bytes and the counter, little endian."""

_FIRST: Final = _nonce(0)

_ALTERED: Final = "a record was altered, lost, repeated or sealed by somebody else"


class Cipher:
    """ChaCha20-Poly1305 in one direction under one key, with an implicit counter. It dies at the first failure.

    **Secrets**: the key; a counter never repeats under it.
    """

    __slots__ = ("_aead", "count")

    def __init__(self, key: bytes) -> None:
        self._aead: Aead | None = CIPHER(key)
        self.count = 0

    def seal(self, plain: bytes, ad: bytes = b"") -> bytes:
        """`plain` sealed: 16 bytes longer. Raises Misuse after 2^20 records: then a new handshake is due."""
        aead, count = self._aead, self.count
        if aead is None or count >= SESSION_RECORDS_MAX:
            raise Misuse("the session is over; begin a new one before sending")
        self.count = count + 1
        return aead.encrypt(_nonce(count), plain, ad)

    def open(self, sealed: Buffer, ad: bytes = b"") -> bytes:
        """What was sealed, in the order it was sealed. Raises Refused("auth") on anything else, and ever after."""
        aead, count = self._aead, self.count
        self._aead = None
        if aead is None or count >= SESSION_RECORDS_MAX:
            raise Refused("auth", "a record after the end of its session; the peer must connect anew")
        if not TAG <= len(sealed) <= RECORD_MAX:
            raise Refused("auth", f"a record of {len(sealed)} bytes; {TAG} to {RECORD_MAX} are possible")
        try:
            plain = aead.decrypt(_nonce(count), sealed, ad)
        except Forged:
            raise Refused("auth", _ALTERED) from None
        self._aead, self.count = aead, count + 1
        return plain


def _pair(private: bytes) -> Pair:
    return Pair(private, sodium.crypto_scalarmult_base(private))


@lru_cache(maxsize=256)  # a process has one static key, a simulated federation one a node; never an ephemeral one
def _static_pair(private: bytes) -> Pair:
    return _pair(private)


def agree(own: Pair, other: bytes) -> bytes:
    """X25519. An all-zero result (a point of small order) is refused, which Noise leaves open: it proves nothing."""
    return _shared(own.private, other)


def _shared(private: bytes, other: bytes) -> bytes:
    try:
        shared: bytes = sodium.crypto_scalarmult(private, other)
    except CryptoError:
        raise Refused("auth", "a public key that no honest peer has; the peer is faulty or hostile") from None
    return shared


_shared_by_statics: Final = lru_cache(maxsize=4096)(_shared)
"""The two static keys of a link are the same in every handshake."""


class Handshake:
    """One handshake. The initiator writes, then reads; the responder reads, then writes; then `split`.

    **Randomness**: `ephemeral_private` is 32 fresh bytes of the operating system; there is no default.
    **Secrets**: an ephemeral key used twice gives forward secrecy away.
    **Raises**: Refused("auth") for any message that is not the other side's; Misuse out of turn.
    """

    def __init__(
        self,
        initiator: bool,
        prologue: bytes,
        static_private: bytes,
        ephemeral_private: bytes,
        remote_static: bytes | None,
        psk: bytes | None,
        agree: Agree = agree,
    ) -> None:
        if initiator != (remote_static is not None):
            raise Misuse("the initiator knows the responder's static key beforehand, the responder does not")
        for key in (static_private, ephemeral_private, remote_static, psk):
            if key is not None and len(key) != KEY:
                raise Misuse(f"every key has {KEY} bytes, not {len(key)}")
        self.initiator: Final = initiator
        self.remote_static = remote_static
        self._static, self._ephemeral, self._psk = _static_pair(static_private), _pair(ephemeral_private), psk
        self._agree = agree
        self._remote_ephemeral = b""
        self._drawn, self._last = (b"", b""), b""
        responder = self._static.public if remote_static is None else remote_static
        self._chaining, self.hash = _begin("IK" if psk is None else "IKpsk2", prologue, responder)
        self._messages = 0

    @property
    def finished(self) -> bool:
        return self._messages == 2

    def write(self, payload: bytes) -> bytes:
        """The next message, carrying `payload`."""
        self._take_turn(initiator=self._messages == 0)
        return self._write_first(payload) if self.initiator else self._write_second(payload)

    def read(self, message: Buffer) -> bytes:
        """The payload of the other side's next message. After a refusal the handshake is dead."""
        self._take_turn(initiator=self._messages == 1)
        done, self._messages = self._messages, _DEAD
        least = SECOND_OVERHEAD if self.initiator else FIRST_OVERHEAD
        if not least <= len(message) <= RECORD_MAX:
            raise Refused("auth", f"a handshake message of {len(message)} bytes; at least {least} are due")
        payload = self._read_second(bytes(message)) if self.initiator else self._read_first(bytes(message))
        self._messages = done
        return payload

    def split(self) -> tuple[Cipher, Cipher]:
        """(sending, receiving) ciphers. Raises Misuse before the handshake is finished, and the second time."""
        if self._messages != 2:
            raise Misuse("a handshake is split once, when both messages have passed")
        self._messages = _DEAD
        key, drawn = _derive(self._chaining, b"")
        first, second = Cipher(key[:KEY]), Cipher(_hmac(drawn, key + b"\2")[:KEY])
        return (first, second) if self.initiator else (second, first)

    def _take_turn(self, initiator: bool) -> None:
        if self._messages not in (0, 1) or initiator != self.initiator:
            raise Misuse("it is not this side's turn in the handshake")
        self._messages += 1

    # ---- the two messages; the comments are the pattern's tokens

    def _write_first(self, payload: bytes) -> bytes:
        assert self.remote_static is not None
        self._mix_ephemeral(self._ephemeral.public)  # e
        self._mix_key(self._agree(self._ephemeral, self.remote_static))  # es
        static = self._encrypt(self._static.public)  # s
        self._mix_key(_shared_by_statics(self._static.private, self.remote_static))  # ss
        return self._ephemeral.public + static + self._encrypt(payload)

    def _read_first(self, message: bytes) -> bytes:
        self._remote_ephemeral, static, payload = message[:KEY], message[KEY : 2 * KEY + TAG], message[2 * KEY + TAG :]
        self._mix_ephemeral(self._remote_ephemeral)  # e
        self._mix_key(self._agree(self._static, self._remote_ephemeral))  # es
        self.remote_static = self._decrypt(static)  # s
        self._mix_key(_shared_by_statics(self._static.private, self.remote_static))  # ss
        return self._decrypt(payload)

    def _write_second(self, payload: bytes) -> bytes:
        assert self.remote_static is not None
        self._mix_ephemeral(self._ephemeral.public)  # e
        self._mix_key(self._agree(self._ephemeral, self._remote_ephemeral))  # ee
        self._mix_key(self._agree(self._ephemeral, self.remote_static))  # se
        self._mix_psk()  # psk
        return self._ephemeral.public + self._encrypt(payload)

    def _read_second(self, message: bytes) -> bytes:
        self._remote_ephemeral, payload = message[:KEY], message[KEY:]
        self._mix_ephemeral(self._remote_ephemeral)  # e
        self._mix_key(self._agree(self._ephemeral, self._remote_ephemeral))  # ee
        self._mix_key(self._agree(self._static, self._remote_ephemeral))  # se
        self._mix_psk()  # psk
        return self._decrypt(payload)

    # ---- the symmetric state (section 5.2)

    def _mix_hash(self, data: bytes) -> None:
        self.hash = blake2b(self.hash + data).digest()

    def _mix_key(self, material: bytes) -> None:
        self._chaining, self._drawn = _derive(self._chaining, material)
        self._last = self._chaining + b"\2"

    def _mix_ephemeral(self, public: bytes) -> None:
        self._mix_hash(public)
        if self._psk is not None:
            self._mix_key(public)

    def _mix_psk(self) -> None:
        if self._psk is not None:
            self._mix_key(self._psk)
            mixed = _hmac(self._drawn, self._last)
            self._mix_hash(mixed)
            self._last = mixed + b"\3"

    def _cipher(self) -> Aead:
        """Under the key of the last token, which only three of seven need. It seals exactly once, with the counter at 0."""
        cipher: Aead = CIPHER(_hmac(self._drawn, self._last)[:KEY])
        return cipher

    def _encrypt(self, plain: bytes) -> bytes:
        sealed = self._cipher().encrypt(_FIRST, plain, self.hash)
        self._mix_hash(sealed)
        return sealed

    def _decrypt(self, sealed: bytes) -> bytes:
        try:
            plain = self._cipher().decrypt(_FIRST, sealed, self.hash)
        except Forged:
            raise Refused("auth", _ALTERED) from None
        self._mix_hash(sealed)
        return plain


@lru_cache(maxsize=1024)  # all of it public, and the same in every handshake with one responder
def _begin(pattern: str, prologue: bytes, responder: bytes) -> tuple[bytes, bytes]:
    """The chaining key and the hash before the first message (section 5.3)."""
    name = f"Noise_{pattern}_25519_ChaChaPoly_BLAKE2b".encode().ljust(64, b"\0")  # of at most 64 bytes: its own hash
    return name, blake2b(blake2b(name + prologue).digest() + responder).digest()


# ---- Noise's HKDF: HMAC-BLAKE2b (section 4.3). Output 1 is the HMAC of byte 1, each further one of the one before and its number

_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_INNER_REST: Final = b"\x36" * 64
_OUTER_REST: Final = b"\x5c" * 64
"""HMAC (RFC 2104) makes two blocks of a key. One of 64 bytes is half a block of BLAKE2b."""


def _derive(chaining: bytes, material: bytes) -> tuple[bytes, tuple[bytes, bytes]]:
    """Output 1, and the two blocks that the others are HMACs under; in one piece, since a handshake takes it 16 times."""
    inner, outer = chaining.translate(_INNER) + _INNER_REST, chaining.translate(_OUTER) + _OUTER_REST
    key = blake2b(outer + blake2b(inner + material).digest()).digest()
    inner, outer = key.translate(_INNER) + _INNER_REST, key.translate(_OUTER) + _OUTER_REST
    return blake2b(outer + blake2b(inner + b"\1").digest()).digest(), (inner, outer)


def _hmac(blocks: tuple[bytes, bytes], data: bytes) -> bytes:
    inner, outer = blocks
    return blake2b(outer + blake2b(inner + data).digest()).digest()
