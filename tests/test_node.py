"""Nodes in one process over real sockets: they learn together, hold the limits, and refuse what an operator has wrong."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import io
import json
import math
import random
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web
from mixer import only_mixing
from places import ask, breast_cancer, certify, deploy, free_ports

from gossipfl import digest
from gossipfl.cli.node import ask as asked
from gossipfl.config import NodeConfig, load_node
from gossipfl.digest import CHUNK
from gossipfl.errors import ConfigError, Exit, Misuse, Refused
from gossipfl.node import Node
from gossipfl.node.build import build
from gossipfl.node.client import CERTIFICATE_PATH, WEBSOCKET_PATH
from gossipfl.node.connection import Connection, Pace
from gossipfl.node.driver import Alarm, Driver
from gossipfl.node.gate import Caps, Gate
from gossipfl.node.logs import Log
from gossipfl.node.server import port_taken
from gossipfl.node.status import unready
from gossipfl.protocol.events import Instant
from gossipfl.protocol.session import SUBPROTOCOL
from gossipfl.store import StateError, Store, files
from gossipfl.trust.identity import Identity, NodeKeys, load_key
from gossipfl.trust.membership import Membership, with_members

TOY = {"a": "site = 0", "b": "site = 1", "c": "site = 2"}
BRISK = {"task": "toy", "local_rounds": 40, "inbound_per_minute": 60_000, "local_round_s": 0.01, "codec": "f64"}


def town(folder: Path, names: str = "ab", **changed: Any) -> dict[str, NodeConfig]:
    """Node configs by name: the toy task, brisk."""
    tomls = deploy(folder, list(names), data={name: TOY[name] for name in names}, **(BRISK | changed))
    return {name: load_node(toml) for name, toml in tomls.items()}


def driver_of(config: NodeConfig, caps: Caps | None = None, **more: Any) -> Driver:
    parts = build(config, **more)
    quiet = Log(config.node.id, "json", io.StringIO())
    return Driver(dataclasses.replace(parts, caps=caps or Caps(), log=quiet))


@contextlib.asynccontextmanager
async def running(*drivers: Driver) -> AsyncIterator[None]:
    """All run inside, and have stopped well afterwards."""
    tasks = [asyncio.create_task(driver.run()) for driver in drivers]
    try:
        for driver, task in zip(drivers, tasks, strict=True):
            waiting = asyncio.create_task(driver.running.wait())
            await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if task.done():
                task.result()
        yield
    finally:
        for driver, task in zip(drivers, tasks, strict=True):
            if not task.done():
                driver.stop()
        await asyncio.gather(*tasks)


async def until(holds: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait for what other tasks bring about."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 -- what it waits for tells nobody
            await asyncio.sleep(0.01)


def model(driver: Driver) -> np.ndarray:
    return np.array(driver.store.files.array(driver.peer.current["model"], "float64"))


def says(driver: Driver) -> str:
    return driver.log.stream.getvalue()  # type: ignore[attr-defined]


# ---- learning ------------------------------------------------------------------------------------------------------


async def test_three_nodes_over_real_sockets_learn_finish_and_agree(tmp_path: Path) -> None:
    drivers = [driver_of(config) for config in town(tmp_path, "abc").values()]
    async with running(*drivers):
        await until(lambda: all(driver.peer.stage == "finished" for driver in drivers))
        assert all(driver.peer.local_round == 40 for driver in drivers)
        models = np.array([model(driver) for driver in drivers])
        start = np.linalg.norm(models.mean(0))
        assert start > 0.1 and np.ptp(models, axis=0).max() < 0.1 * start
        assert all(not unready(driver) for driver in drivers)


async def test_a_node_that_only_dials_takes_part(tmp_path: Path) -> None:
    configs = town(tmp_path, dial_only=frozenset("a"), local_rounds=5)
    drivers = [driver_of(config) for config in configs.values()]
    async with running(*drivers):
        assert not drivers[0].listening
        await until(lambda: all(driver.peer.stage == "finished" for driver in drivers))


@pytest.mark.parametrize("part", ["model", "replica"])
async def test_a_file_deleted_under_a_running_node_ends_it_with_73_and_the_next_start_goes_on(tmp_path: Path, part: str) -> None:
    """Its neighbour sees a connection end, as at any stop; nothing else is lost."""
    configs = town(tmp_path, local_rounds=10**6, options={"dimension": 12_000})  # 96 kB: read from its file at each use
    first, other = driver_of(configs["a"]), driver_of(configs["b"])

    def deleted(task: asyncio.Task[None]) -> bool:
        name = first.peer.current["model"] if part == "model" else first.peer.link("b").model.theirs
        if first.store.files.is_durable(name):
            for file in (tmp_path / "a" / "state" / "blobs").glob(f"{name.hex()}*"):
                file.unlink()
        return task.done()

    async with running(other):
        task = asyncio.create_task(first.run())
        await until(lambda: first.peer.link("b").exchanges > 3)
        await until(lambda: deleted(task))
        with pytest.raises(StateError, match="is gone: somebody has removed it while the node ran") as error:
            await task
        assert error.value.exit_code == Exit.STATE
        again = driver_of(configs["a"])
        async with running(again):
            before = again.peer.link("b").exchanges
            await until(lambda: again.peer.link("b").exchanges > before + 3)
            assert "missing or damaged on this disk" in says(again)
        assert other.peer.link("a").exchanges > before


async def test_a_node_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    configs = town(tmp_path, local_rounds=10**6)
    first, other = driver_of(configs["a"]), driver_of(configs["b"])
    async with running(other):
        async with running(first):
            await until(lambda: first.peer.link("b").exchanges > 3)
        again = driver_of(configs["a"])
        assert again.parts.started.rows["course", "a"]
        async with running(again):
            assert again.peer.local_round >= first.peer.local_round
            assert again.peer.link("b").epoch == 0 and again.peer.link("b").exchanges >= first.peer.link("b").exchanges
            held = again.peer.link("b").exchanges
            await until(lambda: again.peer.link("b").exchanges > held)


async def test_an_alarm_rings_once_when_it_is_due_however_it_was_put_off_or_brought_forward() -> None:
    rung: asyncio.Queue[int] = asyncio.Queue()
    alarm, now = Alarm(lambda: rung.put_nowait(time.monotonic_ns())), time.monotonic_ns()
    alarm.set(now + 2_000_000)
    timer = alarm.timer
    alarm.set(now + 4_000_000)
    assert alarm.timer is timer
    assert await rung.get() >= now + 4_000_000
    alarm.set(now + 10**15)
    alarm.set(now)
    await rung.get()
    assert rung.empty() and alarm.timer is None
    alarm.set(now)
    alarm.set(None)
    later = Alarm(lambda: rung.put_nowait(0))
    later.set(time.monotonic_ns() + 1_000_000)
    assert await rung.get() == 0 and rung.empty() and alarm.timer is None


async def test_pause_holds_training_and_exchanges_and_resume_lets_go(tmp_path: Path) -> None:
    drivers = [driver_of(config) for config in town(tmp_path, local_rounds=10**6).values()]
    async with running(*drivers):
        await until(lambda: drivers[0].peer.local_round > 2)
        await drivers[0].order("pause")
        await until(lambda: drivers[0].peer.paused and drivers[0].peer.turn == "rest")
        held = drivers[0].peer.local_round
        other = drivers[1].peer.local_round
        await until(lambda: drivers[1].peer.local_round > other + 2)
        assert drivers[0].peer.local_round <= held + 1 and "paused" in unready(drivers[0])
        await drivers[0].order("resume")
        await until(lambda: drivers[0].peer.local_round > held + 2)


async def test_an_operators_pause_outlives_a_restart_and_resume_ends_it(tmp_path: Path) -> None:
    configs = town(tmp_path, local_rounds=10**6)
    first, other = (driver_of(config) for config in configs.values())
    async with running(other):
        async with running(first):
            await first.order("pause")
            await until(lambda: first.peer.paused)
        rounds = first.peer.local_round
        again = driver_of(configs["a"])
        async with running(again):
            await until(lambda: again.peer.link("b").peer and other.peer.stage != "")
            assert again.peer.paused and unready(again)[0] == "paused" and again.peer.local_round == rounds
            await again.order("resume")
            await until(lambda: again.peer.local_round > rounds)
        third = driver_of(configs["a"])
        async with running(third):
            assert not third.peer.paused


async def test_ready_is_who_has_been_greeted(tmp_path: Path) -> None:
    first, other = (driver_of(config) for config in town(tmp_path).values())
    async with running(first, other):
        await until(lambda: first.peer.by_peer and not unready(first))
        conn = first.peer.by_peer["b"]
        conn.greeted = False
        assert "connected to no neighbour" in unready(first)[0]
        first.peer.neighbour("b").is_now("resting", 0)
        assert not unready(first)
        first.peer.neighbour("b").is_now("connected", 0)
        conn.greeted = True


async def test_outside_its_allowed_hours_a_node_rests(tmp_path: Path) -> None:
    hour = (time.localtime().tm_hour + 12) % 24
    window = f'allowed_hours = "{hour:02d}:00-{hour:02d}:01"'
    driver = driver_of(town(tmp_path, limits=window)["a"])
    async with running(driver):
        await until(lambda: driver.peer.paused)
        assert "allowed_hours" in says(driver)


async def test_a_renewed_certificate_is_fetched_where_the_known_key_no_longer_answers(tmp_path: Path) -> None:
    configs = town(tmp_path, local_rounds=10**6, dial_only=frozenset("a"))
    folder = configs["b"].node.keys
    keys = NodeKeys(bytes(range(64)))
    identity = Identity(load_key(configs["b"].identity_key, None, "identity"))
    address = configs["b"].node.listen_address
    assert address
    from gossipfl.trust.identity import save_key

    save_key(configs["b"].node_key, keys.secret, None, "node", replace=True)
    (folder / "node.certificate").write_bytes(certify(identity, keys, "b", address[1], 2).encoded)
    drivers = [driver_of(config) for config in configs.values()]
    async with running(*drivers):
        await until(lambda: drivers[0].peer.link("b").exchanges > 0)
        assert drivers[0].certificates["b"].counter == 2


async def test_a_node_whose_own_certificate_has_ended_opens_no_connection(tmp_path: Path) -> None:
    late, peer = (driver_of(config) for config in town(tmp_path).values())
    certificate = late.certificates["b"]
    late.now = lambda: Instant(time.monotonic_ns(), 2**62)  # type: ignore[method-assign]
    async with running(peer):
        assert peer.door
        with pytest.raises(Refused, match="not valid now"):
            await late.client.connect(certificate, certificate.addresses[0])
        async with aiohttp.ClientSession() as http:
            await http.get(f"http://{peer.listening}{CERTIFICATE_PATH}")
        assert peer.door.gate.number == 1
        await late.client.close()
    late.store.close()


async def test_connections_cut_in_the_middle_of_bulk_leave_the_weighted_mean_exact(tmp_path: Path) -> None:
    """Payloads of 14 chunks, cut at random instants; a transfer goes on where it was."""
    configs = town(tmp_path, "abc", options={"dimension": 100_000}, counts={"a": 10, "b": 20, "c": 30})
    rng = np.random.Generator(np.random.PCG64(1))
    begin = {name: rng.normal(size=100_000) for name in configs}
    drivers = [driver_of(config, begin=begin[name], change=only_mixing) for name, config in configs.items()]
    mass = np.array([driver.parts.membership.mass(driver.peer.me) for driver in drivers])
    exact = (mass[:, None] * np.array(list(begin.values()))).sum(0) / mass.sum()
    cuts = 0
    async with running(*drivers):
        while cuts < 25:
            busy = [one for driver in drivers for one in driver.connections.values() if one.awaited]
            if busy and rng.random() < 0.5:
                busy[int(rng.integers(len(busy)))].abort()
                cuts += 1
            await asyncio.sleep(0.005)
        await until(lambda: np.ptp([model(driver) for driver in drivers], axis=0).max() < 1e-11)
        models = np.array([model(driver) for driver in drivers])
    assert abs((mass[:, None] * models).sum(0) / mass.sum() - exact).max() < 1e-11
    assert all(driver.peer.link(peer).epoch == 0 for driver in drivers for peer in driver.peer.links)


async def test_T29_a_redirect_is_not_followed(tmp_path: Path) -> None:
    configs = town(tmp_path, dial_only=frozenset("a"))
    address = configs["b"].node.listen_address
    assert address
    asked: list[str] = []

    async def away(request: web.BaseRequest) -> web.Response:
        asked.append(request.path)
        return web.Response(status=307, headers={"Location": f"http://127.0.0.1:{address[1]}/elsewhere"})

    listener = await asyncio.get_running_loop().create_server(web.Server(away), *address)
    driver = driver_of(configs["a"])
    async with listener, running(driver):
        await until(lambda: driver.peer.neighbour("b").state == "unreachable")
        assert "redirect" in driver.peer.neighbour("b").why
        assert set(asked) <= {WEBSOCKET_PATH, CERTIFICATE_PATH}


# ---- limits --------------------------------------------------------------------------------------------------------


SHORT = Caps(pending=4, per_address=4, handshake_s=0.3)


async def drip(port: int, first: bytes = b"") -> bool:
    """Connect, send `first`, then a byte now and then; True when the other side has closed."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return True
    try:
        writer.write(first)
        async with asyncio.timeout(3):
            while not reader.at_eof():
                writer.write(b"x")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await reader.read(1000)
            return True
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    finally:
        writer.close()


UPGRADE = (
    f"GET {WEBSOCKET_PATH} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
).encode()


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nX-Long: ", b"POST / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n",
                                   UPGRADE], ids=["nothing", "headers", "body", "upgraded"])  # fmt: skip
async def test_T14_T15_who_sends_nothing_or_drips_is_closed_and_honest_peers_go_on(tmp_path: Path, first: bytes) -> None:
    drivers = [driver_of(config, SHORT) for config in town(tmp_path, local_rounds=10**6).values()]
    async with running(*drivers):
        await until(lambda: drivers[0].peer.link("b").exchanges > 0)
        door = drivers[0].door
        assert door
        port = int(drivers[0].listening.rsplit(":", 1)[1])
        before = drivers[0].peer.link("b").exchanges
        end, over = time.monotonic() + 0.8, asyncio.Event()

        async def again() -> bool:
            closed = True
            while closed and not over.is_set():
                closed = await drip(port, first)
            return closed

        def gone_on() -> bool:
            """Asked again and again while the flood lasts."""
            assert len(door.gate.pending()) <= SHORT.pending
            return time.monotonic() > end and drivers[0].peer.link("b").exchanges > before

        flood = [asyncio.create_task(again()) for _ in range(60)]
        await until(gone_on)
        over.set()
        assert all(await asyncio.gather(*flood))
        await until(lambda: not door.gate.pending())


@pytest.mark.parametrize("message", ["text", b"\0" * 65_535, b"\0" * 65_536, b"\0" * 100], ids=["text", "max", "over", "100"])
async def test_T03_who_is_no_member_gets_silence_and_no_state_changes(tmp_path: Path, message: str | bytes) -> None:
    driver = driver_of(town(tmp_path)["a"], SHORT)
    async with running(driver), aiohttp.ClientSession() as http:
        rows = driver.store.load()
        async with http.ws_connect(f"http://{driver.listening}{WEBSOCKET_PATH}", protocols=(SUBPROTOCOL,)) as socket:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
            answer = await socket.receive()
            assert answer.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
        await until(lambda: not driver.connections)
        assert {key: row for key, row in driver.store.load().items() if key[0] == "link"} == {
            key: row for key, row in rows.items() if key[0] == "link"
        }


async def test_only_two_paths_answer_and_the_certificate_is_served(tmp_path: Path) -> None:
    driver = driver_of(town(tmp_path)["a"])
    async with running(driver), aiohttp.ClientSession() as http:
        for path in ("/", "/status", "/metrics", "/gossipfl/v1/", WEBSOCKET_PATH + "x"):
            async with http.get(f"http://{driver.listening}{path}") as answer:
                assert answer.status == 404 and not await answer.read()
        async with http.get(f"http://{driver.listening}{CERTIFICATE_PATH}") as answer:
            assert await answer.read() == driver.parts.certificate.encoded
        async with http.ws_connect(f"http://{driver.listening}{WEBSOCKET_PATH}", protocols=(SUBPROTOCOL,)) as socket:
            assert socket.compress == 0
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect(f"http://{driver.listening}{WEBSOCKET_PATH}", protocols=("gossipfl.v2",))


class Wire(asyncio.Transport):
    """A transport that only remembers whether it was cut."""

    def __init__(self, address: str) -> None:
        super().__init__({"peername": (address, 1)})
        self.cut = False

    def abort(self) -> None:
        self.cut = True


class Timer:
    def cancel(self) -> None: ...


def gate_of(caps: Caps, trusted: tuple[str, ...] = ()) -> Gate:
    def later(delay: float, act: Any, *arguments: Any) -> Timer:
        if not delay:
            act(*arguments)
        return Timer()

    return Gate(caps, trusted, random.Random(1), later)


@pytest.mark.parametrize("number", [3, 4, 5])
def test_T15_pending_connections_one_below_at_and_above_the_limit(number: int) -> None:
    gate = gate_of(Caps(pending=4, per_address=100))
    wires = [Wire(f"192.0.2.{at}") for at in range(number)]
    for wire in wires:
        gate.enter(wire)
    assert len(gate.pending()) == min(4, number) and sum(wire.cut for wire in wires) == max(0, number - 4)


@pytest.mark.parametrize(("trusted", "left"), [((), 3), (("192.0.2.0/24",), 5)])
def test_T15_connections_of_one_address_are_few_unless_it_is_a_trusted_proxy(trusted: tuple[str, ...], left: int) -> None:
    gate = gate_of(Caps(pending=100, per_address=3), trusted)
    wires = [Wire("192.0.2.1") for _ in range(5)]
    for wire in wires:
        gate.enter(wire)
    assert sum(not wire.cut for wire in wires) == left


def test_T15_a_member_keeps_its_connection_whatever_strangers_do() -> None:
    gate = gate_of(Caps(pending=4, per_address=3))
    member = Wire("192.0.2.1")
    gate.enter(member)
    assert gate.confirm(member, "b")
    for _ in range(500):
        gate.enter(Wire("192.0.2.1"))
    assert not member.cut and len(gate.guests) <= 5


@pytest.mark.parametrize(("moved", "slow"), [(29, True), (30, False), (31, False)])
def test_T14_a_transfer_slower_than_the_rate_over_the_window_is_slow(moved: int, slow: bool) -> None:
    pace = Pace(Caps(rate_bytes_s=10, rate_window_s=3))
    pace.begin(Instant(0, 0))
    pace.moved(moved)
    assert not pace.is_slow(Instant(2_900_000_000, 0))
    assert pace.is_slow(Instant(3_000_000_000, 0)) is slow


class Line:
    """A socket and session that take whatever is sent."""

    is_choked = False

    def __init__(self) -> None:
        self.sent = 0

    def seal_chunk(self, root: bytes, index: int, path: list[bytes], data: memoryview) -> bytes:
        return bytes(data)

    def send(self, *records: bytes) -> None:
        self.sent += sum(map(len, records))

    async def drain(self) -> None: ...

    def go_on(self) -> None: ...

    def abort(self) -> None: ...


def lending(folder: Path) -> tuple[Connection, bytes]:
    """A connection over such a line, and a payload of forty chunks, durable on disk."""
    store, line = Store.open(folder / "state"), Line()
    root = store.files.put(np.random.default_rng(4).bytes(40 * CHUNK))
    store.files.make_durable([root])

    async def spend(size: int) -> None: ...

    host = SimpleNamespace(caps=Caps(), store=store, burst=4, now=lambda: Instant(0, 0), spend=spend)
    return Connection(1, host, line, line), root  # type: ignore[arg-type]


async def test_T14_a_payload_asked_for_again_and_again_is_hashed_no_further_than_it_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, root = lending(tmp_path)
    hashed, leaf = [], digest.leaf
    for room in (digest, files):
        monkeypatch.setattr(room, "leaf", lambda chunk: [hashed.append(len(chunk)), leaf(chunk)][1])
    for _ in range(100):
        connection.send_bulk(root, 39)
        await connection.push(connection.bulks[0])
    assert connection.socket.sent == 100 * CHUNK  # type: ignore[attr-defined]
    assert sum(hashed) <= 100 * CHUNK
    connection.host.store.close()


async def test_a_chunk_that_has_rotted_is_not_sent_to_who_asks_again(tmp_path: Path) -> None:
    connection, root = lending(tmp_path)
    connection.send_bulk(root, 38)
    await connection.push(connection.bulks[0])
    with (tmp_path / "state" / "blobs" / root.hex()).open("r+b") as file:
        file.seek(39 * CHUNK + 5)
        file.write(b"rot")
    connection.send_bulk(root, 38)
    with pytest.raises(StateError, match="has changed on the disk"):
        await connection.push(connection.bulks[0])
    connection.host.store.close()


async def test_a_payload_whose_file_was_deleted_ends_the_node_not_only_the_connection(tmp_path: Path) -> None:
    connection, root = lending(tmp_path)
    (tmp_path / "state" / "blobs" / root.hex()).unlink()
    connection.send_bulk(root, 0)
    with pytest.raises(StateError, match=f"{root.hex()} of the state folder is gone: somebody has removed it"):
        await connection.write()
    connection.host.store.close()


# ---- the operator's side -------------------------------------------------------------------------------------------


async def test_the_admin_listener_says_how_the_node_is_and_takes_orders_with_the_token_only(tmp_path: Path) -> None:
    drivers = [driver_of(config) for config in town(tmp_path, local_rounds=10**6).values()]
    toml = tmp_path / "a" / "node.toml"
    async with running(*drivers), aiohttp.ClientSession() as http:
        await until(lambda: drivers[0].peer.link("b").exchanges > 0)
        base = f"http://{drivers[0].admin}"
        status = await asyncio.to_thread(ask, toml, "/status")
        assert status["peers"]["b"]["exchanges"] > 0 and status["stage"] == "training" and status["pid"]
        assert (await asyncio.to_thread(ask, toml, "/healthz"))["alive"]
        async with http.get(base + "/readyz") as answer:
            assert answer.status == 200
        async with http.get(base + "/metrics") as answer:
            assert 'gossipfl_exchanges_total{peer="b"}' in await answer.text()
        async with http.post(base + "/order", json={"order": "stop"}) as answer:
            assert answer.status == 403
        async with http.get(base + "/status", headers={"Host": "evil.example"}) as answer:
            assert answer.status == 403
        assert (tmp_path / "a" / "state" / "admin.json").stat().st_mode & 0o077 == 0
        await asyncio.to_thread(ask, toml, "/order", {"order": "pause"})
        await until(lambda: drivers[0].peer.paused)
        async with http.get(base + "/readyz") as answer:
            assert answer.status == 503 and "paused" in (await answer.json())["reasons"]


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.2"])
async def test_orders_are_taken_on_every_address_of_loopback(host: str, tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
            trial.bind((host.strip("[]"), 0))
    except OSError:
        pytest.skip(f"this machine has no {host}")
    town(tmp_path, local_rounds=10**6)
    toml = tmp_path / "a" / "node.toml"
    toml.write_text(re.sub(r'admin = ".*"', f'admin = "{host}:0"', toml.read_text()))
    driver = driver_of(load_node(toml))
    async with running(driver), aiohttp.ClientSession() as http:
        assert driver.admin.startswith(f"{host}:")
        await asyncio.to_thread(ask, toml, "/order", {"order": "pause"})
        await until(lambda: driver.peer.paused)
        for name in ("evil.example", "::1.evil.example", "[::2]", "127.0.0.1.evil.example", ""):
            async with http.get(f"http://{driver.admin}/status", headers={"Host": name}) as answer:
                assert answer.status in (400, 403)


async def test_a_running_node_hands_out_its_model_with_statistics_of_any_length(tmp_path: Path) -> None:
    from gossipfl.cli.model import _asked

    config = town(tmp_path, local_rounds=10**6)["a"]
    driver = driver_of(config)
    async with running(driver):
        await until(lambda: len(driver.evaluations.history) > 0)  # no other reads what is frozen before many rounds have passed
        driver.peer.frozen = bytes(60_000)
        statistics, vector, stage = await asyncio.to_thread(_asked, config)
        assert statistics == driver.peer.frozen and stage == driver.peer.stage
        assert len(vector) == model(driver).nbytes
        driver.peer.frozen = b""


async def test_T30_logs_hold_no_keys_and_no_rows(tmp_path: Path) -> None:
    configs = town(tmp_path, local_rounds=5)
    drivers = [driver_of(config) for config in configs.values()]
    async with running(*drivers):
        await until(lambda: all(driver.peer.stage == "finished" for driver in drivers))
    for driver in drivers:
        text = says(driver)
        assert all(json.loads(line)["node"] == driver.peer.me for line in text.splitlines())
        secrets = [driver.parts.psk, driver.parts.keys.secret[:32], driver.parts.keys.secret[32:]]
        assert not any(secret.hex() in text for secret in secrets)
        assert not re.search(r"\[-?\d+\.\d+, -?\d+\.\d+", text)


def test_a_state_folder_in_use_is_refused_with_73_and_names_the_process(tmp_path: Path) -> None:
    config = town(tmp_path)["a"]
    parts = build(config)
    with pytest.raises(ConfigError, match="in use by process") as error:
        build(config)
    assert error.value.exit_code == Exit.STATE
    parts.store.close()


async def test_a_port_in_use_is_refused_with_73_and_a_remedy(tmp_path: Path) -> None:
    config = town(tmp_path)["a"]
    address = config.node.listen_address
    assert address
    async with await asyncio.start_server(lambda reader, writer: None, *address):
        with pytest.raises(ConfigError, match="ss -ltnp") as error:
            await driver_of(config).run()
        assert error.value.exit_code == Exit.STATE, "systemd may try again: 73 is not in RestartPreventExitStatus"
    async with running(driver_of(config)):
        pass


@pytest.mark.parametrize(
    "number, code", [(errno.EADDRINUSE, Exit.STATE), (errno.EACCES, Exit.PERMISSION), (errno.EADDRNOTAVAIL, Exit.CONFIG)]
)
def test_why_a_port_cannot_be_had_decides_the_exit_code(number: int, code: Exit) -> None:
    assert port_taken("listen", "10.0.0.1", 80, OSError(number, "no")).exit_code == code


async def test_a_state_folder_without_its_blobs_is_refused_with_73_and_the_one_safe_remedy(tmp_path: Path) -> None:
    configs = town(tmp_path, local_rounds=10**6)
    first, other = (driver_of(config) for config in configs.values())
    async with running(first, other):
        await until(lambda: first.peer.local_round > 3)
    shutil.rmtree(configs["a"].node.state / "blobs")
    with pytest.raises(StateError, match="move the state folder away") as error:
        build(configs["a"])
    assert error.value.exit_code == Exit.STATE


async def test_status_of_a_stopped_and_of_a_killed_node_says_which(tmp_path: Path) -> None:
    config = town(tmp_path)["a"]
    toml = tmp_path / "a" / "node.toml"
    with pytest.raises(ConfigError, match="never has"):
        asked(toml, "/status")
    async with running(driver_of(config)):
        left = (config.node.state / "admin.json").read_text()
    with pytest.raises(ConfigError, match="does not run; its state is kept"):
        asked(toml, "/status")
    for damaged in ("", "[]", "{}", '{"address": 1, "token": "", "pid": "x"}'):
        (config.node.state / "admin.json").write_text(damaged)
        with pytest.raises(ConfigError, match="does not hold what the node wrote") as error:
            asked(toml, "/status")
        assert error.value.exit_code == Exit.UNREACHABLE
    (config.node.state / "admin.json").write_text(json.dumps(json.loads(left) | {"pid": 2**22 + 1}))
    with pytest.raises(ConfigError, match="ended without a word") as error:
        asked(toml, "/status")
    assert error.value.exit_code == Exit.UNREACHABLE


def test_a_federation_file_never_goes_back_and_a_newer_one_is_taken(tmp_path: Path) -> None:
    configs = town(tmp_path, "abc")
    old = Membership.load(tmp_path / "federation.json")
    build(configs["a"]).store.close()
    newer = with_members(old, old.member("b"))
    (tmp_path / "federation.json").write_text(newer.dump())
    build(configs["a"]).store.close()
    (tmp_path / "federation.json").write_text(old.dump())
    with pytest.raises(ConfigError, match="never goes back"):
        build(configs["a"])
    other = newer.model_copy(update={"study": old.study.model_copy(update={"eta": 1.0})})
    (tmp_path / "federation.json").write_text(other.dump())
    with pytest.raises(ConfigError, match="another version 2 than this node has used"):
        build(configs["a"])


def test_a_device_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    town(tmp_path)
    toml = tmp_path / "a" / "node.toml"
    toml.write_text(toml.read_text() + '\ndevice = "cuda:99"\n')
    with pytest.raises(ConfigError, match=r'cuda:99.*write device = "cpu"') as error:
        build(load_node(toml))
    assert error.value.exit_code == Exit.CONFIG and not (tmp_path / "a" / "state").exists()


def test_changed_rows_are_refused_until_accepted(tmp_path: Path) -> None:
    config = town(tmp_path)["a"]
    build(config).store.close()
    toml = tmp_path / "a" / "node.toml"
    toml.write_text(toml.read_text().replace("site = 0", "site = 5"))
    with pytest.raises(ConfigError, match="--accept-new-data"):
        build(load_node(toml))
    build(load_node(toml), accept_new_data=True).store.close()
    build(load_node(toml)).store.close()


@pytest.mark.parametrize(
    ("harm", "says", "code"),
    [
        (lambda config: config.node_key.chmod(0o644), "chmod 600", Exit.PERMISSION),
        (lambda config: config.psk_key.unlink(), "is not there", Exit.CONFIG),
        (lambda config: config.node.federation.write_text("{"), "federation.json", Exit.CONFIG),
        (lambda config: config.certificate.write_bytes(b"x" * 200), "no certificate", Exit.CONFIG),
    ],
    ids=["open key", "no psk", "bad federation file", "bad certificate"],
)
def test_what_an_operator_has_wrong_is_said_with_its_exit_code(tmp_path: Path, harm: Any, says: str, code: Exit) -> None:
    config = town(tmp_path)["a"]
    harm(config)
    with pytest.raises(ConfigError, match=says) as error:
        build(config)
    assert error.value.exit_code == code and not (config.node.state / "lock").exists()


# ---- inside a loop of one's own --------------------------------------------------------------------------------------


def test_mix_inside_a_loop_of_ones_own_brings_two_models_together(tmp_path: Path) -> None:
    import torch

    from gossipfl import tasks

    names = ["a", "b"]
    tomls = deploy(tmp_path, names, "breast-cancer", breast_cancer(names), inbound_per_minute=60_000, clip=0.0,
                   correction="none", statistics_tolerance=1e-6)  # fmt: skip
    task = tasks.load("breast-cancer")
    modules = {name: task.model() for name in names}
    with contextlib.ExitStack() as stack:
        nodes = {name: stack.enter_context(Node(toml, external=True)) for name, toml in tomls.items()}
        with pytest.raises(Misuse, match="not that of the study"):
            nodes["a"].mix(torch.nn.Linear(2, 2))
        with pytest.raises(Misuse, match="not a torch module but str"):
            nodes["a"].mix("model")  # type: ignore[arg-type]
        for odd in (-1, 2.5, "3", None):
            with pytest.raises(Misuse, match="say how many"):
                nodes["a"].mix(modules["a"], steps=odd)  # type: ignore[arg-type]
        for odd in (-1.0, math.nan, math.inf, "3"):
            with pytest.raises(Misuse, match="mean gradient norm"):
                nodes["a"].mix(modules["a"], gradient=odd)  # type: ignore[arg-type]
        first = [nodes[name].mix(modules[name], steps=1) for name in names]
        assert all(report.loaded and report.steps == 0 for report in first)
        end = time.monotonic() + 30
        met: set[str] = set()
        while time.monotonic() < end and not ("a" in met and "b" in met):
            for sign, name in ((1.0, "a"), (-1.0, "b")):
                with torch.no_grad():
                    for weight in modules[name].parameters():
                        weight += sign * 0.01
                report = nodes[name].mix(modules[name], steps=1, gradient=1.0)
                assert report.loaded and report.steps == 1 and report.waiting <= 10_000
                if report.stage == "training":
                    met.update(report.peers)
            time.sleep(0.02)
        assert met == {"a", "b"}
        with pytest.raises(Misuse, match="before finish"):
            nodes["a"].wait(0.1)
        for name, node in nodes.items():
            with torch.no_grad():
                for weight in modules[name].parameters():
                    weight += 0.01
            taken = node.status()["steps"]
            node.mix(modules[name], steps=1, gradient=1.0)
            node.finish()
            with pytest.raises(Misuse, match="after finish"):
                node.mix(modules[name])
        assert all(node.wait(30) for node in nodes.values())
        assert taken + 1 <= nodes["b"].status()["steps"], "what was handed in before finish() is taken"
        reports = [nodes[name].load(modules[name]) for name in names]
        assert all(report.stage == "finished" and report.steps == 0 for report in reports)
        values = [torch.nn.utils.parameters_to_vector(modules[name].parameters()) for name in names]
        assert (values[0] - values[1]).abs().max() < 0.5
    with pytest.raises(Misuse):
        Node(tomls["a"], external=True).mix(modules["a"])


def test_mix_with_everybody_else_away_keeps_the_local_change(tmp_path: Path) -> None:
    import torch

    from gossipfl import tasks

    names = ["a", "b"]
    tomls = deploy(tmp_path, names, "breast-cancer", breast_cancer(names))
    module = tasks.load("breast-cancer").model()
    with Node(tomls["a"], external=True) as node:
        node.mix(module)
        before = torch.nn.utils.parameters_to_vector(module.parameters()).detach().clone()
        for _ in range(5):
            with torch.no_grad():
                for weight in module.parameters():
                    weight += 1.0
            report = node.mix(module, steps=2)
        after = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
        assert torch.allclose(after, before + 5.0) and report.exchanges == 0 and report.waiting == 10
        assert "connected to no neighbour" in str(report) and "10 steps wait" in str(report)
        node.finish()
        assert not node.wait(0.05), "nobody is there: the release has not begun"


def test_a_node_that_trains_by_itself_takes_no_steps_of_a_loop(tmp_path: Path) -> None:
    tomls = deploy(tmp_path, ["a", "b"], "breast-cancer", breast_cancer(["a", "b"]))
    with Node(tomls["a"]) as node:
        for verb in (lambda: node.mix(None), node.finish):  # type: ignore[arg-type]
            with pytest.raises(Misuse, match="external=True"):
                verb()
        assert not node.wait(0.05)


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(5))) == 5
