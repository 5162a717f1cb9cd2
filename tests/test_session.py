"""The session room: both ends in one process; every attack on the wire ends the session and tells the attacker nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl import digest
from gossipfl.digest import CHUNK
from gossipfl.errors import Misuse, Refused
from gossipfl.protocol import limits, session
from gossipfl.protocol.events import Instant
from gossipfl.protocol.messages import Fetch, Message, Ping
from gossipfl.protocol.noise import SECOND_OVERHEAD, Handshake
from gossipfl.protocol.session import Arrived, Chunk, Reply, Session, Up, prologue
from gossipfl.trust.identity import CERTIFICATE_MAX, DAY, Certificate, Identity, NodeKeys

GOLDEN = Path(__file__).parent / "golden" / "session.json"
WALL = 1_800_000_000
SECOND = 10**9
NOW = Instant(5 * SECOND, WALL * SECOND)
FEDERATION = hashlib.sha256(b"federation").digest()
PSK = hashlib.sha256(b"psk").digest()


class Party:
    """A member with fixed keys."""

    def __init__(self, name: str, keys: str | None = None) -> None:
        self.name = name
        self.identity = Identity(hashlib.sha256(b"identity " + name.encode()).digest())
        self.keys = NodeKeys(hashlib.sha512(b"keys " + (keys or name).encode()).digest())
        self.certificate = self.certified(self.keys)

    def certified(self, keys: NodeKeys, start: int = WALL - 3600, addresses: tuple[str, ...] = ()) -> Certificate:
        times = {"not_before": start, "not_after": start + DAY}
        return self.identity.certify(self.name, keys, addresses, counter=1, **times)

    def session(self, dials: Party | None = None, **changes: Any) -> Session:
        arguments: dict[str, Any] = {
            "initiator": dials is not None,
            "federation": FEDERATION,
            "keys": self.keys,
            "certificate": self.certificate.encoded,
            "psk": PSK,
            "ephemeral": hashlib.sha256(b"ephemeral " + self.name.encode()).digest(),
            "admit": admit,
            "expect": None if dials is None else (dials.name, dials.keys.noise_public),
            "started": NOW,
        }
        return Session(**(arguments | changes))


ANNA, BERT, CARL = Party("anna"), Party("bert"), Party("carl")
MALLORY = Party("mallory")
MEMBERS = {party.name: party.identity.public for party in (ANNA, BERT, CARL)}


def admit(certificate: Certificate) -> str:
    if MEMBERS.get(certificate.member) != certificate.identity:
        raise Refused("not-member", "not a member of the test's federation; add it")
    return certificate.member


def up(confirmed: bool = True) -> tuple[Session, Session]:
    a, b = ANNA.session(BERT), BERT.session()
    [reply] = b.receive(a.open(NOW), NOW)
    assert isinstance(reply, Reply)
    assert a.receive(reply.record, NOW) == [Up("bert", BERT.certificate)]
    if confirmed:
        assert b.receive(a.send(Ping()), NOW) == [Up("anna", ANNA.certificate), Arrived(Ping())]
    return a, b


def over(one: Session, record: bytes = bytes(16)) -> bool:
    """Is it dead for ever?"""
    with pytest.raises(Refused, match="auth"):
        one.receive(record, NOW)
    with pytest.raises(Misuse):
        one.send(Ping())
    return True


def refused(reason: str, action: Callable[[], object]) -> None:
    with pytest.raises(Refused) as error:
        action()
    assert error.value.reason == reason, error.value


def test_two_members_meet_and_speak_both_ways() -> None:
    a, b = up()
    assert a.receive(b.send(Fetch(bytes(32), 3)), NOW) == [Arrived(Fetch(bytes(32), 3))]
    assert b.receive(a.send(Ping()), NOW) == [Arrived(Ping())]
    assert (a.peer, b.peer, a.certificate, b.certificate) == ("bert", "anna", BERT.certificate, ANNA.certificate)


def test_the_transcript_is_the_golden_one() -> None:
    """Fixed keys, exact bytes: whatever changes them changes the protocol, and needs a new major version."""
    blob = bytes(range(256)) * 300
    tree = digest.Tree.of(blob)
    a, b = ANNA.session(BERT), BERT.session()
    first = a.open(NOW)
    [reply] = b.receive(first, NOW)
    assert isinstance(reply, Reply)
    a.receive(reply.record, NOW)
    ping = a.send(Ping())
    b.receive(ping, NOW)
    fetch = b.send(Fetch(tree.root, 1))
    chunk = a.seal_chunk(tree.root, 1, tree.path(1), blob[CHUNK:])
    found = {
        "federation": FEDERATION.hex(), "psk": PSK.hex(), "prologue": prologue(FEDERATION).hex(),
        "initiator_secret": ANNA.keys.secret.hex(), "initiator_certificate": ANNA.certificate.encoded.hex(),
        "initiator_ephemeral": hashlib.sha256(b"ephemeral anna").hexdigest(),
        "responder_secret": BERT.keys.secret.hex(), "responder_certificate": BERT.certificate.encoded.hex(),
        "responder_ephemeral": hashlib.sha256(b"ephemeral bert").hexdigest(),
        "message_1": first.hex(), "message_2": reply.record.hex(), "initiator_ping": ping.hex(),
        "responder_fetch": fetch.hex(), "root": tree.root.hex(), "path_1": [one.hex() for one in tree.path(1)],
        "sha256_of_initiator_chunk_1": hashlib.sha256(chunk).hexdigest(),
    }  # fmt: skip
    assert found == json.loads(GOLDEN.read_text())


# ---- the wire


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_T01_any_mutation_of_any_record_ends_the_session(data: st.DataObject) -> None:
    stage = data.draw(st.sampled_from(["message 1", "message 2", "record"]))
    a, b = ANNA.session(BERT), BERT.session()
    reader, record = b, a.open(NOW)
    if stage != "message 1":
        [reply] = b.receive(record, NOW)
        assert isinstance(reply, Reply)
        reader, record = a, reply.record
    if stage == "record":
        a, b = up()
        reader, record = b, a.send(Fetch(bytes(32), 7))
    at = data.draw(st.integers(0, len(record) - 1))
    mutation = data.draw(st.sampled_from(["flip", "cut", "add"]))
    if mutation == "flip":
        changed = record[:at] + bytes([record[at] ^ 1 << data.draw(st.integers(0, 7))]) + record[at + 1 :]
    else:
        changed = record[:at] if mutation == "cut" else record + data.draw(st.binary(min_size=1, max_size=20))
    refused("auth", lambda: reader.receive(changed, NOW))
    assert over(reader, record), "not even the right record is taken any more"


@given(st.binary(max_size=limits.HANDSHAKE_MAX))
def test_T01_a_strangers_bytes_get_no_answer(data: bytes) -> None:
    responder = BERT.session()
    refused("auth", lambda: responder.receive(data, NOW))
    assert over(responder)


def test_T01_nothing_is_readable_on_the_wire() -> None:
    a, b = ANNA.session(BERT), BERT.session()
    first = a.open(NOW)
    [reply] = b.receive(first, NOW)
    assert isinstance(reply, Reply)
    for secret in (b"anna", b"bert", FEDERATION, PSK, ANNA.keys.noise_public, BERT.keys.noise_public):
        assert secret not in first + reply.record


def test_T02_replay_reorder_drop_and_duplicate_end_the_session() -> None:
    for order in ([0, 0], [1], [0, 2], [0, 1, 0]):
        a, b = up()
        records = [a.send(Fetch(bytes(32), n)) for n in range(3)]
        for index in order[:-1]:
            b.receive(records[index], NOW)
        refused("auth", lambda: b.receive(records[order[-1]], NOW))  # noqa: B023
        assert over(b, records[1])


def test_T02_records_do_not_pass_into_another_session() -> None:
    a, _ = up()
    ephemeral = hashlib.sha256(b"another").digest()
    again, other = ANNA.session(BERT), BERT.session(ephemeral=ephemeral)
    [reply] = other.receive(again.open(NOW), NOW)
    assert isinstance(reply, Reply)
    refused("auth", lambda: other.receive(a.send(Ping()), NOW))


def test_T03_a_replayed_message_1_gets_nothing_but_message_2() -> None:
    seen: list[Certificate] = []

    def noting(certificate: Certificate) -> str:
        seen.append(certificate)
        return admit(certificate)

    message = ANNA.session(BERT).open(NOW)
    for ephemeral in (b"1" * 32, b"2" * 32):
        responder = BERT.session(ephemeral=ephemeral, admit=noting)
        [event] = responder.receive(message, NOW)
        assert isinstance(event, Reply) and not responder.up
        with pytest.raises(Misuse):
            responder.send(Ping())
        with pytest.raises(Misuse):
            responder.seal_chunk(bytes(32), 0, [], b"model")
        refused("auth", lambda: responder.receive(message, NOW))  # noqa: B023
        assert not responder.up
    assert seen == [ANNA.certificate] * 2


def test_T04_a_node_does_not_speak_with_itself() -> None:
    refused("auth", lambda: ANNA.session(ANNA))
    twin = Party("anna", keys="of the twin")
    refused("auth", lambda: BERT.session().receive(BERT_TWIN.session(BERT).open(NOW), NOW))
    a, other = ANNA.session(twin), twin.session()
    refused("auth", lambda: other.receive(a.open(NOW), NOW))


@pytest.mark.parametrize("shared", ["name", "identity key", "signing key"])
def test_T04_whoever_has_my_name_or_one_of_my_keys_is_refused(shared: str) -> None:
    """Even where `admit` would take anybody."""
    other = Party("anna" if shared == "name" else "twin", keys="of the twin")
    if shared == "name":
        other.identity = Identity(b"another identity".ljust(32))
    if shared == "identity key":
        other.identity = ANNA.identity
    if shared == "signing key":
        other.keys = NodeKeys(ANNA.keys.signing.seed + b"n" * 32)
    other.certificate = other.certified(other.keys)
    anna = ANNA.session(admit=lambda certificate: certificate.member)
    refused("auth", lambda: anna.receive(other.session(ANNA).open(NOW), NOW))


BERT_TWIN = Party("carl", keys="bert")
"""Another member that runs on Bert's node keys."""


def test_T04_a_reflected_record_is_refused() -> None:
    a, b = ANNA.session(BERT), BERT.session()
    first = a.open(NOW)
    refused("auth", lambda: a.receive(first, NOW))
    a, b = up()
    record = a.send(Ping())
    refused("auth", lambda: a.receive(record, NOW))
    reflected = b.send(Ping())
    refused("auth", lambda: b.receive(reflected, NOW))


def test_T05_a_certificate_that_names_another_key_is_refused() -> None:
    """Mallory, an insider with the psk and a key of her own, shows Carl's certificate: to Bert, and as Bert."""
    handshake = Handshake(True, prologue(FEDERATION), MALLORY.keys.noise_private, b"m" * 32, BERT.keys.noise_public, PSK)
    refused("auth", lambda: BERT.session().receive(handshake.write(CARL.certificate.encoded), NOW))
    a = ANNA.session(BERT, expect=("bert", MALLORY.keys.noise_public))
    handshake = Handshake(False, prologue(FEDERATION), MALLORY.keys.noise_private, b"m" * 32, None, PSK)
    handshake.read(a.open(NOW))
    answer = handshake.write(BERT.certificate.encoded)
    refused("auth", lambda: a.receive(answer, NOW))


def test_T05_another_member_than_the_dialled_one_is_refused() -> None:
    a, c = ANNA.session(BERT, expect=("bert", CARL.keys.noise_public)), CARL.session()
    [reply] = c.receive(a.open(NOW), NOW)
    assert isinstance(reply, Reply)
    refused("auth", lambda: a.receive(reply.record, NOW))
    assert over(a)
    with pytest.raises(Misuse, match="these keys"):
        ANNA.session(BERT, certificate=CARL.certificate.encoded)


def test_T17_a_stranger_and_an_impostor_are_not_members() -> None:
    refused("not-member", lambda: BERT.session().receive(MALLORY.session(BERT).open(NOW), NOW))
    impostor = Party("carl")
    impostor.identity = MALLORY.identity
    impostor.certificate = impostor.certified(MALLORY.keys)
    impostor.keys = MALLORY.keys
    refused("not-member", lambda: BERT.session().receive(impostor.session(BERT).open(NOW), NOW))


def test_T07_with_berts_stolen_key_nobody_becomes_anna() -> None:
    """The thief knows Bert's static key and the psk. He can write a message 1 in Anna's name (Noise, 7.7: IK's first
    message), and gets no further: message 2 is sealed to Anna's key, and no record of his confirms."""
    a, b = ANNA.session(BERT), BERT.session()
    first = a.open(NOW)
    [reply] = b.receive(first, NOW)
    assert isinstance(reply, Reply)
    thief = Handshake(True, prologue(FEDERATION), MALLORY.keys.noise_private, b"m" * 32, BERT.keys.noise_public, PSK)
    thief.write(ANNA.certificate.encoded)
    refused("auth", lambda: thief.read(reply.record))
    for guess in (bytes(16), first[:40], reply.record):
        _, victim = ANNA.session(BERT), BERT.session()
        victim.receive(first, NOW)
        refused("auth", lambda: victim.receive(guess, NOW))  # noqa: B023
        assert not victim.up


def test_T08_recorded_traffic_stays_closed_to_who_steals_all_long_lived_keys_later() -> None:
    """Both static keys, both identities and the psk are known; the ephemeral keys are gone."""
    a, b = ANNA.session(BERT), BERT.session()
    first = a.open(NOW)
    [reply] = b.receive(first, NOW)
    assert isinstance(reply, Reply)
    thief = Handshake(False, prologue(FEDERATION), BERT.keys.noise_private, b"m" * 32, None, PSK)
    assert thief.read(first) == ANNA.certificate.encoded, "what message 1 says is not forward secret: a public certificate"
    thief.write(b"")
    _, receiving = thief.split()
    a.receive(reply.record, NOW)
    refused("auth", lambda: receiving.open(a.send(Fetch(bytes(32), 1))))


def test_T09_another_major_version_federation_or_psk_gets_no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes in ({"federation": bytes(32)}, {"psk": bytes(32)}):
        a, b = ANNA.session(BERT, **changes), BERT.session()
        with pytest.raises(Refused, match="auth"):
            [reply] = b.receive(a.open(NOW), NOW)
            a.receive(reply.record, NOW)
    a = ANNA.session(BERT)
    monkeypatch.setattr(session, "SUBPROTOCOL", "gossipfl.v2")
    refused("auth", lambda: BERT.session().receive(a.open(NOW), NOW))


def test_T28_the_old_psk_confirms_nothing() -> None:
    old, b = CARL.session(BERT, psk=b"o" * 32), BERT.session()
    refused("auth", lambda: [old.receive(event.record, NOW) for event in b.receive(old.open(NOW), NOW)])
    assert not old.up and not b.up


# ---- time


@pytest.mark.parametrize("start", [WALL + 1, WALL - DAY], ids=["not yet", "no longer"])
def test_T26_a_certificate_is_judged_by_the_wall_clock_alone(start: int) -> None:
    stale = Party("anna")
    stale.certificate = stale.certified(stale.keys, start)
    early = msgspec.structs.replace(NOW, wall_ns=start * SECOND)
    refused("auth", lambda: stale.session(BERT).open(NOW))
    refused("auth", lambda: BERT.session().receive(stale.session(BERT).open(early), NOW))
    refused("auth", lambda: stale.session().receive(BERT.session(stale).open(NOW), NOW))
    b = BERT.session(stale)
    answering = Handshake(False, prologue(FEDERATION), stale.keys.noise_private, b"s" * 32, None, PSK)
    answering.read(b.open(NOW))
    refused("auth", lambda: b.receive(answering.write(stale.certificate.encoded), NOW))


def test_a_session_ends_after_ten_minutes_or_its_last_record() -> None:
    a, b = up()
    for one in (a, b):
        age = limits.SESSION_S * SECOND
        assert not one.expired(Instant(NOW.mono_ns + age - 1, 0))
        assert one.expired(Instant(NOW.mono_ns + age, 0))
    assert a._sending is not None
    a._sending.count = limits.SESSION_RECORDS_MAX - 1
    assert not a.expired(NOW)
    a.send(Ping())
    assert a.expired(NOW)
    with pytest.raises(Misuse):
        a.send(Ping())


def test_a_handshake_has_ten_seconds() -> None:
    a, b = up(confirmed=False)
    late = Instant(NOW.mono_ns + limits.HANDSHAKE_S * SECOND, 0)
    assert not a.expired(late) and b.expired(late) and ANNA.session(BERT).expired(late)
    assert not b.expired(Instant(late.mono_ns - 1, 0))


# ---- sizes


def test_a_handshake_message_has_at_most_1024_bytes() -> None:
    spare = CERTIFICATE_MAX - len(ANNA.certificate.encoded)
    lengths = (200, 200, 200, spare - 3 * 202 - 2)
    largest = Party("anna")
    addresses = tuple("http://" + letter * (length - 7) for letter, length in zip("abcd", lengths, strict=True))
    largest.certificate = largest.certified(largest.keys, addresses=addresses)
    assert len(largest.certificate.encoded) == CERTIFICATE_MAX
    first = largest.session(BERT).open(NOW)
    assert len(first) == limits.HANDSHAKE_MAX
    [reply] = BERT.session().receive(first, NOW)
    assert isinstance(reply, Reply)
    assert len(reply.record) == len(BERT.certificate.encoded) + SECOND_OVERHEAD
    refused("auth", lambda: BERT.session().receive(first[:-1], NOW))
    refused("size", lambda: BERT.session().receive(first + b"\0", NOW))


@pytest.mark.parametrize("plain", [b"", b"\2", b"\xff" * 40, b"\0", b"\0\x90", b"\0\xff", b"\1"], ids=bytes.hex)
def test_T13_a_record_of_an_unknown_kind_or_form_ends_the_session(plain: bytes) -> None:
    a, b = up()
    refused("malformed", lambda: b.receive(a._seal(plain), NOW))
    assert over(b)


def test_nothing_larger_than_a_record_is_sent() -> None:
    a, _ = up()
    head = 38
    assert len(a.seal_chunk(bytes(32), 0, [], bytes(limits.PLAIN_MAX - head))) == limits.RECORD_MAX
    with pytest.raises(Misuse, match="at most"):
        a.seal_chunk(bytes(32), 0, [], bytes(limits.PLAIN_MAX - head + 1))
    assert head + 32 * limits.PATH_MAX + CHUNK <= limits.PLAIN_MAX
    assert 1 + limits.CONTROL_MAX <= limits.PLAIN_MAX


# ---- chunks

BLOB = hashlib.shake_256(b"a payload").digest(3 * CHUNK + 5)
TREE = digest.Tree.of(BLOB)


def piece(index: int) -> bytes:
    return BLOB[index * CHUNK : (index + 1) * CHUNK]


def chunk(one: Session, number: int, **changes: Any) -> bytes:
    parts = {"root": TREE.root, "index": number, "path": TREE.path(number), "data": piece(number)}
    return one.seal_chunk(**(parts | changes))


def test_a_payload_arrives_chunk_by_chunk() -> None:
    a, b = up()
    b.expect(TREE.root, len(BLOB))
    got = []
    for index in range(4):
        [event] = b.receive(chunk(a, index, data=memoryview(piece(index))), NOW)
        assert isinstance(event, Chunk) and (event.root, event.index) == (TREE.root, index)
        got.append(bytes(event.data))
    assert b"".join(got) == BLOB
    refused("malformed", lambda: b.receive(chunk(a, 3), NOW))


def test_a_cut_transfer_goes_on_in_a_new_session() -> None:
    a, b = up()
    b.expect(TREE.root, len(BLOB), from_chunk=2)
    assert [event.index for index in (2, 3) for event in b.receive(chunk(a, index), NOW)] == [2, 3]


@pytest.mark.parametrize(
    "reason, index, changes",
    [
        ("malformed", 0, {"root": bytes(32)}), ("malformed", 1, {}), ("malformed", 0, {"index": 2**32 - 1}),
        ("size", 0, {"data": b""}), ("size", 0, {"data": piece(0)[:-1]}), ("size", 0, {"data": piece(0) + b"\0"}),
        ("malformed", 0, {"data": piece(1)}), ("malformed", 0, {"path": TREE.path(1)}),
        ("malformed", 0, {"path": TREE.path(0)[:-1]}), ("malformed", 0, {"path": [*TREE.path(0), bytes(32)]}),
        ("malformed", 0, {"path": TREE.path(0)[::-1]}), ("size", 0, {"path": [bytes(32)] * 33}),
        ("size", 0, {"path": [bytes(31), bytes(32)]}),
    ],
)  # fmt: skip
def test_T13_a_chunk_that_is_not_the_next_of_its_payload_ends_the_session(
    reason: str, index: int, changes: dict[str, Any]
) -> None:
    a, b = up()
    b.expect(TREE.root, len(BLOB))
    refused(reason, lambda: b.receive(chunk(a, index, **changes), NOW))
    assert over(b)


def test_T13_the_last_chunk_has_exactly_the_rest() -> None:
    for size, reason in ((len(BLOB) - 1, "size"), (len(BLOB) + 1, "size"), (len(BLOB) + CHUNK, "size")):
        a, b = up()
        b.expect(TREE.root, size, from_chunk=3)
        refused(reason, lambda: b.receive(chunk(a, 3), NOW))  # noqa: B023


def test_chunks_that_nobody_asked_for_are_refused() -> None:
    a, b = up()
    refused("malformed", lambda: b.receive(chunk(a, 0), NOW))
    a, b = up()
    b.expect(TREE.root, len(BLOB), from_chunk=4)
    b.expect(digest.EMPTY, 0)
    refused("malformed", lambda: b.receive(chunk(a, 0), NOW))


def test_payloads_left_unfinished_are_bounded() -> None:
    _, b = up()
    for n in range(limits.INCOMING_MAX):
        b.expect(bytes([n]) * 32, CHUNK)
    b.expect(bytes(32), CHUNK)
    refused("quota", lambda: b.expect(b"x" * 32, CHUNK))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_T13_any_plain_record_is_a_message_or_refused(plain: bytes) -> None:
    a, b = up()
    b.expect(TREE.root, len(BLOB))
    try:
        [event] = b.receive(a._seal(plain), NOW)
    except Refused:
        return
    assert isinstance(event, Arrived) and isinstance(event.message, Message)
