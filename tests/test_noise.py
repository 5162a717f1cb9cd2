"""The Noise room: public vectors, and that nothing but the other side's next message is ever accepted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nacl.bindings as sodium
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import Misuse, Refused
from gossipfl.protocol.limits import RECORD_MAX, SESSION_RECORDS_MAX
from gossipfl.protocol.noise import Cipher, Handshake

VECTORS = Path(os.environ.get("GOSSIPFL_VECTORS", Path(__file__).parents[2] / "shared" / "vectors"))
NAMES = ("Noise_IK_25519_ChaChaPoly_BLAKE2b", "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2b")
A, B, EA, EB, PSK = (bytes([n]) * 32 for n in range(1, 6))
B_PUBLIC = sodium.crypto_scalarmult_base(B)


def rows() -> list[dict[str, Any]]:
    path = VECTORS / "noise_25519_chachapoly_blake2b.json"
    if not path.exists():
        return []
    return [row for row in json.loads(path.read_text())["vectors"] if row["protocol_name"] in NAMES]


def pair(psk: bytes | None = PSK, psk_b: bytes | None = PSK, prologue_b: bytes = b"p") -> tuple[Handshake, Handshake]:
    return Handshake(True, b"p", A, EA, B_PUBLIC, psk), Handshake(False, prologue_b, B, EB, None, psk_b)


def ciphers() -> tuple[tuple[Cipher, Cipher], tuple[Cipher, Cipher]]:
    a, b = pair()
    b.read(a.write(b""))
    a.read(b.write(b""))
    return a.split(), b.split()


def test_the_public_vectors_are_met() -> None:
    found = rows()
    if not found:
        pytest.skip(f"the public vectors are not at {VECTORS}")
    assert {row["protocol_name"] for row in found} == set(NAMES)
    for row in found:
        meet(row)


def meet(row: dict[str, Any]) -> None:
    def hexed(key: str) -> bytes:
        return bytes.fromhex(row[key])

    psk_a, psk_b = (next(map(bytes.fromhex, row.get(key, [])), None) for key in ("init_psks", "resp_psks"))
    remote = hexed("init_remote_static")
    a = Handshake(True, hexed("init_prologue"), hexed("init_static"), hexed("init_ephemeral"), remote, psk_a)
    b = Handshake(False, hexed("resp_prologue"), hexed("resp_static"), hexed("resp_ephemeral"), None, psk_b)
    messages = [(bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in row["messages"]]
    for (payload, expected), (writer, reader) in zip(messages, [(a, b), (b, a)], strict=False):
        assert writer.write(payload) == expected
        assert reader.read(expected) == payload
    assert a.finished and b.finished
    assert a.hash == b.hash == bytes.fromhex(row.get("handshake_hash", a.hash.hex()))
    assert b.remote_static == sodium.crypto_scalarmult_base(hexed("init_static"))
    sides = [a.split(), b.split()]
    for index, (payload, expected) in enumerate(messages[2:]):
        assert sides[index % 2][0].seal(payload) == expected
        assert sides[1 - index % 2][1].open(expected) == payload


@pytest.mark.parametrize("psk", [None, PSK])
def test_both_sides_end_with_the_same_keys(psk: bytes | None) -> None:
    a, b = pair(psk, psk)
    assert b.read(a.write(b"one")) == b"one"
    assert a.read(b.write(b"two")) == b"two"
    (a_out, a_in), (b_out, b_in) = a.split(), b.split()
    assert b_in.open(a_out.seal(b"to b", b"ad"), b"ad") == b"to b"
    assert a_in.open(b_out.seal(b"to a")) == b"to a"


OTHERS = [(PSK, A, b"p"), (PSK, None, b"p"), (None, PSK, b"p"), (PSK, PSK, b"q")]


@pytest.mark.parametrize("psk, psk_b, prologue", OTHERS)
def test_another_psk_or_prologue_is_refused(psk: bytes | None, psk_b: bytes | None, prologue: bytes) -> None:
    a, b = pair(psk, psk_b, prologue)
    with pytest.raises(Refused, match="auth"):
        b.read(a.write(b""))
        a.read(b.write(b""))


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_other_handshake_message_is_refused_and_ends_it(data: st.DataObject) -> None:
    a, b = pair()
    first = a.write(b"certificate")
    if data.draw(st.booleans()):
        reader, message = b, first
    else:
        b.read(first)
        reader, message = a, b.write(b"certificate")
    with pytest.raises(Refused, match="auth"):
        reader.read(mutated(data, message))
    assert not reader.finished
    for step in (reader.split, lambda: reader.read(message), lambda: reader.write(b"")):
        with pytest.raises(Misuse):
            step()


def mutated(data: st.DataObject, message: bytes) -> bytes:
    """Cut, longer, or one bit flipped."""
    how = data.draw(st.sampled_from(["cut", "longer", "bit"]))
    if how == "cut":
        return message[: data.draw(st.integers(0, len(message) - 1))]
    if how == "longer":
        return message + data.draw(st.binary(min_size=1, max_size=100))
    bit = data.draw(st.integers(0, 8 * len(message) - 1))
    return bytes(byte ^ (1 << bit % 8 if i == bit // 8 else 0) for i, byte in enumerate(message))


def test_the_bit_that_x25519_ignores_is_not_ignored() -> None:
    a, b = pair()
    message = bytearray(a.write(b""))
    message[31] ^= 0x80
    with pytest.raises(Refused, match="auth"):
        b.read(bytes(message))


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_a_point_of_small_order_is_refused(point: bytes) -> None:
    _, b = pair()
    with pytest.raises(Refused, match="auth"):
        b.read(point + bytes(64))
    with pytest.raises(Refused, match="auth"):
        Handshake(True, b"", A, EA, point, PSK).write(b"")


def test_T02_replay_reorder_drop_and_duplicate_end_the_cipher() -> None:
    for order in ([0, 0], [1], [0, 2], [0, 1, 1], [0, 1, 0]):
        (out, _), (_, into) = ciphers()
        records = [out.seal(bytes([n])) for n in range(5)]
        for index in order[:-1]:
            into.open(records[index])
        with pytest.raises(Refused, match="auth"):
            into.open(records[order[-1]])
        for late in (records[len(order)], *records):  # the one whose turn it would be, and all
            with pytest.raises(Refused, match="auth"):
                into.open(late)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_T01_any_mutation_of_a_record_is_refused(data: st.DataObject) -> None:
    (out, _), (_, into) = ciphers()
    record = out.seal(data.draw(st.binary(max_size=50)))
    with pytest.raises(Refused, match="auth"):
        into.open(mutated(data, record))


def test_a_record_has_16_to_65535_bytes() -> None:
    for size, fits in ((RECORD_MAX - 16, True), (RECORD_MAX - 15, False)):
        (out, _), (_, into) = ciphers()
        record = out.seal(bytes(size))
        if fits:
            assert into.open(record) == bytes(size)
        else:
            with pytest.raises(Refused, match="auth"):
                into.open(record)
    for size in (0, 15):
        with pytest.raises(Refused, match="auth"):
            ciphers()[0][1].open(bytes(size))


def test_a_cipher_ends_after_its_last_record() -> None:
    (out, _), (_, into) = ciphers()
    out.count = into.count = SESSION_RECORDS_MAX - 1
    assert into.open(out.seal(b"last")) == b"last"
    with pytest.raises(Misuse):
        out.seal(b"")
    with pytest.raises(Refused, match="auth"):
        into.open(bytes(16))


def test_turns_are_kept() -> None:
    a, b = pair()
    for wrong in (lambda: a.read(bytes(96)), lambda: b.write(b""), a.split, b.split):
        with pytest.raises(Misuse):
            wrong()
    first = a.write(b"")
    with pytest.raises(Misuse):
        a.write(b"")
    b.read(first)
    a.read(b.write(b""))
    a.split()
    with pytest.raises(Misuse):
        a.split()


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_our_callers_fault(key: bytes) -> None:
    for arguments in ((key, EA, B_PUBLIC, PSK), (A, key, B_PUBLIC, PSK), (A, EA, key, PSK), (A, EA, B_PUBLIC, key)):
        with pytest.raises(Misuse):
            Handshake(True, b"", *arguments)
    with pytest.raises(Misuse):
        Handshake(True, b"", A, EA, None, PSK)
    with pytest.raises(Misuse):
        Handshake(False, b"", A, EA, B_PUBLIC, PSK)
