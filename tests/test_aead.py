"""Both ciphers are one: the same bytes, the same refusals. RFC 8439's own example, and whatever hypothesis thinks of."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.protocol.aead import CIPHER, Aead, Forged, OpenSSL, Sodium, fastest

KEY = bytes(range(0x80, 0xA0))
NONCE = bytes.fromhex("070000004041424344454647")
AD = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
PLAIN = (
    b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it."
)
SEALED = bytes.fromhex(
    "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d63dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b6"
    "7ecd3b3692ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09"
    "e26a7e902ecbd0600691"
)


def ciphers() -> list[type[Aead]]:
    return [Sodium] if fastest() is Sodium else [Sodium, OpenSSL]


@pytest.mark.parametrize("cipher", ciphers())
def test_the_example_of_rfc_8439_is_met(cipher: type[Aead]) -> None:
    assert cipher(KEY).encrypt(NONCE, PLAIN, AD) == SEALED
    assert cipher(KEY).decrypt(NONCE, SEALED, AD) == PLAIN


@pytest.mark.parametrize("cipher", ciphers())
def test_every_altered_bit_and_every_other_nonce_or_data_is_forged(cipher: type[Aead]) -> None:
    aead = cipher(KEY)
    for bit in range(0, 8 * len(SEALED), 5):
        altered = bytearray(SEALED)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Forged):
            aead.decrypt(NONCE, bytes(altered), AD)
    for nonce, sealed, ad in ((bytes(12), SEALED, AD), (NONCE, SEALED, b""), (NONCE, SEALED[:16], AD)):
        with pytest.raises(Forged):
            aead.decrypt(nonce, sealed, ad)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=12, max_size=12), st.binary(max_size=700), st.binary(max_size=64))
def test_both_give_the_same_bytes(key: bytes, nonce: bytes, plain: bytes, ad: bytes) -> None:
    sealed = {cipher(key).encrypt(nonce, plain, ad) for cipher in ciphers()}
    assert len(sealed) == 1
    assert all(cipher(key).decrypt(nonce, one, ad) == plain for cipher in ciphers() for one in sealed)


@pytest.mark.parametrize("size", [0, 61_791, 65_519])
def test_both_give_the_same_bytes_for_records_of_any_size(size: int) -> None:
    plain = bytes(number % 251 for number in range(size))
    assert len({cipher(KEY).encrypt(NONCE, plain, b"") for cipher in ciphers()}) == 1


def test_sessions_use_the_fastest_that_is_here() -> None:
    assert CIPHER is fastest() is ciphers()[-1]
    assert "808182" not in repr(CIPHER(KEY))
