"""ChaCha20-Poly1305 (RFC 8439) from whoever does it fastest here: OpenSSL where `cryptography` is installed, else libsodium.

The same bytes from both, which a test says. OpenSSL has code for AVX2 and AVX-512 and takes about a third of the time of
libsodium for a large record; it comes with the extra `fast`. Not here: keys, nonces, and what is sealed (noise.py).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

try:
    from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
except ImportError:
    ChaCha20Poly1305 = None  # type: ignore[assignment,misc]

Buffer = bytes | bytearray | memoryview


class Forged(Exception):
    """These bytes were not sealed under this key, nonce and associated data."""


class Aead(Protocol):
    """One key. A nonce has 12 bytes and never comes twice."""

    def seal(self, nonce: bytes, plain: bytes, ad: bytes) -> bytes:
        """16 bytes longer than `plain`."""
        ...

    def open(self, nonce: bytes, sealed: Buffer, ad: bytes) -> bytes:
        """Of at least 16 bytes. Raises: Forged."""
        ...


class Sodium:
    """By libsodium."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def seal(self, nonce: bytes, plain: bytes, ad: bytes) -> bytes:
        sealed: bytes = sodium.crypto_aead_chacha20poly1305_ietf_encrypt(plain, ad, nonce, self._key)
        return sealed

    def open(self, nonce: bytes, sealed: Buffer, ad: bytes) -> bytes:
        try:
            plain: bytes = sodium.crypto_aead_chacha20poly1305_ietf_decrypt(bytes(sealed), ad, nonce, self._key)
        except CryptoError:
            raise Forged from None
        return plain


class OpenSSL:
    """By OpenSSL. Raises ImportError where `cryptography` is not installed, or its OpenSSL lacks this cipher."""

    def __init__(self, key: bytes) -> None:
        if ChaCha20Poly1305 is None:
            raise ImportError("the package `cryptography` is not installed; it comes with gossipfl[fast]")
        try:
            self._cipher = ChaCha20Poly1305(key)
        except UnsupportedAlgorithm as error:
            raise ImportError(str(error)) from None

    def seal(self, nonce: bytes, plain: bytes, ad: bytes) -> bytes:
        return self._cipher.encrypt(nonce, plain, ad)

    def open(self, nonce: bytes, sealed: Buffer, ad: bytes) -> bytes:
        try:
            return self._cipher.decrypt(nonce, sealed, ad)
        except InvalidTag:
            raise Forged from None


def fastest() -> type[Aead]:
    """Of those that are here."""
    try:
        OpenSSL(bytes(32))
    except ImportError:
        return Sodium
    return OpenSSL


CIPHER: Final[Any] = fastest()
"""What sessions use: `CIPHER(key)` is an `Aead`."""
