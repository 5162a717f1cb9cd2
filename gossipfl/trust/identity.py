"""Who signs: identity keys, a node's operational keys, certificates, signatures, key files.

Everything here is about one key or one certificate. Not here: who is a member (gossipfl.trust.membership), the
handshake (gossipfl.protocol.noise), where a passphrase comes from (the command line's business). Certificates and
signatures are pure; only `save_key` and `load_key` touch the disk. No nacl or OS error leaves this room.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Final

import msgspec
import nacl.bindings as sodium
from msgspec import Meta
from nacl.exceptions import CryptoError

from gossipfl.errors import ConfigError, Exit, Fault, Misuse, Refused
from gossipfl.protocol import messages
from gossipfl.protocol.messages import CERTIFICATE_MAX, Counter, Digest, Frozen, MemberId

DAY: Final = 86_400
"""Seconds."""

CERTIFICATE_DAYS: Final = 30
"""Longest life of a certificate: how long a stolen node key can be used at most."""

ADDRESSES_MAX: Final = 8
ADDRESS_MAX: Final = 200
"""Characters of one address; together they are bounded by CERTIFICATE_MAX."""

SIGNATURE: Final = 64
MEMBER_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
_HOST: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]"
ADDRESS: Final = re.compile(rf"(?:https?|wss?)://(?:{_HOST})(?::([1-9][0-9]{{0,4}}))?(?:/[A-Za-z0-9._~/-]*)?")
"""No user, query or fragment: nothing that another program might read differently."""


# ---- signatures ----------------------------------------------------------------------------------------------------


class SigningKey:
    """An Ed25519 key: `public`, and `sign`.

    **Secrets**: `seed` (32 bytes) is the key itself; it must never be logged. It is not in `repr`.
    """

    __slots__ = ("_expanded", "public", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise Misuse(f"a signing key is made of 32 bytes, not {len(seed)}")
        pair: tuple[bytes, bytes] = sodium.crypto_sign_seed_keypair(bytes(seed))
        self.seed: Final = bytes(seed)
        self.public: Final = pair[0]
        self._expanded: Final = pair[1]

    def sign(self, kind: str, payload: bytes) -> bytes:
        """The 64-byte signature of `payload` as a `kind` (see messages.to_sign)."""
        signed: bytes = sodium.crypto_sign(messages.to_sign(kind, payload), self._expanded)
        return signed[:SIGNATURE]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(public={self.public.hex()})"


def sign(kind: str, payload: bytes, key: SigningKey) -> bytes:
    """The 64-byte signature of `payload` as a `kind`."""
    return key.sign(kind, payload)


def verify(kind: str, payload: bytes, signature: bytes, public: bytes) -> None:
    """Return if `signature` is `public`'s over `payload` as a `kind`.

    **Raises**: Refused("auth"), a peer's fault. Never raises anything else for any bytes.
    """
    if len(signature) == SIGNATURE and len(public) == 32:
        try:
            sodium.crypto_sign_open(signature + messages.to_sign(kind, payload), public)
            return
        except CryptoError:
            pass
    raise Refused("auth", f"the signature of a {kind} is not valid; the peer is faulty or somebody altered it")


# ---- certificates --------------------------------------------------------------------------------------------------


class CertificateBody(Frozen, frozen=True):
    """What an identity key signs: which operational keys speak for a member, until when, and where it is found."""

    member: MemberId
    identity: Digest
    """Ed25519 public key; the membership names it"""
    signing: Digest
    """Ed25519 public key of the node"""
    noise: Digest
    """X25519 public key of the node"""
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=ADDRESS_MAX)], ...], Meta(max_length=ADDRESSES_MAX)]
    counter: Counter
    """a newer certificate of the same member has a higher one"""
    not_before: Counter
    """unix seconds"""
    not_after: Counter
    """unix seconds; from then on it is not valid"""


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(CertificateBody)


def _flaw(body: CertificateBody) -> str | None:
    """What is wrong with a certificate's fields, beyond their types; None if nothing."""
    if not MEMBER_ID.fullmatch(body.member):
        return f"{body.member!r} is no member id; 1 to 32 of a-z, 0-9 and -, not beginning with -"
    for address in body.addresses:
        parts = ADDRESS.fullmatch(address)
        if len(address) > ADDRESS_MAX or parts is None or int(parts[1] or 0) > 65_535:
            return (
                f"{address!r} is no address; use https://host:port/path (or http, ws, wss), without user, query and "
                f"fragment, of at most {ADDRESS_MAX} characters"
            )
    if len(body.addresses) > ADDRESSES_MAX or len(set(body.addresses)) < len(body.addresses):
        return f"the addresses repeat or are more than {ADDRESSES_MAX}"
    if not 0 < body.not_after - body.not_before <= CERTIFICATE_DAYS * DAY:
        return f"it must be valid for more than 0 and at most {CERTIFICATE_DAYS} days"
    return None


@dataclass(frozen=True, slots=True)
class Certificate:
    """A signed certificate. One that exists is well formed, canonical and verified; only the dates remain to be judged.

    Its bytes are the msgpack array of CertificateBody followed by the identity key's 64-byte signature over
    `to_sign("certificate", array)`.

    **Raises**: Refused("size" | "malformed" | "auth"), the fault of who sent the bytes. Nothing else for any bytes.
    """

    encoded: bytes = field(repr=False)
    member: str = field(init=False, compare=False)
    identity: bytes = field(init=False, compare=False, repr=False)
    signing: bytes = field(init=False, compare=False, repr=False)
    noise: bytes = field(init=False, compare=False, repr=False)
    addresses: tuple[str, ...] = field(init=False, compare=False)
    counter: int = field(init=False, compare=False)
    not_before: int = field(init=False, compare=False)
    not_after: int = field(init=False, compare=False)
    digest: bytes = field(init=False, compare=False, repr=False)
    """SHA-256 of `encoded`"""
    keys: frozenset[bytes] = field(init=False, compare=False, repr=False)
    """the three: no two members share one"""

    def __post_init__(self) -> None:
        body = _body(self.encoded)
        for name in body.__struct_fields__:
            object.__setattr__(self, name, getattr(body, name))
        object.__setattr__(self, "digest", hashlib.sha256(self.encoded).digest())
        object.__setattr__(self, "keys", frozenset((body.identity, body.signing, body.noise)))

    @staticmethod
    def decode(data: bytes) -> Certificate:
        """The certificate that `data` is."""
        return _read(bytes(data))

    def valid_at(self, wall_ns: int) -> bool:
        """Is it valid at this wall time? From `not_before` on, until just before `not_after`."""
        return self.not_before <= wall_ns // 10**9 < self.not_after


@lru_cache(maxsize=256)  # the same few certificates come with every handshake, and a signature takes as long as a DH
def _read(data: bytes) -> Certificate:
    return Certificate(data)


def _body(data: bytes) -> CertificateBody:
    if not SIGNATURE < len(data) <= CERTIFICATE_MAX:
        raise Refused("size", f"certificate of {len(data)} bytes; {SIGNATURE + 1} to {CERTIFICATE_MAX} are accepted")
    payload, signature = data[:-SIGNATURE], data[-SIGNATURE:]
    try:
        body = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused("malformed", f"certificate: {error}; ask the member for a new one") from None
    if _encoder.encode(body) != payload:
        raise Refused("malformed", "certificate: not in canonical form; ask the member for a new one")
    if flaw := _flaw(body):
        raise Refused("malformed", f"certificate: {flaw}; ask the member for a new one")
    verify("certificate", payload, signature, body.identity)
    return body


# ---- keys ----------------------------------------------------------------------------------------------------------


class NodeKeys:
    """A node's operational keys: Ed25519 to sign, X25519 for sessions. Separate on purpose: never one from the other.

    **Randomness**: 64 bytes of `entropy` from the operating system; there is no default.
    **Secrets**: `secret` (64 bytes: Ed25519 seed, X25519 private key) is what `save_key` is given.
    """

    __slots__ = ("noise_private", "noise_public", "signing")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 64:
            raise Misuse(f"node keys are made of 64 bytes, not {len(secret)}")
        self.signing: Final = SigningKey(secret[:32])
        self.noise_private: Final = bytes(secret[32:])
        self.noise_public: Final[bytes] = sodium.crypto_scalarmult_base(self.noise_private)

    @property
    def secret(self) -> bytes:
        return self.signing.seed + self.noise_private

    def sign(self, kind: str, payload: bytes) -> bytes:
        """The node's signature of `payload` as a `kind`."""
        return self.signing.sign(kind, payload)

    def __repr__(self) -> str:
        return f"NodeKeys(signing={self.signing.public.hex()}, noise={self.noise_public.hex()})"


class Identity(SigningKey):
    """A member's identity key: it may stay offline, and signs nothing but certificates."""

    __slots__ = ()

    def certify(
        self, member: str, keys: NodeKeys, addresses: Sequence[str], *, counter: int, not_before: int, not_after: int
    ) -> Certificate:
        """The certificate under which `keys` speak for `member`.

        **Units**: `not_before`, `not_after` in unix seconds. A `not_before` an hour in the past forgives slow clocks.
        **Raises**: ConfigError: an id, address or life that no peer would accept, or too many or too long addresses.
        """
        speaks = keys.signing.public, keys.noise_public
        body = CertificateBody(member, self.public, *speaks, tuple(addresses), counter, not_before, not_after)
        if flaw := _flaw(body):
            raise ConfigError(f"no certificate can be made: {flaw}")
        payload = _encoder.encode(body)
        if len(payload) + SIGNATURE > CERTIFICATE_MAX:
            raise ConfigError(
                f"no certificate can be made: it would have {len(payload) + SIGNATURE} bytes and may have "
                f"{CERTIFICATE_MAX}; give fewer or shorter addresses"
            )
        return Certificate(payload + self.sign("certificate", payload))


# ---- key files -----------------------------------------------------------------------------------------------------

KEY_FILE_MAX: Final = 1024
"""Bytes: several times the longest key file."""

ARGON2_PASSES: Final = 3
ARGON2_KIB: Final = 64 * 1024
"""RFC 9106's choice for machines short of memory (3 passes, 64 MiB); libsodium has one lane. A quarter of a second."""

_ARGON2_PASSES_MAX: Final = 64
_ARGON2_KIB_MAX: Final = 4 * 2**20
"""What is read from a key file is bounded: a damaged header must not take all memory."""

_KEY_FILE: Final = re.compile(
    rb"(gossipfl-key v1 ([a-z]{1,16}) "
    rb"(?:plain|argon2id-xchacha20poly1305 ([1-9][0-9]{0,2}) ([1-9][0-9]{0,7}) ([0-9a-f]{32}) ([0-9a-f]{48})))"
    rb" ((?:[0-9a-f]{2})+)\n"
)
_CHECK: Final = 8


def save_key(path: Path | str, secret: bytes, passphrase: str | None, kind: str = "key", replace: bool = False) -> None:
    """Write a key file of mode 0600, encrypted when a passphrase is given, durable when this returns.

    One line of text: `gossipfl-key v1 KIND plain HEX` (secret and the first 8 bytes of its SHA-256), or
    `gossipfl-key v1 KIND argon2id-xchacha20poly1305 PASSES KIB SALT NONCE HEX`, all before HEX authenticated.

    `kind` (identity, node, psk) is checked again by `load_key`: a file in the wrong place is told apart.
    **Raises**: ConfigError: the file exists and `replace` is false; an empty passphrase; with exit code 73: it cannot be written.
    **Randomness**: salt and nonce from the operating system; they must never repeat, so no caller chooses them.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.new")
    content = _sealed(secret, passphrase, kind)
    try:
        temporary.unlink(missing_ok=True)
        _write_durably(temporary, content)
        if not replace:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # the claim: only one can have it
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except FileExistsError:
        temporary.unlink(missing_ok=True)
        raise _unusable(path, "a key is there already", "choose another folder, or move it away") from None
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        fault = Fault(str(path), None, f"cannot be written: {error.strerror}", "check folder, owner and space")
        raise ConfigError(fault, exit_code=Exit.STATE) from None


def load_key(path: Path | str, passphrase: str | None, kind: str = "key") -> bytes:
    """The secret in a key file. A passphrase that a plain file does not need is not used.

    **Raises**: ConfigError with exit code 77: readable by others, wrong or no passphrase; with 78: absent, damaged,
    of another kind, or of a newer format.
    """
    path = Path(path)
    content = _read_private(path, "ask whoever made the federation file for it" if kind == "psk" else NO_KEY)
    parts = _KEY_FILE.fullmatch(content)
    if parts is None:
        raise _unusable(path, *_why_not(content))
    header, found, passes, kib, salt, nonce, body = parts.groups()
    if found.decode() != kind:
        raise _unusable(path, f"holds a key of kind {found.decode()!r}, not {kind!r}", "put the right file there")
    if passes is None:
        return _checked(path, bytes.fromhex(body.decode()))
    if int(passes) > _ARGON2_PASSES_MAX or not 8 <= int(kib) <= _ARGON2_KIB_MAX:
        raise _unusable(path, "asks for absurd key derivation", "it is damaged: restore it from a copy")
    if passphrase is None:
        raise _denied(path, "is encrypted", "give its passphrase: --passphrase-file or GOSSIPFL_PASSPHRASE_FILE")
    key = _derived(passphrase, bytes.fromhex(salt.decode()), int(passes), int(kib))
    try:
        secret: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
            bytes.fromhex(body.decode()), header, bytes.fromhex(nonce.decode()), key
        )
    except (CryptoError, ValueError, OverflowError):
        remedy = "the passphrase is wrong, or the file is damaged: try again, or restore it"
        raise _denied(path, "does not open", remedy) from None
    return secret


def _sealed(secret: bytes, passphrase: str | None, kind: str) -> bytes:
    if not re.fullmatch(r"[a-z]{1,16}", kind) or not 0 < len(secret) <= 256:
        raise Misuse("a key file holds 1 to 256 bytes; its kind is 1 to 16 of a-z")
    start = f"gossipfl-key v1 {kind}"
    if passphrase is None:
        return f"{start} plain {(secret + hashlib.sha256(secret).digest()[:_CHECK]).hex()}\n".encode()
    salt, nonce = os.urandom(16), os.urandom(24)
    header = f"{start} argon2id-xchacha20poly1305 {ARGON2_PASSES} {ARGON2_KIB} {salt.hex()} {nonce.hex()}"
    key = _derived(passphrase, salt, ARGON2_PASSES, ARGON2_KIB)
    body: bytes = sodium.crypto_aead_xchacha20poly1305_ietf_encrypt(secret, header.encode(), nonce, key)
    return f"{header} {body.hex()}\n".encode()


def _derived(passphrase: str, salt: bytes, passes: int, kib: int) -> bytes:
    if not passphrase:
        what = "the passphrase is empty; give one, or none at all for a key file in the clear"
        raise ConfigError(what, exit_code=Exit.PERMISSION)
    text = unicodedata.normalize("NFC", passphrase).encode()  # the same word from another keyboard
    try:
        key: bytes = sodium.crypto_pwhash_alg(32, text, salt, passes, kib * 1024, sodium.crypto_pwhash_ALG_ARGON2ID13)
    except (CryptoError, MemoryError):
        raise ConfigError(f"trying a passphrase needs {kib // 1024} MiB and there is less; free some memory") from None
    return key


def _checked(path: Path, body: bytes) -> bytes:
    secret, check = body[:-_CHECK], body[-_CHECK:]
    if not secret or hashlib.sha256(secret).digest()[:_CHECK] != check:
        raise _unusable(path, "is damaged", "restore it from a copy")
    return secret


def _why_not(content: bytes) -> tuple[str, str]:
    newer = re.match(rb"gossipfl-key v([0-9]{1,6}) ", content)
    if newer and newer[1] != b"1":
        return f"has key file format {newer[1].decode()}, this program knows 1", "install the newer gossipfl"
    if content.startswith(b"gossipfl-key "):
        return "is damaged", "restore it from a copy"
    return "is no key file of gossipfl", "name the right file"


NO_KEY: Final = "run `gossipfl init`, or name the right folder"


def _read_private(path: Path, absent: str) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise _unusable(path, "is no regular file", "name the right file")
            if mode & 0o077:
                remedy = f"run: chmod 600 {shlex.quote(str(path))}"
                raise _denied(path, f"can be used by others (mode {stat.S_IMODE(mode):04o})", remedy)
            return file.read(KEY_FILE_MAX + 1)
    except PermissionError:
        raise _denied(path, "may not be read by this user", "run as its owner, or change its owner") from None
    except FileNotFoundError:
        raise _unusable(path, "is not there", absent) from None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror}", "name the right file, or check the disk") from None


def _write_durably(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content)
        file.flush()
        os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, what: str, remedy: str) -> ConfigError:
    return ConfigError(Fault(str(path), None, what, remedy))


def _denied(path: Path, what: str, remedy: str) -> ConfigError:
    return ConfigError(Fault(str(path), None, what, remedy), exit_code=Exit.PERMISSION)
