"""The operator's listener, on loopback: health, status, metrics, and orders for whoever can read the token file.

Not here: anything that a peer may reach.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from aiohttp import web

from gossipfl.config import joined_address
from gossipfl.node.server import port_taken
from gossipfl.node.status import expelled, status_of, unready
from gossipfl.store.errors import border

if TYPE_CHECKING:
    from gossipfl.node.driver import Driver

ACCESS: Final = "admin.json"
"""File in the state folder, 0600: address, token and pid; who can read it may give orders."""

ORDERS: Final = frozenset({"pause", "resume", "leave", "finish", "stop"})
BODY_MAX: Final = 4096


class Admin:
    """The routes of one driver."""

    def __init__(self, driver: Driver, token: str) -> None:
        self.driver = driver
        self.token = token

    def application(self) -> web.Application:
        application = web.Application(client_max_size=BODY_MAX, middlewares=[_from_here])
        application.router.add_get("/healthz", self.healthz)
        application.router.add_get("/readyz", self.readyz)
        application.router.add_get("/status", self.status)
        application.router.add_get("/history", self.history)
        application.router.add_get("/metrics", self.metrics)
        application.router.add_post("/order", self.order)
        application.router.add_get("/model", self.model)
        return application

    async def healthz(self, request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(self, request: web.Request) -> web.Response:
        reasons = unready(self.driver)
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(status_of(self.driver))

    async def history(self, request: web.Request) -> web.Response:
        return web.json_response(self.driver.evaluations.history)

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=exposition(self.driver), content_type="text/plain", charset="utf-8")

    async def order(self, request: web.Request) -> web.Response:
        """{"order": "pause"}; who may not is told nothing else."""
        self.must_know(request)
        try:
            wanted = (await request.json())["order"]
        except (ValueError, KeyError, TypeError):
            wanted = None
        if wanted not in ORDERS:
            return web.json_response({"error": f"orders are {', '.join(sorted(ORDERS))}"}, status=400)
        await self.driver.order(wanted)
        return web.json_response({"order": wanted})

    async def model(self, request: web.Request) -> web.Response:
        """The model as it is now: its vector's bytes; with `?whole=1` the frozen statistics before them, whose length a header
        tells: those of two thousand features are too long for a header."""
        self.must_know(request)
        peer = self.driver.peer
        before = peer.frozen if request.query.get("whole") else b""
        headers = {"X-Stage": peer.stage, "X-Statistics": str(len(before)), "X-Dtype": self.driver.parts.bench.dtype}
        return web.Response(body=before + bytes(self.driver.store.files.read(peer.current["model"])), headers=headers)

    def must_know(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            raise web.HTTPForbidden(text=f"give the token of {ACCESS} in the state folder as bearer token")


def _is_loopback(asked: str) -> bool:
    """Is it loopback by its own name or number? A web page that rebinds a name of its own to it is refused."""
    try:
        host = urlsplit(f"//{asked}").hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@web.middleware
async def _from_here(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    if not _is_loopback(request.host):
        raise web.HTTPForbidden(text="the admin listener answers on loopback only")
    return await handler(request)


def exposition(driver: Driver) -> bytes:
    """The metrics as Prometheus reads them."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

    registry = CollectorRegistry()
    status = status_of(driver)

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(f"gossipfl_{name}", text, registry=registry).set(value)

    gauge("local_round", "local rounds done", status["local_round"])
    gauge("released", "exchanges of the release", status["released"])
    gauge("connected_peers", "sessions that are up and greeted", sum(conn.greeted for conn in driver.peer.by_peer.values()))
    gauge("paused", "1 while paused", float(driver.peer.paused))
    gauge("certificate_end_seconds", "unix time at which this node's certificate ends", status["certificate_until"])
    stage = Gauge("gossipfl_stage", "1 for the stage that this node is in", ["stage"], registry=registry)
    stage.labels(driver.peer.stage).set(1)
    exchanges = Counter("gossipfl_exchanges", "exchanges done", ["peer"], registry=registry)
    sent = Counter("gossipfl_sent_bytes", "payload bytes sent", ["peer"], registry=registry)
    received = Counter("gossipfl_received_bytes", "payload bytes received", ["peer"], registry=registry)
    doubt = Gauge("gossipfl_in_doubt", "1 while an exchange with this peer is in doubt", ["peer"], registry=registry)
    straight = Gauge("gossipfl_straightness", "of the link since the start; near 1: always one way", ["peer"], registry=registry)
    for name, peer in status["peers"].items():
        exchanges.labels(name).inc(peer["exchanges"])
        sent.labels(name).inc(peer["sent_bytes"])
        received.labels(name).inc(peer["received_bytes"])
        doubt.labels(name).set(float(peer["in_doubt"]))
        if peer["straightness"] is not None:
            straight.labels(name).set(peer["straightness"])
    refusals = Counter("gossipfl_refusals", "refusals by this node", ["reason"], registry=registry)
    for reason, count in status["refusals"].items():
        refusals.labels(reason).inc(count)
    closed = Counter("gossipfl_connections_closed", "raw connections closed at the gate", ["why"], registry=registry)
    for why, count in expelled(driver).items():
        closed.labels(why).inc(count)
    history = driver.evaluations.history
    for name, value in (history[-1]["metrics"] if history else {}).items():
        gauge(f"holdout_{name}", "of the model on this site's hold-out", value)
    return generate_latest(registry)


async def serve(driver: Driver) -> Callable[[], Awaitable[None]]:
    """Listen as node.toml says; returns what ends it."""
    host, port = driver.parts.config.node.admin_address
    token = secrets.token_hex(32)
    runner = web.AppRunner(Admin(driver, token).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        await runner.cleanup()
        raise port_taken("admin", host, port, error) from None
    bound = runner.addresses[0]
    driver.admin = joined_address(bound[0], bound[1])
    access = {"address": driver.admin, "token": token, "pid": os.getpid()}
    file = driver.parts.config.node.state / ACCESS
    _write(file, json.dumps(access))

    async def close() -> None:
        file.unlink(missing_ok=True)  # whoever asks a stopped node is told so
        await runner.cleanup()

    return close


def _write(path: Path, text: str) -> None:
    with border(f"write {path}"):
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
