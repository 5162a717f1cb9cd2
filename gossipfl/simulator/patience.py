"""Ctrl-C that a run hears instead of dying of it: it ends where its state is whole, and tells how far it came.

Not here: what a run then leaves behind (play.py, rounds.py).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def patience() -> Iterator[threading.Event]:
    """Ctrl-C sets the event; the second one is an interrupt as always. Only a process's main thread can be patient."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: Any = signal.getsignal(signal.SIGINT)

    def heard(number: int, frame: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, heard)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
