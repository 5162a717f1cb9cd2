"""A service manager hears that the node is ready, alive and stopping, on a real datagram socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gossipfl.node.systemd import Watchdog


def test_the_manager_hears_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "10000000")
        watchdog = Watchdog()
        watchdog.say("READY=1")
        watchdog.alive()
        watchdog.alive()
        watchdog.say("STOPPING=1")
        heard = [manager.recv(100) for _ in range(3)]
    assert heard == [b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_nobody_listening_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    Watchdog().say("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    Watchdog().say("READY=1")
