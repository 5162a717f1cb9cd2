"""The grammar of messages and signed documents: what was encoded comes back, and no other bytes are accepted."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import Refused
from gossipfl.protocol import messages as ms

DIGEST = st.binary(min_size=32, max_size=32)
OPTIONAL = st.binary(max_size=32)
SIGNATURE = st.binary(min_size=64, max_size=64)
COUNTER = st.one_of(st.integers(0, 300), st.integers(0, 2**53))
WORD = st.text(min_size=1, max_size=32)
DOCUMENT = st.binary(max_size=300)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
POSITIVE = st.floats(min_value=0, exclude_min=True, allow_nan=False, allow_infinity=False)
FACTOR = st.floats(0, 1)

LINK = st.builds(ms.LinkView, epoch=COUNTER, done=COUNTER, pending=COUNTER, doubt=OPTIONAL, last=OPTIONAL)
STAGE = st.sampled_from(ms.STAGES)
MESSAGES: dict[type, st.SearchStrategy[Any]] = {
    ms.Hello: st.builds(
        ms.Hello, membership=COUNTER, membership_digest=DIGEST, layout=DIGEST, stage=STAGE, statistics=OPTIONAL, link=LINK,
        capabilities=st.lists(WORD, max_size=32).map(tuple), wall_s=COUNTER,
    ),
    ms.Propose: st.builds(ms.Propose, manifest=DOCUMENT, signature=SIGNATURE),
    ms.Fetch: st.builds(ms.Fetch, root=DIGEST, from_chunk=COUNTER),
    ms.Reply: st.builds(
        ms.Reply, manifest=DOCUMENT, signature=SIGNATURE, receipt=DOCUMENT, receipt_signature=SIGNATURE
    ),
    ms.Done: st.builds(ms.Done, receipt=DOCUMENT, signature=SIGNATURE),
    ms.Abort: st.builds(ms.Abort, note=DOCUMENT, signature=SIGNATURE),
    ms.Aborted: st.builds(ms.Aborted, epoch=COUNTER, k=COUNTER),
    ms.Refusal: st.builds(ms.Refusal, k=COUNTER, reason=WORD, detail=st.text(max_size=100)),
    ms.Candidate: st.builds(ms.Candidate, normalisation=DOCUMENT, certificate=DIGEST, signature=SIGNATURE),
    ms.Ping: st.builds(ms.Ping),
}  # fmt: skip
ANY = st.one_of(*MESSAGES.values())

COMMON: dict[str, st.SearchStrategy[Any]] = {
    "federation": DIGEST, "membership": COUNTER, "certificate": DIGEST, "sender": WORD, "recipient": WORD,
    "epoch": COUNTER, "k": COUNTER, "prev": COUNTER, "space": st.sampled_from(["statistics", "model"]), "stage": STAGE,
    "codec": WORD, "reference": DIGEST, "size": COUNTER, "root": DIGEST, "statistics": OPTIONAL, "mass": POSITIVE,
    "gamma": POSITIVE, "kappa": st.one_of(st.just(0.0), POSITIVE), "tau": st.one_of(st.just(math.inf), POSITIVE),
    "gradient": st.one_of(st.just(0.0), POSITIVE),
}  # fmt: skip
PROPOSAL = st.builds(ms.Manifest, role=st.just("propose"), **COMMON)
REPLY = st.builds(
    ms.Manifest, role=st.just("reply"), **COMMON, answers=DIGEST, clip=FACTOR, leak=FACTOR, cap=FACTOR, q=DIGEST
)
RECEIPT = st.builds(
    ms.Receipt, federation=DIGEST, signer=WORD, sender=WORD, epoch=COUNTER, k=COUNTER, of=DIGEST, root=DIGEST
)
ABORT = st.builds(
    ms.AbortNote, federation=DIGEST, sender=WORD, recipient=WORD, epoch=COUNTER, k=COUNTER, of=DIGEST, reason=WORD
)
ROWS = st.integers(0, 5).flatmap(lambda n: st.tuples(*[st.lists(FINITE, min_size=n, max_size=n).map(tuple)] * 3))
NORMALISATION = st.builds(
    lambda rows, **rest: ms.Normalisation(**rest, count=rows[0], mean=rows[1], spread=rows[2]),
    ROWS, federation=DIGEST, author=WORD, members=st.lists(WORD, max_size=5).map(tuple),
)  # fmt: skip
Decode = Callable[[bytes], Any]
GRAMMARS: dict[str, tuple[st.SearchStrategy[Any], Decode]] = {
    "message": (ANY, ms.decode),
    "manifest": (st.one_of(PROPOSAL, REPLY), ms.decode_manifest),
    "receipt": (RECEIPT, ms.decode_receipt),
    "abort": (ABORT, ms.decode_abort),
    "statistics": (NORMALISATION, ms.decode_normalisation),
}
each_grammar = pytest.mark.parametrize("grammar", GRAMMARS)


def drawn(grammar: str, data: st.DataObject) -> tuple[Any, bytes, Decode]:
    values, decode = GRAMMARS[grammar]
    value = data.draw(values)
    return value, ms.encode(value), decode


def refused(decode: Decode, changed: bytes) -> None:
    with pytest.raises(Refused):
        decode(changed)


def test_the_strategies_cover_every_message() -> None:
    assert set(MESSAGES) == set(get_args(ms.Message))


@each_grammar
@given(data=st.data())
def test_what_was_encoded_comes_back_and_encodes_alike(grammar: str, data: st.DataObject) -> None:
    value, encoded, decode = drawn(grammar, data)
    assert decode(encoded) == value and ms.encode(decode(encoded)) == encoded


@each_grammar
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_T13_every_truncation_is_refused(grammar: str, data: st.DataObject) -> None:
    _, encoded, decode = drawn(grammar, data)
    for size in range(len(encoded)):
        refused(decode, encoded[:size])


@each_grammar
@given(data=st.data(), slack=st.binary(min_size=1, max_size=20))
def test_T13_every_trailing_byte_is_refused(grammar: str, data: st.DataObject, slack: bytes) -> None:
    _, encoded, decode = drawn(grammar, data)
    refused(decode, encoded + slack)
    refused(decode, encoded + encoded)


@each_grammar
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_T13_changed_bytes_are_another_value_or_refused(grammar: str, data: st.DataObject) -> None:
    """No two encodings of one value: what is accepted encodes to exactly what was read."""
    _, encoded, decode = drawn(grammar, data)
    at = data.draw(st.integers(0, len(encoded) - 1))
    changed = encoded[:at] + data.draw(st.binary(max_size=3)) + encoded[at + data.draw(st.integers(0, 3)) :]
    with suppress(Refused):
        assert ms.encode(decode(changed)) == changed


@each_grammar
@given(junk=st.binary(max_size=200))
def test_T13_any_bytes_are_a_value_or_refused(grammar: str, junk: bytes) -> None:
    _, decode = GRAMMARS[grammar]
    with suppress(Refused):
        assert ms.encode(decode(junk)) == junk


# ---- other spellings of the same value

NUMBERS = {"fixint": b"\x05", "uint8": b"\xcc\x05", "uint16": b"\xcd\0\x05", "uint32": b"\xce" + bytes(3) + b"\x05",
           "uint64": b"\xcf" + bytes(7) + b"\x05", "int8": b"\xd0\x05", "int64": b"\xd3" + bytes(7) + b"\x05",
           "float": b"\xcb@\x14" + bytes(6)}  # fmt: skip
ABORTED = b"\x93" + b"\xa7aborted" + b"\x01"


@pytest.mark.parametrize("form", NUMBERS)
def test_T13_only_the_shortest_form_of_an_integer_is_accepted(form: str) -> None:
    if form == "fixint":
        assert ms.decode(ABORTED + NUMBERS[form]) == ms.Aborted(1, 5)
    else:
        refused(ms.decode, ABORTED + NUMBERS[form])


@pytest.mark.parametrize(
    "other",
    [
        b"\xdc\0\x03" + ABORTED[1:] + b"\x05",  # array16
        b"\xdd\0\0\0\x03" + ABORTED[1:] + b"\x05",  # array32
        b"\x93\xd9\x07aborted\x01\x05",  # str8
        b"\x93\xc4\x07aborted\x01\x05",  # bin for str
        b"\x83\xa4type\xa7aborted\xa5epoch\x01\xa1k\x05",  # a map
        b"\x92\xa7aborted\x01",  # one field too few
        b"\x94\xa7aborted\x01\x05\x05",  # a duplicate at the end
        b"\x93\xa7aborted\x01\xff",  # below 0
        b"\x93\xa7aborted\x01\xcf\x00\x20\0\0\0\0\0\x01",  # above 2^53
        b"\x93\xa7aborted\x01\xc0",  # nothing
        b"\x93\xa7aborted\x01\xc3",  # true
        b"\x93\xa7Aborted\x01\x05", b"\x93\xa7abortee\x01\x05", b"\x93\x01\x01\x05",  # unknown tags
        b"\x93\xa7aborte\xff\x01\x05",  # not UTF-8
        b"\x91" * 60_000, b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xc1", b"",
    ],
    ids=lambda other: other[:12].hex() or "empty",
)  # fmt: skip
def test_T13_every_other_spelling_is_refused(other: bytes) -> None:
    refused(ms.decode, other)


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_T13_a_field_more_or_less_is_refused(kind: type, data: st.DataObject) -> None:
    fields = msgspec.msgpack.decode(ms.encode(data.draw(MESSAGES[kind])))
    assert ms.encode(ms.decode(msgspec.msgpack.encode(fields))) == msgspec.msgpack.encode(fields)
    refused(ms.decode, msgspec.msgpack.encode([*fields, fields[-1]]))
    refused(ms.decode, msgspec.msgpack.encode(fields[:-1]))
    refused(ms.decode, msgspec.msgpack.encode([fields[0] + "x", *fields[1:]]))


def test_a_control_message_has_at_most_65000_bytes() -> None:
    room = ms.CONTROL_MAX - len(ms.encode(ms.Candidate(b"x" * 60_000, bytes(32), bytes(64)))) + 60_000
    assert room > 60_000
    refused(ms.decode, ms.encode(ms.Candidate(b"x" * 60_001, bytes(32), bytes(64))))
    ms.decode(ms.encode(ms.Candidate(b"x" * 60_000, bytes(32), bytes(64))))
    for size, reason in ((ms.CONTROL_MAX, "malformed"), (ms.CONTROL_MAX + 1, "size")):
        with pytest.raises(Refused) as error:
            ms.decode(bytes(size))
        assert error.value.reason == reason


@pytest.mark.parametrize(
    "changed",
    [
        ms.Hello(0, bytes(32), bytes(31), "training", b"", ms.LinkView(0, 0, 0, b"", b""), (), 0),
        ms.Hello(0, bytes(32), bytes(32), "", b"", ms.LinkView(0, 0, 0, b"", b""), (), 0),
        ms.Hello(0, bytes(32), bytes(32), "x" * 33, b"", ms.LinkView(0, 0, 0, b"", b""), (), 0),
        ms.Hello(0, bytes(32), bytes(32), "training", bytes(33), ms.LinkView(0, 0, 0, b"", b""), (), 0),
        ms.Hello(0, bytes(32), bytes(32), "training", b"", ms.LinkView(0, 0, 0, b"", b""), ("x",) * 33, 0),
        ms.Hello(0, bytes(32), bytes(32), "training", b"", ms.LinkView(0, -1, 0, b"", b""), (), 0),
        ms.Propose(b"x" * 16_385, bytes(64)), ms.Propose(b"", bytes(63)), ms.Propose(b"", bytes(65)),
        ms.Fetch(bytes(32), 2**53 + 1), ms.Refusal(0, "auth", "x" * 1001),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_field_out_of_its_bounds_is_refused(changed: ms.Message) -> None:
    refused(ms.decode, ms.encode(changed))


# ---- documents


def manifest(**changes: Any) -> ms.Manifest:
    neutral = ms.Manifest(
        bytes(32), 1, bytes(32), "anna", "bert", 0, 1, 0, "propose", "model", "training", "f32", bytes(32), 4, bytes(32),
        b"", 1.0, 0.5, 0.0, math.inf, 0.0,
    )  # fmt: skip
    return msgspec.structs.replace(neutral, **changes)


ANSWER: dict[str, Any] = {"role": "reply", "answers": bytes(32), "q": bytes(32)}
NAN = math.nan


@pytest.mark.parametrize(
    "changes",
    [
        {"role": "other"}, {"space": "other"}, {"mass": 0.0}, {"mass": -1.0}, {"mass": math.inf}, {"mass": NAN},
        {"gamma": 0.0}, {"gamma": NAN}, {"kappa": -1.0}, {"kappa": math.inf}, {"kappa": NAN}, {"tau": 0.0}, {"tau": NAN},
        {"tau": -math.inf}, {"gradient": NAN}, {"gradient": -0.5}, {"gradient": math.inf},
        {"clip": 0.5}, {"leak": 0.5}, {"cap": 0.5}, {"answers": bytes(32)}, {"q": bytes(32)},
        ANSWER | {"clip": NAN}, ANSWER | {"clip": 1.1}, ANSWER | {"leak": -0.1}, ANSWER | {"cap": NAN},
        ANSWER | {"answers": b""}, ANSWER | {"q": bytes(31)}, {"sender": ""}, {"sender": "x" * 33}, {"root": b""},
    ],
    ids=lambda changes: " ".join(f"{name}={str(value)[:9]}" for name, value in changes.items()),
)  # fmt: skip
def test_T12_a_manifest_out_of_its_ranges_is_refused(changes: dict[str, Any]) -> None:
    ms.decode_manifest(ms.encode(manifest()))
    ms.decode_manifest(ms.encode(manifest(**ANSWER)))
    refused(ms.decode_manifest, ms.encode(manifest(**changes)))


def test_T13_an_integer_where_a_float_is_due_is_refused() -> None:
    fields = msgspec.msgpack.decode(ms.encode(manifest()))
    fields[fields.index(1.0, 15)] = 1
    refused(ms.decode_manifest, msgspec.msgpack.encode(fields))


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_T12_statistics_are_finite_and_of_one_length(value: float) -> None:
    for row in range(3):
        rows = [(1.0, 2.0)] * 3
        rows[row] = (1.0, value)
        with pytest.raises(Refused) as error:
            ms.decode_normalisation(ms.encode(ms.Normalisation(bytes(32), "anna", (), *rows)))
        assert error.value.reason == "nonfinite"
        rows[row] = (1.0,)
        refused(ms.decode_normalisation, ms.encode(ms.Normalisation(bytes(32), "anna", (), *rows)))


def test_no_document_can_be_read_as_one_of_another_kind() -> None:
    samples = {
        "manifest": manifest(), "receipt": ms.Receipt(bytes(32), "a", "b", 0, 1, bytes(32), bytes(32)),
        "abort": ms.AbortNote(bytes(32), "a", "b", 0, 1, bytes(32), "numeric"),
        "statistics": ms.Normalisation(bytes(32), "a", (), (), (), ()),
    }  # fmt: skip
    for kind, value in samples.items():
        for other in samples.keys() - {kind}:
            refused(GRAMMARS[other][1], ms.encode(value))


@given(st.sampled_from(["manifest", "receipt", "abort"]), st.binary(max_size=50), st.binary(max_size=50))
def test_T06_what_is_signed_differs_with_kind_and_payload(kind: str, payload: bytes, other: bytes) -> None:
    assert ms.to_sign(kind, payload) == b"gossipfl/" + kind.encode() + b"/v1\0" + bytes(7) + bytes([len(payload)]) + payload
    assert (ms.to_sign(kind, payload) == ms.to_sign(kind, other)) == (payload == other)
    assert ms.to_sign("certificate", payload) != ms.to_sign(kind, payload)
