"""Dialling: one WebSocket to a peer at an address of its signed certificate. No redirects, cookies or proxy of the environment.

Where the known certificate has ended, or the handshake fails, the peer is asked for its newest one, once. What comes back
is believed for its signature only. Not here: the life of the connection afterwards.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import aiohttp

from gossipfl.errors import Refused
from gossipfl.node.websocket import WebSocket
from gossipfl.protocol import events as ev
from gossipfl.protocol.limits import CERTIFICATE_BODY_MAX, RECORD_MAX
from gossipfl.protocol.session import SUBPROTOCOL
from gossipfl.trust.identity import Certificate

if TYPE_CHECKING:
    from gossipfl.node.connection import Connection
    from gossipfl.node.driver import Driver

WEBSOCKET_PATH: Final = "/gossipfl/v1/ws"
CERTIFICATE_PATH: Final = "/gossipfl/v1/certificate"
MESSAGE_MAX: Final = RECORD_MAX + 1
"""aiohttp takes messages below its limit, not at it."""

FOREIGN: Final = (aiohttp.ClientError, OSError, asyncio.TimeoutError, ValueError, RuntimeError, AssertionError)
"""What aiohttp raises for what an address does. It asserts that a connection still stands right after its upgrade."""


class Client:
    """Dials for one driver."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._http: aiohttp.ClientSession | None = None

    @property
    def http(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = wary_session(self.driver.caps.handshake_s)
        return self._http

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def dial(self, peer: str) -> None:
        """Ends in Opened or DialFailed."""
        certificate = self.driver.certificates.get(peer)
        if certificate is None or not certificate.addresses:
            self.driver.post(ev.DialFailed(peer, f"{peer} has no address; it must dial"))
            return
        why = "its certificate has ended"
        if certificate.valid_at(time.time_ns()):
            opened, why = await self.attempt(certificate)
            if opened:
                return
        if why and (newer := await self.newer(certificate)) is not None:
            self.driver.know(newer)
            opened, why = await self.attempt(newer)
            if opened:
                return
        self.driver.post(ev.DialFailed(peer, why or f"{peer} is not reachable"))

    async def attempt(self, certificate: Certificate) -> tuple[bool, str]:
        """(was a session opened, else why not): the addresses in order."""
        faults = []
        for address in certificate.addresses:
            try:
                connection = await self.connect(certificate, address)
            except FOREIGN as error:
                faults.append(f"{address}: {said(error)}")
                continue
            except Refused as refusal:
                faults.append(f"{address}: {refusal}")
                continue
            why = await self.driver.serve(connection)
            await connection.socket.release()
            if connection.up:
                return True, ""
            faults.append(f"{address}: no session ({why}); is it {certificate.member}, with this psk and federation?")
        return False, "; ".join(faults)

    async def connect(self, certificate: Certificate, address: str) -> Connection:
        """A WebSocket on which message 1 has been written."""
        session = self.driver.session(certificate)
        first = session.open(self.driver.now())
        async with asyncio.timeout(self.driver.caps.handshake_s):
            socket = await self.http.ws_connect(
                address.rstrip("/") + WEBSOCKET_PATH,
                protocols=(SUBPROTOCOL,),
                compress=0,
                max_msg_size=MESSAGE_MAX,
                proxy=self.driver.parts.config.node.proxy or None,
                timeout=aiohttp.ClientWSTimeout(ws_close=2.0),
            )
            if socket.protocol != SUBPROTOCOL:
                await socket.close()
                raise Refused("malformed", f"speaks {socket.protocol!r}, not {SUBPROTOCOL!r}: another version?")
            line = WebSocket(socket, _transport(socket), dialled=True)
            line.send(first)
        return self.driver.connection(line, session, certificate.member)

    async def newer(self, known: Certificate) -> Certificate | None:
        """What the peer serves as its certificate, if it is a newer one of the same member."""
        for address in known.addresses:
            url = "http" + address.rstrip("/").removeprefix("http").removeprefix("ws") + CERTIFICATE_PATH
            try:
                proxy = self.driver.parts.config.node.proxy or None
                async with self.http.get(url, allow_redirects=False, proxy=proxy) as answer:
                    body = await answer.content.read(CERTIFICATE_BODY_MAX + 1)
                found = Certificate.decode(body)
                member = self.driver.parts.membership.admits(found)
            except (*FOREIGN, Refused):
                continue
            if member == known.member and found.counter > known.counter and found.valid_at(time.time_ns()):
                return found
        return None


def wary_session(limit_s: float) -> aiohttp.ClientSession:
    """What asks a peer's address: it unpacks nothing (T11), follows no redirect (T29), keeps no cookie and looks at no
    environment. The one way for a node and for doctor."""
    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(_no_redirect)
    return aiohttp.ClientSession(
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        trace_configs=[trace],
        connector=aiohttp.TCPConnector(force_close=True, limit=0),
        timeout=aiohttp.ClientTimeout(total=limit_s),
    )


async def _no_redirect(*_: Any) -> None:
    raise aiohttp.ClientError("redirects are not followed: addresses come from the signed certificate only")


def _transport(socket: Any) -> Any:
    """aiohttp shows no transport of a client's WebSocket. Raises: ConnectionError if it is gone already."""
    connection = getattr(getattr(socket, "_response", None), "connection", None)
    if connection is None or connection.transport is None:
        raise ConnectionResetError("closed as soon as it was opened")
    return connection.transport


def said(error: BaseException) -> str:
    """Its words, without aiohttp's mention of TLS settings where none is spoken."""
    return str(error).replace(" ssl:default", "") or type(error).__name__
