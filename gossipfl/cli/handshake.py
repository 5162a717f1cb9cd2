"""One handshake with a peer, and not a byte more: is it reachable, is it who it should be, does it accept us?

Used by doctor beside a node that does not run; a node dials with gossipfl.node.client. Not here: what to do about it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from gossipfl.errors import GossipError

if TYPE_CHECKING:
    from gossipfl.config import NodeConfig
    from gossipfl.trust.identity import Certificate, NodeKeys
    from gossipfl.trust.membership import Membership

DIAL_S: Final = 10.0
"""For one peer, all its addresses together; as long as a node itself waits for a handshake."""


@dataclass(frozen=True)
class Reached:
    """What came of dialling one peer."""

    peer: str
    why: str = ""
    """why there was no session; empty if there was"""
    address: str = ""
    clock_s: float | None = None
    """the peer's clock less ours"""


async def dial_all(
    config: NodeConfig, membership: Membership, keys: NodeKeys, own: Certificate, psk: bytes
) -> dict[str, Reached]:
    from gossipfl.node.client import wary_session

    targets = [membership.member(peer).certificate_read for peer in membership.neighbours(config.node.id)]
    async with wary_session(DIAL_S) as http:
        dials = [_dial(http, config, membership, keys, own, psk, one) for one in targets if one.addresses]
        return {reached.peer: reached for reached in await asyncio.gather(*dials)}


async def _dial(
    http: Any, config: NodeConfig, membership: Membership, keys: NodeKeys, own: Certificate, psk: bytes, known: Certificate
) -> Reached:
    """One peer, its addresses in order; the newest certificate that it serves itself, if the federation admits it."""
    import aiohttp

    from gossipfl.errors import Refused
    from gossipfl.node.client import said

    faults = []
    for address in known.addresses:
        try:
            async with asyncio.timeout(DIAL_S):
                target, clock = await _served(http, config, membership, known, address)
                await _shake(http, config, membership, keys, own, psk, target, address)
                return Reached(known.member, "", address, clock)
        except Refused as refusal:
            faults.append(f"{address}: {refusal}")
        except TimeoutError:
            faults.append(f"{address}: no answer within {DIAL_S:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            faults.append(f"{address}: {said(error)}")
    return Reached(known.member, "; ".join(faults))


async def _served(
    http: Any, config: NodeConfig, membership: Membership, known: Certificate, address: str
) -> tuple[Certificate, float | None]:
    """(the newer of the known certificate and the served one, the clock's difference by the Date header)."""
    from gossipfl.node.client import CERTIFICATE_PATH
    from gossipfl.protocol.limits import CERTIFICATE_BODY_MAX
    from gossipfl.trust.identity import Certificate

    url = "http" + address.rstrip("/").removeprefix("http").removeprefix("ws") + CERTIFICATE_PATH
    async with http.get(url, allow_redirects=False, proxy=config.node.proxy or None) as answer:
        body, date = await answer.content.read(CERTIFICATE_BODY_MAX + 1), answer.headers.get("Date", "")
    try:
        clock = parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        clock = None
    try:
        served = Certificate.decode(body)
        if membership.admits(served) == known.member and served.counter > known.counter:
            return served, clock
    except GossipError:
        pass
    return known, clock


async def _shake(
    http: Any, config: NodeConfig, membership: Membership, keys: NodeKeys, own: Certificate, psk: bytes, target: Certificate,
    address: str,
) -> None:  # fmt: skip
    """Messages 1 and 2. The peer hears nothing after them, so that its node is not disturbed. **Raises**: Refused."""
    import aiohttp

    from gossipfl.errors import Refused
    from gossipfl.node.client import MESSAGE_MAX, WEBSOCKET_PATH
    from gossipfl.protocol.events import Instant
    from gossipfl.protocol.session import SUBPROTOCOL, Session

    now = Instant(time.monotonic_ns(), time.time_ns())
    session = Session(
        initiator=True,
        federation=membership.federation_id,
        keys=keys,
        certificate=own.encoded,
        psk=psk,
        ephemeral=secrets.token_bytes(32),
        admit=membership.admits,
        expect=(target.member, target.noise),
        started=now,
    )
    async with http.ws_connect(
        address.rstrip("/") + WEBSOCKET_PATH, protocols=(SUBPROTOCOL,), compress=0, max_msg_size=MESSAGE_MAX,
        proxy=config.node.proxy or None,
    ) as socket:  # fmt: skip
        if socket.protocol != SUBPROTOCOL:
            raise Refused("malformed", f"speaks {socket.protocol!r}, not {SUBPROTOCOL!r}: another version?")
        try:
            await socket.send_bytes(session.open(now))
            answer = await socket.receive()
        except (aiohttp.ClientError, OSError):
            answer = aiohttp.WS_CLOSED_MESSAGE
        if answer.type is not aiohttp.WSMsgType.BINARY:
            raise Refused("auth", "closed without a word after our first message: it does not accept us")
        try:
            session.receive(answer.data, now)
        except Refused as refusal:  # the psk is mixed in last: with another one, only now the seal does not fit
            raise Refused(refusal.reason, f"its answer does not fit: {refusal.detail}") from None
