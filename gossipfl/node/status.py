"""What a person may see of a running node: how it is, and why it does not take part. Reads only.

Not here: who may ask, and how it is shown (admin, logs).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from gossipfl import __version__
from gossipfl.learning.checks import straight_alarm

if TYPE_CHECKING:
    from gossipfl.node.driver import Driver


def status_of(driver: Driver) -> dict[str, Any]:
    """The core's status, with what only the driver knows."""
    said = driver.peer.status()
    straight = {peer: found.ratio for peer, found in driver.bench.straightness.items()}
    for peer, about in said["peers"].items():
        ratio = straight.get(peer)
        about["straightness"] = None if ratio is None else round(ratio, 3)
        about["alarm"] = straight_alarm(ratio)
    history = driver.evaluations.history
    return {
        **said,
        "version": __version__,
        "pid": os.getpid(),
        "uptime_s": round((time.monotonic_ns() - driver.began_ns) / 1e9, 1),
        "listen": driver.listening,
        "certificate_until": driver.parts.certificate.not_after,
        "bytes_sent": sum(link.sent for link in driver.peer.links.values()),
        "bytes_received": sum(link.received for link in driver.peer.links.values()),
        "evaluation": history[-1] if history else None,
        "metric": driver.parts.metric,
    }


def expelled(driver: Driver) -> dict[str, int]:
    """Raw connections closed at the gate, by why."""
    return dict(driver.door.gate.counts) if driver.door else {}


def unready(driver: Driver) -> list[str]:
    """Why this node does not take part now; empty if it does."""
    peer, reasons = driver.peer, []
    if not driver.running.is_set():
        reasons.append("starting")
    if peer.stopping:
        reasons.append("stopping")
    if peer.paused:
        reasons.append("paused")
    if not driver.parts.certificate.valid_at(time.time_ns()):
        reasons.append("this node's certificate is not valid now; renew it, or correct the clock")
    neighbours = driver.parts.membership.neighbours(peer.me)
    greeted = any(conn.greeted for conn in peer.by_peer.values())
    if neighbours and not greeted and not any(peer.neighbour(one).state == "resting" for one in neighbours):
        reasons.append("connected to no neighbour: " + "; ".join(_silence(driver, one) for one in neighbours[:5]))
    return reasons


def _silence(driver: Driver, peer: str) -> str:
    neighbour = driver.peer.neighbour(peer)
    return f"{peer} {neighbour.state}" + (f" ({neighbour.why})" if neighbour.why else "")
