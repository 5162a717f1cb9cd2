"""The state folder itself: made, recognised, locked. Not what is in it."""

from __future__ import annotations

import fcntl
import os
import re
from pathlib import Path
from typing import Final

from gossipfl.errors import ConfigError, Exit, Fault
from gossipfl.store.disk import sync, write_all
from gossipfl.store.errors import border

FORMAT: Final = 1
"""Version of all that the folder holds. A program reads its own and the one before it (there is none before 1)."""

_BEFORE_FORMAT: Final = frozenset({"lock", "format.tmp", "lost+found"})
"""What a folder may hold that is not yet marked as ours: what an interrupted start leaves, and a fresh file system."""


def claim(folder: Path) -> int:
    """A file descriptor that holds the lock of this state folder, made if need be; close it to let go.

    Raises: ConfigError (exit 73): in use, of a newer format, not a state folder; StateError: cannot be made.
    """
    with border(f"use {folder} as state folder"):
        make(folder)
        _recognise(folder)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _lock(folder, lock)
            if _recognise(folder) is None:
                _mark(folder)
        except BaseException:
            os.close(lock)
            raise
        return lock


def look(folder: Path) -> int | None:
    """A file descriptor that holds the lock of a state folder that is there, and of which nothing is changed; None for a
    copy without a lock. Raises as `claim` does."""
    with border(f"read the state folder {folder}"):
        if _recognise(folder) is None:
            raise _fault(folder, "is no state folder", "name a stopped node's [node] state, or a copy of one")
        if not (folder / "lock").exists():
            return None
        lock = os.open(folder / "lock", os.O_RDONLY)
        try:
            _hold(folder, lock)
        except BaseException:
            os.close(lock)
            raise
        return lock


def make(folder: Path) -> None:
    """The folder and those above it, 0700, on disk afterwards."""
    if folder.exists():
        if not folder.is_dir():
            raise _fault(folder, "this is a file", "name a folder for the state")
        return
    make(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    sync(folder.parent, os.O_RDONLY | os.O_DIRECTORY)


def _recognise(folder: Path) -> int | None:
    """The format of this folder, None if it is fresh."""
    names = set(os.listdir(folder))
    if "format" not in names:
        if strange := sorted(names - _BEFORE_FORMAT):
            some = ", ".join(strange[:3])
            raise _fault(folder, f"holds what is no state of gossipfl ({some})", "name an empty or a new folder")
        return None
    text = (folder / "format").read_text("utf-8", "replace")
    match = re.fullmatch(r"gossipfl state (\d{1,9})\n", text)
    if match is None:
        raise _fault(folder / "format", f"says {text[:40]!r}, no format", "check the disk, or name another folder")
    version = int(match[1])
    if version > FORMAT:
        what = f"state of format {version}; this program reads format {FORMAT}"
        raise _fault(folder, what, "start the newer gossipfl that wrote it; an older one must not touch it")
    if version < FORMAT:
        raise _fault(folder, f"state of format {version}, which there never was", "check the disk")
    return version


def _lock(folder: Path, lock: int) -> None:
    _hold(folder, lock)
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _hold(folder: Path, lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(lock, 20, 0).decode("ascii", "replace").strip() or "unknown"
        what = f"in use by process {pid}"
        raise _fault(folder, what, "stop that process, or give this node a state folder of its own") from None


def _mark(folder: Path) -> None:
    fd = os.open(folder / "format.tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        write_all(fd, f"gossipfl state {FORMAT}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(folder / "format.tmp", folder / "format")
    sync(folder, os.O_RDONLY | os.O_DIRECTORY)


def _fault(where: Path, what: str, remedy: str) -> ConfigError:
    return ConfigError(Fault(str(where), None, what, remedy), exit_code=Exit.STATE)
