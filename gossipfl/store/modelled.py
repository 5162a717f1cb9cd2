"""A disk and rows in memory that forget, at a crash, what a real disk may forget. For the simulator and for tests.

What the model says: content is safe after `fsync` of the file, names after `fsync_dir`; before that each change of the
folder and each file's content may survive or not, on its own, and content may be torn. A commit of rows is one atomic
step, done or not done: SQLite's inside is tested by killing real processes.
"""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any, Final, Literal

from gossipfl.digest import Buffer
from gossipfl.store.errors import AFRESH, Damaged, StateError, explain
from gossipfl.store.rows import Change, Fact, Key, Record, checked, encode_fields

Fate = Literal["lost", "torn", "kept"]
FATES: Final[tuple[Fate, ...]] = ("lost", "torn", "kept")


class Crash(BaseException):
    """The machine stops here. No Exception, so that no handler of the program's sees it."""


class _Content:
    """One file's bytes: as they are, and as they were at the last fsync."""

    __slots__ = ("now", "synced")

    def __init__(self, now: bytes | bytearray, synced: bytes | None = None) -> None:
        self.now = now
        self.synced = synced

    def after(self, fate: Fate, cut: float = 0.5) -> bytes:
        now, old = bytes(self.now), self.synced or b""
        if fate == "torn":
            at = int(len(now) * cut)
            return now[:at] + bytes(len(now) - at)
        return now if fate == "kept" else old


_Change = tuple[str | None, str | None, _Content | None]
"""(name that goes, name that comes, its content)"""


class ModelledDisk:
    """The `Disk` of gossipfl.store.disk, in memory.

    `crash_at`: the step (see `steps`) before which `Crash` is raised. `capacity`: bytes until OSError(ENOSPC). `full`: now,
    whatever the capacity. `errors`: so many of the next steps fail with OSError(EIO).
    """

    def __init__(self, content: dict[str, bytes] | None = None, *, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.crash_at: int | None = None
        self.full = False
        self.errors = 0
        self.steps = 0
        self._safe = {name: _Content(data, data) for name, data in (content or {}).items()}
        self._now = dict(self._safe)
        self._pending: list[_Change] = []

    def step(self) -> None:
        """One more thing is about to be done to the disk."""
        if self.steps == self.crash_at:
            raise Crash(f"at step {self.steps}")
        self.steps += 1
        if self.errors:
            self.errors -= 1
            raise OSError(errno.EIO, "input/output error")

    def list(self) -> dict[str, int]:
        return {name: len(content.now) for name, content in self._now.items()}

    def write(self, name: str, content: Buffer) -> None:
        self.step()
        self.reserve(name, len(content))
        self._come(name, _Content(bytes(content)))

    def create(self, name: str, size: int, *, passing: bool = False) -> memoryview:
        self.step()
        self.reserve(name, size)
        content = bytearray(size)
        self._come(name, _Content(content))
        return memoryview(content)

    def writer(self, name: str) -> None:
        return None

    def read(self, name: str) -> memoryview:
        return memoryview(self._find(name).now).toreadonly()

    def begin_fsync(self, name: str) -> None:
        """Nothing yet: what a crash may forget does not depend on when the disk began."""

    def fsync(self, name: str) -> None:
        self.step()
        content = self._find(name)
        content.synced = bytes(content.now)

    def rename(self, old: str, new: str) -> None:
        self.step()
        content = self._now[new] = self._go(old)
        self._pending.append((old, new, content))

    def fsync_dir(self) -> None:
        self.step()
        _enact(self._safe, self._pending)
        self._pending.clear()

    def unlink(self, name: str) -> None:
        self.step()
        self._go(name)
        self._pending.append((name, None, None))

    def close(self) -> None:
        """Nothing is kept for later."""

    def images(self) -> Iterator[ModelledDisk]:
        """Every disk that may be found after a crash now. Exponential in what is pending: for small tests."""
        for survives in product((False, True), repeat=len(self._pending)):
            names = self._survivors(survives)
            unsafe = sorted(name for name, content in names.items() if content.synced is None or _changed(content))
            for fates in product(FATES, repeat=len(unsafe)):
                yield self._image(names, dict(zip(unsafe, fates, strict=True)))

    def crash(self, rng: random.Random, survival: float) -> ModelledDisk:
        """One of these: each pending change and content survives with probability `survival`; else lost or torn.

        Randomness: one draw per pending change, then up to three per file.
        """
        names = self._survivors([rng.random() < survival for _ in self._pending])
        image = {}
        for name, content in sorted(names.items()):
            fate: Fate = "kept" if rng.random() < survival else "torn" if rng.random() < 0.5 else "lost"
            safe = content.synced is not None and not _changed(content)
            image[name] = content.after("kept" if safe else fate, rng.random())
        found = ModelledDisk(image, capacity=self.capacity)
        found.full = self.full
        return found

    def flip(self, name: str, bit: int) -> None:
        """Bit rot: one bit of a file's content, at rest."""
        content = self._find(name)
        data = bytearray(content.now)
        data[bit // 8] ^= 1 << bit % 8
        content.now, content.synced = bytes(data), bytes(data)

    def _come(self, name: str, content: _Content) -> None:
        self._now[name] = content
        self._pending.append((None, name, content))

    def _go(self, name: str) -> _Content:
        content = self._find(name)
        del self._now[name]
        return content

    def _survivors(self, survives: Iterable[bool]) -> dict[str, _Content]:
        names = dict(self._safe)
        _enact(names, (change for change, lives in zip(self._pending, survives, strict=True) if lives))
        return names

    def _image(self, names: dict[str, _Content], fates: dict[str, Fate]) -> ModelledDisk:
        content = {name: content.after(fates.get(name, "kept")) for name, content in names.items()}
        return ModelledDisk(content, capacity=self.capacity)

    def _find(self, name: str) -> _Content:
        found = self._now.get(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", name)
        return found

    def reserve(self, name: str, size: int) -> None:
        """Is there space for so many bytes more? Raises: OSError(ENOSPC)."""
        if self.full:
            raise OSError(errno.ENOSPC, "no space left on device", name)
        used = sum(self.list().values()) if self.capacity is not None else 0
        if self.capacity is not None and used + size > self.capacity:
            raise OSError(errno.ENOSPC, "no space left on device", name)


def _enact(names: dict[str, _Content], changes: Iterable[_Change]) -> None:
    for old, new, content in changes:
        if old is not None:
            names.pop(old, None)
        if new is not None and content is not None:
            names[new] = content


def _changed(content: _Content) -> bool:
    return content.synced != content.now


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
"""JSON says these, and gives them back."""


def _sayable(fact: Fact) -> Mapping[str, Any]:
    """The fields as they come back from JSON. Raises: Misuse if JSON cannot say them."""
    fields = fact.fields
    if _PLAIN.issuperset(map(type, fields.values())):
        return fields
    said: dict[str, Any] = json.loads(encode_fields(fact))
    return said


class ModelledRows:
    """Rows and facts in memory. `disk`, if given, counts each commit as one of its steps."""

    def __init__(self, disk: ModelledDisk | None = None) -> None:
        self.disk = disk
        self.damaged = False
        """has a bit flipped in them, at rest? Found when they are next read"""
        self._rows: dict[Key, bytes] = {}
        self._facts: list[tuple[int, int, str, Mapping[str, Any]]] = []

    def apply(self, rows: Iterable[Change], facts: Iterable[Fact], wall_ns: int) -> None:
        changes = checked(rows)
        first = len(self._facts) + 1
        said = [(seq, wall_ns, fact.kind, _sayable(fact)) for seq, fact in enumerate(facts, first)]
        if self.disk is not None:
            try:
                self.disk.step()
                self.disk.reserve("rows", 0)
            except OSError as error:
                raise StateError(explain("commit rows", error)) from error
        for key, value in changes.items():
            if value is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = value
        self._facts += said

    def load(self) -> dict[Key, bytes]:
        if self.damaged:
            raise Damaged(f"a row is not what was written there -- {AFRESH}")
        return dict(self._rows)

    def facts(self, after: int = 0, limit: int | None = None) -> list[Record]:
        found = self._facts[max(0, after) :][:limit]
        return [Record(seq, wall_ns, kind, dict(fields)) for seq, wall_ns, kind, fields in found]

    def crash(self, disk: ModelledDisk | None = None) -> ModelledRows:
        """What is found after a crash: every commit that was done."""
        found = ModelledRows(disk)
        found._rows, found._facts, found.damaged = dict(self._rows), list(self._facts), self.damaged
        return found

    def close(self) -> None:
        pass
