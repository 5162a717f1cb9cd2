"""Durable rows and the log of facts in SQLite: every change is one transaction, every value is checked when read.

Not here: what a row means, and files of tensors. SQLite has no page checksums, so each row carries one over key and
content, and one *seal* over all of them says how many there are: a row that vanished shows as surely as one that
changed. A flipped bit in the write-ahead log makes SQLite drop the last transactions without a word; therefore the
number of the last commit also stands in a small file beside it, and rows that are older than that are refused.
"""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, Protocol

from gossipfl.errors import Misuse
from gossipfl.store.errors import AFRESH, Damaged, Gone, StateError, border

FACTS: Final = 1_000_000
"""Facts kept, the newest: some weeks of a busy node and a few hundred MB. Their numbers show what was dropped."""

_TABLES: Final = (
    "CREATE TABLE rows (kind TEXT, key TEXT, value BLOB, checksum BLOB, PRIMARY KEY (kind, key)) WITHOUT ROWID",
    "CREATE TABLE facts (seq INTEGER PRIMARY KEY, wall_ns INTEGER, kind TEXT, fields TEXT, checksum BLOB)",
    "CREATE TABLE seal (id INTEGER PRIMARY KEY, commits INTEGER, rows INTEGER, mixed BLOB, first INTEGER, "
    "last INTEGER, checksum BLOB)",
)

Key = tuple[str, str]
Change = tuple[str, str, bytes | None]


class Fact(Protocol):
    """What a Note of the core is: a kind, and fields that JSON can say."""

    @property
    def kind(self) -> str: ...

    @property
    def fields(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One fact as it stands in the log; `seq` counts from 1 without a gap."""

    seq: int
    wall_ns: int
    kind: str
    fields: dict[str, Any]


class Rows(Protocol):
    """What the store needs of rows; here SQLite, in gossipfl.store.modelled a dictionary."""

    def apply(self, rows: Iterable[Change], facts: Iterable[Fact], wall_ns: int) -> None:
        """One transaction, on disk afterwards: rows set (None: deleted), facts appended."""
        ...

    def load(self) -> dict[Key, bytes]: ...

    def facts(self, after: int = 0, limit: int | None = None) -> list[Record]:
        """Facts with seq > after, oldest first."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Seal:
    commits: int = 0
    rows: int = 0
    mixed: bytes = bytes(16)
    """exclusive or of the checksums of all rows"""
    first: int = 1
    last: int = 0

    def checksum(self) -> bytes:
        return checksum("seal", self.commits, self.rows, self.mixed, self.first, self.last)

    def swap(self, old: bytes | None, new: bytes | None) -> _Seal:
        """The seal after one row's checksum went from old to new (None: no such row)."""
        mixed = int.from_bytes(self.mixed) ^ int.from_bytes(old or b"") ^ int.from_bytes(new or b"")
        return replace(self, rows=self.rows + (new is not None) - (old is not None), mixed=mixed.to_bytes(16))


def checksum(*parts: str | int | bytes) -> bytes:
    """16 bytes of BLAKE2b over the parts, each with its type and length. Against accidents, not against an attacker."""
    state = blake2b(digest_size=16)
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        state.update(struct.pack(">cQ", type(part).__name__[:1].encode(), len(data)))
        state.update(data)
    return state.digest()


def checked(rows: Iterable[Change]) -> dict[Key, bytes | None]:
    """The changes by key, the last one of a key. Raises: Misuse for what is not (text, text, bytes or None)."""
    changes = {}
    for kind, key, value in rows:
        if type(kind) is not str or type(key) is not str or not (value is None or type(value) is bytes):
            raise Misuse(f"row {kind!r}/{key!r} is not (str, str, bytes or None)")
        changes[kind, key] = value
    return changes


_json: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def encode_fields(fact: Fact) -> str:
    """The fields as JSON. Raises: Misuse if JSON cannot say them."""
    try:
        return _json.encode(dict(fact.fields))
    except (TypeError, ValueError) as error:
        raise Misuse(
            f"fact {fact.kind!r} has fields that JSON cannot say: {error}; note names, numbers, text"
        ) from error


class SqliteRows:
    """Rows in one SQLite file: WAL, synchronous=FULL, one writer (the caller holds the lock of the folder).

    Raises: Damaged if what stands there is not what was written; StateError if it cannot be opened.
    """

    def __init__(self, path: Path, *, keep_facts: int = FACTS) -> None:
        self.path = path
        self._keep_facts = keep_facts
        self._lock = threading.Lock()
        self._failed = ""
        self._written: tuple[tuple[int, int], ...] = ()
        """which files are written to: they stay open, so that their names may be gone"""
        with border(f"open {path}"):
            self._head = os.open(path.with_suffix(".head"), os.O_RDWR | os.O_CREAT, 0o600)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            try:
                self._seal = self._open()
                self._checksums = {key: checksum(*key, value) for key, value in self._read().items()}
            except BaseException:
                self._db.close()
                raise
        except BaseException:
            os.close(self._head)
            raise

    def apply(self, rows: Iterable[Change], facts: Iterable[Fact], wall_ns: int) -> None:
        """One transaction. Raises: StateError; then nothing of it is to be seen, and no later one is accepted."""
        changes = checked(rows)
        sums = {key: None if value is None else checksum(*key, value) for key, value in changes.items()}
        with self._lock:
            if self._failed:
                raise StateError(f"the store stopped after an earlier failure: {self._failed}")
            self._require_there()
            seal = replace(self._seal, commits=self._seal.commits + 1)
            for key, new in sums.items():
                seal = seal.swap(self._checksums.get(key), new)
            records = [
                (seq, wall_ns, fact.kind, encode_fields(fact)) for seq, fact in enumerate(facts, self._seal.last + 1)
            ]
            last = seal.last + len(records)
            seal = replace(seal, last=last, first=max(seal.first, last - self._keep_facts + 1))
            try:
                self._write(changes, sums, records, seal)
            except (sqlite3.Error, OverflowError) as error:
                self._failed = str(error)
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise StateError(_cause(self.path, error)) from error
            self._seal = seal
            for key, new in sums.items():
                if new is None:
                    self._checksums.pop(key, None)
                else:
                    self._checksums[key] = new
            self._note_head()
            self._written = self._written or self._there()

    def load(self) -> dict[Key, bytes]:
        """All rows, each checked, and all of them against the seal. Raises: Damaged."""
        with self._lock:
            return self._read()

    def facts(self, after: int = 0, limit: int | None = None) -> list[Record]:
        """Facts with seq > after, oldest first, each checked. Raises: Damaged."""
        query = "SELECT seq, wall_ns, kind, fields, checksum FROM facts WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._lock:
            due = max(after + 1, self._seal.first)
            count = max(0, self._seal.last - due + 1)
            count = count if limit is None else min(count, limit)
            with self._reading():
                found = self._db.execute(query, (due - 1, count)).fetchall()
        self._expect([row[0] for row in found] == list(range(due, due + count)), "the log of facts has a gap")
        for *content, stored in found:
            self._expect(_plain(content, (int, int, str, str)), "a fact is not of its type")
            self._expect(checksum(*content) == stored, f"fact {content[0]} fails its checksum")
        return [Record(seq, wall_ns, kind, json.loads(fields)) for seq, wall_ns, kind, fields, _ in found]

    def close(self) -> None:
        with self._lock:
            self._failed = self._failed or "it is closed"
            with suppress(sqlite3.Error):  # nothing is lost: the write-ahead log stays
                self._db.close()
            if self._head >= 0:
                os.close(self._head)
            self._head = -1

    # ---- inside ----------------------------------------------------------------------------------------------------

    def _open(self) -> _Seal:
        with self._reading():
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            pages = self._db.execute("PRAGMA quick_check(1)").fetchall()
            self._expect(pages == [("ok",)], f"SQLite finds {pages}")
            head = self._read_head()
            tables = self._db.execute("SELECT sql FROM sqlite_master ORDER BY rowid").fetchall()
            if not tables:
                self._expect(head == 0, "all rows are gone")
                self._create()
            self._expect(tables in ([], [(table,) for table in _TABLES]), "the tables are not ours")
            seal = self._read_seal()
            self._expect(seal.commits >= head, f"rows of commit {seal.commits} where commit {head} was done")
            facts = self._db.execute("SELECT count(*), min(seq), max(seq) FROM facts").fetchone()
            due = seal.last - seal.first + 1
            self._expect(facts == ((due, seal.first, seal.last) if due else (0, None, None)), "facts are missing")
            return seal

    def _there(self) -> tuple[tuple[int, int], ...]:
        """Which files stand under the names of the rows and their log now; none where one is gone."""
        with suppress(FileNotFoundError):
            found = (os.stat(f"{self.path}{end}") for end in ("", "-wal"))
            return tuple((one.st_dev, one.st_ino) for one in found)
        return ()

    def _require_there(self) -> None:
        """Raises: Gone where what was written now would be found by nobody: SQLite itself goes on without a word."""
        if self._written and self._there() != self._written:
            self._failed = f"{self.path}, or its log beside it, has been removed or replaced while the node ran"
            raise Gone(f"{self._failed} -- if it was only moved, move it back as it is; else {AFRESH}")

    def _create(self) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for table in _TABLES:
            self._db.execute(table)
        self._put_seal(_Seal())
        self._db.execute("COMMIT")

    def _write(
        self,
        changes: Mapping[Key, bytes | None],
        sums: Mapping[Key, bytes | None],
        records: list[tuple[int, int, str, str]],
        seal: _Seal,
    ) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        for key, value in changes.items():
            if value is None:
                self._db.execute("DELETE FROM rows WHERE kind = ? AND key = ?", key)
            else:
                self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?)", (*key, value, sums[key]))
        self._db.executemany(
            "INSERT INTO facts VALUES (?, ?, ?, ?, ?)", [(*record, checksum(*record)) for record in records]
        )
        self._db.execute("DELETE FROM facts WHERE seq < ?", (seal.first,))
        self._put_seal(seal)
        self._db.execute("COMMIT")

    def _put_seal(self, seal: _Seal) -> None:
        values = (seal.commits, seal.rows, seal.mixed, seal.first, seal.last, seal.checksum())
        self._db.execute("INSERT OR REPLACE INTO seal VALUES (0, ?, ?, ?, ?, ?, ?)", values)

    def _read_seal(self) -> _Seal:
        found = self._db.execute("SELECT * FROM seal").fetchall()
        self._expect(len(found) == 1, "the seal is gone")
        _, *content, stored = found[0]
        self._expect(_plain(content, (int, int, bytes, int, int)), "the seal is not of its type")
        seal = _Seal(*content)
        self._expect(seal.checksum() == stored, "the seal fails its checksum")
        return seal

    def _read(self) -> dict[Key, bytes]:
        rows: dict[Key, bytes] = {}
        seal = _Seal()
        with self._reading():
            for *content, stored in self._db.execute("SELECT kind, key, value, checksum FROM rows"):
                self._expect(_plain(content, (str, str, bytes)), "a row is not of its type")
                kind, key, value = content
                self._expect(checksum(kind, key, value) == stored, f"row {kind}/{key} fails its checksum")
                rows[kind, key] = value
                seal = seal.swap(None, stored)
        self._expect((seal.rows, seal.mixed) == (self._seal.rows, self._seal.mixed), "rows are missing or repeated")
        return rows

    def _expect(self, holds: bool, what: str) -> None:
        if not holds:
            raise Damaged(f"{self.path} is damaged: {what} -- {AFRESH}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            if _is_surroundings(error):
                raise StateError(_cause(self.path, error)) from error
            raise Damaged(f"{self.path} is damaged: {error} -- {AFRESH}") from error
        except UnicodeError as error:  # of a name inside one of SQLite's own messages, too
            raise Damaged(f"{self.path} is damaged: {error} -- {AFRESH}") from error

    def _note_head(self) -> None:
        """No fsync: written after the commit it can only lag behind, and a killed process does not lose it."""
        with suppress(OSError):  # a witness less, no harm
            os.pwrite(self._head, struct.pack(">Q16s", self._seal.commits, checksum("head", self._seal.commits)), 0)

    def _read_head(self) -> int:
        """0 if there is none or it is torn: it witnesses against the rows only when it is sound."""
        data = os.pread(self._head, 24, 0)
        if len(data) < 24:
            return 0
        commits, stored = struct.unpack(">Q16s", data)
        return int(commits) if stored == checksum("head", commits) else 0


def _plain(values: list[Any], types: tuple[type, ...]) -> bool:
    return tuple(map(type, values)) == types


def _is_surroundings(error: sqlite3.Error) -> bool:
    """Is the fault around the file (space, permission, another process) and not in it?"""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM,
    )  # fmt: skip


def _cause(path: Path, error: Exception) -> str:
    remedy = "check space, permissions and the health of the disk, then start the node again; nothing was half-written"
    return f"cannot use {path}: {error} -- {remedy}"
