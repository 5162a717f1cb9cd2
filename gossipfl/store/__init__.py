"""Durable state of one node: rows that may never go back, and tensors by name. One door: `Store`.

Not here: what any of it means (the core's), keys and certificates (trust's). There is one real store, on a folder, and
one modelled, in memory, that forgets at a crash what a real disk may forget.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from types import TracebackType
from typing import Final

from gossipfl.errors import Misuse
from gossipfl.store.disk import RealDisk
from gossipfl.store.errors import ROTTED, Damaged, Missing, StateError, border
from gossipfl.store.files import KEPT_BYTES, Files
from gossipfl.store.folder import FORMAT, claim, look
from gossipfl.store.incoming import Incoming
from gossipfl.store.looking import CopiedRows, ReadDisk
from gossipfl.store.modelled import Crash, ModelledDisk, ModelledRows
from gossipfl.store.rows import Change, Fact, Key, Record, Rows, SqliteRows

__all__: Final = [
    "FORMAT",
    "ROTTED",
    "Crash",
    "Damaged",
    "Files",
    "Incoming",
    "Missing",
    "ModelledDisk",
    "ModelledRows",
    "Record",
    "SqliteRows",
    "StateError",
    "Store",
]


class Store:
    """Files and rows that are committed together.

    Laws: after a crash at any point, the rows are those of the last commit that returned or of the one under way, and
    every name that a commit kept is there and sound.
    """

    def __init__(self, files: Files, rows: Rows, lock: int | None = None) -> None:
        self.files = files
        self.rows = rows
        self._lock_fd = lock
        self._one = threading.Lock()

    @classmethod
    def open(cls, folder: Path) -> Store:
        """The store in this folder, made (0700) if it is not there, locked until `close`.

        Raises: ConfigError (exit 73) if another process has it, a newer gossipfl wrote it, or it is none of ours;
        Damaged if the rows are not what was written; StateError if the disk refuses.
        """
        lock = claim(folder)
        try:
            with border(f"open the store in {folder}"):
                disk = RealDisk(folder / "blobs")
            return cls(Files(disk), SqliteRows(folder / "rows.sqlite"), lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def looking(cls, folder: Path) -> Store:
        """The store in this folder, only to be read: no file there is made, changed or removed, not even what an interrupted
        write left. Locked until `close` where it has a lock. Raises as `open` does, also where there is no store."""
        lock = look(folder)
        try:
            with border(f"read the store in {folder}"):
                files = Files(ReadDisk(folder / "blobs"))
            return cls(files, CopiedRows(folder), lock)
        except BaseException:
            if lock is not None:
                os.close(lock)
            raise

    @classmethod
    def modelled(cls, disk: ModelledDisk | None = None, kept_bytes: int = KEPT_BYTES) -> Store:
        """An empty store in memory. `kept_bytes` 0: as with large files, content is read from its disk each time."""
        disk = ModelledDisk() if disk is None else disk
        return cls(Files(disk, kept_bytes=kept_bytes), ModelledRows(disk))

    def load(self) -> dict[Key, bytes]:
        """All rows: (kind, key) -> value. Raises: Damaged."""
        return self.rows.load()

    def facts(self, after: int = 0, limit: int | None = None) -> list[Record]:
        """Facts with seq > after, oldest first. Raises: Damaged."""
        return self.rows.facts(after, limit)

    def commit(
        self,
        rows: Iterable[Change],
        keep: Iterable[bytes],
        facts: Iterable[Fact],
        wall_ns: int,
        live: AbstractSet[bytes],
    ) -> None:
        """Tensors `keep` durable, then rows and facts in one transaction, then blobs outside `live` and `keep` removed.

        On disk when it returns. Empty names are skipped.

        Raises: StateError (Missing for a name in `keep` that is not here): the rows are as they were, unless only the
        removal failed.
        """
        rows, keep, facts = tuple(rows), frozenset(keep), tuple(facts)
        with self._one:
            self.files.make_durable(keep)
            if rows or facts:
                self.rows.apply(rows, facts, wall_ns)
            self.files.remove_except(live, keep)

    def crash(self, rng: random.Random, survival: float) -> Store:
        """What a modelled store is after a loss of power (see ModelledDisk.crash); this one is not to be used again."""
        if not isinstance(self.files.disk, ModelledDisk) or not isinstance(self.rows, ModelledRows):
            raise Misuse("only a modelled store can crash")
        disk = self.files.disk.crash(rng, survival)
        return Store(Files(disk, kept_bytes=self.files.kept_bytes), self.rows.crash(disk))

    def reopened(self) -> Store:
        """A modelled store as the next process finds it when this one has ended in order: all that was written is there."""
        if not isinstance(self.files.disk, ModelledDisk) or not isinstance(self.rows, ModelledRows):
            raise Misuse("only a modelled store can be opened anew")
        disk = self.files.disk
        disk.crash_at, errors, disk.errors = None, disk.errors, 0
        self.files.close()
        disk.errors = errors
        return Store(Files(disk, kept_bytes=self.files.kept_bytes), self.rows.crash(disk))

    def close(self) -> None:
        """Volatile blobs removed, rows closed, lock released. Twice is once."""
        with self._one:
            self.files.close()
            self.rows.close()
            if self._lock_fd is not None:
                os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
