"""One payload that arrives in chunks: where the next one goes, and when it is whole. Proofs are the session's."""

from __future__ import annotations

from typing import Protocol

from gossipfl.digest import CHUNK, Buffer, chunk_count
from gossipfl.errors import Misuse
from gossipfl.store.errors import Missing


class Home(Protocol):
    """Where a payload ends up: gossipfl.store.files.Files."""

    def complete(self, partial: Incoming, buffer: memoryview, pinned: bool) -> None: ...

    def take(self, name: bytes, pinned: bool) -> bool: ...

    def discard(self, scratch: memoryview) -> None: ...


class Incoming:
    """A payload that arrives chunk by chunk, each proven by the caller before it is written here.

    It outlives the session that began it: the next one goes on at `next_chunk`. Two sessions may bring the same payload
    at once: what is here already is passed over.
    """

    def __init__(self, home: Home, root: bytes, size: int, buffer: memoryview | None) -> None:
        self.root = root
        self.size = size
        self.count = chunk_count(size)
        self.done = buffer is None
        self.next_chunk = self.count if self.done else 0
        self._home = home
        self._buffer = buffer

    def write(self, index: int, chunk: Buffer) -> None:
        """Chunk `index`, which must be `next_chunk` or one before it.

        Raises: Misuse for a gap or a wrong length; Missing if it was abandoned.
        """
        start = index * CHUNK
        if not 0 <= index <= self.next_chunk or index >= self.count or len(chunk) != min(CHUNK, self.size - start):
            raise Misuse(f"chunk {index} of {len(chunk)} bytes where chunk {self.next_chunk} of {self.count} is due")
        if index < self.next_chunk:
            return
        self._held()[start : start + len(chunk)] = chunk
        self.next_chunk += 1

    def finish(self, *, pinned: bool = False) -> bytes:
        """The name of the payload, which is now a volatile blob; not hashed again.

        Raises: Misuse if chunks lack; Missing if it was abandoned.
        """
        if self.next_chunk < self.count:
            raise Misuse(f"payload finished with chunk {self.next_chunk} of {self.count} still due")
        if not self.done:
            self._home.complete(self, self._held(), pinned)
            self.done, self._buffer = True, None
        elif not self._home.take(self.root, pinned):
            raise Missing(f"payload {self.root.hex()} was removed meanwhile; ask for it again")
        return self.root

    def drop(self) -> None:
        if self._buffer is not None:
            self._home.discard(self._buffer)
        self._buffer = None

    def _held(self) -> memoryview:
        if self._buffer is None:
            raise Missing(f"payload {self.root.hex()} was abandoned; ask for it again")
        return self._buffer
