"""A state folder that is only looked at: evidence, or a copy of somebody's. Nothing in it is made, changed or removed.

Not here: what is looked for (gossipfl.replay, gossipfl.recompute).
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

from gossipfl.digest import Buffer
from gossipfl.store.disk import RealDisk
from gossipfl.store.errors import border
from gossipfl.store.files import TEMPORARY
from gossipfl.store.rows import SqliteRows


class ReadDisk(RealDisk):
    """Temporary files are not seen, so that nobody removes them."""

    MADE = False

    def list(self) -> dict[str, int]:
        if not self.folder.exists():
            return {}
        return {name: size for name, size in super().list().items() if not name.endswith(TEMPORARY)}

    def write(self, name: str, content: Buffer) -> None:
        self._refuse()

    def create(self, name: str, size: int, *, passing: bool = False) -> memoryview:
        self._refuse()

    def rename(self, old: str, new: str) -> None:
        self._refuse()

    def unlink(self, name: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


class CopiedRows(SqliteRows):
    """The rows of a folder, read in a copy: SQLite writes beside what it opens, even to read it."""

    def __init__(self, folder: Path) -> None:
        self._copy = TemporaryDirectory(prefix="gossipfl-")
        try:
            with border(f"copy the rows of {folder}"):
                for file in folder.glob("rows.*"):
                    if file.is_file() and not file.name.endswith("-shm"):
                        shutil.copyfile(file, Path(self._copy.name) / file.name)
            super().__init__(Path(self._copy.name) / "rows.sqlite")
        except BaseException:
            self._copy.cleanup()
            raise

    def close(self) -> None:
        super().close()
        self._copy.cleanup()
