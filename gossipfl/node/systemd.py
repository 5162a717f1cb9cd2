"""What systemd wants to hear (sd_notify): ready, alive, stopping. Does nothing where nobody listens."""

from __future__ import annotations

import os
import socket
import time


class Watchdog:
    """Tells the service manager that named itself in NOTIFY_SOCKET.

    Source: systemd, sd_notify(3), sd_watchdog_enabled(3).
    """

    def __init__(self) -> None:
        self.address = os.environ.get("NOTIFY_SOCKET", "")
        self.every_s = int(os.environ.get("WATCHDOG_USEC", "0") or 0) / 2e6
        self.last = 0.0

    def say(self, text: str) -> None:
        if not self.address:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as there:
            try:
                there.sendto(text.encode(), name)
            except OSError:  # the manager is gone; the node is not there for it
                self.address = ""

    def alive(self) -> None:
        """Twice within the time that systemd allows."""
        if self.every_s and time.monotonic() - self.last >= self.every_s:
            self.last = time.monotonic()
            self.say("WATCHDOG=1")
