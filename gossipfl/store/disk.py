"""The one small seam to a folder of files: what it takes, and the real one. No names of blobs, no rows, no policy.

Both disks (this one and gossipfl.store.modelled) raise OSError; gossipfl.store.files translates. A file's content is
durable after `fsync` of it, its name after `fsync_dir`, and neither before: nobody may count on more.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import ClassVar, Final, Protocol

from gossipfl.digest import Buffer

MAPPED_BYTES: Final = 64 * 1024
"""A file from this size on is mapped, not read: below it one read is cheaper than a mapping and its page faults."""

SPARE_BYTES: Final = 1 << 20
"""A file from this size on is worth keeping mapped, and worth making another one of."""

SPARES: Final = 8
"""Files kept for that: an exchange lets go of six vectors and makes six."""

SYNCED_S: Final = 0.001
"""A sync of a file that large that takes less had nothing to write: a file system in memory leaves its pages as they are."""

MAPPINGS: Final = 64
"""Files kept mapped: each holds a file descriptor, of which a process has a thousand or so."""


Write = Callable[[int, Buffer], None]
"""These bytes, from this place of a file on."""


class Disk(Protocol):
    """One flat folder. Names are plain file names."""

    def list(self) -> dict[str, int]:
        """Every file and its size in bytes."""
        ...

    def write(self, name: str, content: Buffer) -> None:
        """A file with this content, created or replaced; not durable yet."""
        ...

    def create(self, name: str, size: int, *, passing: bool = False) -> memoryview:
        """A new file of `size` bytes, writable through the view, of any content; its space is reserved: no later write
        fails. `passing`: nobody will sync it."""
        ...

    def writer(self, name: str) -> Write | None:
        """What writes into this created file, seen at once through its view, where that costs less than a change through the
        view; None where it does not."""
        ...

    def read(self, name: str) -> memoryview:
        """The content, read-only; it stays readable when the file is renamed or unlinked."""
        ...

    def begin_fsync(self, name: str) -> None:
        """Nobody will write into this created file any more: begin what `fsync` waits for."""
        ...

    def fsync(self, name: str) -> None: ...

    def rename(self, old: str, new: str) -> None:
        """Replaces `new`."""
        ...

    def fsync_dir(self) -> None: ...

    def unlink(self, name: str) -> None: ...

    def close(self) -> None:
        """Give back what was kept for later use."""
        ...


class RealDisk:
    """A folder of the operating system's, made if need be. Files are 0600.

    A large file that was made here stays mapped, and where it is unlinked while nobody holds a view of it, the next one of
    its size is made of it: most of the cost of a fresh mapping is its page faults, which are half of that of an exchange. After a
    sync each page faults once more when it is changed through the mapping, 30 ms for 100 MB where writing takes 9: so what was
    synced is written, and what nobody will sync is made of what nobody has synced.
    """

    MADE: ClassVar = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._in = str(folder) + os.sep
        if self.MADE:
            folder.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._mapped: dict[str, mmap.mmap] = {}
        self._synced: set[str] = set()
        """those of the mapped whose pages a sync has protected"""
        self._spare: list[tuple[int, bool, str, mmap.mmap]] = []
        """(size, was it synced, file name, mapping): no file of theirs has a name that means anything"""
        self._begun: dict[str, Future[None]] = {}
        self._syncer: ThreadPoolExecutor | None = None
        self._numbers = count()
        self._keeping = True

    def list(self) -> dict[str, int]:
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False)}

    def write(self, name: str, content: Buffer) -> None:
        fd = os.open(self._in + name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)

    def create(self, name: str, size: int, *, passing: bool = False) -> memoryview:
        with self._lock:
            view = self._reuse(name, size, passing)
            if view is not None:
                return view
        # Without the reservation a full disk would show as SIGBUS on some later store, which ends the process.
        fd = os.open(self._in + name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            self._reserve(fd, size)
            mapping = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        with self._lock:
            if size >= SPARE_BYTES and len(self._mapped) < MAPPINGS:
                self._mapped[name] = mapping
        return memoryview(mapping)

    def writer(self, name: str) -> Write | None:
        with self._lock:
            return partial(self._write_at, name) if name in self._synced else None

    def _write_at(self, name: str, at: int, content: Buffer) -> None:
        fd = os.open(self._in + name, os.O_WRONLY | os.O_NOFOLLOW)
        try:
            os.lseek(fd, at, os.SEEK_SET)
            write_all(fd, content)
        finally:
            os.close(fd)

    def _reserve(self, fd: int, size: int) -> None:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            if not self._drop_spares():
                raise
            os.posix_fallocate(fd, 0, size)

    def _reuse(self, name: str, size: int, passing: bool) -> memoryview | None:
        """A spare file of this size under its new name."""
        fitting = [spare for spare in self._spare if spare[0] == size]
        if not fitting:
            return None
        chosen = next((spare for spare in fitting if spare[1] != passing), fitting[0])
        self._spare.remove(chosen)
        _, synced, file, mapping = chosen
        os.replace(self._in + file, self._in + name)
        self._mapped[name] = mapping
        if synced:
            self._synced.add(name)
        return memoryview(mapping)

    def _drop_spares(self) -> int:
        """A full disk takes them first."""
        with self._lock:
            spares, self._spare = self._spare, []
        for _, _, file, _ in spares:
            os.unlink(self._in + file)
        return len(spares)

    def read(self, name: str) -> memoryview:
        with self._lock:
            if name in self._mapped:
                return memoryview(self._mapped[name]).toreadonly()
        with open(self._in + name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < MAPPED_BYTES:
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))

    def begin_fsync(self, name: str) -> None:
        with self._lock:
            if self._syncer is None:
                self._syncer = ThreadPoolExecutor(1, "gossipfl-sync")
            self._begun[name] = self._syncer.submit(self._sync, name)

    def fsync(self, name: str) -> None:
        with self._lock:
            begun = self._begun.pop(name, None)
        begun.result() if begun is not None else self._sync(name)

    def _sync(self, name: str) -> None:
        began = time.monotonic()
        sync(self._in + name, os.O_RDONLY)
        with self._lock:
            if name in self._mapped and time.monotonic() - began > SYNCED_S:
                self._synced.add(name)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            os.replace(self._in + old, self._in + new)
            self._mapped.pop(new, None)
            self._synced.discard(new)
            if old in self._mapped:
                self._mapped[new] = self._mapped.pop(old)
            if old in self._synced:
                self._synced.remove(old)
                self._synced.add(new)

    def fsync_dir(self) -> None:
        sync(self.folder, os.O_RDONLY | os.O_DIRECTORY)

    def unlink(self, name: str) -> None:
        """A spare is overwritten later: after a loss of power its old name may stand before other content, but whoever
        unlinks has made sure that nothing durable names it, and a file of an earlier process is checked when it is read."""
        with self._lock:
            self._begun.pop(name, None)
            mapping, synced = self._mapped.pop(name, None), name in self._synced
            self._synced.discard(name)
            if mapping is None or not self._keeping or not _is_unseen(mapping):
                os.unlink(self._in + name)
                return
            if len(self._spare) == SPARES:
                os.unlink(self._in + self._spare.pop(0)[2])
            file = f"spare{next(self._numbers):06d}.tmp"
            os.replace(self._in + name, self._in + file)
            self._spare.append((len(mapping), synced, file, mapping))

    def close(self) -> None:
        with self._lock:
            self._keeping = False
        if self._syncer is not None:
            self._syncer.shutdown()
        self._drop_spares()


def _is_unseen(mapping: mmap.mmap) -> bool:
    """Does nobody hold a view of it? Only then can it be resized; to its own size that changes nothing."""
    try:
        mapping.resize(len(mapping))
    except (BufferError, OSError, SystemError, ValueError):
        return False
    return True


def write_all(fd: int, content: Buffer) -> None:
    """Every byte: one write(2) takes at most 2 GiB, and less when the disk fills."""
    rest = memoryview(content)
    while len(rest):
        rest = rest[os.write(fd, rest) :]


def sync(path: str | Path, flags: int) -> None:
    """What the kernel holds of this file or folder is on the disk afterwards."""
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
