"""The one small seam to a folder of files: what it takes, and the real one. No names of blobs, no rows, no policy.

Both disks (this one and gossipfl.store.modelled) raise OSError; gossipfl.store.files translates. A file's content is
durable after `fsync` of it, its name after `fsync_dir`, and neither before: nobody may count on more.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Final, Protocol

from gossipfl.digest import Buffer

MAPPED_BYTES: Final = 64 * 1024
"""A file from this size on is mapped, not read: below it one read is cheaper than a mapping and its page faults."""


class Disk(Protocol):
    """One flat folder. Names are plain file names."""

    def list(self) -> dict[str, int]:
        """Every file and its size in bytes."""
        ...

    def write(self, name: str, content: Buffer) -> None:
        """A file with this content, created or replaced; not durable yet."""
        ...

    def create(self, name: str, size: int) -> memoryview:
        """A new file of `size` bytes, writable through the view; its space is reserved: no later write fails."""
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


class RealDisk:
    """A folder of the operating system's, made if need be. Files are 0600."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def list(self) -> dict[str, int]:
        with os.scandir(self.folder) as entries:
            return {entry.name: entry.stat().st_size for entry in entries if entry.is_file(follow_symlinks=False)}

    def write(self, name: str, content: Buffer) -> None:
        fd = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            write_all(fd, content)
        finally:
            os.close(fd)

    def create(self, name: str, size: int) -> memoryview:
        # Without the reservation a full disk would show as SIGBUS on some later store, which ends the process.
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            return memoryview(mmap.mmap(fd, size))
        finally:
            os.close(fd)

    def read(self, name: str) -> memoryview:
        with open(self.folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < MAPPED_BYTES:
                return memoryview(file.read())
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))

    def fsync(self, name: str) -> None:
        sync(self.folder / name, os.O_RDONLY)

    def rename(self, old: str, new: str) -> None:
        os.replace(self.folder / old, self.folder / new)

    def fsync_dir(self) -> None:
        sync(self.folder, os.O_RDONLY | os.O_DIRECTORY)

    def unlink(self, name: str) -> None:
        os.unlink(self.folder / name)


def write_all(fd: int, content: Buffer) -> None:
    """Every byte: one write(2) takes at most 2 GiB, and less when the disk fills."""
    rest = memoryview(content)
    while len(rest):
        rest = rest[os.write(fd, rest) :]


def sync(path: Path, flags: int) -> None:
    """What the kernel holds of this file or folder is on the disk afterwards."""
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
