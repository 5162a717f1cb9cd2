"""Do the addresses that others dial fit what this node listens on? Used by `init` (what to listen on) and `doctor`.

Not here: whether a peer answers (cli.handshake), what an address may look like (config).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gossipfl.cli.federation import Finding

if TYPE_CHECKING:
    from gossipfl.config import NodeConfig

PLAIN: Final = {"http": 80, "ws": 80}
"""Schemes that this node speaks itself, with the port that a URL without one means."""

BEHIND: Final = "127.0.0.1:8470"
"""Where a node listens that only a proxy on the same machine is to reach."""


def listen_for(addresses: Sequence[str]) -> str:
    """What to listen on so that these addresses reach this node; empty where there are none: it dials.

    >>> listen_for(["http://fl.north.example:8480"])
    '0.0.0.0:8480'
    >>> listen_for(["http://[2001:db8::7]:8480"])
    '[::]:8480'
    """
    plain = [one for one in map(urlsplit, addresses) if one.scheme in PLAIN]
    if plain:
        every = "[::]" if ":" in (plain[0].hostname or "") else "0.0.0.0"
        return f"{every}:{plain[0].port or PLAIN[plain[0].scheme]}"
    return BEHIND if addresses else ""


def findings(config: NodeConfig, certified: Sequence[str]) -> Iterator[Finding]:
    """What does not fit among the certificate's addresses, node.toml's, and the listener."""
    if set(config.node.advertise) != set(certified):
        what = f"node.toml says advertise = {list(config.node.advertise)}, the certificate {list(certified)}"
        yield Finding("addresses", "warn", what, "others dial what the certificate says: run `gossipfl renew node.toml`")
    listening = config.node.listen_address
    if listening is None:
        if certified:
            what = f'listen = "", but others are told to dial {" ".join(certified)}'
            yield Finding("addresses", "warn", what, f'write listen = "{listen_for(certified)}" in [node]')
        return
    host, port = listening
    for address in certified:
        parts = urlsplit(address)
        if parts.scheme not in PLAIN:
            what = f"{address}: TLS, which a node does not speak; a proxy in front of {host}:{port} must"
            fix = "docs/deploy.md, Behind a reverse proxy; without one: an http:// address, as sessions are encrypted anyway"
            yield Finding("addresses", "info" if config.node.trusted_proxies else "warn", what, fix)
            continue
        if (parts.port or PLAIN[parts.scheme]) != port:
            what = f"{address} is where others dial, and [node] listen is {host}:{port}"
            fix = f'listen = "{host}:{parts.port or PLAIN[parts.scheme]}", unless a router or container maps the one to the other'
            yield Finding("addresses", "warn", what, fix)
        if ":" in (parts.hostname or "") and re.fullmatch(r"[\d.]+", host):
            what = f"{address} is where others dial, and [node] listen is on {host}, which no IPv6 address reaches"
            yield Finding("addresses", "warn", what, f'listen = "[::]:{port}"')
        if _is_here_only(host) and not _is_here_only(parts.hostname or ""):
            what = f"{address} is where others dial, and [node] listen is on {host}, which no other machine reaches"
            yield Finding("addresses", "warn", what, f'listen = "0.0.0.0:{port}", unless a proxy on this machine is in front')


def _is_here_only(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
