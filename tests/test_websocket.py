"""WebSocket frames, and a connection after its upgrade: aiohttp is at the other end, and every fault is refused."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from gossipfl.errors import Refused
from gossipfl.node.client import _transport
from gossipfl.node.frames import (
    BETWEEN_MAX,
    BINARY,
    CLOSE,
    CONTINUATION,
    FINAL,
    LEAST_BYTES,
    MOST_BYTES,
    PING,
    Inbox,
    header,
    unmask,
)
from gossipfl.node.websocket import WebSocket
from gossipfl.protocol.limits import RECORD_MAX

SIZES = [0, 1, 2, 3, 124, 125, 126, 127, 4096, 61_846, RECORD_MAX]


def frame(opcode: int, content: bytes, mask: bytes = b"", final: bool = True) -> bytes:
    """A frame as RFC 6455 draws it, whoever sends it."""
    first = bytes([opcode | (FINAL if final else 0)])
    flag, size = 0x80 if mask else 0, len(content)
    short = bytes([flag | size]) if size <= 125 else b""
    length = short or (bytes([flag | 126]) + size.to_bytes(2, "big") if size < 65_536 else b"\x7f" + size.to_bytes(8, "big"))
    return first + length + mask + bytes(byte ^ mask[at % 4] if mask else byte for at, byte in enumerate(content))


def fed(inbox: Inbox, data: bytes, step: int = MOST_BYTES) -> list[tuple[int, bytes]]:
    """What is read when so many bytes come at a time."""
    found: list[tuple[int, bytes]] = []
    rest = memoryview(data)
    while len(rest):
        room = inbox.room()
        assert 0 < len(room) <= MOST_BYTES
        size = min(step, len(room), len(rest))
        room[:size], rest = rest[:size], rest[size:]
        inbox.took(size)
        while (message := inbox.next()) is not None:
            found.append((message[0], bytes(message[1])))
    return found


@given(
    st.lists(st.tuples(st.sampled_from(SIZES), st.binary(min_size=4, max_size=4)), max_size=6),
    st.integers(1000, 70_000),
    st.booleans(),
)
@settings(deadline=None, max_examples=50)
def test_messages_are_read_alike_however_their_bytes_come(parts: list[tuple[int, bytes]], step: int, masked: bool) -> None:
    contents = [mask * (size // 4) + mask[: size % 4] for size, mask in parts]
    sent = [frame(BINARY, content, mask if masked else b"") for content, (_, mask) in zip(contents, parts, strict=True)]
    assert fed(Inbox(masked, RECORD_MAX), b"".join(sent), step) == [(BINARY, content) for content in contents]


@pytest.mark.parametrize("mask", [b"", b"\0\0\0\0", b"abcd"])
def test_messages_are_read_byte_by_byte(mask: bytes) -> None:
    contents = [b"x" * size for size in (0, 1, 125, 126, 400)]
    sent = b"".join(frame(BINARY, content, mask) for content in contents)
    assert fed(Inbox(bool(mask), RECORD_MAX), sent, 1) == [(BINARY, content) for content in contents]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("masked", [False, True])
def test_what_we_frame_is_the_standards_frame_under_a_mask_of_zeros(size: int, masked: bool) -> None:
    content = bytes(range(256)) * 256
    assert header(BINARY, size, masked) + content[:size] == frame(BINARY, content[:size], bytes(4) if masked else b"")


def test_a_mask_twice_is_no_mask() -> None:
    content = bytearray(range(251))
    unmask(memoryview(content), b"\x01\x02\x03\xff")
    assert bytes(content) == frame(BINARY, bytes(range(251)), b"\x01\x02\x03\xff")[8:]


def test_a_message_in_fragments_is_one_message_and_control_frames_may_stand_between_them() -> None:
    sent = frame(BINARY, b"one ", final=False) + frame(PING, b"?") + frame(CONTINUATION, b"two ", final=False)
    assert fed(Inbox(False, 100), sent + frame(CONTINUATION, b"three"), 1) == [(PING, b"?"), (BINARY, b"one two three")]


def test_a_ping_among_fragments_does_not_count_against_the_message() -> None:
    sent = frame(BINARY, bytes(90), final=False) + frame(PING, bytes(60)) + frame(CONTINUATION, bytes(10))
    assert fed(Inbox(False, 100), sent) == [(PING, bytes(60)), (BINARY, bytes(100))]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (frame(BINARY, b"x", b"abcd"), "malformed"),
        (frame(1, b"text"), "malformed"),
        (frame(3, b"unknown"), "malformed"),
        (frame(BINARY | 0x40, b"compressed"), "malformed"),
        (frame(CONTINUATION, b"of nothing"), "malformed"),
        (frame(BINARY, b"a", final=False) + frame(BINARY, b"b"), "malformed"),
        (frame(PING, b"", final=False), "malformed"),
        (frame(BINARY, bytes(101)), "size"),
        (frame(BINARY, bytes(60), final=False) + frame(CONTINUATION, bytes(41)), "size"),
        (frame(BINARY, bytes(RECORD_MAX + 1))[:10], "size"),
        (frame(CLOSE, bytes(126))[:4], "size"),
    ],
)
def test_what_is_no_message_of_a_server_is_refused_before_its_content_has_come(sent: bytes, reason: str) -> None:
    with pytest.raises(Refused) as refusal:
        fed(Inbox(False, 100), sent)
    assert refusal.value.reason == reason


FRAGMENT = frame(BINARY, b"", final=False), frame(CONTINUATION, b"", final=False)


@pytest.mark.parametrize(("first", "idle"), [(b"", frame(PING, b"")), FRAGMENT])
def test_frames_without_a_record_have_an_end(first: bytes, idle: bytes) -> None:
    inbox, most = Inbox(False, 100), BETWEEN_MAX - (1 if first else 0)
    end = frame(CONTINUATION, b"x") if first else frame(BINARY, b"x")
    assert fed(inbox, first + idle * (most - 1) + end)[-1] == (BINARY, b"x")
    assert fed(inbox, frame(BINARY, b"x")) == [(BINARY, b"x")]
    with pytest.raises(Refused, match="without a record"):
        fed(inbox, first + idle * (most + 1))


def test_a_client_without_a_mask_is_refused_and_an_idle_connection_takes_little_room() -> None:
    with pytest.raises(Refused):
        fed(Inbox(True, 100), frame(BINARY, b"x"))
    inbox = Inbox(True, 100)
    assert len(inbox.room()) == LEAST_BYTES
    fed(inbox, frame(BINARY, b"x" * 100, b"abcd") * 1000, 1000)
    assert len(inbox.room()) <= LEAST_BYTES


# ---- over sockets ----------------------------------------------------------------------------------------------------


async def until(holds: Callable[[], Any]) -> None:
    while not holds():  # noqa: ASYNC110 what is waited for is what a transport has done, and it announces nothing
        await asyncio.sleep(0)


class Nobody:
    """In the place of aiohttp's object."""

    async def close(self) -> None:
        pass


async def pair() -> tuple[WebSocket, WebSocket]:
    """Two ends that have been upgraded."""
    loop = asyncio.get_running_loop()
    ends = []
    for wire, dialled in zip(socket.socketpair(), (True, False), strict=True):
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=wire)
        ends.append(WebSocket(Nobody(), transport, dialled=dialled))
    return ends[0], ends[1]


def certificate(folder: Path) -> ssl.SSLContext:
    """A server's, made for the moment."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(hours=1))
    pem = made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    (folder / "pem").write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")
    return context


async def tls_pair(folder: Path) -> tuple[WebSocket, WebSocket]:
    """The same inside TLS, as behind a hospital's own certificate."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[asyncio.Transport] = loop.create_future()

    class Accepting(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            accepted.set_result(transport)

    listener = await loop.create_server(Accepting, "127.0.0.1", 0, ssl=certificate(folder))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    transport, _ = await loop.create_connection(asyncio.Protocol, *listener.sockets[0].getsockname(), ssl=trusting)
    near = WebSocket(Nobody(), transport, dialled=True)
    far = WebSocket(Nobody(), await accepted, dialled=False)
    listener.close()
    return near, far


class Ear:
    """Keeps what it hears; ready while it is told to be."""

    def __init__(self, ready: bool = True) -> None:
        self.heard: list[bytes] = []
        self.ready = ready

    def hear(self, record: memoryview) -> None:
        self.heard.append(bytes(record))

    def is_ready(self) -> bool:
        return self.ready


async def test_nothing_is_read_for_who_is_not_ready_and_all_of_it_later_though_the_connection_has_ended() -> None:
    near, far = await pair()
    ear, records = Ear(ready=False), [bytes([number]) * 50_000 for number in range(40)]
    listening = asyncio.ensure_future(far.listen(ear.hear, ear.is_ready))

    async def say() -> None:
        for record in records:
            near.send(record)
            await near.drain()
        near._transport.close()

    saying = asyncio.ensure_future(say())
    await until(lambda: far._inbox.is_full)
    assert not saying.done() and not ear.heard
    ear.ready = True
    far.go_on()
    await asyncio.gather(saying, listening)
    assert ear.heard == records


async def test_inside_tls_all_is_heard_in_order_with_back_pressure_both_ways(tmp_path: Path) -> None:
    near, far = await tls_pair(tmp_path)
    ears, records = (Ear(), Ear(ready=False)), [bytes([number]) * 61_846 for number in range(60)]
    both = [asyncio.ensure_future(end.listen(ear.hear, ear.is_ready)) for end, ear in zip((near, far), ears, strict=True)]

    async def say(end: WebSocket) -> None:
        for record in records:
            end.send(record)
            await end.drain()

    saying = [asyncio.ensure_future(say(end)) for end in (near, far)]
    await until(lambda: far._inbox.is_full and len(ears[0].heard) == len(records))
    assert not ears[1].heard
    ears[1].ready = True
    far.go_on()
    await asyncio.gather(*saying)
    await until(lambda: len(ears[1].heard) == len(records))
    assert ears[0].heard == ears[1].heard == records
    await far.close()
    await asyncio.gather(*both)


async def test_both_ends_say_farewell_and_what_is_heard_wrong_ends_the_listening() -> None:
    near, far = await pair()
    ears = Ear(), Ear()
    both = [asyncio.ensure_future(end.listen(ear.hear, ear.is_ready)) for end, ear in zip((near, far), ears, strict=True)]
    near.send(b"last words")
    await near.close()
    await asyncio.gather(*both)
    assert ears[1].heard == [b"last words"]
    with pytest.raises(ConnectionError):
        far.send(b"too late")

    def fail(record: memoryview) -> None:
        raise Refused("auth", "not sealed")

    near, far = await pair()
    near.send(b"junk")
    with pytest.raises(Refused, match="not sealed"):
        await far.listen(fail, lambda: True)
    near.abort()
    far.abort()


async def test_who_pings_and_does_not_read_fills_no_memory() -> None:
    near, far = await pair()
    ear = Ear()
    listening = asyncio.ensure_future(far.listen(ear.hear, ear.is_ready))
    near._transport.pause_reading()
    ping = frame(PING, bytes(125), b"abcd")
    for _ in range(500):
        near._transport.write(ping * 100)
        near.send(b"")
        await near.drain()
    await until(lambda: len(ear.heard) == 500)
    assert far._transport.get_write_buffer_size() < MOST_BYTES
    near.abort()
    await asyncio.wait({listening})


async def served(answer: Callable[[web.BaseRequest], Any]) -> tuple[web.Server, asyncio.Server, str]:
    door = web.Server(answer)
    listener = await asyncio.get_running_loop().create_server(door, "127.0.0.1", 0)
    return door, listener, f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"


async def test_a_client_of_aiohttp_is_understood_with_its_masks_and_pings() -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        upgraded = web.WebSocketResponse(compress=False)
        await upgraded.prepare(request)
        assert request.transport is not None
        end = WebSocket(upgraded, request.transport, dialled=False)
        await end.listen(lambda record: end.send(bytes(record)), lambda: True)
        end.abort()
        return upgraded

    door, listener, url = await served(echo)
    async with aiohttp.ClientSession() as http, http.ws_connect(url, autoping=False) as near:
        for size in SIZES:
            await near.send_bytes(b"m" * size)
            assert await near.receive_bytes() == b"m" * size
        await near.ping(b"there?")
        assert (await near.receive()).data == b"there?"
        await near.close()
        assert near.close_code == 1000
    listener.close()
    await door.shutdown(1.0)


async def test_a_server_of_aiohttp_understands_us() -> None:
    async def echo(request: web.BaseRequest) -> web.StreamResponse:
        far = web.WebSocketResponse(compress=False)
        await far.prepare(request)
        async for message in far:
            await far.ping(b"there?")
            await far.send_bytes(message.data)
        return far

    door, listener, url = await served(echo)
    async with aiohttp.ClientSession() as http:
        upgraded = await http.ws_connect(url)
        end, ear = WebSocket(upgraded, _transport(upgraded), dialled=True), Ear()
        listening = asyncio.ensure_future(end.listen(ear.hear, ear.is_ready))
        sent = [b"m" * size for size in SIZES]
        end.send(*sent)
        await until(lambda: len(ear.heard) == len(sent))
        assert ear.heard == sent
        await end.close()
        await listening
        await end.release()
    listener.close()
    await door.shutdown(1.0)


async def choked() -> tuple[WebSocket, WebSocket, asyncio.Task[None]]:
    """Two ends, of which the first does not read what the second has begun to write and listens for."""
    near, far = await pair()
    listening = asyncio.ensure_future(far.listen(lambda record: None, lambda: True))
    near._transport.pause_reading()
    while not far.is_choked:
        far.send(bytes(RECORD_MAX))
    return near, far, listening


async def test_who_says_farewell_and_does_not_read_can_still_be_cut() -> None:
    near, far, listening = await choked()
    near._transport.write(frame(CLOSE, b"", b"abcd"))
    await listening
    assert not far._lost
    far.abort()
    await until(lambda: far._lost)
    near.abort()


async def test_who_stops_writing_and_does_not_read_is_gone() -> None:
    near, far, listening = await choked()
    near._transport.write_eof()
    await listening
    assert far._lost
    near.abort()


async def test_what_comes_after_a_fault_is_not_kept_and_breaks_nothing() -> None:
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: broken.append(context))
    near, far = await pair()
    near._transport.write(frame(1, b"text", b"abcd"))
    with pytest.raises(Refused):
        await far.listen(lambda record: None, lambda: True)
    for _ in range(2 * MOST_BYTES // RECORD_MAX):
        near.send(bytes(RECORD_MAX))
        await near.drain()
    await until(lambda: near._transport.get_write_buffer_size() == 0 or near._lost)
    near._transport.close()
    await until(lambda: far._lost)
    assert not broken


async def test_a_ping_or_farewell_that_can_no_longer_be_answered_hides_nothing() -> None:
    near, far = await pair()
    ear = Ear(ready=False)
    listening = asyncio.ensure_future(far.listen(ear.hear, ear.is_ready))
    near._transport.write(frame(PING, b"", b"abcd"))
    near.send(b"last words")
    near._transport.write(frame(CLOSE, b"", b"abcd"))
    near._transport.close()
    await until(lambda: far._lost)
    ear.ready = True
    far.go_on()
    await listening
    assert ear.heard == [b"last words"]


async def test_inside_tls_an_end_is_an_end_whatever_still_waits(tmp_path: Path) -> None:
    broken: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: broken.append(context))
    near, far = await tls_pair(tmp_path)
    ear = Ear()
    listening = asyncio.ensure_future(far.listen(ear.hear, ear.is_ready))
    near.send(b"first")
    await until(lambda: ear.heard)
    near._transport.pause_reading()
    while not far.is_choked:
        far.send(bytes(RECORD_MAX))
    near.abort()
    await asyncio.wait({listening})
    await until(lambda: far._lost)
    assert not broken
