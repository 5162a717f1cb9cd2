"""The identity room: certificates are exactly what was signed, signatures are of one kind, key files keep their secret."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import ConfigError, Exit, Misuse, Refused
from gossipfl.trust.identity import (
    ADDRESSES_MAX,
    CERTIFICATE_DAYS,
    CERTIFICATE_MAX,
    DAY,
    KEY_FILE_MAX,
    Certificate,
    CertificateBody,
    Identity,
    NodeKeys,
    SigningKey,
    load_key,
    save_key,
    sign,
    verify,
)

NOW = 1_800_000_000
IDENTITY = Identity(b"i" * 32)
KEYS = NodeKeys(bytes(range(64)))
ADDRESSES = ("wss://hospital.example:8470/gossip", "http://[::1]:80")


def certify(
    member: str = "north", addresses: tuple[str, ...] = ADDRESSES, counter: int = 1, start: int = NOW, life: int = DAY
) -> Certificate:
    return IDENTITY.certify(member, KEYS, addresses, counter=counter, not_before=start, not_after=start + life)


def signed(body: CertificateBody, key: SigningKey = IDENTITY) -> bytes:
    payload = msgspec.msgpack.encode(body)
    return payload + key.sign("certificate", payload)


# ---- certificates


def test_a_certificate_says_what_was_certified() -> None:
    made = certify()
    read = Certificate.decode(made.encoded)
    assert read == made and read.digest == made.digest and hash(read) == hash(made)
    assert (read.member, read.identity, read.signing) == ("north", IDENTITY.public, KEYS.signing.public)
    assert (read.noise, read.addresses, read.counter) == (KEYS.noise_public, ADDRESSES, 1)


CERTIFICATE = certify().encoded


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_mutation_of_a_certificate_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(CERTIFICATE) - 1))
    changed = data.draw(
        st.sampled_from(
            [
                CERTIFICATE[:at],
                CERTIFICATE[:at] + CERTIFICATE[at + 1 :],
                CERTIFICATE[:at] + bytes([CERTIFICATE[at] ^ data.draw(st.integers(1, 255))]) + CERTIFICATE[at + 1 :],
                CERTIFICATE[:at] + data.draw(st.binary(min_size=1, max_size=9)) + CERTIFICATE[at:],
                CERTIFICATE + data.draw(st.binary(min_size=1, max_size=9)),
            ]
        )
    )
    if changed != CERTIFICATE:
        with pytest.raises(Refused):
            Certificate.decode(changed)


@given(st.binary(max_size=CERTIFICATE_MAX + 1))
def test_any_other_bytes_are_no_certificate(data: bytes) -> None:
    with pytest.raises(Refused):
        Certificate.decode(data)


def test_a_certificate_under_another_key_is_refused() -> None:
    body = msgspec.msgpack.decode(CERTIFICATE[:-64], type=CertificateBody)
    assert Certificate(signed(body)).encoded == CERTIFICATE
    with pytest.raises(Refused, match="auth"):
        Certificate(signed(body, Identity(b"x" * 32)))


@pytest.mark.parametrize(
    "change",
    [
        {"member": "North"}, {"member": "-a"}, {"member": "a" * 33}, {"member": ""}, {"member": "a\n"},
        {"addresses": ("ftp://a",)}, {"addresses": ("http://user@a",)}, {"addresses": ("http://a/?q",)},
        {"addresses": ("http://a#f",)}, {"addresses": ("http://a b",)}, {"addresses": ("http://a:65536",)},
        {"addresses": ("http://a:0",)}, {"addresses": ("http://",)}, {"addresses": ("http://a\n",)},
        {"addresses": ("http://a", "http://a")}, {"addresses": ("http://ä",)},
        {"addresses": ("http://" + "a" * 194,)}, {"addresses": tuple(f"http://a{n}" for n in range(9))},
        {"not_after": NOW}, {"not_after": NOW - 1}, {"not_after": NOW + CERTIFICATE_DAYS * DAY + 1},
        {"counter": -1}, {"counter": 2**53 + 1}, {"signing": b"short"},
    ],
    ids=str,
)  # fmt: skip
def test_T29_a_signed_certificate_with_a_flaw_is_refused(change: dict[str, object]) -> None:
    fields: dict[str, object] = {
        "member": "north", "identity": IDENTITY.public, "signing": KEYS.signing.public, "noise": KEYS.noise_public,
        "addresses": (), "counter": 1, "not_before": NOW, "not_after": NOW + DAY,
    }  # fmt: skip
    assert Certificate(signed(CertificateBody(**fields)))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="malformed"):
        Certificate(signed(CertificateBody(**(fields | change))))  # type: ignore[arg-type]


def test_a_signed_certificate_in_another_spelling_is_refused() -> None:
    payload = CERTIFICATE[:-64]
    assert payload[:1] == b"\x98" and payload[1:7] == b"\xa5north"
    for other in (b"\xdc\0\x08" + payload[1:], b"\x98\xd9\x05" + payload[2:], payload + b"\0"):
        with pytest.raises(Refused, match="malformed"):
            Certificate(other + IDENTITY.sign("certificate", other))


def test_the_operator_is_told_of_a_flaw_before_it_is_signed() -> None:
    for wrong in ({"member": "North"}, {"addresses": ("hospital.example",)}, {"life": 31 * DAY}, {"life": 0}):
        with pytest.raises(ConfigError, match="no certificate can be made"):
            certify(**wrong)  # type: ignore[arg-type]


def test_the_limits_of_a_certificate_are_met_and_kept() -> None:
    certify(life=CERTIFICATE_DAYS * DAY)
    certify(addresses=("http://" + "a" * 193,))
    many = tuple(f"http://hospital-{n}.example" for n in range(ADDRESSES_MAX))
    assert certify(addresses=many).addresses == many
    spare = CERTIFICATE_MAX - len(certify(addresses=()).encoded)
    for length, fits in ((spare - 3 * 202 - 2, True), (spare - 3 * 202 - 1, False)):
        addresses = tuple(
            "http://" + letter * (size - 7) for letter, size in zip("abcd", (200, 200, 200, length), strict=True)
        )
        if fits:
            assert len(certify(addresses=addresses).encoded) == CERTIFICATE_MAX
        else:
            with pytest.raises(ConfigError, match="fewer or shorter"):
                certify(addresses=addresses)
    with pytest.raises(Refused, match="size"):
        Certificate(bytes(CERTIFICATE_MAX + 1))


def test_a_certificate_is_valid_from_its_first_second_until_its_last() -> None:
    made, second = certify(), 10**9
    assert made.valid_at(NOW * second) and made.valid_at((NOW + DAY) * second - 1)
    assert not made.valid_at(NOW * second - 1) and not made.valid_at((NOW + DAY) * second)


# ---- signatures


def test_T06_a_signature_is_of_one_kind_payload_and_key() -> None:
    signature = sign("manifest", b"payload", IDENTITY)
    verify("manifest", b"payload", signature, IDENTITY.public)
    for kind, payload, key in (
        ("receipt", b"payload", IDENTITY.public),
        ("manifest", b"payload2", IDENTITY.public),
        ("manifest", b"payload", KEYS.signing.public),
    ):
        with pytest.raises(Refused, match="auth"):
            verify(kind, payload, signature, key)


@given(st.binary(max_size=130), st.binary(max_size=70))
def test_other_bytes_are_no_signature(signature: bytes, public: bytes) -> None:
    with pytest.raises(Refused, match="auth"):
        verify("manifest", b"", signature, IDENTITY.public)
    for key in (public, IDENTITY.public + public[:1] + b"x", IDENTITY.public[:-1]):
        with pytest.raises(Refused, match="auth"):
            verify("manifest", b"", sign("manifest", b"", IDENTITY), key)


@given(st.integers(0, 511))
def test_a_flipped_bit_of_a_signature_is_refused(bit: int) -> None:
    signature = bytearray(sign("manifest", b"payload", IDENTITY))
    signature[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Refused, match="auth"):
        verify("manifest", b"payload", bytes(signature), IDENTITY.public)


def test_the_signature_is_that_of_rfc_8032() -> None:
    """Its third test key; the message is ours, so only the public key is compared with the RFC."""
    key = SigningKey(bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"))
    assert key.public.hex() == "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"


def test_T30_no_key_appears_in_a_repr() -> None:
    for key in (IDENTITY, KEYS, KEYS.signing):
        assert not any(secret.hex() in repr(key) or str(secret) in repr(key) for secret in (b"i" * 32, KEYS.secret[:32]))


def test_keys_of_another_length_are_our_callers_fault() -> None:
    for make, size in ((SigningKey, 31), (Identity, 33), (NodeKeys, 63), (NodeKeys, 0)):
        with pytest.raises(Misuse):
            make(bytes(size))


# ---- key files


@pytest.mark.parametrize("passphrase", [None, "correct horse", "pässword\n"])
def test_a_key_file_gives_back_its_secret(tmp_path: Path, passphrase: str | None) -> None:
    path = tmp_path / "node.key"
    save_key(path, KEYS.secret, passphrase, kind="node")
    assert load_key(path, passphrase, kind="node") == KEYS.secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_bytes()) <= KEY_FILE_MAX
    assert [file.name for file in tmp_path.iterdir()] == ["node.key"]


def test_T27_without_the_passphrase_a_key_file_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    save_key(path, KEYS.secret, "correct horse")
    content = path.read_bytes()
    assert KEYS.secret not in content and KEYS.secret[:32].hex().encode() not in content
    for wrong in (None, "wrong", ""):
        with pytest.raises(ConfigError) as error:
            load_key(path, wrong)
        assert error.value.exit_code == Exit.PERMISSION
    save_key(tmp_path / "again.key", KEYS.secret, "correct horse")
    assert (tmp_path / "again.key").read_bytes()[40:] != content[40:], "salt and nonce are fresh"


def test_one_word_typed_in_two_ways_is_one_passphrase(tmp_path: Path) -> None:
    save_key(tmp_path / "k", b"secret", "caf\u00e9")
    assert load_key(tmp_path / "k", "cafe\u0301") == b"secret"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601, 0o777])
def test_a_key_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    save_key(tmp_path / "k", b"secret", None)
    (tmp_path / "k").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600") as error:
        load_key(tmp_path / "k", None)
    assert error.value.exit_code == Exit.PERMISSION


def test_every_damage_to_a_plain_key_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "k"
    save_key(path, b"a secret", None)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], whole + whole[at:]):
            path.write_bytes(damaged)
            with pytest.raises(ConfigError):
                load_key(path, None)


def test_damage_to_an_encrypted_key_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "k"
    save_key(path, b"a secret", "word")
    whole = path.read_bytes()
    fields = whole.split(b" ")
    starts = [sum(len(field) + 1 for field in fields[:n]) for n in range(len(fields))]
    for at in (*starts, len(whole) - 2):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ConfigError):
            load_key(path, "word")
    for passes, kib in ((999, 65536), (3, 99_999_999), (3, 1)):
        path.write_bytes(b" ".join((*fields[:4], str(passes).encode(), str(kib).encode(), *fields[6:])))
        with pytest.raises(ConfigError, match="absurd"):
            load_key(path, "word")


def test_a_file_in_the_wrong_place_is_told_apart(tmp_path: Path) -> None:
    save_key(tmp_path / "k", b"secret", None, kind="psk")
    for content, said in (
        (None, "kind 'psk', not 'node'"), (b"", "no key file"), (b"-----BEGIN KEY-----\n", "no key file"),
        (b"gossipfl-key v2 node plain 00\n", "newer gossipfl"), (b"gossipfl-key v1 node", "damaged"),
        (bytes(KEY_FILE_MAX + 1), "no key file"),
    ):  # fmt: skip
        if content is not None:
            (tmp_path / "k").write_bytes(content)
        with pytest.raises(ConfigError, match=said) as error:
            load_key(tmp_path / "k", None, kind="node")
        assert error.value.exit_code == Exit.CONFIG
    for absent in ("absent", "k/below", "."):
        with pytest.raises(ConfigError):
            load_key(tmp_path / absent, None)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(ConfigError, match="no regular file"):
        load_key(tmp_path / "pipe", None)


def test_a_key_is_never_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "k"
    save_key(path, b"old", None)
    with pytest.raises(ConfigError, match="there already"):
        save_key(path, b"new", None)
    assert load_key(path, None) == b"old"
    save_key(path, b"new", None, replace=True)
    assert load_key(path, None) == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["k"]
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "absent" / "k", tmp_path / "folder"):
        with pytest.raises(ConfigError, match="cannot be written") as error:
            save_key(place, b"new", None, replace=True)
        assert error.value.exit_code == Exit.STATE
    assert sorted(file.name for file in tmp_path.iterdir()) == ["folder", "k"], "nothing half-written stays"
    with pytest.raises(ConfigError, match="empty"):
        save_key(tmp_path / "k2", b"new", "")
