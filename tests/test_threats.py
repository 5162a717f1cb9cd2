"""Attacks on a whole node: hostile members with valid keys, in the simulated network, and hostile servers on sockets.

Rows of docs/threat-model.md that one room answers alone are tested beside that room (test_session, test_identity,
test_messages, test_checks, ..); the last test here looks that every row that claims a test has one.
"""

from __future__ import annotations

import ast
import asyncio
import base64
import gzip
import io
import json
import math
import re
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from worlds import DAY, PSK, certificate_of, federation, keys_of, toy_specs

from gossipfl.cli import handshake
from gossipfl.node.client import CERTIFICATE_PATH, WEBSOCKET_PATH, Client
from gossipfl.node.gate import Caps
from gossipfl.node.logs import Log
from gossipfl.node.server import Door
from gossipfl.protocol import events as ev
from gossipfl.protocol import messages as ms
from gossipfl.protocol.events import Instant
from gossipfl.protocol.link import digest
from gossipfl.protocol.session import SUBPROTOCOL, Session
from gossipfl.simulator.network import SECOND, Pace, World
from gossipfl.tasks.toy import ToyTrainer
from gossipfl.workbench import Workbench

ROOT = Path(__file__).parents[1]
THREE = {"anna": 10, "bert": 20, "cleo": 30}
NEVER = 10**18


def quiet_world(counts: dict[str, int] | None = None, turn_ns: int = NEVER, kind: type[World] = World) -> World:
    """Nodes that only mix, all connected; with `turn_ns` at never, each has begun one exchange and then rests."""
    members = federation(counts or THREE)
    rng = np.random.default_rng(7)
    begins = {name: rng.normal(size=8) for name in members.active}
    specs = toy_specs(members, lambda name: None, begin=lambda name: begins[name], trains=False, turn_ns=turn_ns)
    world = kind(specs, seed=3)
    world.run(3)
    return world


def proposal(world: World, sender: str, recipient: str, /, **changed: Any) -> ms.Propose:
    """What an honest sender would propose next, with fields changed before it is signed with the sender's own key."""
    peer = world.nodes[sender].peer
    link = peer.link(recipient)
    size, scalars = peer.settings.model_size, peer.scalars("model")
    manifest = peer.manifest(recipient, link, link.high + 1, "propose", "model", bytes(32), size, **scalars)
    raw = ms.encode(msgspec.structs.replace(manifest, **changed))
    return ms.Propose(raw, keys_of(sender).sign("manifest", raw))


def hear(world: World, node: str, peer: str, message: ms.Message) -> list[ev.Command]:
    """What `node` does when `message` comes over its session with `peer`."""
    core = world.nodes[node].peer
    return core.handle(ev.Received(core.by_peer[peer].id, message), world.now())


def refusals(commands: list[ev.Command]) -> list[tuple[int, str]]:
    return [(each.message.k, each.message.reason) for each in commands
            if isinstance(each, ev.Send) and isinstance(each.message, ms.Refusal)]  # fmt: skip


def asks_for_bytes(commands: list[ev.Command]) -> bool:
    return any(isinstance(each, ev.ReceiveBulk | ev.Mix | ev.SendBulk) for each in commands)


def link_settled(world: World, a: str, b: str) -> bool:
    ends = world.nodes[a].peer, world.nodes[b].peer
    return b in ends[0].by_peer and ends[0].is_idle(b) and ends[1].is_idle(a)


@pytest.fixture
def world() -> World:
    made = quiet_world()
    for name, other in (("anna", "bert"), ("anna", "cleo"), ("bert", "cleo")):
        for one, two in ((name, other), (other, name)):
            if two not in made.nodes[one].peer.by_peer:
                made.nodes[one].peer.dial(two)
                made.dial(made.nodes[one], two)
                made.run(1)
        assert link_settled(made, name, other)
    return made


# ---- T01: altered on the wire --------------------------------------------------------------------------------------


def test_T01_a_bit_flipped_on_the_way_ends_the_session_and_changes_no_state(world: World) -> None:
    anna, bert = world.nodes["anna"], world.nodes["bert"]
    before = bert.peer.link("anna"), bert.peer.current["model"]
    end = next(end for end in anna.ends.values() if end.peer == "bert")
    record = bytearray(end.session.send(proposal(world, "anna", "bert")))
    record[len(record) // 2] ^= 1
    end.write(bytes(record))
    world.run(1)
    assert "anna" not in bert.peer.by_peer
    assert (bert.peer.link("anna"), bert.peer.current["model"]) == before
    noted = [fact.fields["detail"] for fact in bert.facts if fact.kind == "closed"]
    assert len(noted) == 1
    assert "auth" in noted[0]


# ---- T06: a signed delta in another place --------------------------------------------------------------------------


def test_T06_a_proposal_to_one_member_is_refused_by_another(world: World) -> None:
    commands = hear(world, "cleo", "anna", proposal(world, "anna", "bert"))
    assert refusals(commands) == [(0, "recipient")]
    assert not asks_for_bytes(commands)


def test_T06_a_proposal_that_a_third_member_forwards_is_refused(world: World) -> None:
    commands = hear(world, "cleo", "bert", proposal(world, "anna", "cleo"))
    assert refusals(commands) == [(0, "auth")]
    assert not asks_for_bytes(commands)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"federation": bytes(32)}, "recipient"),
        ({"recipient": "dora"}, "recipient"),
        ({"sender": "cleo"}, "recipient"),
        ({"epoch": 7}, "gap"),
        ({"prev": 99}, "gap"),
        ({"k": 0}, "replay"),
        ({"reference": b"\1" * 32}, "base"),
    ],
)
def test_T06_a_proposal_signed_for_another_exchange_is_refused(
    world: World, changed: dict[str, Any], reason: str
) -> None:
    commands = hear(world, "bert", "anna", proposal(world, "anna", "bert", **changed))
    assert refusals(commands) == [(0, reason)]
    assert not asks_for_bytes(commands)


def test_T06_a_proposal_is_no_reply_and_a_reply_no_proposal(world: World) -> None:
    as_reply = {"role": "reply", "answers": bytes(32), "q": bytes(32)}
    assert refusals(hear(world, "bert", "anna", proposal(world, "anna", "bert", **as_reply))) == [(0, "malformed")]


def test_T06_a_signature_over_other_bytes_is_refused(world: World) -> None:
    signed, other = proposal(world, "anna", "bert"), proposal(world, "anna", "bert", tau=1.0)
    commands = hear(world, "bert", "anna", ms.Propose(other.manifest, signed.signature))
    assert refusals(commands) == [(0, "auth")]


def test_T06_an_old_proposal_said_again_is_answered_alike_and_never_applied_twice() -> None:
    made = quiet_world({"anna": 10, "bert": 20})
    said: list[ms.Propose] = []
    anna, bert = made.nodes["anna"], made.nodes["bert"].peer
    honest = anna.carry_out

    def tapped(command: ev.Command) -> None:
        if isinstance(command, ev.Send) and isinstance(command.message, ms.Propose):
            said.append(command.message)
        honest(command)

    anna.carry_out = tapped  # type: ignore[method-assign]
    while len(said) < 2:
        anna.feed(ev.Alarm())
        anna.peer.begin_exchange("model")
        for command in anna.peer.out:
            anna.carry_out(command)
        made.run(2)
        assert link_settled(made, "anna", "bert")
    answered, model = bert.link("anna").answered, bert.current["model"]
    assert answered is not None
    assert digest(said[-1].manifest) == answered.proposal
    again = hear(made, "bert", "anna", said[-1])
    assert [each.message.manifest for each in again if isinstance(each, ev.Send) and isinstance(each.message, ms.Reply)] == [
        answered.manifest
    ]
    assert not asks_for_bytes(again)
    assert refusals(hear(made, "bert", "anna", said[0])) == [(0, "replay")]
    assert bert.current["model"] == model


# ---- T11: bombs ----------------------------------------------------------------------------------------------------


class Ports:
    """What Client and Door ask of a driver, and nothing behind it."""

    def __init__(self, me: str, peer: str, addresses: tuple[str, ...]) -> None:
        self.me, self.caps = me, Caps(handshake_s=5)
        self.members = federation({me: 10, peer: 10})
        self.certificates = {peer: certificate_of(peer, addresses=addresses)}
        self.parts = SimpleNamespace(
            certificate=certificate_of(me), membership=self.members,
            config=SimpleNamespace(node=SimpleNamespace(proxy="")),
        )  # fmt: skip

    def now(self) -> Instant:
        return Instant(0, (certificate_of(self.me).not_before + DAY) * SECOND)

    def session(self, expect: Any) -> Session:
        return Session(
            initiator=expect is not None, federation=self.members.federation_id, keys=keys_of(self.me),
            certificate=certificate_of(self.me).encoded, psk=PSK, ephemeral=bytes(range(32)),
            admit=self.members.admits, expect=expect and (expect.member, expect.noise), started=self.now(),
        )  # fmt: skip


async def served(handler: Any) -> TestServer:
    app = web.Application()
    app.router.add_get(WEBSOCKET_PATH, handler)
    app.router.add_get(CERTIFICATE_PATH, handler)
    server = TestServer(app)
    await server.start_server()
    return server


async def test_T11_a_compressed_answer_is_never_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = certificate_of("bert", 7, addresses=("http://bert.example:8470",)).encoded
    bodies = [gzip.compress(bytes(64 * 2**20), 1), gzip.compress(newer), newer]

    async def answer(request: web.Request) -> web.Response:
        packed = {} if bodies[0] is newer else {"Content-Encoding": "gzip"}
        return web.Response(body=bodies.pop(0), headers=packed)

    server = await served(answer)
    ports = Ports("anna", "bert", (f"http://127.0.0.1:{server.port}",))
    client = Client(ports)  # type: ignore[arg-type]
    tracemalloc.start()
    assert await client.newer(ports.certificates["bert"]) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with monkeypatch.context() as clock:
        clock.setattr("time.time_ns", lambda: ports.now().wall_ns)
        assert await client.newer(ports.certificates["bert"]) is None, "a certificate that is packed is none"
        found = await client.newer(ports.certificates["bert"])
    await client.close()
    await server.close()
    assert peak < 8 * 2**20 and found is not None and found.encoded == newer


async def test_T11_neither_side_negotiates_compression() -> None:
    offered: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        offered.append(request.headers.get("Sec-WebSocket-Extensions"))
        return web.Response(status=404)

    server = await served(answer)
    ports = Ports("anna", "bert", (f"ws://127.0.0.1:{server.port}",))
    client = Client(ports)  # type: ignore[arg-type]
    with pytest.raises(aiohttp.ClientError):
        await client.connect(ports.certificates["bert"], ports.certificates["bert"].addresses[0])
    await client.close()
    await server.close()
    assert offered == [None]


class Upgraded(Ports):
    """Answers the upgrade and goes no further."""

    def session(self, expect: Any) -> Session:
        raise ConnectionResetError("the upgrade is answered: enough has been seen")


async def test_T11_a_peer_that_offers_compression_gets_none() -> None:
    gate = SimpleNamespace(enter=lambda transport: None, guests={}, leave=lambda transport: None)
    door = Door(Upgraded("anna", "bert", ()), gate)  # type: ignore[arg-type]
    listener = await asyncio.get_running_loop().create_server(door, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}{WEBSOCKET_PATH}"
    async with aiohttp.ClientSession() as http, http.ws_connect(url, protocols=(SUBPROTOCOL,), compress=15) as socket:
        assert "Sec-WebSocket-Extensions" not in socket._response.headers
        assert socket.compress == 0
    listener.close()
    await door.shutdown(0.1)


# ---- T12: numbers that poison --------------------------------------------------------------------------------------


class Hostile(Workbench):
    """A member's hands that put something else into every payload; its core then signs it as its own."""

    def __init__(self, honest: Workbench, spoil: Any) -> None:
        super().__init__(honest.bench, honest.tensors)
        self.spoil = spoil

    def encode(self, job: ev.Encode) -> ev.Encoded:
        payload = self.spoil()
        return ev.Encoded(job.job, self.tensors.put(payload), len(payload))

    def mix(self, job: ev.Mix) -> ev.Event:
        done = super().mix(job)
        if isinstance(done, ev.Mixed) and done.payload:
            return msgspec.structs.replace(done, payload=self.tensors.put(self.spoil()))
        return done


def float64_payload(value: float) -> Any:
    vector = np.zeros(8)
    vector[5] = value
    return vector.view(np.uint8)


@pytest.mark.parametrize(
    ("value", "reason"), [(math.nan, "nonfinite"), (math.inf, "nonfinite"), (1e300, "implausible"), (1e9, "implausible")]
)
def test_T12_what_a_member_signs_is_not_believed_and_the_model_stays_bit_identical(value: float, reason: str) -> None:
    made = quiet_world({"anna": 10, "bert": 20}, turn_ns=SECOND)
    anna, bert = made.nodes["anna"], made.nodes["bert"]
    made.run(30, until=lambda: link_settled(made, "anna", "bert") and bert.peer.link("anna").done > 2)
    anna.bench = Hostile(anna.bench, lambda: float64_payload(value))
    before = bert.peer.current["model"]
    made.run(30)
    assert bert.peer.current["model"] == before
    noted = {fact.fields["reason"] for fact in bert.facts if fact.kind in ("refusal", "abort") and
             fact.fields.get("by", "me") == "me"}  # fmt: skip
    assert reason in noted
    assert bert.alive


def test_T12_a_reply_whose_flow_differs_is_aborted_and_nobody_has_applied_it() -> None:
    """The initiator compares the digest of q before it applies; the responder takes its half back."""
    made = quiet_world({"anna": 10, "bert": 20}, turn_ns=SECOND)
    anna, bert = made.nodes["anna"], made.nodes["bert"]
    made.run(30, until=lambda: link_settled(made, "anna", "bert"))

    class Liar(Workbench):
        def mix(self, job: ev.Mix) -> ev.Event:
            done = super().mix(job)
            answers = isinstance(done, ev.Mixed) and done.payload
            return msgspec.structs.replace(done, q=bytes(32)) if answers else done

    before = sum(made.model(name) * anna.peer.settings.members.mass(name) for name in made.nodes)
    anna.bench = Liar(anna.bench.bench, anna.bench.tensors)
    made.run(20, until=lambda: any(fact.kind == "abort" for fact in bert.facts))
    assert [fact.fields["reason"] for fact in bert.facts if fact.kind == "abort"][:1] == ["numeric"]
    made.run(2)
    after = sum(made.model(name) * anna.peer.settings.members.mass(name) for name in made.nodes)
    np.testing.assert_allclose(after, before, atol=1e-12)


# ---- T13: sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [-1, 1, -64, 2**40])
def test_T13_a_size_that_the_layout_does_not_imply_is_refused_before_a_byte_is_asked_for(
    world: World, more: int
) -> None:
    size = world.nodes["anna"].peer.settings.model_size + more
    commands = hear(world, "bert", "anna", proposal(world, "anna", "bert", size=size))
    assert [reason for _, reason in refusals(commands)] == ["size"]
    assert not asks_for_bytes(commands)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"codec": "int8"}, "codec"),
        ({"membership": 2}, "membership-old"),
        ({"mass": 3.0}, "implausible"),
        ({"gamma": 1.0}, "implausible"),
        ({"statistics": b"\2" * 32}, "stats"),
    ],
)
def test_T13_what_the_study_does_not_say_is_refused_before_a_byte_is_asked_for(
    world: World, changed: dict[str, Any], reason: str
) -> None:
    commands = hear(world, "bert", "anna", proposal(world, "anna", "bert", **changed))
    assert [why for _, why in refusals(commands)] == [reason]
    assert not asks_for_bytes(commands)


def test_T13_a_payload_that_was_not_offered_is_not_sent(world: World) -> None:
    commands = hear(world, "bert", "anna", ms.Fetch(world.nodes["bert"].peer.current["model"], 0))
    assert refusals(commands) == [(0, "malformed")]
    assert not asks_for_bytes(commands)


# ---- T26: clocks ---------------------------------------------------------------------------------------------------


class Jumping(World):
    """The wall clock of every node can be set; the monotonic one goes on."""

    wall_ns = 0

    def now(self) -> Instant:
        honest = super().now()
        return Instant(honest.mono_ns, honest.wall_ns + self.wall_ns)


@pytest.mark.parametrize("days", [-1, 1])
def test_T26_a_wall_clock_that_jumps_stops_no_exchange(days: int) -> None:
    made = quiet_world(turn_ns=SECOND, kind=Jumping)

    def exchanges() -> int:
        return sum(link.exchanges for node in made.nodes.values() for link in node.peer.links.values())

    def pace(seconds: float) -> int:
        before = exchanges()
        made.run(seconds)
        return exchanges() - before

    calm = pace(20)
    made.wall_ns = days * DAY * SECOND
    jumped = pace(20)
    assert jumped > 0.7 * calm > 0
    assert not any(link.resets for node in made.nodes.values() for link in node.peer.links.values())


def test_T26_after_its_last_day_a_certificate_opens_no_session_and_a_corrected_clock_heals_it() -> None:
    made = quiet_world(turn_ns=SECOND, kind=Jumping)
    anna = made.nodes["anna"]
    made.wall_ns = 40 * DAY * SECOND
    for end in list(anna.ends.values()):
        made.sever(end, "cut")
    made.run(30)
    assert not anna.peer.by_peer
    assert "not valid now" in anna.peer.neighbour("bert").why
    made.wall_ns = 0
    made.run(60, until=lambda: len(anna.peer.by_peer) == 2)
    assert len(anna.peer.by_peer) == 2


def test_T26_a_peer_with_another_clock_is_named_to_the_operator_and_still_heard(world: World) -> None:
    bert = world.nodes["bert"].peer
    conn = bert.by_peer["anna"]
    conn.greeted = False
    members = bert.settings.members
    view = world.nodes["anna"].peer.link("bert").view()
    wall = world.now().wall_ns // SECOND + DAY
    hello = ms.Hello(members.version, members.digest, bert.settings.layout, "observing", b"", view, (), wall)
    commands = hear(world, "bert", "anna", hello)
    clock = [each for each in commands if isinstance(each, ev.Note) and each.kind == "clock"]
    assert clock[0].fields["seconds"] == DAY
    assert not refusals(commands)


# ---- T29: addresses ------------------------------------------------------------------------------------------------


def test_T29_nothing_but_a_certificate_says_where_to_dial() -> None:
    assert ev.Dial.__struct_fields__ == ("peer",)
    kinds = [kind for kind in vars(ms).values() if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
    named = {name for kind in kinds for name in kind.__struct_fields__}
    assert not {name for name in named if re.search("address|url|host|port", name)}


async def test_T29_a_redirect_is_not_followed() -> None:
    visited: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        visited.append(request.path)
        return web.Response(body=certificate_of("bert", 1).encoded)

    inner = await served(elsewhere)

    async def away(request: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://127.0.0.1:{inner.port}{request.path}")

    outer = await served(away)
    ports = Ports("anna", "bert", (f"http://127.0.0.1:{outer.port}",))
    client, known = Client(ports), ports.certificates["bert"]  # type: ignore[arg-type]
    with pytest.raises((aiohttp.ClientError, OSError)):
        await client.connect(known, known.addresses[0])
    assert await client.newer(known) is None
    await client.close()
    membership: Any = SimpleNamespace(
        neighbours=lambda me: ("bert",), member=lambda peer: SimpleNamespace(certificate_read=known),
        admits=ports.members.admits, federation_id=ports.members.federation_id,
    )  # fmt: skip
    config: Any = SimpleNamespace(node=SimpleNamespace(id="anna", proxy=""))
    looked = await handshake.dial_all(config, membership, keys_of("anna"), certificate_of("anna"), PSK)
    assert "redirects are not followed" in looked["bert"].why, "neither does doctor"
    await inner.close()
    await outer.close()
    assert not visited


# ---- T30: secrets in logs ------------------------------------------------------------------------------------------


def spellings(secret: bytes) -> list[str]:
    parts = [secret, *(secret[start : start + 32] for start in range(0, len(secret), 32))]
    return [spelled for part in parts for spelled in (
        part.hex(), base64.b64encode(part).decode().rstrip("="), base64.urlsafe_b64encode(part).decode().rstrip("="), repr(part)
    )]  # fmt: skip


def test_T30_what_a_node_records_says_and_shows_holds_no_secret_row_or_tensor() -> None:
    members = federation(THREE, local_rounds=20)
    rows = {name: np.full((3, 16), 1 + 0.31337 * (1 + at)) for at, name in enumerate(members.active)}
    specs = toy_specs(members, lambda name: ToyTrainer(rows[name]), turn_ns=SECOND // 10)
    made = World(specs, seed=1, pace=Pace(step_s=0.001))
    made.run(30)
    assert all(node.peer.local_round == 20 for node in made.nodes.values())
    said = io.StringIO()
    for name, node in made.nodes.items():
        for form in ("json", "text"):
            log = Log(name, form, said)  # type: ignore[arg-type]
            for fact in node.facts:
                log.fact(fact)
        said.write(json.dumps(node.peer.status()))
        said.write(repr(specs[name].keys))
    text = said.getvalue()
    secrets = [PSK, *(keys_of(name).secret for name in THREE)]
    found = [spelled for secret in secrets for spelled in spellings(secret) if spelled in text]
    values = [f"{value:.9f}" for name in THREE for value in (*rows[name].ravel(), *made.model(name))]
    found += [value for value in values if value in text]
    assert not found
    assert "31337" not in text
    longest = max(len(value) for node in made.nodes.values() for fact in node.facts
                  for value in fact.fields.values() if isinstance(value, str | list | tuple))  # fmt: skip
    assert longest <= 1000, "a tensor would be a long field"


# ---- T31: code in data ---------------------------------------------------------------------------------------------

LOADERS = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "jsonpickle", "code"}
"""Modules that make code of data."""

BY_NAME = {
    *("gossipfl/__init__.py", "gossipfl/topology/__init__.py", "gossipfl/simulator/play.py"),
    *("gossipfl/tasks/task.py", "gossipfl/tasks/__init__.py"),
}
"""Where a name becomes an import: our own names out of a table of ours, and the task that the operator's file names."""


def called(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


@pytest.mark.parametrize("path", sorted((ROOT / "gossipfl").rglob("*.py")), ids=lambda path: path.name)
def test_T31_no_code_is_made_of_data(path: Path) -> None:
    tree = ast.parse(path.read_text())
    imported = {alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & LOADERS
    calls = called(tree)
    assert not calls & {"eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "np.load", "numpy.load"}
    names = {call.rpartition(".")[2] for call in calls} & {"import_module", "resolve_name"}
    if str(path.relative_to(ROOT)) not in BY_NAME:
        assert not names, "a module is imported by a name: whose?"


# ---- the table of docs/threat-model.md -----------------------------------------------------------------------------


def test_every_row_of_the_threat_model_names_tests_that_exist() -> None:
    table = (ROOT / "docs" / "threat-model.md").read_text()
    there = {name for path in (ROOT / "tests").glob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())}
    missing = sorted(set(re.findall(r"`(test_[tT]\d\d\w+)`", table)) - there)
    assert not missing
    rows = dict(re.findall(r"^\| (T\d\d) \|(.*)$", table, re.MULTILINE))
    owed = [f"T{number:02d}" for number in (*range(1, 10), *range(11, 16), 26, 27, *range(29, 32))]
    assert not [row for row in owed if not re.search(rf"`test_(T\d\d_)*{row}\w+`", rows.get(row, ""), re.IGNORECASE)]
