"""The one small seam to a folder of files: what it takes, and the real one. No names of blobs, no rows, no policy.

Both disks (this one and gossipfl.store.modelled) raise OSError; gossipfl.store.files translates. A file's content is
durable after `fsync` of it, its name after `fsync_dir`, and neither before: nobody may count on more.
"""

from __future__ import annotations

import mmap
import os
import threading
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

MAPPINGS: Final = 64
"""Files kept mapped: each holds a file descriptor, of which a process has a thousand or so."""


class Disk(Protocol):
    """One flat folder. Names are plain file names."""

    def list(self) -> dict[str, int]:
        """Every file and its size in bytes."""
        ...

    def write(self, name: str, content: Buffer) -> None:
        """A file with this content, created or replaced; not durable yet."""
        ...

    def create(self, name: str, size: int) -> memoryview:
        """A new file of `size` bytes, writable through the view, of any content; its space is reserved: no later write
        fails."""
        ...

    def read(self, name: str) -> memoryview:
        """The content, read-only; it stays readable when the file is renamed or unlinked."""
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
    its size is made of it: most of the cost of a fresh mapping is its page faults, which are half of that of an exchange.
    """

    MADE: ClassVar = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._in = str(folder) + os.sep
        if self.MADE:
            folder.mkdir(mode=0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._mapped: dict[str, mmap.mmap] = {}
        self._spare: list[tuple[int, str, mmap.mmap]] = []
        """(size, file name, mapping): no file of theirs has a name that means anything"""
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

    def create(self, name: str, size: int) -> memoryview:
        with self._lock:
            view = self._reuse(name, size)
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

    def _reserve(self, fd: int, size: int) -> None:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError:
            if not self._drop_spares():
                raise
            os.posix_fallocate(fd, 0, size)

    def _reuse(self, name: str, size: int) -> memoryview | None:
        """A spare file of this size under its new name."""
        for at, (held, file, mapping) in enumerate(self._spare):
            if held == size:
                del self._spare[at]
                os.replace(self._in + file, self._in + name)
                self._mapped[name] = mapping
                return memoryview(mapping)
        return None

    def _drop_spares(self) -> int:
        """A full disk takes them first."""
        with self._lock:
            spares, self._spare = self._spare, []
        for _, file, _ in spares:
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

    def fsync(self, name: str) -> None:
        sync(self._in + name, os.O_RDONLY)

    def rename(self, old: str, new: str) -> None:
        with self._lock:
            os.replace(self._in + old, self._in + new)
            self._mapped.pop(new, None)
            if old in self._mapped:
                self._mapped[new] = self._mapped.pop(old)

    def fsync_dir(self) -> None:
        sync(self.folder, os.O_RDONLY | os.O_DIRECTORY)

    def unlink(self, name: str) -> None:
        """A spare is overwritten later: after a loss of power its old name may stand before other content, but whoever
        unlinks has made sure that nothing durable names it, and a file of an earlier process is checked when it is read."""
        with self._lock:
            mapping = self._mapped.pop(name, None)
            if mapping is None or not self._keeping or not _is_unseen(mapping):
                os.unlink(self._in + name)
                return
            if len(self._spare) == SPARES:
                os.unlink(self._in + self._spare.pop(0)[1])
            file = f"spare{next(self._numbers):06d}.tmp"
            os.replace(self._in + name, self._in + file)
            self._spare.append((len(mapping), file, mapping))

    def close(self) -> None:
        with self._lock:
            self._keeping = False
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
