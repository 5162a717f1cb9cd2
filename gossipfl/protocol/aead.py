"""ChaCha20-Poly1305 (RFC 8439) from whoever does it fastest here: OpenSSL where `cryptography` is installed, else libsodium.

The same bytes from both, which a test says. OpenSSL has code for AVX2 and AVX-512 and takes about a third of the time of
libsodium for a large record; it comes with the extra `fast`. Not here: keys, nonces, and what is sealed (noise.py).
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import nacl.bindings as sodium
from nacl.exceptions import CryptoError

try:
    from cryptography.exceptions import InvalidTag as Forged
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
except ImportError:
    Forged = CryptoError  # type: ignore[assignment,misc]
    ChaCha20Poly1305 = None  # type: ignore[assignment,misc]

__all__ = ["CIPHER", "Aead", "Buffer", "Forged", "OpenSSL", "Sodium", "fastest"]

Buffer = bytes | bytearray | memoryview


class Aead(Protocol):
    """One key. A nonce has 12 bytes and never comes twice."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        """16 bytes longer than `data`."""
        ...

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes, /) -> bytes:
        """Of at least 16 bytes. Raises `Forged`: they were not sealed under this key, nonce and associated data."""
        ...


class Sodium:
    """By libsodium."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes, /) -> bytes:
        sealed: bytes = sodium.crypto_aead_chacha20poly1305_ietf_encrypt(data, associated_data, nonce, self._key)
        return sealed

    def decrypt(self, nonce: bytes, data: Buffer, associated_data: bytes, /) -> bytes:
        try:
            plain: bytes = sodium.crypto_aead_chacha20poly1305_ietf_decrypt(bytes(data), associated_data, nonce, self._key)
        except CryptoError:
            raise Forged from None
        return plain


OpenSSL: Final = ChaCha20Poly1305
"""By OpenSSL, without a call of ours between; None where `cryptography` is not installed."""


def fastest() -> type[Aead]:
    """Of those that are here."""
    if OpenSSL is None:
        return Sodium
    try:
        OpenSSL(bytes(32))
    except UnsupportedAlgorithm:  # an OpenSSL without this cipher
        return Sodium
    return OpenSSL


CIPHER: Final[Any] = fastest()
"""What sessions use: `CIPHER(key)` is an `Aead`."""
