"""The listener for peers: two paths, and limits from the first accepted byte. No other route, no access log.

aiohttp has no timeout for headers or an idle connection; the gate has: what is no session after 10 seconds is closed,
whatever it sent or did not send. Not here: what a session says.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gossipfl.config import joined_address
from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.node.client import CERTIFICATE_PATH, MESSAGE_MAX, WEBSOCKET_PATH
from gossipfl.node.gate import Gate
from gossipfl.node.lobby import Lobby
from gossipfl.node.websocket import WebSocket
from gossipfl.protocol.session import SUBPROTOCOL

if TYPE_CHECKING:
    from gossipfl.node.driver import Driver

_silent: Final = logging.getLogger("gossipfl.node.server")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class Door(web.Server):
    """aiohttp's low-level server, for the connections that have spoken (lobby.py)."""

    def __init__(self, driver: Driver, gate: Gate) -> None:
        super().__init__(
            self.answer,
            access_log=None,
            logger=_silent,
            keepalive_timeout=0,
            lingering_time=0,
            auto_decompress=False,
            tcp_keepalive=True,
        )
        self.driver = driver
        self.gate = gate
        self.joined: Callable[[asyncio.Transport], None] = gate.enter

    def connection_made(self, handler: Any, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self.joined(transport)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        for guest in [each for each in self.gate.guests.values() if each.transport.is_closing()]:
            self.gate.leave(guest.transport)

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The one handler."""
        if request.method == "GET" and request.path == WEBSOCKET_PATH:
            return await self.meet(request)
        if request.method == "GET" and request.path == CERTIFICATE_PATH:
            return _brief(web.Response(body=self.driver.parts.certificate.encoded, content_type="application/octet-stream"))
        return _brief(web.Response(status=404))

    async def meet(self, request: web.BaseRequest) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,), compress=False, max_msg_size=MESSAGE_MAX, timeout=2.0, heartbeat=None
        )
        if not socket.can_prepare(request) or SUBPROTOCOL not in request.headers.get("Sec-WebSocket-Protocol", ""):
            return _brief(web.Response(status=400))
        await socket.prepare(request)
        if request.transport is None:
            return socket
        session = self.driver.session(None)
        connection = self.driver.connection(WebSocket(socket, request.transport, dialled=False), session)
        connection.admitted = lambda: self.gate.confirm(request.transport, connection.peer)
        why = await self.driver.group.create_task(self.driver.serve(connection))
        if not connection.up:
            claimed = connection.session.peer or ""
            self.driver.company.turned_away(request.remote or "", claimed, why, self.driver.now())
        return socket


def _brief(response: web.Response) -> web.Response:
    response.force_close()
    return response


async def serve(driver: Driver) -> Callable[[], Awaitable[None]]:
    """Listen as node.toml says; returns what ends it. A node that only dials listens nowhere."""
    address = driver.parts.config.node.listen_address
    if address is None:
        return _nothing
    host, port = address
    loop = asyncio.get_running_loop()
    trusted = driver.parts.config.node.trusted_proxies
    door = Door(driver, Gate(driver.caps, trusted, driver.parts.settings.random, loop.call_later))
    lobby = Lobby(door.gate, door)
    driver.door, door.joined = door, lobby.joined
    try:
        bound = await lobby.listen(host, port)
    except OSError as error:
        raise port_taken("listen", host, port, error) from None
    driver.listening = joined_address(bound[0], bound[1])

    async def close() -> None:
        lobby.close()
        await door.shutdown(1.0)

    return close


async def _nothing() -> None:
    pass


def port_taken(key: str, host: str, port: int, error: OSError) -> ConfigError:
    """The operator's: an address that cannot be had. Taken by somebody else (73), a service manager may try again; a port
    that needs rights (77) or an address that is not this machine's (78) stays so."""
    where = f"cannot listen on {joined_address(host, port)}: {error.strerror or error}"
    if error.errno == errno.EADDRINUSE:
        remedy = f"find who has it with `ss -ltnp 'sport = :{port}'` and stop it, or change {key} in node.toml"
        return ConfigError(Fault(f"[node] {key}", None, where, remedy), exit_code=Exit.STATE)
    if error.errno == errno.EACCES:
        remedy = f"a port below 1024 needs rights: change {key} in node.toml, or give the service CAP_NET_BIND_SERVICE"
        return ConfigError(Fault(f"[node] {key}", None, where, remedy), exit_code=Exit.PERMISSION)
    remedy = f"use an address of this machine (`ip address` lists them), or 0.0.0.0 for all; change {key} in node.toml"
    return ConfigError(Fault(f"[node] {key}", None, where, remedy), exit_code=Exit.CONFIG)
